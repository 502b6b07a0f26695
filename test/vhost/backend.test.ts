import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { closeFd, openFds, send, socketPair } from '../../src/sys/index.ts';
import { BackendSession } from '../../src/vhost/backend.ts';
import * as m from '../../src/vhost/messages.ts';
import { features } from '../../src/virtio/features.ts';
import { forThisFile, OFFERED, OFFERED_PROTOCOL, type RawEnd, RecordingDevice, serve } from './harness.ts';

const R = m.requests;
const ACK = m.FLAG_NEED_REPLY;
const run = promisify(execFile);

const { poller, g } = forThisFile();

const state = (index: number, num: number) => m.encodeVringState({ index, num });
const address = (index: number, from = 0x7f00_0000_0000n) =>
  m.encodeVringAddress({
    index,
    flags: 0,
    descUser: from,
    availUser: from + 0x1000n,
    usedUser: from + 0x2000n,
    logGuest: 0n,
  });

/** Negotiates and, with `ack`, has REPLY_ACK afterwards. */
async function negotiate(end: RawEnd, { ack = true, bits = OFFERED } = {}): Promise<void> {
  end.message(R.SET_OWNER);
  if (bits & features.VHOST_USER_F_PROTOCOL_FEATURES)
    end.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(ack ? OFFERED_PROTOCOL : 0n));
  end.message(R.SET_FEATURES, m.encodeU64(bits));
  await synced(end);
}

/** Waits until everything sent so far is handled. */
async function synced(end: RawEnd): Promise<void> {
  end.message(R.GET_FEATURES);
  assert.equal((await end.next())?.request, R.GET_FEATURES);
}

function share(end: RawEnd): void {
  end.message(R.SET_MEM_TABLE, m.encodeMemoryTable([g.region]), { fds: [g.ram] });
}

function start(end: RawEnd, index: number): void {
  end.message(R.SET_VRING_CALL, m.encodeVringIndex(index, true), { fds: [g.call] });
  end.message(R.SET_VRING_NUM, state(index, 256));
  end.message(R.SET_VRING_BASE, state(index, 5));
  end.message(R.SET_VRING_ADDR, address(index));
  end.message(R.SET_VRING_KICK, m.encodeVringIndex(index, true), { fds: [g.kick] });
}

async function acknowledged(end: RawEnd, request: number): Promise<bigint> {
  const answer = await end.next();
  assert.equal(answer?.request, request);
  assert.equal(answer.flags, m.VERSION | m.FLAG_REPLY);
  assert.equal(answer.size, 8);
  return m.decodeU64(answer.payload);
}

