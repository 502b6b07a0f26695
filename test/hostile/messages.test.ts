/**
 * Hostile front-ends on one port of a running switch, beside a healthy pair on two others: each attack ends with a
 * sentence that names what was wrong, costs nothing that isn't given back, and nobody else notices.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { eventfd } from '../../src/sys/index.ts';
import * as m from '../../src/vhost/messages.ts';
import { vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { GUEST, RawGuest, USER } from '../support/raw-guest.ts';
import { until } from '../support/until.ts';
import { Attacker, address, NOTHING, R, RING, state, table } from './attacker.ts';
import {
  type Attack,
  CONFIGURATION,
  DESCRIPTORS,
  FEATURES,
  HEADERS,
  INFLIGHT,
  KICKS,
  LOGS,
  MEMORY,
  PLACES,
  POSTCOPY,
  QUEUES,
  REFUSED,
  SLOTS,
  STATES,
  TRANSLATIONS,
} from './bad-messages.ts';
import { Stage } from './stage.ts';

const P = vhostProtocolFeatures;
const EVERYTHING =
  P.VHOST_USER_PROTOCOL_F_REPLY_ACK |
  P.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD |
  P.VHOST_USER_PROTOCOL_F_BACKEND_REQ |
  P.VHOST_USER_PROTOCOL_F_CONFIG |
  P.VHOST_USER_PROTOCOL_F_DEVICE_STATE |
  P.VHOST_USER_PROTOCOL_F_PAGEFAULT;
const NOTES = m.encodeInflight({ size: 0x8000n, offset: 0n, queues: 2, queueSize: 64 });
/** A region behind the one that is shared. */
const SECOND = m.encodeRegion({
  guestAddress: GUEST + (1n << 20n),
  userAddress: USER + (1n << 20n),
  size: 1n << 20n,
  mmapOffset: 0n,
});

let stage: Stage;
before(async () => {
  // All that a port may offer.
  stage = await Stage.start({ features: '+config,+in-band,+postcopy' });
});
after(() => stage.close());

/** Lets an attacker act and leave; resolves when the port has served it to its end. */
async function attack(act: (a: Attacker) => unknown): Promise<void> {
  stage.forget();
  const connections = stage.port.connections;
  const a = new Attacker(stage.path(), stage.ram);
  try {
    await act(a);
  } finally {
    a.close();
  }
  await until(() => stage.port.connections > connections, 'the port has served it');
  await stage.listening();
}

function assertSaid(says: RegExp): void {
  assert.match(stage.port.lastError!, says);
  assert.ok(
    stage.errors.some((error) => says.test(error)),
    'the event says so too',
  );
}

const tables: Record<string, Attack[]> = {
  'a header': HEADERS,
  descriptors: DESCRIPTORS,
  features: FEATURES,
  'a queue': QUEUES,
  'a ring': PLACES,
  memory: MEMORY,
  'memory slots': SLOTS,
  'a dirty log': LOGS,
  'buffers in work': INFLIGHT,
  'a translation': TRANSLATIONS,
  'a device that is told of itself': CONFIGURATION,
  'a kick by message': KICKS,
  "a device's state": STATES,
  postcopy: POSTCOPY,
  'no network': REFUSED,
};
for (const [what, attacks] of Object.entries(tables)) {
  describe(what, () => {
    for (const { name, says, act } of attacks) {
      test(name, async () => {
        await attack(act);
        assertSaid(says);
        await stage.unharmed();
      });
    }
  });
}

describe('every message, with each number of descriptors and a size that is wrong', () => {
  for (const [name, request] of Object.entries(R)) {
    const { size, descriptors } = m.requestRule(request)!;
    const [smallest, largest] = typeof size === 'number' ? [size, size] : size;
    const [fewest, most] = typeof descriptors === 'number' ? [descriptors, descriptors] : descriptors === 'regions' || descriptors === 'vring' ? [1, 1] : descriptors; // biome-ignore format: one choice
    const payload = new Uint8Array(smallest);
    if (descriptors === 'regions') payload[0] = 1;
    test(name, async () => {
      for (const count of [0, 1, 2, 8]) {
        if (count >= fewest && count <= most) continue;
        await attack((a) => a.message(request, payload, Array(count).fill(a.ram)));
        assertSaid(new RegExp(`${name}: ${count} descriptors?, `));
      }
      for (const wrong of [smallest - 1, largest + 1]) {
        if (wrong < 0) continue;
        await attack((a) => a.message(request, new Uint8Array(wrong)));
        assertSaid(new RegExp(`${name}: payload of ${wrong} byte`));
      }
      await stage.unharmed();
    });
  }
});

