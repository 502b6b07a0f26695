/**
 * The frames of a run: UDP over IPv4 or IPv6, complete but for their stamps. Each has the next value of every range,
 * so the combinations that come are those of counting all ranges up together.
 */
import type { Range, Traffic } from './types.ts';

/** A frame as the data plane sends it (Frame in src/dataplane/generator.ts). */
export interface Prepared {
  /** All bytes, or those before the stamp. */
  bytes: Uint8Array;
  length: number;
  /** Where the stamp goes, and the checksum that covers it; 0: none. */
  stamp: number;
  checksum: number;
  /** Sum of all other words that the checksum covers. */
  sum: number;
}

/** Bytes of a stamp. */
export const STAMP = 16;
/** Most different frames of a port, and most values of a range. */
export const MOST_FRAMES = 65_536;
const MAX_IP = 65_535;
const IPV4 = 20;
const IPV6 = 40;
const UDP = 8;
const PATTERN = 65_600;

/** What stands in all payloads behind the stamp: bytes without regularity. */
export const pattern: Uint8Array = (() => {
  const bytes = new Uint8Array(PATTERN);
  let state = 0x2545f491;
  for (let i = 0; i < bytes.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[i] = state >>> 24;
  }
  return bytes;
})();

/** Sums of the first words of the pattern, in the byte order of this machine. */
const patternSums: Float64Array = (() => {
  const sums = new Float64Array(PATTERN / 2 + 1);
  for (let i = 0; i < PATTERN / 2; i++) sums[i + 1] = sums[i]! + pattern[2 * i]! + 256 * pattern[2 * i + 1]!;
  return sums;
})();

/** Fewest bytes of a frame with a stamp, and most. */
export function sizeBounds({ version = 4, vlan }: Traffic): { least: number; most: number } {
  const ethernet = vlan === undefined ? 14 : 18;
  const ip = version === 4 ? IPV4 : IPV6;
  return { least: ethernet + ip + UDP + STAMP, most: ethernet + MAX_IP };
}

const gcd = (a: number, b: number): number => (b === 0 ? a : gcd(b, a % b));

/** The traffic's frames in the order of sending. Throws a RangeError for a size that has no room. */
export function prepare(traffic: Required<Omit<Traffic, 'vlan'>> & Pick<Traffic, 'vlan'>): Prepared[] {
  const { least, most } = sizeBounds(traffic);
  const bad = traffic.sizes.find((size) => size < least || size > most);
  if (bad !== undefined) {
    const what = `IPv${traffic.version}${traffic.vlan ? ' behind a VLAN tag' : ''}`;
    throw new RangeError(`size ${bad}: frames with a stamp over ${what} have ${least} to ${most} bytes`);
  }
  const ranges = [
    traffic.sourceMac, traffic.destinationMac, traffic.sourceIp, traffic.destinationIp,
    traffic.sourcePort, traffic.destinationPort, ...(traffic.vlan ? [traffic.vlan] : []),
  ]; // biome-ignore format: a list
  let count = traffic.sizes.length;
  for (const range of ranges) count = Math.min((count / gcd(count, range.count)) * range.count, MOST_FRAMES);
  return Array.from({ length: count }, (_, index) => frame(traffic, index));
}

function frame(traffic: Parameters<typeof prepare>[0], index: number): Prepared {
  const value = ({ first, count }: Range) => first + BigInt(index % count);
  const length = traffic.sizes[index % traffic.sizes.length]!;
  const { version, vlan } = traffic;
  const network = vlan === undefined ? 14 : 18;
  const transport = network + (version === 4 ? IPV4 : IPV6);
  const stamp = transport + UDP;
  const bytes = Buffer.alloc(stamp);
  put(bytes, 0, 6, value(traffic.destinationMac));
  put(bytes, 6, 6, value(traffic.sourceMac));
  if (vlan !== undefined) bytes.writeUInt32BE(0x8100_0000 + Number(value(vlan)), 12);
  bytes.writeUInt16BE(version === 4 ? 0x0800 : 0x86dd, network - 2);
  const datagram = length - transport;
  let addresses: Buffer;
  if (version === 4) {
    bytes.writeUInt16BE(0x4500, network);
    bytes.writeUInt16BE(length - network, network + 2);
    bytes.writeUInt16BE(0x4000, network + 6);
    bytes.writeUInt16BE(0x4011, network + 8);
    put(bytes, network + 12, 4, value(traffic.sourceIp));
    put(bytes, network + 16, 4, value(traffic.destinationIp));
    bytes.writeUInt16LE(~fold(words(bytes.subarray(network, transport))) & 0xffff, network + 10);
    addresses = bytes.subarray(network + 12, network + 20);
  } else {
    bytes.writeUInt32BE(0x6000_0000, network);
    bytes.writeUInt16BE(datagram, network + 4);
    bytes.writeUInt16BE(0x1140, network + 6);
    put(bytes, network + 8, 16, value(traffic.sourceIp));
    put(bytes, network + 24, 16, value(traffic.destinationIp));
    addresses = bytes.subarray(network + 8, network + 40);
  }
  bytes.writeUInt16BE(Number(value(traffic.sourcePort)), transport);
  bytes.writeUInt16BE(Number(value(traffic.destinationPort)), transport + 2);
  bytes.writeUInt16BE(datagram, transport + 4);
  // RFC 768: the pseudo header has the protocol and the length; words are summed as this machine loads them.
  const swapped = (word: number) => ((word & 0xff) << 8) | (word >>> 8);
  const payload = datagram - UDP - STAMP;
  const odd = payload & 1 ? pattern[payload - 1]! : 0;
  const sum =
    words(addresses) + swapped(17) + swapped(datagram) + words(bytes.subarray(transport, stamp)) +
    patternSums[payload >>> 1]! + odd; // biome-ignore format: a sum
  return { bytes, length, stamp, checksum: transport + 6, sum: fold(sum) };
}

function put(bytes: Buffer, at: number, length: number, value: bigint): void {
  bytes.write(BigInt.asUintN(8 * length, value).toString(16).padStart(2 * length, '0'), at, 'hex'); // biome-ignore format: short
}

/** Sum of little-endian 16-bit words. */
function words(bytes: Buffer): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += bytes.readUInt16LE(i);
  return sum;
}

function fold(sum: number): number {
  while (sum > 0xffff) sum = (sum % 0x1_0000) + Math.floor(sum / 0x1_0000);
  return sum;
}