describe('what front-ends do', () => {
  test("DPDK's virtio-user: calls first, memory acknowledged, kick last, enable, stop", async () => {
    const { end, session, device, errors, ended } = serve(poller);
    end.message(R.SET_OWNER);
    end.message(R.GET_FEATURES);
    assert.equal(await acknowledged(end, R.GET_FEATURES), OFFERED);
    end.message(R.GET_PROTOCOL_FEATURES);
    assert.equal(await acknowledged(end, R.GET_PROTOCOL_FEATURES), OFFERED_PROTOCOL);
    end.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(OFFERED_PROTOCOL));
    for (const i of [0, 1]) end.message(R.SET_VRING_CALL, m.encodeVringIndex(i, true), { fds: [g.call] });
    end.message(R.SET_FEATURES, m.encodeU64(OFFERED));
    end.message(R.SET_MEM_TABLE, m.encodeMemoryTable([g.region]), { flags: ACK, fds: [g.ram] });
    assert.equal(await acknowledged(end, R.SET_MEM_TABLE), 0n);
    for (const i of [0, 1]) {
      end.message(R.SET_VRING_NUM, state(i, 256));
      end.message(R.SET_VRING_BASE, state(i, 0));
      end.message(R.SET_VRING_ADDR, address(i));
      end.message(R.SET_VRING_KICK, m.encodeVringIndex(i, true), { fds: [g.kick] });
    }
    for (const i of [0, 1]) end.message(R.SET_VRING_ENABLE, state(i, 1));
    // Its memory grows: queues disabled, the table sent again, queues enabled.
    for (const i of [0, 1]) end.message(R.SET_VRING_ENABLE, state(i, 0));
    end.message(R.SET_MEM_TABLE, m.encodeMemoryTable([g.region]), { flags: ACK, fds: [g.ram] });
    assert.equal(await acknowledged(end, R.SET_MEM_TABLE), 0n);
    for (const i of [0, 1]) end.message(R.SET_VRING_ENABLE, state(i, 1));
    await synced(end);
    assert.equal(session.features, OFFERED);
    assert.equal(session.protocolFeatures, OFFERED_PROTOCOL);
    assert.equal(session.memory.length, 1);
    assert.deepEqual(
      session.queues.map(({ size, running, enabled }) => ({ size, running, enabled })),
      [0, 1].map(() => ({ size: 256, running: true, enabled: true })),
    );
    for (const i of [0, 1]) {
      end.message(R.GET_VRING_BASE, state(i, 0));
      const answer = await end.next();
      assert.deepEqual(m.decodeVringState(answer!.payload), { index: i, num: 7 });
    }
    end.close();
    assert.equal(await ended(), 'the front-end closed the connection');
    assert.deepEqual(errors, []);
    assert.equal(session.lastError, null);
    assert.deepEqual(device.calls, [
      `setFeatures ${OFFERED.toString(16)}`,
      'setMemoryTable 1',
      'startVring 0 size 256 base 0',
      'startVring 1 size 256 base 0',
      'updateVring 0 enabled',
      'updateVring 1 enabled',
      'updateVring 0 enabled',
      'updateVring 1 enabled',
      'setMemoryTable 1',
      'updateVring 0 enabled',
      'updateVring 1 enabled',
      'stopVring 0',
      'stopVring 1',
      'reset',
    ]);
  });

  test('QEMU: enabled before SET_FEATURES, features set again while running, call replaced, restarted', async () => {
    const { end, session, device, errors, ended } = serve(poller);
    end.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(OFFERED_PROTOCOL));
    end.message(R.GET_QUEUE_NUM);
    assert.equal(await acknowledged(end, R.GET_QUEUE_NUM), 1n);
    end.message(R.SET_OWNER);
    end.message(R.SET_VRING_ENABLE, state(0, 1), { flags: ACK });
    assert.equal(await acknowledged(end, R.SET_VRING_ENABLE), 0n);
    end.message(R.SET_FEATURES, m.encodeU64(OFFERED));
    share(end);
    end.message(R.SET_VRING_ERR, m.encodeVringIndex(0, true), { fds: [g.err] });
    start(end, 0);
    end.message(R.SET_FEATURES, m.encodeU64(OFFERED));
    end.message(R.SET_VRING_ADDR, address(0));
    end.message(R.SET_VRING_NUM, state(0, 256));
    end.message(R.SET_VRING_BASE, state(0, 5));
    end.message(R.SET_VRING_CALL, m.encodeVringIndex(0, false));
    end.message(R.SET_VRING_CALL, m.encodeVringIndex(0, true), { fds: [g.call] });
    end.message(R.SET_VRING_KICK, m.encodeVringIndex(0, true), { fds: [g.kick] });
    share(end);
    end.message(R.GET_VRING_BASE, state(0, 0));
    assert.equal(m.decodeVringState((await end.next())!.payload).num, 12);
    // Stopping what is stopped gives the same answer.
    end.message(R.GET_VRING_BASE, state(0, 0));
    assert.equal(m.decodeVringState((await end.next())!.payload).num, 12);
    end.message(R.SET_VRING_KICK, m.encodeVringIndex(0, true), { fds: [g.kick] });
    await synced(end);
    assert.deepEqual(errors, []);
    assert.deepEqual(device.calls, [
      `setFeatures ${OFFERED.toString(16)}`,
      'setMemoryTable 1',
      'startVring 0 size 256 base 5 enabled',
      'updateVring 0 callFd',
      'updateVring 0 callFd',
      'updateVring 0 kickFd',
      'setMemoryTable 1',
      'stopVring 0',
      'startVring 0 size 256 base 12 enabled',
    ]);
    assert.equal(device.rings.get(0)!.callFd, -1);
    await session.close('the port was removed');
    assert.equal(await ended(), 'the port was removed');
    assert.equal(session.lastError, null);
    assert.equal(await end.next(), undefined);
    end.close();
  });

  test('without protocol features a queue is enabled as it starts, a kick without descriptor means polling', async () => {
    const { end, session, device } = serve(poller);
    await negotiate(end, { bits: features.VIRTIO_F_VERSION_1 });
    share(end);
    end.message(R.SET_VRING_NUM, state(0, 1));
    end.message(R.SET_VRING_ADDR, address(0));
    end.message(R.SET_VRING_KICK, m.encodeVringIndex(0, false));
    await synced(end);
    assert.equal(device.calls.at(-1), 'startVring 0 size 1 base 0 enabled');
    assert.equal(device.rings.get(0)!.kickFd, -1);
    end.message(R.RESET_OWNER);
    await synced(end);
    assert.equal(device.calls.at(-1), 'updateVring 0 enabled');
    assert.equal(session.queues[0]!.enabled, false);
    end.message(R.SET_FEATURES, m.encodeU64(features.VIRTIO_F_VERSION_1));
    await synced(end);
    assert.equal(session.queues[0]!.enabled, true);
    end.close();
    await session.closed;
  });

  test('a size that only packed rings may have starts no split ring', async () => {
    const device = new RecordingDevice();
    device.features = OFFERED | features.VIRTIO_F_RING_PACKED;
    const { end, session } = serve(poller, device);
    await negotiate(end, { bits: device.features });
    share(end);
    end.message(R.SET_VRING_NUM, state(0, 3), { flags: ACK });
    assert.equal(await acknowledged(end, R.SET_VRING_NUM), 0n);
    end.message(R.SET_FEATURES, m.encodeU64(OFFERED));
    end.message(R.SET_VRING_ADDR, address(0));
    end.message(R.SET_VRING_KICK, m.encodeVringIndex(0, true), { flags: ACK, fds: [g.kick] });
    assert.equal(await acknowledged(end, R.SET_VRING_KICK), 1n);
    assert.equal(session.lastError, 'SET_VRING_KICK: queue 0: size 3, a power of 2 expected of a split ring');
    assert.equal(session.queues[0]!.running, false);
    end.close();
    await session.closed;
  });

  test('starting and ending logging is the one change of features that a running queue takes', async () => {
    const { end, session, device } = serve(poller);
    await negotiate(end, { bits: OFFERED & ~features.VHOST_F_LOG_ALL });
    share(end);
    start(end, 0);
    end.message(R.SET_FEATURES, m.encodeU64(device.features), { flags: ACK });
    assert.equal(await acknowledged(end, R.SET_FEATURES), 0n);
    assert.equal(session.features, device.features);
    end.message(R.SET_FEATURES, m.encodeU64(OFFERED & ~features.VIRTIO_F_IN_ORDER), { flags: ACK });
    assert.equal(await acknowledged(end, R.SET_FEATURES), 1n);
    assert.equal(session.lastError, 'SET_FEATURES: VIRTIO_F_IN_ORDER changed while a queue is running');
    end.close();
    await session.closed;
  });

  test('virtio-user after its server side has reconnected: no SET_OWNER, an answer is not acknowledged twice', async () => {
    const { end, session, device, errors } = serve(poller);
    end.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(OFFERED_PROTOCOL));
    end.message(R.SET_FEATURES, m.encodeU64(OFFERED));
    share(end);
    start(end, 0);
    end.message(R.GET_FEATURES, undefined, { flags: ACK });
    assert.equal(await acknowledged(end, R.GET_FEATURES), OFFERED);
    await synced(end);
    assert.equal(device.rings.size, 1);
    assert.deepEqual(errors, []);
    end.close();
    await session.closed;
  });

  test('every message in pieces of one byte', async () => {
    const { end, session, device, errors } = serve(poller);
    const sendBytes = async (
      request: number,
      payload: Uint8Array = new Uint8Array(0),
      fds: number[] = [],
    ) => {
      const bytes = m.encodeMessage(request, 0, payload);
      for (const [i, byte] of bytes.entries()) {
        end.bytes(Uint8Array.of(byte), i === 0 ? fds : []);
        if (i % 5 === 0) await sleep(1);
      }
    };
    await sendBytes(R.SET_OWNER);
    await sendBytes(R.SET_FEATURES, m.encodeU64(OFFERED));
    await sendBytes(R.SET_MEM_TABLE, m.encodeMemoryTable([g.region]), [g.ram]);
    await sendBytes(R.SET_VRING_NUM, state(1, 64));
    await sendBytes(R.SET_VRING_ADDR, address(1));
    await sendBytes(R.SET_VRING_KICK, m.encodeVringIndex(1, true), [g.kick]);
    await sendBytes(R.GET_VRING_BASE, state(1, 0));
    assert.deepEqual(m.decodeVringState((await end.next())!.payload), { index: 1, num: 7 });
    assert.deepEqual(errors, []);
    assert.equal(device.calls.filter((call) => call.startsWith('startVring')).length, 1);
    end.close();
    await session.closed;
  });

  test('one message after the other: the next waits for the device', async () => {
    const device = new RecordingDevice();
    const { end, session } = serve(poller, device);
    await negotiate(end);
    let open = () => {};
    device.gate = new Promise((resolve) => {
      open = resolve;
    });
    share(end);
    start(end, 0);
    end.message(R.GET_VRING_BASE, state(0, 0));
    await sleep(50);
    assert.deepEqual(device.calls.slice(1), ['setMemoryTable 1']);
    open();
    assert.equal(m.decodeVringState((await end.next())!.payload).num, 12);
    assert.deepEqual(device.calls.slice(1), [
      'setMemoryTable 1',
      'startVring 0 size 256 base 5',
      'stopVring 0',
    ]);
    end.close();
    await session.closed;
  });

  test('a front-end that leaves while the device works: reset comes after', async () => {
    const device = new RecordingDevice();
    const { end, session, ended } = serve(poller, device);
    await negotiate(end);
    let open = () => {};
    device.gate = new Promise((resolve) => {
      open = resolve;
    });
    share(end);
    await sleep(20);
    end.close();
    const closing = session.close();
    await sleep(20);
    assert.equal(device.calls.at(-1), 'setMemoryTable 1');
    open();
    await closing;
    assert.equal(device.calls.at(-1), 'reset');
    assert.equal(device.memory.length, 0);
    assert.equal(await ended(), 'closed here');
  });

  test('a flood whose answers nobody reads is left to wait, others are served, and nothing is lost', async () => {
    const flood = serve(poller);
    const other = serve(poller);
    const request = m.encodeMessage(R.GET_FEATURES, 0, new Uint8Array(0));
    const count = 40_000;
    let rest: Uint8Array = Buffer.concat(Array(count).fill(request));
    const push = () => {
      const sent = send(flood.end.fd, rest);
      if (sent !== 'again') rest = rest.subarray(sent);
      return sent;
    };
    // Both directions fill up: 0.5 MB of requests and 0.8 MB of answers are more than two sockets hold.
    for (let stuck = 0; stuck < 50; stuck++) {
      while (push() !== 'again') stuck = 0;
      await sleep(2);
    }
    assert.ok(rest.length > 0);
    await negotiate(other.end);
    for (let i = 0; i < count; i++) {
      if (rest.length > 0) push();
      assert.equal((await flood.end.next())?.size, 8);
    }
    assert.deepEqual(flood.errors, []);
    for (const { end, session } of [flood, other]) {
      end.close();
      await session.closed;
    }
  });
});