describe('over and over', () => {
  const TIMES = 10_000;
  /** Bytes of resident memory that may come and go with the heap. */
  const MEMORY = 64 << 20;
  const repeats: [string, (a: Attacker, fd: number, i: number) => Promise<void>][] = [
    ['SET_VRING_NUM (CVE-2019-14818)', (a, _, i) => a.patiently(R.SET_VRING_NUM, state(0, 1 << (i % 16)))],
    ['SET_VRING_ADDR', (a) => a.patiently(R.SET_VRING_ADDR, address(0, RING))],
    ['SET_VRING_CALL', (a, fd) => a.patiently(R.SET_VRING_CALL, m.encodeVringIndex(0, true), [fd])],
    ['SET_VRING_ERR', (a, fd) => a.patiently(R.SET_VRING_ERR, m.encodeVringIndex(0, true), [fd])],
    ['SET_VRING_CALL of a running ring', (a, fd) => a.patiently(R.SET_VRING_CALL, m.encodeVringIndex(1, true), [fd])],
    ['SET_VRING_KICK of a running ring', (a, fd) => a.patiently(R.SET_VRING_KICK, m.encodeVringIndex(1, true), [fd])],
    ['SET_MEM_TABLE', (a) => a.patiently(R.SET_MEM_TABLE, table({}), [a.ram])],
    ['RESET_OWNER', (a) => a.patiently(R.RESET_OWNER, NOTHING)],
    ['SET_LOG_BASE', (a) => a.patiently(R.SET_LOG_BASE, m.encodeLog({ size: 0x1_0000n, offset: 0n }), [a.ram])],
    ['SET_LOG_FD', (a, fd) => a.patiently(R.SET_LOG_FD, m.encodeU64(0n), [fd])],
    ['ADD_MEM_REG and REM_MEM_REG', (a, _, i) => a.patiently(i % 2 ? R.REM_MEM_REG : R.ADD_MEM_REG, SECOND, i % 2 ? [] : [a.ram])],
  ]; // biome-ignore format: a table
  /** Each is answered, one way or the other, and most come with descriptors: in either direction. */
  const answered: [string, (a: Attacker, i: number) => void][] = [
    ['GET_INFLIGHT_FD (CVE-2020-10726)', (a) => a.message(R.GET_INFLIGHT_FD, NOTES)],
    ['SET_INFLIGHT_FD (CVE-2020-10726)', (a) => a.message(R.SET_INFLIGHT_FD, NOTES, [a.ram], m.FLAG_NEED_REPLY)],
    ['SET_BACKEND_REQ_FD', (a) => a.message(R.SET_BACKEND_REQ_FD, NOTHING, [a.pair[0]], m.FLAG_NEED_REPLY)],
    ['SET_DEVICE_STATE_FD', (a, i) => a.message(R.SET_DEVICE_STATE_FD, state(i % 2, 0), [i % 2 ? a.pair[0] : a.pair[1]])],
    ['POSTCOPY_ADVISE', (a) => a.message(R.POSTCOPY_ADVISE)],
    ['GET_CONFIG', (a) => a.message(R.GET_CONFIG, m.encodeConfig({ offset: 0, size: 8, flags: 0, bytes: new Uint8Array(8) }))],
    ['IOTLB_MSG that nobody asked for', (a, i) => a.message(R.IOTLB_MSG, m.encodeIotlb({ iova: BigInt(i) << 16n, size: 4096n, userAddress: USER, access: 3, type: m.iotlb.UPDATE }))],
  ]; // biome-ignore format: a table
  /** So many are asked at a time: fewer than the socket has room for, both ways. */
  const AT_ONCE = 20;
  for (const [name, repeat] of answered) {
    test(`${name}, ${TIMES} times`, async () => {
      const resident = process.memoryUsage().rss;
      await attack(async (a) => {
        a.share();
        a.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(EVERYTHING));
        for (let i = 0; i < TIMES; i += AT_ONCE) {
          for (let k = 0; k < AT_ONCE; k++) repeat(a, i + k);
          await a.answers(AT_ONCE);
        }
      });
      await stage.unharmed();
      assert.ok(process.memoryUsage().rss - resident < MEMORY, 'no memory is kept');
    });
  }
  for (const [name, repeat] of repeats) {
    test(`${name}, ${TIMES} times`, async () => {
      const resident = process.memoryUsage().rss;
      await attack(async (a) => {
        a.share();
        a.ring(1);
        const [fd] = a.own(eventfd());
        for (let i = 0; i < TIMES; i++) await repeat(a, fd!, i);
        await a.patiently(R.GET_FEATURES, NOTHING);
        assert.ok((await a.answer()).length > 0, 'all of them are served');
      });
      assert.deepEqual(stage.errors, []);
      await stage.unharmed();
      assert.ok(process.memoryUsage().rss - resident < MEMORY, 'no memory is kept');
    });
  }
});

test('half a message and then silence: others are served meanwhile', async () => {
  const a = new Attacker(stage.path(), stage.ram);
  a.bytes(m.encodeMessage(R.SET_FEATURES, 0, m.encodeU64(0n)).subarray(0, 14));
  await until(() => stage.port.state === 'connected', 'the port serves it');
  await stage.healthy.flows();
  assert.equal(stage.port.state, 'connected');
  a.close();
  await stage.unharmed();
});

test('GET_VRING_BASE of a ring that never ran, twice', async () => {
  await attack(async (a) => {
    a.message(R.SET_VRING_BASE, state(1, 7));
    for (const _ of [1, 2]) {
      a.message(R.GET_VRING_BASE, state(1, 0));
      assert.deepEqual(m.decodeVringState((await a.answer()).subarray(12)), { index: 1, num: 7 });
    }
  });
  assert.deepEqual(stage.errors, []);
  await stage.unharmed();
});

test('a request that is refused with an acknowledgement: the session goes on', async (t) => {
  stage.forget();
  const guest = new RawGuest(stage.path(), stage.lease.poller);
  t.after(() => guest.close());
  await guest.start();
  await assert.rejects(guest.session.setVring(0, { ...guest.layout(0), size: 3 }), /SET_VRING_NUM.*refused/);
  assert.match(stage.port.lastError!, /queue 0: size 3/);
  await assert.rejects(guest.session.enable(256, true), /refused/);
  assert.equal(stage.port.state, 'up');
  guest.send(frame(BROADCAST, mac(4)));
  await until(() => guest.usedIdx(1) === 1, 'its rings go on');
  await guest.close();
  await stage.unharmed();
});
