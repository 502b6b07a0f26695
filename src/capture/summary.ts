/** A frame in one line, in the manner of tcpdump: who to whom, what, how long. Never throws, whatever the bytes are. */

const VLAN = 0x8100;
const SERVICE_VLAN = 0x88a8;
/** Tags that are looked behind. */
const MOST_TAGS = 4;
const TCP = 6;
const UDP = 17;
const EXTENSIONS = [0, 43, 60];
const MOST_EXTENSIONS = 8;
const FRAGMENT = 44;

const ICMP: Record<number, string> = {
  0: 'echo reply',
  3: 'unreachable',
  8: 'echo request',
  11: 'time exceeded',
};
const ICMP6: Record<number, string> = {
  1: 'unreachable', 2: 'packet too big', 3: 'time exceeded', 128: 'echo request', 129: 'echo reply',
  133: 'router solicitation', 134: 'router advertisement', 135: 'neighbour solicitation',
  136: 'neighbour advertisement', 143: 'listener report v2',
}; // biome-ignore format: a table
const FLAGS = ['F', 'S', 'R', 'P', '.', 'U', 'E', 'W'];

/** A view of bytes that ends the line where they end. */
class Cut extends Error {}

class Bytes {
  readonly all: Buffer;

  constructor(all: Uint8Array) {
    this.all = Buffer.from(all.buffer, all.byteOffset, all.byteLength);
  }

  u8(at: number): number {
    return this.#within(at, 1).readUInt8(at);
  }
  u16(at: number): number {
    return this.#within(at, 2).readUInt16BE(at);
  }
  u32(at: number): number {
    return this.#within(at, 4).readUInt32BE(at);
  }
  mac(at: number): string {
    return this.#within(at, 6)
      .toString('hex', at, at + 6)
      .replace(/..(?=.)/g, '$&:');
  }
  v4(at: number): string {
    return [...this.#within(at, 4).subarray(at, at + 4)].join('.');
  }
  v6(at: number): string {
    const bytes = this.#within(at, 16);
    const words = Array.from({ length: 8 }, (_, i) => bytes.readUInt16BE(at + 2 * i).toString(16)).join(':');
    // The first longest run of zeros, as RFC 5952 has it.
    const run = [...words.matchAll(/\b0(?::0)+\b/g)].sort((a, b) => b[0].length - a[0].length)[0];
    if (run === undefined) return words;
    const [left, right] = [words.slice(0, run.index), words.slice(run.index + run[0].length)];
    return `${left.replace(/:$/, '')}::${right.replace(/^:/, '')}`;
  }

  #within(at: number, length: number): Buffer {
    if (at + length > this.all.length) throw new Cut();
    return this.all;
  }
}

/** What the first bytes of a frame of `length` bytes say. */
export function summary(captured: Uint8Array, length: number): string {
  const bytes = new Bytes(captured);
  const said: string[] = [];
  try {
    ethernet(bytes, said);
  } catch (error) {
    if (!(error instanceof Cut)) throw error;
    said.push('[cut short]');
  }
  return `${said.join(' ')}, length ${length}`;
}

function ethernet(bytes: Bytes, said: string[]): void {
  let at = 12;
  let type = bytes.u16(at);
  for (let tags = 0; tags < MOST_TAGS && (type === VLAN || type === SERVICE_VLAN); tags++) {
    const tci = bytes.u16(at + 2);
    said.push(`vlan ${tci & 0xfff}${tci >> 13 === 0 ? '' : ` p ${tci >> 13}`},`);
    at += 4;
    type = bytes.u16(at);
  }
  at += 2;
  if (type === 0x0800) ipv4(bytes, at, said);
  else if (type === 0x86dd) ipv6(bytes, at, said);
  else if (type === 0x0806) arp(bytes, at, said);
  else {
    const what = type < 1536 ? '802.3' : `ethertype 0x${type.toString(16).padStart(4, '0')}`;
    said.push(`${bytes.mac(6)} > ${bytes.mac(0)}: ${what}`);
  }
}

function arp(bytes: Bytes, at: number, said: string[]): void {
  const operation = bytes.u16(at + 6);
  if (operation === 1) said.push(`ARP, who has ${bytes.v4(at + 24)} tell ${bytes.v4(at + 14)}`);
  else if (operation === 2) said.push(`ARP, ${bytes.v4(at + 14)} is at ${bytes.mac(at + 8)}`);
  else said.push(`ARP, operation ${operation}`);
}

function ipv4(bytes: Bytes, at: number, said: string[]): void {
  const header = (bytes.u8(at) & 15) * 4;
  const fragment = bytes.u16(at + 6) & 0x1fff;
  const ends = { version: 'IP', from: bytes.v4(at + 12), to: bytes.v4(at + 16) };
  if (fragment !== 0) said.push(`IP ${ends.from} > ${ends.to}: fragment at ${fragment * 8}`);
  else transport(bytes, at + header, bytes.u8(at + 9), bytes.u16(at + 2) - header, ends, said);
}

function ipv6(bytes: Bytes, at: number, said: string[]): void {
  const ends = { version: 'IP6', from: bytes.v6(at + 8), to: bytes.v6(at + 24) };
  let next = bytes.u8(at + 6);
  let length = bytes.u16(at + 4);
  let place = at + 40;
  for (let i = 0; i < MOST_EXTENSIONS && EXTENSIONS.includes(next); i++) {
    next = bytes.u8(place);
    const size = (bytes.u8(place + 1) + 1) * 8;
    place += size;
    length -= size;
  }
  if (next === FRAGMENT) said.push(`IP6 ${ends.from} > ${ends.to}: fragment at ${bytes.u16(place + 2) & ~7}`);
  else transport(bytes, place, next, length, ends, said);
}

interface Ends {
  version: string;
  from: string;
  to: string;
}

function transport(
  bytes: Bytes,
  at: number,
  protocol: number,
  length: number,
  ends: Ends,
  said: string[],
): void {
  const { version, from, to } = ends;
  if (protocol === TCP || protocol === UDP) {
    said.push(`${version} ${from}.${bytes.u16(at)} > ${to}.${bytes.u16(at + 2)}:`);
    if (protocol === UDP) {
      said.push(`UDP, ${bytes.u16(at + 4) - 8} bytes`);
      return;
    }
    const flags = bytes.u8(at + 13);
    const payload = length - (bytes.u8(at + 12) >> 4) * 4;
    const sequence = bytes.u32(at + 4);
    said.push(
      `Flags [${FLAGS.filter((_, bit) => flags & (1 << bit)).join('') || 'none'}],`,
      payload > 0 ? `seq ${sequence}:${(sequence + payload) >>> 0},` : `seq ${sequence},`,
      ...(flags & 16 ? [`ack ${bytes.u32(at + 8)},`] : []),
      `win ${bytes.u16(at + 14)}, ${payload} bytes`,
    );
    return;
  }
  said.push(`${version} ${from} > ${to}:`);
  if (protocol === 1) {
    const type = bytes.u8(at);
    said.push(`ICMP ${ICMP[type] ?? `type ${type}`}`);
    if (type === 0 || type === 8) said.push(`id ${bytes.u16(at + 4)} seq ${bytes.u16(at + 6)}`);
  } else if (protocol === 58) {
    const type = bytes.u8(at);
    said.push(`ICMP6 ${ICMP6[type] ?? `type ${type}`}`);
  } else {
    said.push(protocol === 2 ? 'IGMP' : `protocol ${protocol}`);
  }
}