describe('requests that fail', () => {
  test('unknown or not offered: named, acknowledged with non-zero, and the session goes on', async () => {
    const { end, session, errors } = serve(poller);
    await negotiate(end);
    const cases: [number, Uint8Array, number[], string][] = [
      [
        R.CLOSE_CRYPTO_SESSION,
        m.encodeU64(1n),
        [],
        'CLOSE_CRYPTO_SESSION: not offered by this back-end: a network device has no crypto sessions',
      ],
      [99, new Uint8Array(100), [g.call], 'message 99: no such request is known here'],
      [0, new Uint8Array(0), [], 'message 0: no such request is known here'],
    ];
    for (const [request, payload, fds, error] of cases) {
      for (const flags of [0, ACK]) {
        end.message(request, payload, { flags, fds });
        if (flags) assert.equal(await acknowledged(end, request), 1n);
        await synced(end);
        assert.equal(errors.pop(), error);
        assert.equal(session.lastError, error);
      }
    }
    end.close();
    await session.closed;
  });

  test('not offered, with an answer of its own: the connection ends', async () => {
    for (const request of [R.CREATE_CRYPTO_SESSION, R.GET_SHARED_OBJECT, R.GET_SHMEM_CONFIG]) {
      const { end, ended } = serve(poller);
      await negotiate(end);
      const { size } = m.requestRule(request)!;
      end.message(request, new Uint8Array(typeof size === 'number' ? size : size[0]), { flags: ACK });
      assert.match((await ended())!, new RegExp(`^${m.requestName(request)}: not offered by this back-end`));
      assert.equal(await end.next(), undefined);
      end.close();
    }
  });

  test('the acknowledgement flag means nothing without REPLY_ACK', async () => {
    const { end, session } = serve(poller);
    await negotiate(end, { ack: false });
    end.message(R.SET_VRING_NUM, state(0, 256), { flags: ACK });
    end.message(R.CLOSE_CRYPTO_SESSION, m.encodeU64(0n), { flags: ACK });
    await synced(end);
    end.close();
    await session.closed;
  });

  test('a device without protocol features has none of their requests', async () => {
    const device = new RecordingDevice();
    device.features = features.VIRTIO_F_VERSION_1;
    const { end, session, errors } = serve(poller, device);
    end.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(0n));
    end.message(R.SET_VRING_ENABLE, state(0, 1));
    await synced(end);
    assert.equal(errors.length, 2);
    end.message(R.GET_PROTOCOL_FEATURES);
    await session.closed;
    assert.equal(session.lastError, 'GET_PROTOCOL_FEATURES: not offered by this back-end');
    end.close();
  });

  test('refused before anything changed: goes on where acknowledged, ends where not', async () => {
    const error = 'SET_VRING_NUM: queue 0: size 3, a power of 2 from 1 to 32768 expected';
    const asked = serve(poller);
    await negotiate(asked.end);
    asked.end.message(R.SET_VRING_NUM, state(0, 3), { flags: ACK });
    assert.equal(await acknowledged(asked.end, R.SET_VRING_NUM), 1n);
    await synced(asked.end);
    assert.deepEqual(asked.errors, [error]);
    asked.end.close();
    await asked.session.closed;

    const silent = serve(poller);
    await negotiate(silent.end);
    silent.end.message(R.SET_VRING_NUM, state(0, 3));
    assert.equal(await silent.ended(), error);
    assert.deepEqual(silent.errors, [error]);
    silent.end.close();
  });

  test('a ring that the device refuses stays stopped', async () => {
    const device = new RecordingDevice();
    device.failures.set('startVring', 'used ring not aligned to 4 bytes');
    const { end, session } = serve(poller, device);
    await negotiate(end);
    share(end);
    end.message(R.SET_VRING_NUM, state(0, 256));
    end.message(R.SET_VRING_ADDR, address(0));
    end.message(R.SET_VRING_KICK, m.encodeVringIndex(0, true), { flags: ACK, fds: [g.kick] });
    assert.equal(await acknowledged(end, R.SET_VRING_KICK), 1n);
    assert.equal(session.lastError, 'SET_VRING_KICK: queue 0: used ring not aligned to 4 bytes');
    assert.equal(session.queues[0]!.running, false);
    device.failures.clear();
    start(end, 0);
    await synced(end);
    assert.equal(session.queues[0]!.running, true);
    end.close();
    await session.closed;
  });

  test('a memory table that fails is acknowledged with non-zero, then the connection ends', async () => {
    const device = new RecordingDevice();
    device.failures.set('setMemoryTable', 'the arena is full');
    const { end, ended } = serve(poller, device);
    await negotiate(end);
    end.message(R.SET_MEM_TABLE, m.encodeMemoryTable([g.region]), { flags: ACK, fds: [g.ram] });
    assert.equal(await acknowledged(end, R.SET_MEM_TABLE), 1n);
    assert.equal(await end.next(), undefined);
    assert.equal(await ended(), 'SET_MEM_TABLE: the arena is full');
    end.close();
  });

  test('what fails inside the device ends the connection', async () => {
    for (const name of ['updateVring', 'stopVring']) {
      const device = new RecordingDevice();
      const { end, ended } = serve(poller, device);
      await negotiate(end);
      share(end);
      start(end, 0);
      device.failures.set(name, 'no worker answers');
      if (name === 'stopVring') end.message(R.GET_VRING_BASE, state(0, 0));
      else end.message(R.SET_VRING_ENABLE, state(0, 1));
      assert.match((await ended())!, /_VRING_[A-Z]+: no worker answers$/);
      end.close();
    }
  });
});

