/**
 * Blocks of a pcapng file (draft-ietf-opsawg-pcapng): written for captures of a switch, and read again as they come,
 * to be shown a line a frame.
 */

const SECTION = 0x0a0d0d0a;
const BYTE_ORDER = 0x1a2b3c4d;
const INTERFACE = 1;
const STATISTICS = 5;
const PACKET = 6;
const ETHERNET = 1;

/** Options: of any block, of a section, of an interface, of a packet, of statistics. */
const COMMENT = 1;
const SECTION_APPLICATION = 4;
const INTERFACE_NAME = 2;
const INTERFACE_RESOLUTION = 9;
const INTERFACE_FILTER = 11;
const PACKET_FLAGS = 2;
const RECEIVED = 4;
const DROPPED = 5;

/** Bytes of a block at most, as it is read: a frame, and what is said of it. */
const MAX_BLOCK = 1 << 20;

/** A frame as it was captured. */
export interface Captured {
  /** Number of the interface in its section. */
  interface: number;
  /** Nanoseconds since 1970. */
  time: bigint;
  /** From the port, or to it. */
  way: 'in' | 'out';
  /** Bytes of the frame, of which `bytes` may be fewer. */
  length: number;
  bytes: Uint8Array;
  /** What became of it, if it was dropped. */
  comment?: string;
}

const padded = (length: number) => (length + 3) & ~3;

function option(code: number, value: Uint8Array): Buffer {
  const bytes = Buffer.alloc(4 + padded(value.length));
  bytes.writeUInt16LE(code, 0);
  bytes.writeUInt16LE(value.length, 2);
  bytes.set(value, 4);
  return bytes;
}

const text = (code: number, value: string) => option(code, Buffer.from(value));

function number64(code: number, value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(value);
  return option(code, bytes);
}

/** A block of this type; its options end with an empty one. */
function block(type: number, body: Uint8Array, options: Buffer[]): Buffer {
  const parts = options.length > 0 ? [...options, Buffer.alloc(4)] : [];
  const length = 12 + body.length + parts.reduce((sum, part) => sum + part.length, 0);
  const frame = Buffer.alloc(8);
  frame.writeUInt32LE(type, 0);
  frame.writeUInt32LE(length, 4);
  return Buffer.concat([frame, body, ...parts, frame.subarray(4)]);
}

/** What a file begins with. */
export function sectionBlock(application: string): Buffer {
  const body = Buffer.alloc(16);
  body.writeUInt32LE(BYTE_ORDER, 0);
  body.writeUInt16LE(1, 4);
  body.writeBigInt64LE(-1n, 8);
  return block(SECTION, body, [text(SECTION_APPLICATION, application)]);
}

/** An interface: a port, with times in nanoseconds. */
export function interfaceBlock(name: string, snaplen: number, filter?: string): Buffer {
  const body = Buffer.alloc(8);
  body.writeUInt16LE(ETHERNET, 0);
  body.writeUInt32LE(snaplen, 4);
  return block(INTERFACE, body, [
    text(INTERFACE_NAME, name),
    option(INTERFACE_RESOLUTION, Buffer.of(9)),
    // Its first byte says that it is in the language of pcap-filter(7).
    ...(filter === undefined ? [] : [option(INTERFACE_FILTER, Buffer.from(`\0${filter}`))]),
  ]);
}

/** A frame (enhanced packet block). */
export function packetBlock({ interface: number, time, way, length, bytes, comment }: Captured): Buffer {
  const note = comment === undefined ? undefined : Buffer.from(comment);
  const total = 32 + padded(bytes.length) + 12 + (note === undefined ? 0 : 4 + padded(note.length));
  const to = Buffer.alloc(total);
  to.writeUInt32LE(PACKET, 0);
  to.writeUInt32LE(total, 4);
  to.writeUInt32LE(number, 8);
  to.writeUInt32LE(Number(time >> 32n), 12);
  to.writeUInt32LE(Number(time & 0xffff_ffffn), 16);
  to.writeUInt32LE(bytes.length, 20);
  to.writeUInt32LE(length, 24);
  to.set(bytes, 28);
  let at = 28 + padded(bytes.length);
  if (note !== undefined) {
    to.writeUInt16LE(COMMENT, at);
    to.writeUInt16LE(note.length, at + 2);
    to.set(note, at + 4);
    at += 4 + padded(note.length);
  }
  to.writeUInt16LE(PACKET_FLAGS, at);
  to.writeUInt16LE(4, at + 2);
  to.writeUInt32LE(way === 'in' ? 1 : 2, at + 4);
  to.writeUInt32LE(total, total - 4);
  return to;
}

