/**
 * Capture files: pcap (draft-ietf-opsawg-pcap) with micro- or nanoseconds in either byte order, and pcapng
 * (draft-ietf-opsawg-pcapng) with enhanced, simple and old packet blocks. A file is hostile: every length is checked
 * against what is there, and an error says at which byte the file goes wrong.
 */

export interface Recorded {
  frame: Uint8Array;
  /** Nanoseconds; of a file without times all 0. */
  time: bigint;
}

/** Bytes of a frame that a virtio device carries at most. */
const MAX_FRAME = 65_550;
const MIN_FRAME = 14;
const ETHERNET = 1;

const MICROSECONDS = 0xa1b2c3d4;
const NANOSECONDS = 0xa1b23c4d;
const SECTION_HEADER = 0x0a0d0d0a;
const BYTE_ORDER = 0x1a2b3c4d;
const INTERFACE = 1;
const OLD_PACKET = 2;
const SIMPLE_PACKET = 3;
const ENHANCED_PACKET = 6;
const OPTION_RESOLUTION = 9;

/** Bytes that the first header of a pcap file and that of a record take. */
const FILE_HEADER = 24;
const RECORD_HEADER = 16;
const SNAP_LENGTH = 262_144;

/** The frames of a capture file, in their order. Throws an Error that says what is wrong, without the file's name. */
export function readCapture(file: Buffer): Recorded[] {
  if (file.length < 4) throw new Error(`expected a pcap or pcapng file, found ${file.length} bytes`);
  if (file.readUInt32LE(0) === SECTION_HEADER) return readPcapng(file);
  for (const little of [true, false]) {
    const magic = little ? file.readUInt32LE(0) : file.readUInt32BE(0);
    if (magic === MICROSECONDS || magic === NANOSECONDS)
      return readPcap(file, little, magic === NANOSECONDS ? 1n : 1000n);
  }
  throw new Error(
    `expected a pcap or pcapng file, found one that begins with 0x${file.toString('hex', 0, 4)}`,
  );
}

/** What a pcap file with nanoseconds begins with. */
export function pcapHeader(): Buffer {
  const header = Buffer.alloc(FILE_HEADER);
  header.writeUInt32LE(NANOSECONDS, 0);
  header.writeUInt16LE(2, 4);
  header.writeUInt16LE(4, 6);
  header.writeUInt32LE(SNAP_LENGTH, 16);
  header.writeUInt32LE(ETHERNET, 20);
  return header;
}

/** Numbers of a file in its byte order; throws where the file ends before them. */
class Reader {
  readonly file: Buffer;
  little: boolean;

  constructor(file: Buffer, little: boolean) {
    this.file = file;
    this.little = little;
  }

  u32(at: number): number {
    this.#within(at, 4, 'a header');
    return this.little ? this.file.readUInt32LE(at) : this.file.readUInt32BE(at);
  }

  u16(at: number): number {
    this.#within(at, 2, 'a header');
    return this.little ? this.file.readUInt16LE(at) : this.file.readUInt16BE(at);
  }

  /** A frame of `captured` bytes that had `original`; `end` is where its record or block ends. */
  frame(at: number, captured: number, original: number, end: number): Uint8Array {
    if (captured > end - at) this.#within(at, captured, `a frame of ${captured} bytes`, end);
    if (captured < original)
      throw new Error(`the frame at byte ${at} was cut to ${captured} of ${original} bytes when captured`);
    if (captured < MIN_FRAME || captured > MAX_FRAME)
      throw new Error(`the frame at byte ${at} has ${captured} bytes: ${MIN_FRAME} to ${MAX_FRAME} expected`);
    return this.file.subarray(at, at + captured);
  }

  #within(at: number, length: number, what: string, end = this.file.length): void {
    if (at + length > end) throw new Error(`the file ends within ${what} at byte ${at}`);
  }
}

function checkLink(type: number, at: number): void {
  if (type !== ETHERNET)
    throw new Error(`expected Ethernet (link type 1), found link type ${type} at byte ${at}`);
}

function readPcap(file: Buffer, little: boolean, unit: bigint): Recorded[] {
  const reader = new Reader(file, little);
  checkLink(reader.u32(20) & 0xffff, 20);
  const frames: Recorded[] = [];
  for (let at = FILE_HEADER; at < file.length; ) {
    const time = BigInt(reader.u32(at)) * 1_000_000_000n + BigInt(reader.u32(at + 4)) * unit;
    const captured = reader.u32(at + 8);
    const frame = reader.frame(at + RECORD_HEADER, captured, reader.u32(at + 12), file.length);
    frames.push({ frame, time });
    at += RECORD_HEADER + captured;
  }
  return frames;
}

function readPcapng(file: Buffer): Recorded[] {
  const reader = new Reader(file, true);
  const frames: Recorded[] = [];
  /** Nanoseconds of a step of each interface's clock, as a fraction. */
  let clocks: { numerator: bigint; denominator: bigint }[] = [];
  for (let at = 0; at < file.length; ) {
    const type = reader.u32(at);
    if (type === SECTION_HEADER) {
      reader.little = true;
      reader.little = reader.u32(at + 8) === BYTE_ORDER;
      if (reader.u32(at + 8) !== BYTE_ORDER) throw new Error(`the section at byte ${at} has no byte order`);
      clocks = [];
    }
    const length = reader.u32(at + 4);
    if (length < 12 || length % 4 !== 0) throw new Error(`the block at byte ${at} has ${length} bytes`);
    const end = at + length - 4;
    if (reader.u32(end) !== length) throw new Error(`the block at byte ${at} has two lengths`);
    if (type === INTERFACE) {
      checkLink(reader.u16(at + 8), at + 8);
      clocks.push(clockOf(reader, at + 16, end));
    } else if (type === ENHANCED_PACKET || type === OLD_PACKET) {
      const index = type === ENHANCED_PACKET ? reader.u32(at + 8) : reader.u16(at + 8);
      const clock = clocks[index];
      if (clock === undefined)
        throw new Error(`the packet at byte ${at} names interface ${index}, which is none`);
      const steps = (BigInt(reader.u32(at + 12)) << 32n) | BigInt(reader.u32(at + 16));
      const frame = reader.frame(at + 28, reader.u32(at + 20), reader.u32(at + 24), end);
      frames.push({ frame, time: (steps * clock.numerator) / clock.denominator });
    } else if (type === SIMPLE_PACKET) {
      if (clocks.length === 0) throw new Error(`the packet at byte ${at} names interface 0, which is none`);
      const original = reader.u32(at + 8);
      const frame = reader.frame(at + 12, Math.min(original, end - at - 12), original, end);
      frames.push({ frame, time: frames.at(-1)?.time ?? 0n });
    }
    at += length;
  }
  return frames;
}

/** if_tsresol among an interface's options: a power of 10 or, with the highest bit, of 2; microseconds by default. */
function clockOf(reader: Reader, options: number, end: number): { numerator: bigint; denominator: bigint } {
  let resolution = 6;
  for (let at = options; at + 4 <= end; ) {
    const code = reader.u16(at);
    const length = reader.u16(at + 2);
    if (code === 0 || at + 4 + length > end) break;
    if (code === OPTION_RESOLUTION && length === 1) resolution = reader.file[at + 4]!;
    at += 4 + Math.ceil(length / 4) * 4;
  }
  const power = BigInt(resolution & 0x7f);
  return { numerator: 1_000_000_000n, denominator: resolution & 0x80 ? 2n ** power : 10n ** power };
}