/** What a hostile front-end sends after negotiating without REPLY_ACK, and the error that names it. */
const hostile: [name: string, attack: (end: RawEnd) => void, error: string][] = [];

function bad(name: string, error: string, attack: (end: RawEnd) => void): void {
  hostile.push([name, attack, error]);
}

bad('version 0', 'SET_OWNER: protocol version 0, 1 expected', (end) =>
  end.bytes(Uint8Array.of(3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)),
);
bad('version 2', 'SET_OWNER: protocol version 2, 1 expected', (end) =>
  end.message(R.SET_OWNER, undefined, { version: 2 }),
);
bad('a reply', 'GET_FEATURES: a reply where a request is expected', (end) =>
  end.message(R.GET_FEATURES, undefined, { flags: m.FLAG_REPLY }),
);
bad('unknown flags', 'SET_OWNER: unknown flags 0x80000010', (end) =>
  end.message(R.SET_OWNER, undefined, { flags: 0x80000010 | 0 }),
);
bad('an unknown request of 4 GiB', 'message 77: payload of 4294967295 bytes, at most 4096 expected', (end) =>
  end.message(77, undefined, { size: 0xffffffff }),
);
bad('a memory table of 4 GiB', 'SET_MEM_TABLE: payload of 4294967295 bytes, at most 264 expected', (end) =>
  end.message(R.SET_MEM_TABLE, undefined, { size: 0xffffffff }),
);
bad('a memory table of 17 bytes', 'SET_MEM_TABLE: payload of 17 bytes, at least 40 expected', (end) =>
  end.message(R.SET_MEM_TABLE, new Uint8Array(17), { fds: [g.ram] }),
);
bad('payload where there is none', 'GET_FEATURES: payload of 8 bytes, 0 expected', (end) =>
  end.message(R.GET_FEATURES, new Uint8Array(8)),
);
bad('a payload too short', 'SET_FEATURES: payload of 7 bytes, 8 expected', (end) =>
  end.message(R.SET_FEATURES, new Uint8Array(7)),
);
bad('a payload too long', 'SET_VRING_ADDR: payload of 41 bytes, 40 expected', (end) =>
  end.message(R.SET_VRING_ADDR, new Uint8Array(41)),
);
bad(
  'descriptors with the payload',
  'SET_VRING_KICK: descriptors came with the payload, not with the header',
  (end) => {
    end.message(R.SET_VRING_KICK, undefined, { size: 8 });
    end.bytes(m.encodeVringIndex(0, true), [g.kick]);
  },
);
bad('nine descriptors', 'message header: more than 8 descriptors', (end) =>
  end.message(R.SET_MEM_TABLE, m.encodeMemoryTable([g.region]), { fds: Array(9).fill(g.ram) }),
);
bad('253 descriptors', 'message header: more than 8 descriptors', (end) =>
  end.message(R.SET_OWNER, undefined, { fds: Array(253).fill(g.ram) }),
);
bad('half a header', 'message header: the connection closed in the middle of it', (end) => {
  end.bytes(Uint8Array.of(5, 0, 0), [g.ram]);
  end.close();
});
bad('half a payload', 'SET_MEM_TABLE: the connection closed in the middle of it', (end) => {
  end.bytes(m.encodeMessage(R.SET_MEM_TABLE, 0, m.encodeMemoryTable([g.region])).subarray(0, 30), [g.ram]);
  end.close();
});

