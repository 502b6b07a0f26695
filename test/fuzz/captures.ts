/**
 * Capture files, pcap and pcapng, with bytes changed, cut off, put in and doubled: each is read or refused with a
 * sentence, and a frame that is read lies in the file and is one.
 */
import assert from 'node:assert/strict';
import { readCapture } from '../../src/gen/pcap.ts';
import type { Random } from '../support/random.ts';

const LONGEST = 65_550;

/** A file of either kind, in either byte order. */
function fileOf(random: Random): Buffer {
  const little = random.below(2) === 1;
  const [u16, u32] = [2, 4].map((bytes) => (value: number) => {
    const word = Buffer.alloc(bytes);
    if (little) word.writeUIntLE(value, 0, bytes);
    else word.writeUIntBE(value, 0, bytes);
    return word;
  }) as [(value: number) => Buffer, (value: number) => Buffer];
  const frames = Array.from({ length: random.below(5) }, () => random.bytes(14 + random.below(100)));
  const padded = (bytes: Buffer) => Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)]);
  if (random.below(2) === 0) {
    const magic = random.pick([0xa1b2c3d4, 0xa1b23c4d]);
    const head = [u32(magic), u16(2), u16(4), u32(0), u32(0), u32(262_144), u32(1)];
    const records = frames.flatMap((bytes) => [u32(1), u32(2), u32(bytes.length), u32(bytes.length), bytes]);
    return Buffer.concat([...head, ...records]);
  }
  const block = (type: number, ...parts: Buffer[]) => {
    const body = padded(Buffer.concat(parts));
    const length = u32(body.length + 12);
    return Buffer.concat([u32(type), length, body, length]);
  };
  const resolution = Buffer.concat([
    u16(9),
    u16(1),
    Buffer.from([random.pick([6, 9, 0x8a]), 0, 0, 0]),
    u32(0),
  ]);
  return Buffer.concat([
    block(0x0a0d0d0a, u32(0x1a2b3c4d), u16(1), u16(0), Buffer.alloc(8, 0xff)),
    block(1, u16(1), u16(0), u32(0), ...(random.below(2) ? [resolution] : [])),
    ...frames.map((bytes) =>
      random.below(3) === 0
        ? block(3, u32(bytes.length), bytes)
        : block(6, u32(0), u32(0), u32(7), u32(bytes.length), u32(bytes.length), bytes),
    ),
  ]);
}

function damage(file: Buffer, random: Random): Buffer {
  for (let count = random.below(4); count > 0 && file.length > 0; count--) {
    const at = random.below(file.length);
    const kind = random.below(5);
    if (kind === 0) file = file.subarray(0, at);
    else if (kind === 1) file = Buffer.concat([file.subarray(0, at), random.bytes(4), file.subarray(at)]);
    else if (kind === 2) file = Buffer.concat([file.subarray(0, at), file.subarray(at & ~31)]);
    else if (kind === 3 && at + 4 <= file.length)
      file.writeUInt32LE(random.pick([0, 1, 11, 12, 0x7fff_ffff, 0xffff_ffff, random.u32()]), at & ~3);
    else file[at] = random.u32();
  }
  return file;
}

export function captures(random: Random): void {
  const whole = fileOf(random);
  const file = damage(Buffer.from(whole), random);
  try {
    for (const { frame, time } of readCapture(file)) {
      assert.ok(frame.length >= 14 && frame.length <= LONGEST, `a frame of ${frame.length} bytes`);
      assert.ok(time >= 0n, `a time of ${time}`);
    }
  } catch (error) {
    if (error instanceof assert.AssertionError) throw error;
    // A slip of ours is a RangeError or a TypeError, and says nothing to a person.
    assert.equal((error as Error).constructor, Error, (error as Error).stack);
    assert.ok(!file.equals(whole), (error as Error).message);
  }
}
