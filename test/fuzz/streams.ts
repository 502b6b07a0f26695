/**
 * A stream of frames behind their lengths (src/io/channel.ts, src/dataplane/stream.ts), in pieces of any size, with
 * lengths and bytes that are wrong: each whole frame before the first length that can't be one comes out as it was,
 * in order, and that length ends the channel by name. The other way the stream has each frame of the switch.
 */
import assert from 'node:assert/strict';
import { closeSync, readSync, writeSync } from 'node:fs';
import { ChannelError, StreamChannel } from '../../src/io/channel.ts';
import { eventfd, socketPair } from '../../src/sys/index.ts';
import { Driver } from '../support/driver.ts';
import { BROADCAST, mac } from '../support/ethernet.ts';
import { MERGEABLE, type Plane } from '../support/plane.ts';
import type { Random } from '../support/random.ts';

const LONGEST = 65_550;
const SHORTEST = 14;
const BUFFER = 1 << 18;

function framed(bytes: Buffer, length = bytes.length): Buffer {
  const head = Buffer.alloc(4);
  head.writeUInt32BE(length >>> 0);
  return Buffer.concat([head, bytes]);
}

const someFrame = (random: Random) =>
  Buffer.concat([BROADCAST, mac(1), random.bytes(2 + random.pick([0, 1, 46, 200, 1500, 9000]))]);

/** The frames of a stream, and whether it ends with a length that is none. */
function framesOf(stream: Buffer): { frames: Buffer[]; isBroken: boolean } {
  const frames: Buffer[] = [];
  for (let at = 0; stream.length - at >= 4; ) {
    const length = stream.readUInt32BE(at);
    if (length === 0 || length > LONGEST) return { frames, isBroken: true };
    if (stream.length - at - 4 < length) break;
    if (length >= SHORTEST) frames.push(stream.subarray(at + 4, at + 4 + length));
    at += 4 + length;
  }
  return { frames, isBroken: false };
}

export function streams(makePlane: () => Plane): (random: Random) => void {
  const plane = makePlane();
  const { arena } = plane;
  const options = { size: 64, bufferLength: 2048, flags: MERGEABLE };
  const [port, guest] = [new Driver(plane, options), new Driver(plane, options)];
  const buffers = arena.reserve(2 * BUFFER).start;
  const kick = eventfd();
  const context = { dataplane: arena.dataplane, base: Number(arena.base), u8: arena.u8, u32: arena.u32 };
  const side = (ring: number) => ({ ring, transfer: 0, kickFd: kick, callFd: -1 });
  const queue = { fromKernel: side(port.tx.at), toKernel: side(port.rx.at) };

  /** What the guest has got since the last time. */
  const arrived = (): Buffer[] => {
    plane.poll();
    const got: Buffer[] = [];
    for (let came = guest.receive(); came !== undefined; came = guest.receive()) {
      assert.ok(came instanceof Buffer);
      got.push(came);
    }
    return got;
  };

  return (random) => {
    const parts = Array.from({ length: 1 + random.below(8) }, () => {
      const bytes = random.below(8) === 0 ? random.bytes(random.below(20)) : someFrame(random);
      const wrong = random.pick([0, 1, 13, LONGEST + 1, 0xffff_ffff, random.u32(), random.below(3000)]);
      return random.below(10) === 0 ? framed(bytes, wrong) : framed(bytes);
    });
    const whole = Buffer.concat(parts);
    const stream = random.below(4) === 0 ? whole.subarray(0, random.below(whole.length + 1)) : whole;
    const expected = framesOf(stream);
    const [ours, theirs] = socketPair();
    const end = { fd: ours, buffers, size: BUFFER };
    const channel = new StreamChannel(context as never, queue, end);
    const got: Buffer[] = [];
    let failure: unknown;
    try {
      for (let at = 0; at < stream.length; ) {
        const piece = stream.subarray(at, at + random.pick([1, 3, 4, 5, 60, 1500, 16_384]));
        at += writeSync(theirs, piece);
        channel.ready(1);
        for (let moved = true; moved; ) {
          moved = channel.run();
          got.push(...arrived());
          if (!moved || random.below(4) === 0) channel.fed();
        }
      }
    } catch (error) {
      failure = error;
    }
    got.push(...arrived());
    if (expected.isBroken) {
      assert.ok(failure instanceof ChannelError, 'a length that is none ends it');
      assert.match(failure.message, /no frame, it begins with a length of 0 or of more than 65550/);
    } else if (failure !== undefined) throw failure;
    assert.equal(got.length, expected.frames.length);
    for (const [i, bytes] of got.entries())
      assert.ok(expected.frames[i]!.equals(bytes), `frame ${i} as it was`);
    assert.equal(port.tx.get('error'), 0);
    closeSync(ours);
    closeSync(theirs);

    // The other way.
    const [mine, yours] = socketPair();
    const back = new StreamChannel(context as never, queue, { fd: mine, buffers, size: BUFFER });
    const sent = Array.from({ length: random.below(5) }, () => someFrame(random));
    for (const bytes of sent) assert.equal(guest.send(bytes), 1);
    guest.publish();
    plane.poll();
    back.ready(4);
    while (back.run());
    const want = Buffer.concat(sent.map((bytes) => framed(bytes)));
    const came = Buffer.alloc(want.length + 1);
    let length = 0;
    while (length < want.length) length += readSync(yours, came, length, came.length - length, null);
    assert.ok(want.equals(came.subarray(0, length)), 'each frame behind its length');
    closeSync(mine);
    closeSync(yours);
  };
}