for (const index of [2, 256, 0x10000, 0xffffffff]) {
  const where = `queue ${index} does not exist, this device has 2`;
  for (const request of [R.SET_VRING_NUM, R.SET_VRING_BASE, R.GET_VRING_BASE, R.SET_VRING_ENABLE])
    bad(`queue ${index}`, `${m.requestName(request)}: ${where}`, (end) =>
      end.message(request, state(index, 1)),
    );
  bad(`queue ${index}`, `SET_VRING_ADDR: ${where}`, (end) => end.message(R.SET_VRING_ADDR, address(index)));
}
for (const request of [R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR]) {
  const name = m.requestName(request);
  bad('queue 255', `${name}: queue 255 does not exist, this device has 2`, (end) =>
    end.message(request, m.encodeU64(255n), { fds: [g.kick] }),
  );
  bad('queue 0x10000', `${name}: bits 0x10000 have no meaning beside the queue's index`, (end) =>
    end.message(request, m.encodeU64(0x10000n), { fds: [g.kick] }),
  );
  bad('queue 2^63', `${name}: bits 0x8000000000000000 have no meaning beside the queue's index`, (end) =>
    end.message(request, m.encodeU64(1n << 63n), { fds: [g.kick] }),
  );
  bad('not an eventfd', `${name}: queue 0: the descriptor is not an eventfd`, (end) =>
    end.message(request, m.encodeU64(0n), { fds: [g.ram] }),
  );
  bad('a descriptor in spite of bit 8', `${name}: 1 descriptor, 0 expected`, (end) =>
    end.message(request, m.encodeVringIndex(0, false), { fds: [g.kick] }),
  );
}
for (const num of [0, 3, 32769, 65536, 0xffffffff])
  bad(`size ${num}`, `SET_VRING_NUM: queue 1: size ${num}, a power of 2 from 1 to 32768 expected`, (end) =>
    end.message(R.SET_VRING_NUM, state(1, num)),
  );