/** What an interface has seen at the end: frames captured, and those that the capture lost. */
export function statisticsBlock(number: number, time: bigint, frames: bigint, lost: bigint): Buffer {
  const body = Buffer.alloc(12);
  body.writeUInt32LE(number, 0);
  body.writeUInt32LE(Number(time >> 32n), 4);
  body.writeUInt32LE(Number(time & 0xffff_ffffn), 8);
  return block(STATISTICS, body, [number64(RECEIVED, frames + lost), number64(DROPPED, lost)]);
}

/** What a stream of blocks says. */
export type Said =
  | { kind: 'interface'; name: string }
  | { kind: 'packet'; packet: Captured }
  | { kind: 'statistics'; interface: number; lost: bigint };

/** Reads blocks, as those above write them, from pieces of a stream. Throws an Error for what is none. */
export class BlockReader {
  #left = Buffer.alloc(0);

  /** What the blocks say that are complete with this piece. */
  *read(piece: Uint8Array): Generator<Said> {
    const bytes = this.#left.length === 0 ? Buffer.from(piece) : Buffer.concat([this.#left, piece]);
    let at = 0;
    while (bytes.length - at >= 12) {
      const length = bytes.readUInt32LE(at + 4);
      if (length < 12 || length % 4 !== 0 || length > MAX_BLOCK)
        throw new Error(`the capture has a block of ${length} bytes`);
      if (bytes.length - at < length) break;
      const said = readBlock(bytes.subarray(at, at + length));
      if (said !== undefined) yield said;
      at += length;
    }
    this.#left = bytes.subarray(at);
  }
}

function readBlock(bytes: Buffer): Said | undefined {
  const type = bytes.readUInt32LE(0);
  if (type === INTERFACE && bytes.length >= 20)
    return { kind: 'interface', name: options(bytes, 16).get(INTERFACE_NAME)?.toString() ?? '' };
  if (type === STATISTICS && bytes.length >= 24) {
    const lost = options(bytes, 20).get(DROPPED);
    return { kind: 'statistics', interface: bytes.readUInt32LE(8), lost: lost?.readBigUInt64LE() ?? 0n };
  }
  if (type !== PACKET || bytes.length < 32) return undefined;
  const captured = bytes.readUInt32LE(20);
  if (captured > bytes.length - 32) throw new Error('the capture has a frame beyond its block');
  const said = options(bytes, 28 + padded(captured));
  const comment = said.get(COMMENT)?.toString();
  return {
    kind: 'packet',
    packet: {
      interface: bytes.readUInt32LE(8),
      time: (BigInt(bytes.readUInt32LE(12)) << 32n) | BigInt(bytes.readUInt32LE(16)),
      way: ((said.get(PACKET_FLAGS)?.readUInt32LE() ?? 0) & 3) === 1 ? 'in' : 'out',
      length: bytes.readUInt32LE(24),
      bytes: bytes.subarray(28, 28 + captured),
      ...(comment === undefined ? {} : { comment }),
    },
  };
}

/** The options of a block, from `at` on, by their codes. */
function options(bytes: Buffer, at: number): Map<number, Buffer> {
  const found = new Map<number, Buffer>();
  for (let next = at; next + 4 <= bytes.length - 4; ) {
    const code = bytes.readUInt16LE(next);
    const length = bytes.readUInt16LE(next + 2);
    if (code === 0 || next + 4 + length > bytes.length - 4) break;
    found.set(code, bytes.subarray(next + 4, next + 4 + length));
    next += 4 + padded(length);
  }
  return found;
}
