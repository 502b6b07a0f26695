/** Capture files of every kind are read, and files that are cut or lie are refused by name of the place. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { pcapHeader, readCapture } from '../../src/gen/pcap.ts';
import { frame, mac } from '../peers/frames.ts';
import { writePcap } from '../peers/pcap.ts';

const frames = [60, 64, 1518].map((length, seed) => frame(mac(2), mac(1), length, seed));

/** A pcap file in either byte order, with micro- or nanoseconds; the frames are 1.5 s apart. */
function pcap(little: boolean, nanoseconds: boolean): Buffer {
  const u32 = (...values: number[]) => {
    const bytes = Buffer.alloc(4 * values.length);
    for (const [i, value] of values.entries())
      if (little) bytes.writeUInt32LE(value, 4 * i);
      else bytes.writeUInt32BE(value, 4 * i);
    return bytes;
  };
  const half = nanoseconds ? 500_000_000 : 500_000;
  const records = frames.map((bytes, i) =>
    Buffer.concat([u32(100 + Math.floor(1.5 * i), i % 2 ? half : 0, bytes.length, bytes.length), bytes]),
  );
  const version = little ? 0x0004_0002 : 0x0002_0004;
  return Buffer.concat([u32(nanoseconds ? 0xa1b23c4d : 0xa1b2c3d4, version, 0, 0, 65535, 1), ...records]);
}

/** A block of a pcapng file, little-endian. */
function block(type: number, ...parts: (number | Uint8Array)[]): Buffer {
  const body = Buffer.concat(
    parts.map((part) => {
      if (typeof part === 'number') {
        const bytes = Buffer.alloc(4);
        bytes.writeUInt32LE(part);
        return bytes;
      }
      return Buffer.concat([part, Buffer.alloc((4 - (part.length % 4)) % 4)]);
    }),
  );
  const ends = Buffer.alloc(8);
  ends.writeUInt32LE(type, 0);
  ends.writeUInt32LE(body.length + 12, 4);
  return Buffer.concat([ends, body, ends.subarray(4)]);
}

const section = block(0x0a0d0d0a, 0x1a2b3c4d, 1, 0xffff_ffff, 0xffff_ffff);
/** An interface whose clock has nanoseconds (if_tsresol 9). */
const nanosecondInterface = block(1, 1, 0, (1 << 16) | 9, 9, 0);
const packet = (index: number, time: bigint, bytes: Uint8Array) =>
  block(6, index, Number(time >> 32n), Number(time & 0xffff_ffffn), bytes.length, bytes.length, bytes);

describe('read', () => {
  for (const little of [true, false])
    for (const nanoseconds of [true, false])
      test(`pcap, ${little ? 'little' : 'big'}-endian, ${nanoseconds ? 'nano' : 'micro'}seconds`, () => {
        const read = readCapture(pcap(little, nanoseconds));
        assert.deepEqual(
          read.map(({ frame }) => new Uint8Array(frame)),
          frames,
        );
        assert.deepEqual(
          read.map(({ time }) => time),
          [100_000_000_000n, 101_500_000_000n, 103_000_000_000n],
        );
      });

  test("the tests' own pcap", () => {
    assert.deepEqual(
      readCapture(writePcap(frames)).map(({ frame }) => new Uint8Array(frame)),
      frames,
    );
  });

  test('pcapng: interfaces with clocks of their own, blocks of other kinds', () => {
    const file = Buffer.concat([
      section, nanosecondInterface, block(1, 1, 0), block(5, 0, 0, 0),
      packet(0, 5_000_000_001n, frames[0]!), packet(1, 5_000_002n, frames[1]!),
      block(3, frames[2]!.length, frames[2]!),
    ]); // biome-ignore format: a list
    const read = readCapture(file);
    assert.deepEqual(
      read.map(({ frame }) => new Uint8Array(frame)),
      frames,
    );
    assert.deepEqual(
      read.map(({ time }) => time),
      [5_000_000_001n, 5_000_002_000n, 5_000_002_000n],
    );
  });

  test('what it writes: a header and no frames', () => {
    assert.deepEqual(readCapture(pcapHeader()), []);
  });
});

describe('refused', () => {
  test('every cut of a pcap file but those between its records', () => {
    const file = pcap(true, true);
    const whole = new Set([24, 24 + 16 + 60, 24 + 32 + 124]);
    for (let length = 0; length < 24 + 32 + 130; length++) {
      const cut = file.subarray(0, length);
      if (whole.has(length)) readCapture(cut);
      else assert.throws(() => readCapture(cut), /ends within|expected a pcap/, `cut to ${length} bytes`);
    }
  });

  test('every cut of a pcapng file but those between its blocks', () => {
    const file = Buffer.concat([section, nanosecondInterface, packet(0, 1n, frames[0]!)]);
    const whole = new Set([section.length, section.length + nanosecondInterface.length]);
    for (let length = 0; length < file.length; length++) {
      const cut = file.subarray(0, length);
      if (whole.has(length)) assert.deepEqual(readCapture(cut), []);
      else assert.throws(() => readCapture(cut), /ends within|expected a pcap/, `cut to ${length} bytes`);
    }
  });

  const lies: [string, Buffer, RegExp][] = [
    ['something else', Buffer.from('#!/bin/sh\n'), /expected a pcap or pcapng file, found one that begins with/],
    ['a link that is not Ethernet', (() => { const file = pcap(true, true); file.writeUInt32LE(113, 20); return file; })(), /link type 113/],
    ['a frame of 4 GiB', (() => { const file = pcap(true, true); file.writeUInt32LE(0xffff_ffff, 32); return file; })(), /ends within a frame/],
    ['a frame that was cut', (() => { const file = pcap(true, true); file.writeUInt32LE(2000, 36); return file; })(), /was cut to 60 of 2000 bytes/],
    ['a frame too short', Buffer.concat([pcapHeader(), Buffer.from('000000000000000005000000050000000102030405', 'hex')]), /has 5 bytes: 14 to 65550 expected/],
    ['a block of no length', Buffer.concat([section, Buffer.alloc(12)]), /the block at byte 28 has 0 bytes/],
    ['a block with two lengths', Buffer.concat([section, (() => { const one = block(1, 1, 0); one.writeUInt32LE(24, one.length - 4); return one; })()]), /two lengths/],
    ['a packet of no interface', Buffer.concat([section, packet(0, 1n, frames[0]!)]), /names interface 0/],
    ['a section without its byte order', (() => { const one = Buffer.from(section); one.writeUInt32LE(0, 8); return one; })(), /has no byte order/],
  ]; // biome-ignore format: a table
  for (const [name, file, message] of lies)
    test(name, () => assert.throws(() => readCapture(file), { message }));
});