for (const base of [65536, 0xffffffff])
  bad(`base ${base}`, `SET_VRING_BASE: queue 0: base ${base}, at most 65535 expected`, (end) =>
    end.message(R.SET_VRING_BASE, state(0, base)),
  );
bad('enable 2', 'SET_VRING_ENABLE: queue 0: 2, 0 or 1 expected', (end) =>
  end.message(R.SET_VRING_ENABLE, state(0, 2)),
);
bad('an unknown flag', 'SET_VRING_ADDR: queue 0: unknown flags 0x2', (end) => {
  const payload = address(0);
  payload[4] = 3;
  end.message(R.SET_VRING_ADDR, payload);
});
bad(
  'a log address that wraps',
  'SET_VRING_ADDR: queue 0: a used ring at log address 0xffffffffffffffff wraps',
  (end) => {
    const payload = address(0);
    payload[4] = 1;
    payload.fill(0xff, 32);
    end.message(R.SET_VRING_ADDR, payload);
  },
);
for (const [name, size, offset, which, error] of [
  ['an empty log', 0n, 0n, 'ram', 'the log is empty'],
  [
    'a log that wraps',
    1n << 63n,
    1n << 63n,
    'ram',
    'log file shorter than declared, 0x100000 bytes where offset + size is 0x10000000000000000',
  ],
  ['a log that wraps far', 2n, (1n << 64n) - 1n, 'ram', 'offset 0xffffffffffffffff + size 0x2 wraps'],
  [
    'a log beyond its file',
    1n,
    1n << 20n,
    'ram',
    'log file shorter than declared, 0x100000 bytes where offset + size is 0x100001',
  ],
  [
    'a log in an eventfd',
    4096n,
    0n,
    'call',
    "an eventfd or the like can't be mapped, a memory file is expected",
  ],
] as const)
  bad(name, `SET_LOG_BASE: ${error}`, (end) =>
    end.message(R.SET_LOG_BASE, m.encodeLog({ size, offset }), { fds: [g[which]] }),
  );
bad('a log without a descriptor', 'SET_LOG_BASE: 16 bytes and 0 descriptors, 16 and 1 expected', (end) =>
  end.message(R.SET_LOG_BASE, m.encodeLog({ size: 1n, offset: 0n })),
);
for (const [name, mac, words] of [
  ['nobody', 0n, '00:00:00:00:00:00'],
  ['a group', 0x0100_005e_0001n, '01:00:5e:00:00:01'],
  ['everybody', (1n << 64n) - 1n, 'ff:ff:ff:ff:ff:ff'],
] as const)
  bad(`${name} announced`, `SEND_RARP: ${words} is no address of a guest`, (end) =>
    end.message(R.SEND_RARP, m.encodeU64(mac)),
  );
bad('a log fd that is a file', 'SET_LOG_FD: the descriptor is not an eventfd', (end) =>
  end.message(R.SET_LOG_FD, undefined, { fds: [g.ram] }),
);
bad('features not offered', 'SET_FEATURES: VIRTIO_NET_F_MQ, bit 44 not offered', (end) =>
  end.message(R.SET_FEATURES, m.encodeU64(OFFERED | features.VIRTIO_NET_F_MQ | (1n << 44n))),
);
bad(
  'protocol features not offered',
  'SET_PROTOCOL_FEATURES: VHOST_USER_PROTOCOL_F_XEN_MMAP not offered',
  (end) => end.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(1n << 17n)),
);

