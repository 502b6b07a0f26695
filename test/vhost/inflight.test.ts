/**
 * Notes of buffers in work: GET_INFLIGHT_FD and SET_INFLIGHT_FD, and what a ring does at its start with the notes
 * that a predecessor left, whatever it was doing when it died. Forged ones are in test/hostile/inflight.test.ts.
 */
import assert from 'node:assert/strict';
import { readSync, writeSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import {
  closeFd,
  fileInfo,
  openFds,
  type PollerLease,
  sharedPoller,
  socketPair,
} from '../../src/sys/index.ts';
import { checkInflight, createInflight, regionLength } from '../../src/vhost/inflight.ts';
import * as m from '../../src/vhost/messages.ts';
import { features, vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { frame, mac } from '../support/ethernet.ts';
import { RawGuest } from '../support/raw-guest.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';
import { serve } from './harness.ts';

const R = m.requests;
let lease: PollerLease;
before(() => {
  lease = sharedPoller();
});
after(() => lease.release());

describe('messages', () => {
  test('GET_INFLIGHT_FD answers with a file of its own each time, and keeps none', async () => {
    const before = openFds();
    const { end, session } = serve(lease.poller);
    for (let i = 0; i < 20; i++) {
      end.message(R.GET_INFLIGHT_FD, m.encodeInflight({ size: 0n, offset: 0n, queues: 2, queueSize: 256 }));
      const answer = await end.next();
      const layout = m.decodeInflight(answer!.payload);
      assert.deepEqual(layout, { size: 2n * 4160n, offset: 0n, queues: 2, queueSize: 256 });
      assert.equal(answer!.fds.length, 1);
      assert.ok(fileInfo(answer!.fds[0]!).size >= layout.size);
      closeFd(answer!.fds[0]!);
    }
    end.close();
    await session.closed;
    assert.deepEqual(openFds(), before);
  });

  for (const [name, layout, error] of [
    ['no queues', { queues: 0 }, '0 queues, 1 to 2 expected'],
    ['too many queues', { queues: 65535 }, '65535 queues, 1 to 2 expected'],
    ['no entries', { queueSize: 0 }, 'queues of 0 entries, 1 to 32768 expected'],
    ['too many entries', { queueSize: 65535 }, 'queues of 65535 entries, 1 to 32768 expected'],
    ['too few bytes', { size: 100n }, '100 bytes for 2 queues of 256 entries, 8320 expected'],
    ['an offset that is odd', { offset: 1n }, 'offset 1 is no multiple of 8'],
    [
      'a file that is too short',
      { offset: 1n << 20n },
      'file of 8320 bytes is shorter than offset + size, 1056896',
    ],
    ['sizes that wrap', { size: (1n << 64n) - 1n }, /shorter than/],
  ] as const) {
    test(`SET_INFLIGHT_FD with ${name}`, async () => {
      const before = openFds();
      const { end, ended } = serve(lease.poller);
      const { fd, ...good } = createInflight(2, 256, false);
      end.message(R.SET_INFLIGHT_FD, m.encodeInflight({ ...good, ...layout }), { fds: [fd] });
      const reason = await ended();
      if (typeof error === 'string') assert.equal(reason, `SET_INFLIGHT_FD: ${error}`);
      else assert.match(reason!, error);
      closeFd(fd);
      end.close();
      assert.deepEqual(openFds(), before);
    });
  }

  test('a socket in place of a file is refused', () => {
    const { fd, ...layout } = createInflight(1, 8, false);
    closeFd(fd);
    const [socket, other] = socketPair();
    assert.throws(() => checkInflight(layout, false, socket), /is no memory file/);
    for (const end of [socket, other]) closeFd(end);
  });
});

const SIZE = 64;
const PROTOCOL =
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_REPLY_ACK |
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD;

describe('a split ring whose predecessor died', () => {
  /** Frames 0 to 5 offered; notes as `write` leaves them, and used.idx; then the ring starts. */
  async function start(
    t: { after(f: () => unknown): void },
    write: (at: (offset: number, ...bytes: number[]) => void) => void,
    used = 0,
  ) {
    const path = sockets(t as never);
    const ports = ['a', 'b'].map((name) => ({ name, type: 'vhost-user' as const, target: path(name) }));
    const vswitch = await createSwitch({ ports });
    t.after(() => vswitch.close());
    const hearer = new RawGuest(path('b'), lease.poller);
    t.after(() => hearer.close());
    await hearer.start();
    hearer.lend();
    const guest = new RawGuest(path('a'), lease.poller, { size: SIZE });
    t.after(() => guest.close());
    await guest.session.negotiate(features.VIRTIO_F_VERSION_1, PROTOCOL);
    await guest.session.setMemoryTable([guest.region]);
    const layout = createInflight(2, SIZE, false);
    t.after(() => closeFd(layout.fd));
    const region = regionLength(SIZE, false);
    const at = (offset: number, ...bytes: number[]) =>
      void writeSync(layout.fd, Uint8Array.from(bytes), 0, bytes.length, region + offset);
    at(8, 1, 0, SIZE, 0);
    write(at);
    guest.send(...Array.from({ length: 6 }, (_, i) => frame(mac(2), mac(1), 60 + i)));
    const usedAt = guest.layout(1).usedUser - guest.region.userAddress + guest.region.guestAddress + 2n;
    guest.write(usedAt, Uint8Array.of(used, 0));
    await guest.session.setInflight(layout);
    return { guest, hearer, layout, region };
  }
  /** Note of a descriptor: in work, the one before it in the batch, its number in order. */
  const note = (
    at: (offset: number, ...bytes: number[]) => void,
    head: number,
    inWork: number,
    next: number,
    counter: number,
  ) => at(16 + 16 * head, inWork, 0, 0, 0, 0, 0, next, 0, counter, 0, 0, 0, 0, 0, 0, 0);

  test('before its burst was given back: the buffers come back in order, and nothing of it is sent', async (t) => {
    const { guest, hearer, layout, region } = await start(t, (at) => {
      for (const [counter, head] of [0, 1, 2, 3].entries()) note(at, head, 1, 0, counter);
    });
    await guest.session.enable(1, true);
    await guest.startRing(1);
    await until(() => guest.usedIdx(1) === 6, 'all come back');
    const frames = await until(() => {
      const came = hearer.received();
      return came.length > 0 && came;
    }, 'what was not noted');
    while (frames.length < 2) frames.push(...hearer.received());
    assert.deepEqual(
      frames.map((bytes) => bytes.length),
      [64, 65],
    );
    const notes = Buffer.alloc(16 + 16 * SIZE);
    readSync(layout.fd, notes, 0, notes.length, region);
    assert.equal(notes.readUInt16LE(14), 6, 'the notes know the used index');
    for (let head = 0; head < SIZE; head++) assert.equal(notes[16 + 16 * head], 0, 'nothing is in work');
  });

  test('after its burst was shown, before the notes were cleared: they are', async (t) => {
    const { guest, hearer } = await start(
      t,
      (at) => {
        for (const [counter, head] of [0, 1, 2, 3].entries())
          note(at, head, 1, Math.max(0, head - 1), counter);
        at(12, 3, 0, 0, 0);
      },
      4,
    );
    await guest.session.enable(1, true);
    await guest.startRing(1);
    await until(() => guest.usedIdx(1) === 6, 'the rest goes');
    const frames: Buffer[] = [];
    await until(() => frames.push(...hearer.received()) >= 2, 'the rest comes');
    assert.deepEqual(
      frames.map((bytes) => bytes.length),
      [64, 65],
    );
  });
});
