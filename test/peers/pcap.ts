/** Capture files as DPDK's pcap PMD reads and writes them: classic pcap, little-endian, microseconds, Ethernet. */

const GLOBAL_HEADER = 24;
const RECORD_HEADER = 16;
const MAGIC = 0xa1b2c3d4;
const ETHERNET = 1;

/** A capture file that holds these frames. */
export function writePcap(frames: readonly Uint8Array[]): Buffer {
  const header = Buffer.alloc(GLOBAL_HEADER);
  header.writeUInt32LE(MAGIC, 0);
  header.writeUInt16LE(2, 4);
  header.writeUInt16LE(4, 6);
  header.writeUInt32LE(262144, 16);
  header.writeUInt32LE(ETHERNET, 20);
  const records = frames.map((frame) => {
    const record = Buffer.alloc(RECORD_HEADER);
    record.writeUInt32LE(frame.length, 8);
    record.writeUInt32LE(frame.length, 12);
    return Buffer.concat([record, frame]);
  });
  return Buffer.concat([header, ...records]);
}

/** The frames of a capture file. Throws when it isn't one, or ends within a frame. */
export function readPcap(file: Buffer): Buffer[] {
  const magic = file.readUInt32LE(0);
  // 0xa1b23c4d: the same with nanoseconds.
  if (magic !== MAGIC && magic !== 0xa1b23c4d) throw new Error(`not a capture file: 0x${magic.toString(16)}`);
  const frames: Buffer[] = [];
  for (let at = GLOBAL_HEADER; at < file.length; ) {
    const length = file.readUInt32LE(at + 8);
    const frame = file.subarray(at + RECORD_HEADER, at + RECORD_HEADER + length);
    if (frame.length !== length) throw new Error(`the capture file ends within frame ${frames.length}`);
    frames.push(frame);
    at += RECORD_HEADER + length;
  }
  return frames;
}