function table(name: string, error: string, regions: m.RegionLayout[], fds?: number[]): void {
  bad(name, `SET_MEM_TABLE: ${error}`, (end) =>
    end.message(R.SET_MEM_TABLE, m.encodeMemoryTable(regions), { fds: fds ?? regions.map(() => g.ram) }),
  );
}
const region = { guestAddress: 0n, size: 0x1000n, userAddress: 0x7f00_0000_0000n, mmapOffset: 0n };
const top = 0xffff_ffff_ffff_f001n;
bad('a table of 0 regions', 'SET_MEM_TABLE: payload of 8 bytes, at least 40 expected', (end) =>
  end.message(R.SET_MEM_TABLE, m.encodeMemoryTable([])),
);
bad('0 regions in the room of one', 'SET_MEM_TABLE: 0 regions, 1 to 8 expected', (end) =>
  end.message(R.SET_MEM_TABLE, new Uint8Array(40)),
);
bad('a table of 9 regions', 'SET_MEM_TABLE: payload of 296 bytes, at most 264 expected', (end) =>
  end.message(R.SET_MEM_TABLE, m.encodeMemoryTable(Array(9).fill(region)), { fds: Array(8).fill(g.ram) }),
);
bad('9 regions in the room of one', 'SET_MEM_TABLE: 9 regions, 1 to 8 expected', (end) => {
  const payload = m.encodeMemoryTable([region]);
  payload[0] = 9;
  end.message(R.SET_MEM_TABLE, payload, { fds: [g.ram] });
});
bad('more room than regions', 'SET_MEM_TABLE: payload of 72 bytes for 1 region, 40 expected', (end) => {
  const payload = m.encodeMemoryTable([region, region]);
  payload[0] = 1;
  end.message(R.SET_MEM_TABLE, payload, { fds: [g.ram] });
});
table('an empty region', 'region 0 is empty', [{ ...region, size: 0n }]);
table('a guest address that wraps', 'region 0: guest address 0xfffffffffffff001 + size 0x1000 wraps', [
  { ...region, guestAddress: top },
]);
table('a user address that wraps', 'region 0: user address 0xfffffffffffff001 + size 0x1000 wraps', [
  { ...region, userAddress: top },
]);
table('an offset that wraps', 'region 0: file offset 0xfffffffffffff001 + size 0x1000 wraps', [
  { ...region, mmapOffset: top },
]);
table('overlap in guest addresses', 'regions 0 and 2 overlap in guest addresses', [
  region,
  { ...region, guestAddress: 0x1000n, userAddress: 0x1000n },
  { ...region, guestAddress: 0xfffn, userAddress: 0x5000n },
]);
table('overlap in user addresses', 'regions 0 and 1 overlap in user addresses', [
  region,
  { ...region, guestAddress: 0x1000n, userAddress: region.userAddress + 0xfffn },
]);
table(
  'a file shorter than declared',
  'region 0: region file shorter than declared, 0x100000 bytes where offset + size is 0x100001',
  [{ ...region, size: 0x1000n, mmapOffset: 0xff001n }],
);
table(
  'a region larger than any file',
  'region 0: region file shorter than declared, 0x100000 bytes where offset + size is 0xffffffffffffffff',
  [{ guestAddress: 0n, size: 0xffff_ffff_ffff_ffffn, userAddress: 0n, mmapOffset: 0n }],
);
bad(
  'an eventfd as memory',
  "SET_MEM_TABLE: region 0: an eventfd or the like can't be mapped, a memory file is expected",
  (end) => end.message(R.SET_MEM_TABLE, m.encodeMemoryTable([region]), { fds: [g.kick] }),
);
bad(
  'a socket as memory',
  "SET_MEM_TABLE: region 0: a socket can't be mapped, a memory file is expected",
  (end) => end.message(R.SET_MEM_TABLE, m.encodeMemoryTable([region]), { fds: [end.fd] }),
);

for (const [step, error] of [
  [0, 'SET_MEM_TABLE'],
  [1, 'SET_VRING_NUM'],
  [2, 'SET_VRING_ADDR'],
] as const) {
  bad(`a kick before ${error}`, `SET_VRING_KICK: queue 0 can't start before ${error}`, (end) => {
    if (step > 0) share(end);
    if (step > 1) end.message(R.SET_VRING_NUM, state(0, 256));
    end.message(R.SET_VRING_KICK, m.encodeVringIndex(0, true), { fds: [g.kick] });
  });
}
function whileRunning(what: string, request: number, payload: Uint8Array): void {
  const error = `${m.requestName(request)}: queue 0: the ${what} can't change while it is running`;
  bad(`${what} of a running queue`, error, (end) => {
    share(end);
    start(end, 0);
    end.message(request, payload);
  });
}
whileRunning('size', R.SET_VRING_NUM, state(0, 128));
whileRunning('base', R.SET_VRING_BASE, state(0, 6));
whileRunning('addresses', R.SET_VRING_ADDR, address(0, 0x7f00_0001_0000n));

/** One payload that is right for each of the messages 1 to 18. */
const payloads: Record<number, () => Uint8Array> = {
  [R.SET_FEATURES]: () => m.encodeU64(OFFERED),
  [R.SET_MEM_TABLE]: () => m.encodeMemoryTable([g.region]),
  [R.SET_LOG_BASE]: () => new Uint8Array(16),
  [R.SET_VRING_NUM]: () => state(0, 256),
  [R.SET_VRING_ADDR]: () => address(0),
  [R.SET_VRING_BASE]: () => state(0, 0),
  [R.GET_VRING_BASE]: () => state(0, 0),
  [R.SET_VRING_KICK]: () => m.encodeVringIndex(0, true),
  [R.SET_VRING_CALL]: () => m.encodeVringIndex(0, true),
  [R.SET_VRING_ERR]: () => m.encodeVringIndex(0, true),
  [R.SET_PROTOCOL_FEATURES]: () => m.encodeU64(0n),
  [R.SET_VRING_ENABLE]: () => state(0, 1),
};
const accepts: Record<number, number[]> = {
  [R.SET_MEM_TABLE]: [1],
  [R.SET_LOG_BASE]: [0, 1],
  [R.SET_LOG_FD]: [1],
  [R.SET_VRING_KICK]: [1],
  [R.SET_VRING_CALL]: [1],
  [R.SET_VRING_ERR]: [1],
};
for (let request = 1; request <= 18; request++) {
  for (const count of [0, 1, 2, 8]) {
    const right = accepts[request] ?? [0];
    if (right.includes(count)) continue;
    const wanted = right.length === 1 ? `${right[0]} expected` : `at most ${right[1]} expected`;
    const error = `${m.requestName(request)}: ${count} descriptor${count === 1 ? '' : 's'}, ${wanted}`;
    bad(`${count} descriptors with message ${request}`, error, (end) =>
      end.message(request, payloads[request]?.(), { fds: Array(count).fill(g.call) }),
    );
  }
}

async function attacked([name, attack, error]: (typeof hostile)[number]): Promise<void> {
  const { end, ended, errors, device } = serve(poller);
  await negotiate(end, { ack: false });
  attack(end);
  assert.equal(await ended(), error, name);
  assert.deepEqual(errors, [error], name);
  assert.equal(device.calls.at(-1), 'reset', name);
  end.close();
}

