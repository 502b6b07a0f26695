/**
 * Queries of IGMPv3 (RFC 3376, 4.1) and MLDv2 (RFC 3810, 5.1) as frames, by which the switch itself asks hosts what
 * groups they are in. Hosts of older versions take them for their own.
 */
import { ipNumber } from '../ports/addresses.ts';

export type Family = 'IPv4' | 'IPv6';

/** Seconds between two general queries, and in which hosts answer one; how many queries may be lost. */
export const QUERY_INTERVAL = 125;
export const RESPONSE_INTERVAL = 10;
const ROBUSTNESS = 2;
/** Bytes of the shortest frame of Ethernet, without its checksum. */
const SHORTEST = 60;

const u16 = (value: number) => [value >>> 8, value & 0xff];

/** The Internet checksum (RFC 1071) of an even number of bytes. */
function checksum(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += (bytes[i]! << 8) | bytes[i + 1]!;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

/** The bytes of an address of IPv4 or IPv6. */
function addressBytes(text: string): Buffer {
  const { bits, value } = ipNumber(text)!;
  return Buffer.from(value.toString(16).padStart(bits / 4, '0'), 'hex');
}

/** The link-local address made from a MAC (RFC 4291, appendix A). */
export function linkLocal(mac: Uint8Array): Buffer {
  const id = Buffer.from([...mac.subarray(0, 3), 0xff, 0xfe, ...mac.subarray(3)]);
  id[0]! ^= 2;
  return Buffer.concat([Buffer.from([0xfe, 0x80, 0, 0, 0, 0, 0, 0]), id]);
}

/**
 * A query that is answered within `wait` seconds (up to 12): for one group, or a general one. It is from the address of
 * a switch that has none: 0.0.0.0 (RFC 4541, 2.1.1), over IPv6 the link-local one of `mac`. `tag` stands before it.
 */
export function query(
  family: Family,
  mac: Uint8Array,
  tag: Uint8Array,
  wait: number,
  group?: string,
): Buffer<ArrayBuffer> {
  return family === 'IPv4' ? igmpQuery(mac, tag, wait, group) : mldQuery(mac, tag, wait, group);
}

function igmpQuery(mac: Uint8Array, tag: Uint8Array, wait: number, group?: string): Buffer<ArrayBuffer> {
  const target = addressBytes(group ?? '224.0.0.1');
  const message = Buffer.from([0x11, wait * 10, 0, 0, 0, 0, 0, 0, ROBUSTNESS, QUERY_INTERVAL, 0, 0]);
  if (group) target.copy(message, 4);
  message.writeUInt16BE(checksum(message), 2);
  // Precedence of network control, one hop, and the option for routers (RFC 3376, 4).
  const header = Buffer.from(`46c00024000040000102000000000000${target.toString('hex')}94040000`, 'hex');
  header.writeUInt16BE(checksum(header), 10);
  const to = [0x01, 0x00, 0x5e, target[1]! & 0x7f, target[2]!, target[3]!];
  const frame = Buffer.concat([Uint8Array.from(to), mac, tag, Uint8Array.from([8, 0]), header, message]);
  return Buffer.concat([frame, Buffer.alloc(Math.max(0, SHORTEST + tag.length - frame.length))]);
}

function mldQuery(mac: Uint8Array, tag: Uint8Array, wait: number, group?: string): Buffer<ArrayBuffer> {
  const target = addressBytes(group ?? 'ff02::1');
  const message = Buffer.from([
    ...[130, 0, 0, 0, ...u16(wait * 1000), 0, 0],
    ...(group ? target : Buffer.alloc(16)),
    ...[ROBUSTNESS, QUERY_INTERVAL, 0, 0],
  ]);
  const addresses = Buffer.concat([linkLocal(mac), target]);
  const pseudo = Buffer.from([...addresses, 0, 0, ...u16(message.length), 0, 0, 0, 58]);
  message.writeUInt16BE(checksum(Buffer.concat([pseudo, message])), 2);
  // The option for routers stands in a header for each hop (RFC 2711).
  const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
  const length = hex(Uint8Array.from(u16(8 + message.length)));
  const header = Buffer.from(`60000000${length}0001${hex(addresses)}3a00050200000100`, 'hex');
  const to = Uint8Array.from([0x33, 0x33, ...target.subarray(12)]);
  return Buffer.concat([to, mac, tag, Uint8Array.from([0x86, 0xdd]), header, message]);
}
