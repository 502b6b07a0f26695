/** Memory regions one by one: GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { openFds, sharedPoller, socketPair } from '../../src/sys/index.ts';
import { FrontendSession } from '../../src/vhost/frontend.ts';
import * as m from '../../src/vhost/messages.ts';
import { features } from '../../src/virtio/features.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { GUEST, numbered, numberOf, RawGuest, USER } from '../support/raw-guest.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';
import { forThisFile, OFFERED, OFFERED_PROTOCOL, RawEnd, RecordingDevice, serve } from './harness.ts';

const R = m.requests;
const ACK = m.FLAG_NEED_REPLY;

const { poller, g } = forThisFile();

/** The i-th page of the guest's memory, as a region of its own. */
const page = (i: number, size = 0x1000n): m.RegionLayout => ({
  guestAddress: BigInt(i) * 0x10_0000n,
  userAddress: 0x7f00_0000_0000n + BigInt(i) * 0x10_0000n,
  size,
  mmapOffset: 0n,
});

async function negotiated(device = new RecordingDevice()) {
  const served = serve(poller, device);
  served.end.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(OFFERED_PROTOCOL));
  served.end.message(R.SET_FEATURES, m.encodeU64(OFFERED));
  return served;
}

/** Sends a request that wants an acknowledgement: its status. */
async function ask(end: RawEnd, request: number, payload: Uint8Array, fds: number[] = []): Promise<bigint> {
  end.message(request, payload, { flags: ACK, fds });
  const answer = await end.next();
  assert.equal(answer?.request, request);
  return m.decodeU64(answer.payload);
}

