/** A guest that keeps to the rules and yet makes work: a burst of it ends before others have waited for long. */
import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { INDIRECT, MERGEABLE, NEXT, PACKED, Plane, type PlanePort, TABLE, WRITE, writeDescriptor } from '../support/plane.ts'; // biome-ignore format: an import
import { Peer } from './oracle.ts';

const plane = new Plane();
afterEach(() => plane.clear());

const SIZE = 32768;
const BASE = 0x1_0000_0000n;
const TABLE_AT = BASE + 0x40_0000n;
const DATA = BASE + 0x50_0000n;

/** A table as long as the ring may have it: a frame's worth in its last entry, nothing in all the others. */
function guest(flags: number): PlanePort {
  const port = plane.port({ size: SIZE, flags, regions: [{ base: BASE, size: 8 << 20 }], addressLimit: 0 });
  port.memory.write(DATA, Buffer.concat([Buffer.alloc(12), frame(BROADCAST, mac(5))]));
  return port;
}

function fillTable({ memory }: PlanePort, direction: number): void {
  for (let i = 0; i < SIZE; i++) {
    const last = i === SIZE - 1;
    const flags = direction | (last ? 0 : NEXT);
    writeDescriptor(memory, TABLE_AT + BigInt(16 * i), {
      address: DATA,
      length: last ? 72 : 0,
      flags,
      next: i + 1,
    });
  }
}

const WALKS = 65536 / SIZE;

describe('a burst of chains as long as the ring, with nothing in them, ends after two', () => {
  test('to transmit', () => {
    const port = guest(INDIRECT);
    fillTable(port, 0);
    port.tx.ring.describe(0, { address: TABLE_AT, length: 16 * SIZE, flags: TABLE });
    port.tx.ring.offer(...Array(64).fill(0));
    const peer = new Peer(plane);
    assert.equal(plane.poll().packets, WALKS);
    for (let i = WALKS; i < 64; i += WALKS) assert.equal(plane.poll().packets, WALKS);
    assert.equal(peer.received().length, 64, 'all arrive in the end');
  });

  test('to receive: others do not wait for it, what is too much is dropped', () => {
    const port = guest(INDIRECT | MERGEABLE);
    fillTable(port, WRITE);
    port.rx.ring.describe(0, { address: TABLE_AT, length: 16 * SIZE, flags: TABLE });
    port.rx.ring.offer(...Array(64).fill(0));
    const peer = new Peer(plane);
    peer.send(Array.from({ length: 64 }, (_, i) => frame(BROADCAST, mac(6), 60, i)));
    assert.equal(plane.poll().packets, 64);
    assert.equal(port.rx.ring.usedIdx, WALKS);
    assert.deepEqual(plane.drops(port.rx.vring), { ringFull: 64 - WALKS });
  });

  test('packed, to transmit', () => {
    const port = guest(INDIRECT | PACKED);
    const { ring, vring } = port.tx;
    vring.set('lastAvail', 0x8000);
    vring.set('usedIdx', 0x8000);
    for (let i = 0; i < SIZE; i++) writeDescriptor(port.memory, TABLE_AT + BigInt(16 * i), { address: DATA, length: i === SIZE - 1 ? 72 : 0 }); // biome-ignore format: one line
    for (let i = 0; i < 64; i++) ring.describe(i, { address: TABLE_AT, length: 16 * SIZE, flags: i, next: TABLE | 0x80 }); // biome-ignore format: one line
    const peer = new Peer(plane);
    assert.equal(plane.poll().packets, WALKS);
    for (let i = WALKS; i < 64; i += WALKS) plane.poll();
    assert.equal(peer.received().length, 64);
  });
});
