/**
 * Notes of buffers in work (vhost-user, "Inflight I/O tracking") that a front-end has forged, split and packed, on a
 * running switch beside a healthy pair: the ring's start is refused by name, or it goes on and works.
 */
import assert from 'node:assert/strict';
import { writeSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { closeFd } from '../../src/sys/index.ts';
import { createInflight, regionLength } from '../../src/vhost/inflight.ts';
import { vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { RawGuest } from '../support/raw-guest.ts';
import { until } from '../support/until.ts';
import { PackedGuest } from './packed-guest.ts';
import { Stage } from './stage.ts';

let stage: Stage;
before(async () => {
  stage = await Stage.start();
});
after(() => stage.close());

const SIZE = 64;
/** Frames that are on offer when the ring starts. */
const OFFERED = 6;
const PROTOCOL =
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_REPLY_ACK |
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD;

/** Writes bytes into the notes of the ring to transmit. */
type Write = (offset: number, ...bytes: number[]) => void;
interface Forged {
  /** With the fix that the same input once needed in another back-end. */
  name: string;
  write: (at: Write) => void;
  /** The start of the ring is refused with this; none: it starts, and works. */
  says?: RegExp;
  /** What used.idx of a split ring is. */
  used?: number;
}
const u16 = (value: number): [number, number] => [value & 0xff, value >>> 8];

const EITHER: Forged[] = [
  { name: 'a version to come', write: (at) => at(8, 2, 0), says: /version 2, at most 1/ },
  { name: 'a version of 65535', write: (at) => at(8, 255, 255), says: /version 65535, at most 1/ },
  { name: 'another number of entries than the ring has', write: (at) => at(10, 255, 255) },
]; // biome-ignore format: a table

/** struct DescStateSplit: in work, next at 6, counter at 8; before them used_idx at 14, last_batch_head at 12. */
const split = (head: number) => 16 + 16 * head;
const SPLIT: Forged[] = [
  { name: 'more in work than the guest gave', write: (at) => { for (let h = 0; h < 20; h++) at(split(h), 1); }, says: /20 buffers in work, of 6/ },
  { name: 'a batch longer than the ring', write: (at) => at(14, ...u16(0x8000)), used: 6, says: /lag 32774 entries/ },
  { name: 'a batch that lies ahead', write: (at) => at(14, ...u16(7)), used: 6, says: /lag 65535 entries/ },
  { name: 'a list that leads outside (5a4fbe79e6)', write: (at) => at(12, ...u16(65535), ...u16(2)), used: 6, says: /list descriptor 65535 of 64/ },
  { name: 'a list whose second one leads outside', write: (at) => { at(12, ...u16(3), ...u16(2)); at(split(3) + 6, ...u16(64)); }, used: 6, says: /list descriptor 64 of 64/ },
  { name: 'a list that goes round in itself', write: (at) => { at(12, ...u16(3), ...u16(0)); at(split(3) + 6, ...u16(3)); }, used: 6 },
  { name: 'a counter of 64 bits', write: (at) => at(split(2), 1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255) },
  { name: 'neither in work nor not', write: (at) => { for (let h = 0; h < SIZE; h++) at(split(h), 255); } },
]; // biome-ignore format: a table

/**
 * struct DescStatePacked: in work, next at 2, last at 4, num at 6; before them free_head at 12, old_free_head at 14,
 * used_idx at 16, old_used_idx at 18, their wrap counters at 20 and 21. Entry 0 is all of the list of free ones.
 */
const packed = (index: number) => 32 + 32 * index;
const inWork = (index: number, num: number, last = index) => (at: Write) => at(packed(index), 1, 0, ...u16(0), ...u16(last), ...u16(num)); // biome-ignore format: a table's helper
const PACKED: Forged[] = [
  { name: 'a used place behind the ring (5a4fbe79e6)', write: (at) => at(16, ...u16(SIZE), ...u16(0), 1, 1), says: /go on at descriptor 64 of 64/ },
  { name: 'an old used place behind the ring', write: (at) => at(16, ...u16(0), ...u16(0x7fff), 1, 1), says: /go on at descriptor 32767 of 64/ },
  { name: 'one of no descriptors', write: inWork(5, 0), says: /one of 0 descriptors, the ring has 64/ },
  { name: 'one of more than the ring has', write: inWork(5, 65), says: /one of 65 descriptors/ },
  { name: 'one of 65535', write: inWork(5, 65535), says: /one of 65535 descriptors/ },
  { name: 'more together than the ring has', write: (at) => { for (let i = 1; i < 40; i++) inWork(i, 2)(at); }, says: /one of 2 descriptors/ },
  { name: 'one that runs out of the notes', write: inWork(63, 2), says: /one of 2 descriptors/ },
  { name: 'one whose last lies outside', write: inWork(5, 1, SIZE), says: /one of 1 descriptors/ },
  { name: 'one whose last is 65535', write: inWork(5, 1, 65535), says: /one of 1 descriptors/ },
  { name: 'a free list that leads outside', write: (at) => at(12, ...u16(65535), ...u16(65535)) },
  { name: 'a free list that goes round', write: (at) => { at(14, ...u16(3)); at(packed(3) + 2, ...u16(7)); at(packed(7) + 2, ...u16(3)); } },
  { name: 'one that is free and in work', write: inWork(0, 65535) },
]; // biome-ignore format: a table

async function run(guest: RawGuest, c: Forged): Promise<void> {
  stage.forget();
  const isPacked = guest instanceof PackedGuest;
  const notes = createInflight(2, SIZE, isPacked);
  try {
    await guest.session.negotiate(guest.wanted, PROTOCOL);
    await guest.session.setMemoryTable([guest.region]);
    const region = regionLength(SIZE, isPacked);
    const at: Write = (offset, ...bytes) =>
      void writeSync(notes.fd, Uint8Array.from(bytes), 0, bytes.length, region + offset);
    // A predecessor has used them: both wrap counters are 1 (2.8.1).
    at(8, 1, 0, ...u16(SIZE));
    if (isPacked) at(20, 1, 1);
    c.write(at);
    if (!isPacked) {
      guest.send(...Array.from({ length: OFFERED }, () => frame(BROADCAST, mac(4))));
      const { usedUser } = guest.layout(1);
      guest.write(usedUser - guest.region.userAddress + guest.region.guestAddress + 2n, Uint8Array.from(u16(c.used ?? 0))); // biome-ignore format: one line
    }
    await guest.session.setInflight(notes);
    if (c.says) {
      await assert.rejects(guest.startRing(1), /refused/);
      assert.match(stage.port.lastError!, c.says);
      assert.equal(stage.port.queues[1]!.state, 'stopped');
      // The other ring's notes are as they were made.
      await guest.startRing(0);
      assert.equal(stage.port.queues[0]!.state, 'running');
    } else {
      await guest.startRing(0);
      await guest.startRing(1);
      const sent = stage.port.queues[1]!.packets;
      guest.send(frame(BROADCAST, mac(4)));
      await until(() => stage.port.queues[1]!.packets > sent, 'frames go on');
      assert.deepEqual(stage.errors, []);
    }
    assert.deepEqual(stage.broken, []);
  } finally {
    await guest.close();
    closeFd(notes.fd);
  }
  await stage.unharmed();
}

describe('notes of a split ring', () => {
  for (const c of [...EITHER, ...SPLIT])
    test(c.name, () => run(new RawGuest(stage.path(), stage.lease.poller, { size: SIZE }), c));
});

describe('notes of a packed ring', () => {
  for (const c of [...EITHER, ...PACKED])
    test(c.name, () => run(new PackedGuest(stage.path(), stage.lease.poller, { size: SIZE }), c));
});
