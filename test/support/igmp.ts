/** Frames of IGMP, MLD and PIM as hosts and routers send them, and of data for groups. */
import { isIPv4 } from 'node:net';
import { ipNumber } from '../../src/ports/addresses.ts';

/** The bytes of an IPv4 or IPv6 address. */
export function ipBytes(text: string): Buffer {
  const { bits, value } = ipNumber(text)!;
  return Buffer.from(value.toString(16).padStart(bits / 4, '0'), 'hex');
}

/** The MAC of a group (RFC 1112, 6.4; RFC 2464, 7). */
export function groupMac(group: string): Buffer {
  const bytes = ipBytes(group);
  if (bytes.length === 16) return Buffer.concat([Buffer.from([0x33, 0x33]), bytes.subarray(12)]);
  return Buffer.from([1, 0, 0x5e, bytes[1]! & 0x7f, bytes[2]!, bytes[3]!]);
}

function sum(...parts: Buffer[]): number {
  let total = 0;
  for (const part of parts)
    for (let i = 0; i < part.length; i += 2) total += (part[i]! << 8) | (part[i + 1] ?? 0);
  while (total > 0xffff) total = (total & 0xffff) + (total >>> 16);
  return ~total & 0xffff;
}

const u16 = (value: number) => Buffer.from([value >>> 8, value & 255]);

/** A frame to a group with a packet of IP in it, padded to the shortest length of Ethernet. */
export function groupFrame(
  from: Buffer,
  source: string,
  target: string,
  protocol: number,
  payload: Buffer,
  { options = Buffer.alloc(0), hops = 1, to = groupMac(target) } = {},
): Buffer {
  const addresses = [ipBytes(source), ipBytes(target)];
  let packet: Buffer;
  if (isIPv4(target)) {
    const header = Buffer.concat([
      Buffer.from([0x45 + options.length / 4, 0xc0]),
      u16(20 + options.length + payload.length),
      Buffer.from([0, 0, 0x40, 0, hops, protocol, 0, 0]),
      ...addresses,
      options,
    ]);
    header.writeUInt16BE(sum(header), 10);
    packet = Buffer.concat([header, payload]);
  } else {
    // Options stand in a hop-by-hop header.
    const extension = options.length > 0 ? Buffer.concat([Buffer.from([protocol, 0]), options]) : options;
    const header = Buffer.from([0x60, 0, 0, 0, 0, 0, options.length > 0 ? 0 : protocol, hops]);
    header.writeUInt16BE(extension.length + payload.length, 4);
    packet = Buffer.concat([header, ...addresses, extension, payload]);
  }
  const bytes = Buffer.concat([to, from, isIPv4(target) ? u16(0x0800) : u16(0x86dd), packet]);
  return bytes.length >= 60 ? bytes : Buffer.concat([bytes, Buffer.alloc(60 - bytes.length)]);
}

const ROUTER_ALERT = Buffer.from([0x94, 4, 0, 0]);
const ROUTER_ALERT_6 = Buffer.from([5, 2, 0, 0, 1, 0]);

/** A message of IGMP, its checksum done. */
export function igmp(from: Buffer, source: string, target: string, message: Buffer): Buffer {
  message.writeUInt16BE(sum(message), 2);
  return groupFrame(from, source, target, 2, message, { options: ROUTER_ALERT });
}

/** A message over IPv6 whose checksum is at 2: MLD, unless `protocol` says otherwise. */
export function mld(
  from: Buffer,
  source: string,
  target: string,
  message: Buffer,
  { protocol = 58, hops = 1, options = ROUTER_ALERT_6 } = {},
): Buffer {
  const pseudo = Buffer.concat([ipBytes(source), ipBytes(target), Buffer.alloc(8)]);
  pseudo.writeUInt32BE(message.length, 32);
  pseudo[39] = protocol;
  message.writeUInt16BE(sum(pseudo, message), 2);
  return groupFrame(from, source, target, protocol, message, { options, hops });
}

const eight = (type: number, code: number, group: string) =>
  Buffer.concat([Buffer.from([type, code, 0, 0]), ipBytes(group)]);

export interface QueryOptions {
  /** Of IGMP and MLD; default 2, 1. */
  version?: number;
  group?: string;
  /** The code as it stands in the message: tenths of seconds, milliseconds. */
  wait?: number;
  robustness?: number;
  interval?: number;
  quiet?: boolean;
  sources?: string[];
}