describe('a back-end session', () => {
  test('takes 509 regions and not one more, each back again, in any order', async () => {
    const { end, session, device, errors } = await negotiated();
    const fds = openFds();
    end.message(R.GET_MAX_MEM_SLOTS);
    assert.equal(m.decodeU64((await end.next())!.payload), 509n);
    for (let i = 0; i < 509; i++)
      assert.equal(await ask(end, R.ADD_MEM_REG, m.encodeRegion(page(i)), [g.ram]), 0n);
    assert.equal(session.memory.length, 509);
    assert.equal(openFds(), fds + 509, 'the device has a descriptor of each');
    assert.equal(await ask(end, R.ADD_MEM_REG, m.encodeRegion(page(600)), [g.ram]), 1n);
    assert.equal(errors.at(-1), 'ADD_MEM_REG: all of the 509 memory slots are taken');
    for (let i = 508; i >= 0; i -= 2)
      assert.equal(await ask(end, R.REM_MEM_REG, m.encodeRegion(page(i))), 0n);
    for (let i = 1; i < 509; i += 2)
      // Old versions of QEMU pass a descriptor here: it is closed.
      assert.equal(await ask(end, R.REM_MEM_REG, m.encodeRegion(page(i)), [g.ram]), 0n);
    assert.equal(session.memory.length, 0);
    assert.equal(openFds(), fds);
    // A table replaces what was added.
    assert.equal(await ask(end, R.ADD_MEM_REG, m.encodeRegion(page(0)), [g.ram]), 0n);
    assert.equal(
      await ask(end, R.SET_MEM_TABLE, m.encodeMemoryTable([page(1), page(2)]), [g.ram, g.ram]),
      0n,
    );
    assert.equal(session.memory.length, 2);
    // What is gone already may be taken back again: QEMU 7.2 does it for each queue pair.
    assert.equal(await ask(end, R.REM_MEM_REG, m.encodeRegion(page(0))), 0n);
    assert.equal(device.memory.length, 2);
    end.close();
    await session.closed;
  });

  test('takes a region that is there already, as QEMU 7.2 sends it for each queue pair', async () => {
    const { end, session, device } = await negotiated();
    const fds = openFds();
    for (let pair = 0; pair < 3; pair++)
      assert.equal(await ask(end, R.ADD_MEM_REG, m.encodeRegion(page(1)), [g.ram]), 0n);
    assert.deepEqual(session.memory, [page(1)]);
    assert.equal(device.memory.length, 1);
    assert.equal(openFds(), fds + 1, 'the device has one descriptor, the others are closed');
    for (let pair = 0; pair < 3; pair++) {
      assert.equal(await ask(end, R.REM_MEM_REG, m.encodeRegion(page(1))), 0n);
      assert.deepEqual(session.memory, []);
    }
    assert.equal(openFds(), fds);
    end.close();
    await session.closed;
  });

  test('refuses by name what makes no sense, and nothing has changed', async () => {
    const { end, session, device, errors } = await negotiated();
    assert.equal(await ask(end, R.ADD_MEM_REG, m.encodeRegion(page(1)), [g.ram]), 0n);
    const fds = openFds();
    const last = 0xffff_ffff_ffff_f000n;
    const cases: [number, m.RegionLayout, number[], RegExp][] = [
      [R.ADD_MEM_REG, { ...page(1), userAddress: 0n }, [g.ram], /regions 0 and 1 overlap in guest addresses/],
      [R.ADD_MEM_REG, { ...page(1), guestAddress: 0n }, [g.ram], /regions 0 and 1 overlap in user addresses/],
      [R.ADD_MEM_REG, page(2, 0n), [g.ram], /region 1 is empty/],
      [R.ADD_MEM_REG, page(2, 1n << 21n), [g.ram], /region file shorter than declared/],
      [R.ADD_MEM_REG, { ...page(2, 0x2000n), guestAddress: last }, [g.ram], /guest address .* wraps/],
      [R.ADD_MEM_REG, { ...page(2), mmapOffset: last + 0x1000n - 1n }, [g.ram], /file offset .* wraps/],
      [R.ADD_MEM_REG, page(2), [g.kick], /region 1: an eventfd or the like can't be mapped/],
      [
        R.REM_MEM_REG,
        page(1, 0x2000n),
        [],
        /no region of 0x2000 bytes at guest address 0x[0-9a-f]+, user address 0x7f[0-9a-f]+/,
      ],
      [R.REM_MEM_REG, { ...page(1), userAddress: 0n }, [], /no region of/],
    ];
    for (const [request, region, descriptors, words] of cases) {
      assert.equal(await ask(end, request, m.encodeRegion(region), descriptors), 1n);
      assert.match(errors.pop()!, words);
      assert.deepEqual(session.memory, [page(1)]);
    }
    assert.equal(openFds(), fds);
    assert.deepEqual(device.calls.slice(1), ['addRegion 100000']);
    end.close();
    await session.closed;
  });

  test('ends where the form is wrong, or where nobody would hear of the refusal', async () => {
    const region = m.encodeRegion(page(1));
    const cases: [number, Uint8Array, number[], number, RegExp][] = [
      [R.ADD_MEM_REG, region, [], ACK, /ADD_MEM_REG: 0 descriptors, 1 expected/],
      [R.ADD_MEM_REG, region, [g.ram, g.ram], ACK, /ADD_MEM_REG: 2 descriptors, 1 expected/],
      [R.ADD_MEM_REG, region.subarray(1), [g.ram], ACK, /payload of 39 bytes, 40 expected/],
      [R.REM_MEM_REG, region, [g.ram, g.ram], ACK, /REM_MEM_REG: 2 descriptors, at most 1/],
      [R.ADD_MEM_REG, m.encodeRegion(page(1, 0n)), [g.ram], 0, /ADD_MEM_REG: region 0 is empty/],
      [R.GET_MAX_MEM_SLOTS, Uint8Array.of(0), [], 0, /payload of 1 byte, 0 expected/],
    ];
    const fds = openFds();
    for (const [request, payload, descriptors, flags, words] of cases) {
      const { end, ended } = await negotiated();
      end.message(request, payload, { flags, fds: descriptors });
      assert.match((await ended()) ?? '', words);
      end.close();
    }
    assert.equal(openFds(), fds);
  });

  test('a device that fails ends the session: the guest has memory that nobody here can reach', async () => {
    const { end, device, ended } = await negotiated();
    device.failures.set('addRegion', 'no room');
    assert.equal(await ask(end, R.ADD_MEM_REG, m.encodeRegion(page(1)), [g.ram]), 1n);
    assert.equal(await ended(), 'ADD_MEM_REG: no room');
    end.close();
  });

  test('a region in which a running ring lies stays', async () => {
    const { end, session, errors } = await negotiated();
    for (const i of [1, 2]) await ask(end, R.ADD_MEM_REG, m.encodeRegion(page(i, 0x1_0000n)), [g.ram]);
    const at = page(2).userAddress;
    end.message(R.SET_VRING_NUM, m.encodeVringState({ index: 1, num: 8 }));
    const ring = { index: 1, flags: 0, descUser: at, availUser: at + 0x1000n, usedUser: at + 0x2000n };
    end.message(R.SET_VRING_ADDR, m.encodeVringAddress({ ...ring, logGuest: 0n }));
    end.message(R.SET_VRING_KICK, m.encodeVringIndex(1, false));
    assert.equal(await ask(end, R.REM_MEM_REG, m.encodeRegion(page(2, 0x1_0000n))), 1n);
    assert.equal(errors.at(-1), 'REM_MEM_REG: queue 1 is running in this region');
    assert.equal(await ask(end, R.REM_MEM_REG, m.encodeRegion(page(1, 0x1_0000n))), 0n);
    end.message(R.GET_VRING_BASE, m.encodeVringState({ index: 1, num: 0 }));
    assert.equal((await end.next())?.request, R.GET_VRING_BASE);
    assert.equal(await ask(end, R.REM_MEM_REG, m.encodeRegion(page(2, 0x1_0000n))), 0n);
    end.close();
    await session.closed;
  });
});

test('a guest whose memory comes and goes region by region loses no frame', async (t) => {
  const path = sockets(t);
  const port = (name: string) => ({ name, type: 'vhost-user' as const, target: path(name) });
  await using vswitch = await createSwitch({ workers: 2, ports: [port('a'), port('b')] });
  const lease = sharedPoller();
  const a = new RawGuest(path('a'), lease.poller, { size: 256, megabytes: 4 });
  const b = await VirtioUser.open({ path: path('b') });
  t.after(async () => {
    await b.close();
    await a.close();
    await lease.release();
  });
  await a.negotiate();
  assert.equal(await a.session.maxMemorySlots(), 509);
  // Rings in the first half, buffers across the border and in the second.
  const half = a.region.size / 4n;
  const parts = [0n, 1n, 2n, 3n].map((i) => ({
    ...a.region,
    size: half,
    guestAddress: GUEST + i * half,
    userAddress: USER + i * half,
    mmapOffset: i * half,
  }));
  for (const part of [parts[2]!, parts[0]!, parts[3]!, parts[1]!]) await a.session.addRegion(part);
  for (const index of [0, 1]) await a.startRing(index);
  a.lend();
  a.send(frame(BROADCAST, mac(1)));
  await until(() => b.receive(), 'b hears of a');
  b.send(frame(BROADCAST, mac(2)));
  await until(() => a.received()[0], 'a hears of b');
  const seen: number[] = [];
  let sent = 0;
  for (let turn = 0; turn < 40; turn++) {
    // Memory that nobody uses yet, in up to 505 slots more; every other one goes again at once.
    const extra = {
      ...parts[3]!,
      guestAddress: 0x1000n * BigInt(turn + 1),
      userAddress: 0x1000n * BigInt(turn + 1),
      size: 0x1000n,
    };
    const change = a.session.addRegion(extra);
    for (let i = 0; i < 4; i++) a.send(numbered(mac(2), mac(1), sent++));
    await change;
    if (turn % 2) await a.session.removeRegion(extra);
    await until(() => {
      for (let bytes = b.receive(); bytes; bytes = b.receive()) seen.push(numberOf(bytes));
      return seen.length === sent;
    }, 'all that a sent came');
  }
  assert.deepEqual(seen, [...seen.keys()]);
  assert.equal(vswitch.port('a').memory.length, 24);
  await assert.rejects(a.session.removeRegion(parts[0]!), /REM_MEM_REG: the back-end refused it/);
  // Without the memory of its buffers a ring breaks at the next frame, and says where.
  await a.session.removeRegion(parts[3]!);
  a.describe(1, a.offered[1]! % 256, { address: GUEST + 3n * half, length: 72 });
  a.offer(1, a.offered[1]! % 256);
  await until(() => vswitch.port('a').queues[1]!.state === 'broken', 'the ring breaks');
  assert.match(vswitch.port('a').lastError!, /guest address 0x40300000 is in no region/);
});

test('509 regions of a real port, mapped, and none left behind', async (t) => {
  const path = sockets(t);
  await using vswitch = await createSwitch({ ports: [{ name: 'a', type: 'vhost-user', target: path('a') }] });
  const lease = sharedPoller();
  const fds = openFds();
  const a = new RawGuest(path('a'), lease.poller);
  t.after(() => lease.release());
  await a.negotiate();
  for (let i = 0n; i < 509n; i++) {
    const at = i * 0x20_0000n;
    await a.session.addRegion({ ...a.region, guestAddress: GUEST + at, userAddress: USER + at });
  }
  assert.equal(vswitch.port('a').memory.length, 509);
  const [first, last] = [vswitch.port('a').memory[0]!, vswitch.port('a').memory[508]!];
  assert.deepEqual([first.guestAddress, last.guestAddress], ['0x40000000', '0x7f800000']);
  for (const index of [0, 1]) await a.startRing(index);
  await a.close();
  await until(() => vswitch.port('a').memory.length === 0, 'its memory is gone');
  await until(() => openFds() <= fds, 'and its descriptors');
});

test('a back-end that lies about its slots is left', async () => {
  const { VHOST_USER_F_PROTOCOL_FEATURES } = features;
  for (const [slots, expected] of [
    [0n, /GET_MAX_MEM_SLOTS: 0 slots, at least 1 expected/],
    [(1n << 64n) - 1n, 509],
    [32n, 32],
  ] as const) {
    const [near, far] = socketPair();
    const session = new FrontendSession({ fd: near, poller });
    const end = new RawEnd(far);
    const answers: Record<number, bigint> = {
      [R.GET_FEATURES]: VHOST_USER_F_PROTOCOL_FEATURES,
      [R.GET_PROTOCOL_FEATURES]: 1n << 15n,
      [R.GET_MAX_MEM_SLOTS]: slots,
    };
    const served = (async () => {
      for (let message = await end.next(); message; message = await end.next()) {
        const answer = answers[message.request];
        if (answer !== undefined) end.message(message.request, m.encodeU64(answer), { flags: m.FLAG_REPLY });
      }
    })();
    await session.negotiate(0n);
    if (typeof expected === 'number') assert.equal(await session.maxMemorySlots(), expected);
    else await assert.rejects(session.maxMemorySlots(), expected);
    await session.close();
    await served;
    end.close();
  }
});
