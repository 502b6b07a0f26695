import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { openFds, socketPair } from '../../src/sys/index.ts';
import { BackendSession } from '../../src/vhost/backend.ts';
import { FRONTEND_PROTOCOL_FEATURES, FrontendSession } from '../../src/vhost/frontend.ts';
import * as m from '../../src/vhost/messages.ts';
import { features, vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { forThisFile, OFFERED, OFFERED_PROTOCOL, RawEnd, RecordingDevice } from './harness.ts';

const R = m.requests;
const REPLY = m.FLAG_REPLY;
const WANTED = features.VIRTIO_F_VERSION_1 | features.VIRTIO_NET_F_MRG_RXBUF | features.VIRTIO_F_RING_PACKED;
/** Of what the back-end offers, what this front-end asks for. */
const KNOWN_PROTOCOL = OFFERED_PROTOCOL & FRONTEND_PROTOCOL_FEATURES;
const AGREED = (WANTED & OFFERED) | features.VHOST_USER_F_PROTOCOL_FEATURES;

const { poller, g } = forThisFile();

const ring = {
  size: 256,
  base: 3,
  descUser: 0x7f00_0000_0000n,
  availUser: 0x7f00_0000_1000n,
  usedUser: 0x7f00_0000_2000n,
};
const table = () => [{ ...g.region, fd: g.ram }];

function both(device = new RecordingDevice()) {
  const [near, far] = socketPair();
  const backend = new BackendSession({ fd: near, poller, device });
  const frontend = new FrontendSession({ fd: far, poller });
  return { device, backend, frontend };
}

describe('both ends', () => {
  test('negotiate, share memory, start, run, stop, start again where it stopped', async () => {
    const fds = openFds();
    const { device, backend, frontend } = both();
    assert.deepEqual(await frontend.negotiate(WANTED), {
      features: AGREED,
      protocolFeatures: KNOWN_PROTOCOL,
      queuePairs: 1,
    });
    assert.equal(backend.features, AGREED);
    await frontend.setMemoryTable(table());
    for (const i of [0, 1]) {
      await frontend.setVring(i, ring);
      await frontend.startVring(i, { kickFd: g.kick, callFd: g.call, errFd: g.err });
      await frontend.enable(i, true);
    }
    assert.equal(device.rings.size, 2);
    assert.deepEqual(device.rings.get(1)!.descUser, ring.descUser);
    assert.deepEqual(device.rings.get(1)!.availUser, ring.availUser);
    assert.deepEqual(device.rings.get(1)!.usedUser, ring.usedUser);
    await frontend.setCall(1, -1);
    assert.equal(device.rings.get(1)!.callFd, -1);
    await frontend.enable(1, false);
    assert.equal(device.rings.get(1)!.enabled, false);
    const base = await frontend.stopVring(1);
    assert.equal(base, 10);
    await frontend.setVring(1, { ...ring, base });
    await frontend.startVring(1, { kickFd: -1, callFd: -1 });
    assert.equal(device.rings.get(1)!.base, 10);
    assert.equal(device.rings.get(1)!.kickFd, -1);
    await frontend.close();
    await backend.closed;
    assert.equal(backend.lastError, null);
    assert.equal(openFds(), fds);
  });

  test('without REPLY_ACK and without protocol features', async () => {
    for (const bits of [OFFERED, OFFERED & ~features.VHOST_USER_F_PROTOCOL_FEATURES]) {
      const device = new RecordingDevice();
      device.features = bits;
      device.protocolFeatures = 0n;
      const { backend, frontend } = both(device);
      const agreed = await frontend.negotiate(WANTED);
      assert.deepEqual(agreed, { features: AGREED & bits, protocolFeatures: 0n, queuePairs: 1 });
      await frontend.setMemoryTable(table());
      await frontend.setVring(0, ring);
      await frontend.startVring(0, { kickFd: g.kick, callFd: g.call });
      assert.equal(await frontend.stopVring(0), 10);
      assert.equal(device.calls.includes('startVring 0 size 256 base 3 enabled'), bits !== OFFERED);
      await frontend.close();
      await backend.closed;
    }
  });

  test('several queue pairs', async () => {
    const device = new RecordingDevice();
    device.queuePairs = 4;
    const { backend, frontend } = both(device);
    assert.equal((await frontend.negotiate(WANTED)).queuePairs, 4);
    await frontend.setMemoryTable(table());
    for (let i = 0; i < 8; i++) await frontend.setVring(i, ring);
    for (let i = 0; i < 8; i++) await frontend.startVring(i, { kickFd: g.kick, callFd: g.call });
    assert.equal(device.rings.size, 8);
    await frontend.close();
    await backend.closed;
  });

  test('a refused request rejects with its name, the session goes on', async () => {
    const { device, backend, frontend } = both();
    await frontend.negotiate(WANTED);
    await frontend.setMemoryTable(table());
    await assert.rejects(frontend.setVring(0, { ...ring, size: 100 }), {
      message: 'SET_VRING_NUM: the back-end refused it (status 1)',
    });
    assert.match(backend.lastError!, /^SET_VRING_NUM: queue 0: size 100/);
    device.failures.set('startVring', 'no');
    await frontend.setVring(0, ring);
    await assert.rejects(frontend.startVring(0, { kickFd: g.kick, callFd: -1 }), {
      message: 'SET_VRING_KICK: the back-end refused it (status 1)',
    });
    device.failures.clear();
    await frontend.startVring(0, { kickFd: g.kick, callFd: -1 });
    await frontend.close();
    await backend.closed;
  });

  test('a back-end that leaves: open and later requests reject', async () => {
    const device = new RecordingDevice();
    const { backend, frontend } = both(device);
    await frontend.negotiate(WANTED);
    let open = () => {};
    device.gate = new Promise((resolve) => {
      open = resolve;
    });
    const pending = assert.rejects(frontend.setMemoryTable(table()), {
      name: 'ProtocolError',
      message: 'SET_MEM_TABLE: the back-end closed the connection',
    });
    await sleep(20);
    const closing = backend.close();
    await pending;
    open();
    await closing;
    await frontend.closed;
    await assert.rejects(frontend.stopVring(0), {
      message: 'GET_VRING_BASE: the back-end closed the connection',
    });
    await assert.rejects(frontend.setMemoryTable([]), RangeError);
  });

  test('a front-end that closes: open requests reject with its reason', async () => {
    const device = new RecordingDevice();
    const { backend, frontend } = both(device);
    await frontend.negotiate(WANTED);
    let open = () => {};
    device.gate = new Promise((resolve) => {
      open = resolve;
    });
    const pending = assert.rejects(frontend.setMemoryTable(table()), {
      message: 'SET_MEM_TABLE: the program ends',
    });
    await frontend.close('the program ends');
    await pending;
    open();
    await backend.closed;
  });

  test('connect and leave, over and over', async () => {
    const fds = openFds();
    for (let i = 0; i < 200; i++) {
      const { backend, frontend } = both();
      const steps = [
        () => frontend.negotiate(WANTED),
        () => frontend.setMemoryTable(table()),
        () => frontend.setVring(0, ring),
        () => frontend.startVring(0, { kickFd: g.kick, callFd: g.call, errFd: g.err }),
        () => frontend.stopVring(0),
      ];
      for (const step of steps.slice(0, i % 6)) await step();
      await (i % 2 ? frontend : backend).close();
      await frontend.closed;
      await backend.closed;
    }
    assert.equal(openFds(), fds);
  });
});

/** A back-end that answers GET_FEATURES as it is told, and what the front-end says to that. */
const lies: [name: string, answer: (end: RawEnd) => void, error: string][] = [
  [
    'another request',
    (end) => end.message(R.GET_QUEUE_NUM, m.encodeU64(1n), { flags: REPLY }),
    'GET_FEATURES: the back-end answered GET_QUEUE_NUM',
  ],
  [
    'no reply flag',
    (end) => end.message(R.GET_FEATURES, m.encodeU64(1n)),
    'GET_FEATURES: an answer with flags 0x1, 0x5 expected',
  ],
  [
    'version 2',
    (end) => end.message(R.GET_FEATURES, m.encodeU64(1n), { flags: REPLY, version: 2 }),
    'GET_FEATURES: an answer with flags 0x6, 0x5 expected',
  ],
  [
    'too short',
    (end) => end.message(R.GET_FEATURES, new Uint8Array(4), { flags: REPLY }),
    'GET_FEATURES: an answer of 4 bytes, 8 expected',
  ],
  [
    '4 GiB',
    (end) => end.message(R.GET_FEATURES, undefined, { flags: REPLY, size: 0xffffffff }),
    'GET_FEATURES: an answer of 4294967295 bytes, 8 expected',
  ],
  [
    'descriptors',
    (end) => end.message(R.GET_FEATURES, m.encodeU64(1n), { flags: REPLY, fds: [g.ram, g.kick] }),
    'GET_FEATURES: an answer with 2 descriptors, 0 expected',
  ],
  ['silence', () => {}, 'GET_FEATURES: no answer from the back-end within 0.2 s'],
  [
    'half an answer',
    (end) => end.bytes(Uint8Array.of(1, 0, 0, 0, 5)),
    'GET_FEATURES: no answer from the back-end within 0.2 s',
  ],
  ['nothing but an end', (end) => end.close(), 'GET_FEATURES: the back-end closed the connection'],
];

describe('back-ends that lie', () => {
  for (const [name, answer, error] of lies) {
    test(name, async () => {
      const fds = openFds();
      const [near, far] = socketPair();
      const end = new RawEnd(near);
      let reason: string | undefined;
      const frontend = new FrontendSession({
        fd: far,
        poller,
        timeout: 200,
        onClose: (why) => {
          reason = why;
        },
      });
      const negotiated = assert.rejects(frontend.negotiate(WANTED), {
        name: 'ProtocolError',
        message: error,
      });
      assert.equal((await end.next())?.request, R.SET_OWNER);
      assert.equal((await end.next())?.request, R.GET_FEATURES);
      answer(end);
      await negotiated;
      await frontend.closed;
      assert.ok(error.includes(reason!.replace('GET_FEATURES: ', '')));
      end.close();
      assert.equal(openFds(), fds);
    });
  }

  test('an answer that nobody asked for', async () => {
    const [near, far] = socketPair();
    const end = new RawEnd(near);
    const frontend = new FrontendSession({ fd: far, poller });
    end.message(R.GET_FEATURES, m.encodeU64(1n), { flags: REPLY });
    await frontend.closed;
    await assert.rejects(frontend.enable(0, true), {
      message: 'SET_VRING_ENABLE: GET_FEATURES: an answer that nobody asked for',
    });
    end.close();
  });

  test('absurd values', async () => {
    const [near, far] = socketPair();
    const end = new RawEnd(near);
    const frontend = new FrontendSession({ fd: far, poller });
    const answered = async (request: number, payload: Uint8Array) => {
      for (;;) {
        const message = await end.next();
        if (message?.request !== request) continue;
        return end.message(request, payload, { flags: REPLY });
      }
    };
    const negotiated = assert.rejects(frontend.negotiate(WANTED), {
      message: 'GET_QUEUE_NUM: 18446744073709551615 queue pairs, 1 to 32768 expected',
    });
    await answered(R.GET_FEATURES, m.encodeU64(~0n));
    await answered(R.GET_PROTOCOL_FEATURES, m.encodeU64(vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_MQ));
    await answered(R.GET_QUEUE_NUM, m.encodeU64(~0n));
    await negotiated;
    await frontend.closed;
    end.close();

    for (const answer of [
      { index: 1, num: 0 },
      { index: 0, num: 65536 },
    ]) {
      const [near, far] = socketPair();
      const end = new RawEnd(near);
      const frontend = new FrontendSession({ fd: far, poller });
      const stopped = assert.rejects(frontend.stopVring(0), {
        message: `GET_VRING_BASE: queue ${answer.index} at ${answer.num} in the answer for queue 0`,
      });
      await end.next();
      end.message(R.GET_VRING_BASE, m.encodeVringState(answer), { flags: REPLY });
      await stopped;
      await frontend.closed;
      end.close();
    }
  });
});