describe('hostile front-ends', () => {
  test('each bad message ends its own connection with an error that names it', async () => {
    const innocent = serve(poller);
    await negotiate(innocent.end);
    const fds = openFds();
    for (const attempt of hostile) {
      await attacked(attempt);
      assert.equal(openFds(), fds, attempt[0]);
    }
    await synced(innocent.end);
    assert.deepEqual(innocent.errors, []);
    innocent.end.close();
    await innocent.session.closed;
  });

  test('10,000 attempts leave no descriptor behind', async () => {
    const fds = openFds();
    for (let i = 0; i < 10_000; i += 50)
      await Promise.all(Array.from({ length: 50 }, (_, j) => attacked(hostile[(i + j) % hostile.length]!)));
    assert.equal(openFds(), fds);
  });

  test('a kick before SET_FEATURES', async () => {
    const { end, ended } = serve(poller);
    share(end);
    end.message(R.SET_VRING_NUM, state(0, 256));
    end.message(R.SET_VRING_ADDR, address(0));
    end.message(R.SET_VRING_KICK, m.encodeVringIndex(0, true), { fds: [g.kick] });
    assert.equal(await ended(), "SET_VRING_KICK: queue 0 can't start before SET_FEATURES");
    end.close();
  });

  test('half a message, then silence: its descriptors are given back in time, and nobody else waits', async () => {
    const { end, ended } = serve(poller, new RecordingDevice(), 100);
    const header = m.encodeMessage(R.SET_MEM_TABLE, 0, m.encodeMemoryTable([g.region])).subarray(0, 40);
    const fds = openFds();
    end.bytes(header, [g.ram]);
    const other = serve(poller);
    await negotiate(other.end);
    assert.equal(await ended(), 'SET_MEM_TABLE: only a part of it came within 0.1 s');
    other.end.close();
    await other.session.closed;
    end.close();
    assert.equal(openFds(), fds - 2);
  });

  test('a message that trickles in is given no more time than one that stalls', async () => {
    const { end, session, ended } = serve(poller, new RecordingDevice(), 100);
    const bytes = m.encodeMessage(R.SET_VRING_ADDR, 0, address(0));
    end.bytes(bytes.subarray(0, m.HEADER_SIZE));
    for (const byte of bytes.subarray(m.HEADER_SIZE)) {
      if (session.lastError !== null) break;
      end.bytes(Uint8Array.of(byte));
      await sleep(10);
    }
    assert.equal(await ended(), 'SET_VRING_ADDR: only a part of it came within 0.1 s');
    end.close();
  });

  test('descriptors that were stored, then abandoned, are closed', async () => {
    const fds = openFds();
    const { end, session } = serve(poller);
    await negotiate(end);
    for (let i = 0; i < 100; i++) {
      end.message(R.SET_VRING_CALL, m.encodeVringIndex(i & 1, true), { fds: [g.call] });
      end.message(R.SET_VRING_ERR, m.encodeVringIndex(i & 1, true), { fds: [g.err] });
    }
    await synced(end);
    assert.equal(openFds(), fds + 2 + 4);
    end.close();
    await session.closed;
    assert.equal(openFds(), fds);
  });

  test('descriptors that there is no room for are named, not missed', async () => {
    const script = fileURLToPath(new URL('./out-of-descriptors.js', import.meta.url));
    const { stdout } = await run('sh', ['-c', 'ulimit -n 64; exec "$0" "$1"', process.execPath, script]);
    assert.equal(
      stdout.trim(),
      'message header: descriptors were lost, this process is out of them (ulimit -n)',
    );
  });

  test('random messages with random descriptors: no crash, no leak', async () => {
    let seed = 0x2545f491;
    const random = (n: number) => {
      seed ^= seed << 13;
      seed ^= seed >>> 17;
      seed ^= seed << 5;
      return (seed >>> 0) % n;
    };
    const fds = openFds();
    const sources = [g.ram, g.kick, g.call, g.err];
    for (let round = 0; round < 400; round++) {
      const { end, session, device } = serve(poller);
      await negotiate(end, { ack: random(2) === 0 });
      for (let i = 0; i < 12 && session.lastError === null; i++) {
        const request = 1 + random(random(4) === 0 ? 60 : 18);
        const payload = Uint8Array.from(payloads[request]?.() ?? new Uint8Array(random(3) * 8));
        if (payload.length > 0 && random(3) === 0) payload[random(payload.length)]! ^= 1 << random(8);
        const count = accepts[request]?.[0] ?? 0;
        const passed = Array.from({ length: random(8) === 0 ? random(4) : count }, () => sources[random(4)]!);
        try {
          end.message(request, payload, { flags: random(2) * ACK, fds: passed });
        } catch {
          break;
        }
      }
      await sleep(1);
      end.close();
      await session.closed;
      assert.equal(device.calls.at(-1), 'reset');
    }
    assert.equal(openFds(), fds);
  });

  test('a socket that nobody can watch stays the caller’s', () => {
    const [near, far] = socketPair();
    poller.add(near, 0, () => {});
    const device = new RecordingDevice();
    assert.throws(() => new BackendSession({ fd: near, poller, device }), { name: 'SystemError' });
    poller.remove(near);
    closeFd(near);
    closeFd(far);
  });
});