const extended = ({ robustness = 2, interval = 125, quiet = false, sources = [] }: QueryOptions) =>
  Buffer.concat([
    Buffer.from([robustness | (quiet ? 8 : 0), interval]),
    u16(sources.length),
    ...sources.map(ipBytes),
  ]);

/** A query of IGMP, by version 2 unless it says otherwise. */
export function igmpQuery(from: Buffer, source: string, options: QueryOptions = {}): Buffer {
  const { version = 2, group = '0.0.0.0', wait = version === 1 ? 0 : 100 } = options;
  const message = eight(0x11, wait, group);
  const whole = version === 3 ? Buffer.concat([message, extended(options)]) : message;
  return igmp(from, source, group === '0.0.0.0' ? '224.0.0.1' : group, whole);
}

/** A report of IGMPv2, or with `version` 1 of IGMPv1. */
export const igmpReport = (from: Buffer, group: string, version = 2): Buffer =>
  igmp(from, '10.0.0.9', group, eight(version === 1 ? 0x12 : 0x16, 0, group));

export const igmpLeave = (from: Buffer, group: string): Buffer =>
  igmp(from, '10.0.0.9', '224.0.0.2', eight(0x17, 0, group));

export interface GroupRecord {
  type: number;
  group: string;
  sources?: string[];
  /** Words of auxiliary data. */
  aux?: number;
}

/** The records of a report (RFC 3376, 4.2; RFC 3810, 5.2). */
const recordBytes = (records: GroupRecord[]) =>
  records.map(({ type, group, sources = [], aux = 0 }) =>
    Buffer.concat([
      Buffer.from([type, aux]),
      u16(sources.length),
      ipBytes(group),
      ...sources.map(ipBytes),
      Buffer.alloc(4 * aux),
    ]),
  );

const reportMessage = (type: number, records: GroupRecord[]) =>
  Buffer.concat([Buffer.from([type, 0, 0, 0, 0, 0]), u16(records.length), ...recordBytes(records)]);

export const igmp3Report = (from: Buffer, ...records: GroupRecord[]): Buffer =>
  igmp(from, '10.0.0.9', '224.0.0.22', reportMessage(0x22, records));

const LINK_LOCAL = 'fe80::9';

/** A query of MLD, by version 1 unless it says otherwise. */
export function mldQuery(from: Buffer, source: string, options: QueryOptions = {}): Buffer {
  const { version = 1, group = '::', wait = 10_000 } = options;
  const message = Buffer.concat([Buffer.from([130, 0, 0, 0]), u16(wait), u16(0), ipBytes(group)]);
  const whole = version === 2 ? Buffer.concat([message, extended(options)]) : message;
  return mld(from, source, group === '::' ? 'ff02::1' : group, whole);
}

const mldMessage = (type: number, group: string) =>
  Buffer.concat([Buffer.from([type, 0, 0, 0, 0, 0, 0, 0]), ipBytes(group)]);

export const mldReport = (from: Buffer, group: string): Buffer =>
  mld(from, LINK_LOCAL, group, mldMessage(131, group));
export const mldDone = (from: Buffer, group: string): Buffer =>
  mld(from, LINK_LOCAL, 'ff02::2', mldMessage(132, group));
export const mld2Report = (from: Buffer, ...records: GroupRecord[]): Buffer =>
  mld(from, LINK_LOCAL, 'ff02::16', reportMessage(143, records));

/** A datagram of UDP for a group. */
export const groupData = (from: Buffer, group: string, salt = 0): Buffer =>
  groupFrame(
    from,
    isIPv4(group) ? '10.0.0.8' : 'fe80::8',
    group,
    17,
    Buffer.from([0x10, 0, 0x10, 0, 0, 12, 0, 0, 1, 2, 3, salt & 255]),
  );

/** A Hello of PIM. */
export function pimHello(from: Buffer, target: '224.0.0.13' | 'ff02::d'): Buffer {
  const message = Buffer.from([0x20, 0, 0, 0, 0, 1, 0, 2, 0, 105]);
  if (target === 'ff02::d')
    return mld(from, 'fe80::1', target, message, { protocol: 103, options: Buffer.alloc(0) });
  message.writeUInt16BE(sum(message), 2);
  return groupFrame(from, '10.0.0.1', target, 103, message);
}
