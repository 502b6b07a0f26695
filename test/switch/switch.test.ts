/** A switch as a program has it: createSwitch() with real sockets, and guests that come, go and come back. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, ftruncateSync, writeFileSync } from 'node:fs';
import { describe, type TestContext, test } from 'node:test';
import { createSwitch, type Switch, SwitchError, type SwitchOptions } from '../../src/index.ts';
import { drain, openFds, sharedPoller } from '../../src/sys/index.ts';
import { features } from '../../src/virtio/features.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac, macText } from '../support/ethernet.ts';
import { GUEST, numbered, numberOf, RawGuest, type RawGuestOptions, USER } from '../support/raw-guest.ts';
import { sockets } from '../support/sockets.ts';
import { Traffic } from '../support/traffic.ts';
import { until } from '../support/until.ts';

const server = (name: string, target: string) => ({ name, type: 'vhost-user' as const, target });
const client = (name: string, target: string) => ({ ...server(name, target), role: 'client' as const });

async function open(t: TestContext, options: SwitchOptions = {}): Promise<Switch> {
  const vswitch = await createSwitch(options);
  t.after(() => vswitch.close());
  return vswitch;
}

/** A guest written by hand, with both rings running unless the test wants to do that itself. */
async function rawGuest(t: TestContext, path: string, options: RawGuestOptions = {}, start = true) {
  const lease = sharedPoller();
  const guest = new RawGuest(path, lease.poller, options);
  t.after(async () => {
    await guest.close();
    await lease.release();
  });
  if (start) await guest.start();
  return guest;
}

function events(vswitch: Switch): string[] {
  const seen: string[] = [];
  vswitch.on('guestUp', ({ port }) => seen.push(`up ${port}`));
  vswitch.on('guestDown', ({ port, reason }) => seen.push(`down ${port}: ${reason}`));
  vswitch.on('queueBroken', ({ port, queue, reason }) => seen.push(`broken ${port} ${queue}: ${reason}`));
  vswitch.on('portError', ({ port, error }) => seen.push(`error ${port}: ${error}`));
  return seen;
}

async function refused(promise: Promise<unknown>, code: string, words: RegExp): Promise<void> {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof SwitchError, String(error));
    assert.equal(error.code, code);
    assert.match(error.message, words);
    return true;
  });
}

describe('what a port offers', () => {
  test('is less where its features say so, for that port alone', async (t) => {
    const path = sockets(t);
    const features = '-packed,-in_order,-event-idx,+event-idx';
    const vswitch = await open(t, {
      ports: [{ ...server('a', path('a')), features }, server('b', path('b'))],
    });
    for (const name of ['a', 'b']) {
      const guest = await VirtioUser.open({ path: path(name), packed: true });
      t.after(() => guest.close());
    }
    const [a, b] = ['a', 'b'].map((name) => vswitch.port(name));
    assert.match(a!.rings, /^split 256 mrg indirect event-idx$/);
    assert.match(b!.rings, /^packed 256 mrg indirect event-idx in-order$/);
    const reason = (name: string) => a!.features.missing.find((missing) => missing.name === name)?.reason;
    assert.equal(reason('VIRTIO_F_RING_PACKED'), "this port's features=-packed switched it off");
    assert.equal(reason('VIRTIO_F_IN_ORDER'), "this port's features=-in-order switched it off");
    assert.ok(!a!.features.offered.includes('VIRTIO_F_RING_PACKED'));
    assert.ok(b!.features.offered.includes('VIRTIO_F_RING_PACKED'));
  });
});

describe('two guests', () => {
  for (const poll of ['busy', 'adaptive'] as const) {
    for (const workers of [1, 2]) {
      for (const role of ['server', 'client'] as const) {
        test(`exchange frames: ${poll}, ${workers} workers, ports as ${role}`, async (t) => {
          const path = sockets(t);
          const vswitch = await open(t, {
            poll,
            workers,
            ports: ['a', 'b'].map((name) => ({ ...server(name, path(name)), role })),
          });
          // The other end of a client is a server: the switch dials until it is there.
          const guests = ['a', 'b'].map((name) => ({
            path: path(name),
            role: role === 'client' ? ('server' as const) : ('client' as const),
          }));
          const traffic = await Traffic.start(guests[0]!, guests[1]!);
          await traffic.flows(2000);
          const [a, b] = vswitch.ports();
          assert.deepEqual([a!.state, b!.state, a!.role, a!.lastError], ['up', 'up', role, null]);
          assert.match(a!.rings, /^split 256 mrg indirect event-idx in-order$/);
          await traffic.stop();
          const total = vswitch.ports().reduce((sum, port) => sum + port.rxPackets, 0);
          assert.equal(total, traffic.count + 2);
          assert.deepEqual(
            vswitch.ports().map((p) => p.rxDrops + p.txDrops),
            [0, 0],
          );
        });
      }
    }
  }

  const sets: [string, bigint, object][] = [
    ['nothing', 0n, { segmentLength: 100 }],
    ['a legacy header', features.VIRTIO_F_EVENT_IDX, { headerAlone: true }],
    [
      'indirect chains',
      features.VIRTIO_F_VERSION_1 | features.VIRTIO_F_INDIRECT_DESC,
      { segmentLength: 333 },
    ],
    [
      'mergeable buffers',
      features.VIRTIO_F_VERSION_1 | features.VIRTIO_NET_F_MRG_RXBUF,
      { bufferLength: 256 },
    ],
    ['large rings', features.VIRTIO_F_VERSION_1 | features.VIRTIO_F_IN_ORDER, { queueSize: 32768 }],
    ['rings of 2', features.VIRTIO_F_VERSION_1, { queueSize: 2 }],
  ];
  for (const [name, wanted, options] of sets) {
    test(`with ${name} and one with everything understand each other`, async (t) => {
      const path = sockets(t);
      await open(t, { ports: [server('a', path('a')), server('b', path('b'))] });
      const a = await VirtioUser.open({ path: path('a'), features: wanted, ...options });
      t.after(() => a.close());
      const b = await VirtioUser.open({ path: path('b') });
      t.after(() => b.close());
      for (const [from, to, source] of [
        [a, b, mac(1)],
        [b, a, mac(2)],
      ] as const) {
        for (const length of [14, 60, 500, 1514]) {
          const bytes = frame(BROADCAST, source, length, length);
          assert.ok(from.send(bytes));
          const came = await until(() => to.receive(), `a frame of ${length} bytes comes`);
          assert.ok(bytes.equals(came));
        }
      }
    });
  }
});

describe('a guest', () => {
  test('comes up and goes down, and the switch says so', async (t) => {
    const path = sockets(t);
    const vswitch = await open(t, { ports: [server('vm1', path('vm1'))] });
    const seen = events(vswitch);
    const state = () => vswitch.ports()[0]!.state;
    assert.equal(state(), 'listening');
    const guest = await rawGuest(t, path('vm1'), {}, false);
    await guest.negotiate();
    assert.equal(state(), 'connected');
    await guest.session.setMemoryTable([guest.region]);
    await guest.startRing(0);
    assert.deepEqual([state(), seen], ['connected', []]);
    await guest.startRing(1);
    assert.deepEqual([state(), seen], ['up', ['up vm1']]);
    const detail = vswitch.port('vm1');
    assert.equal(detail.rings, 'split 64 mrg indirect');
    assert.equal(detail.connections, 1);
    assert.deepEqual(detail.memory, [
      { guestAddress: '0x40000000', size: 1 << 20, pageSize: 4096, sealed: true, reached: 'mapped' },
    ]);
    assert.deepEqual(
      detail.queues.map((q) => [q.direction, q.state, q.size, q.enabled, q.worker, q.error]),
      [
        ['tx', 'running', 64, true, null, null],
        ['rx', 'running', 64, true, 0, null],
      ],
    );
    // Nobody can pull the memory away from under the switch.
    assert.throws(() => ftruncateSync(guest.fd, 0), /EPERM/);
    await guest.session.enable(1, false);
    assert.equal(state(), 'connected');
    assert.deepEqual(seen.splice(0), ['up vm1', 'down vm1: the front-end stopped its rings']);
    await guest.session.enable(1, true);
    assert.equal(await guest.session.stopVring(0), 0);
    assert.deepEqual(seen.splice(0), ['up vm1', 'down vm1: the front-end stopped its rings']);
    await guest.startRing(0);
    assert.deepEqual(seen.splice(0), ['up vm1']);
    await guest.session.close();
    await until(() => state() === 'listening', 'the port listens again');
    assert.deepEqual(seen, ['down vm1: the front-end closed the connection']);
    assert.deepEqual(vswitch.port('vm1').memory, []);
    assert.equal(vswitch.port('vm1').lastError, null);
  });

  test('waits while another one has the port, and gets it then', async (t) => {
    const path = sockets(t);
    const vswitch = await open(t, { ports: [server('a', path('a'))] });
    const first = await VirtioUser.open({ path: path('a') });
    let opened = false;
    const second = VirtioUser.open({ path: path('a') }).then((device) => {
      opened = true;
      return device;
    });
    // The first one works meanwhile, and the second has got no answer.
    for (let i = 0; i < 100; i++) {
      first.send(frame(BROADCAST, mac(1)));
      await until(() => vswitch.ports()[0]!.rxPackets > i, 'the frame is taken');
    }
    assert.equal(opened, false);
    assert.equal(vswitch.port('a').connections, 1);
    await first.close();
    const device = await second;
    assert.equal(vswitch.port('a').connections, 2);
    device.send(frame(BROADCAST, mac(2)));
    await until(() => vswitch.fdb().some(({ mac: m }) => m === macText(mac(2))), 'the second is heard');
    await device.close();
  });

  test('stops a queue and resumes it where it was', async (t) => {
    const path = sockets(t);
    const vswitch = await open(t, { workers: 2, ports: [server('a', path('a')), server('b', path('b'))] });
    const guest = await rawGuest(t, path('a'));
    const b = await VirtioUser.open({ path: path('b') });
    t.after(() => b.close());
    const came: number[] = [];
    const all = (count: number) =>
      until(() => {
        for (let bytes = b.receive(); bytes; bytes = b.receive()) came.push(numberOf(bytes));
        return came.length >= count;
      }, `${count} frames came`);
    let next = 0;
    const send = (count: number) => {
      for (let i = 0; i < count; i++) guest.send(numbered(BROADCAST, mac(1), next++));
    };
    let base = 0;
    for (let turn = 0; turn < 20; turn++) {
      send(turn + 1);
      await all(next);
      // Stopped, offered to, and started again: what came meanwhile is taken once.
      base = (base + turn + 1) & 0xffff;
      assert.equal(await guest.session.stopVring(1), base);
      send(3);
      assert.equal(guest.usedIdx(1), base, 'a stopped ring is left alone');
      await guest.startRing(1, base);
      await all(next);
      base += 3;
    }
    assert.deepEqual(came, [...came.keys()]);
    // The ring to receive on: frames for a stopped ring are counted drops, and those after it arrive.
    guest.lend();
    const deliver = async (first: number, count: number) => {
      for (let i = first; i < first + count; i++) b.send(numbered(BROADCAST, mac(2), i));
      await until(() => vswitch.ports()[1]!.rxPackets >= first + count, 'the switch has taken them');
    };
    await deliver(0, 10);
    const received = guest.received().map(numberOf);
    assert.equal(await guest.session.stopVring(0), 10);
    await deliver(10, 5);
    await guest.startRing(0, 10);
    await deliver(15, 10);
    await until(() => guest.usedIdx(0) >= 20, 'the others came');
    received.push(...guest.received().map(numberOf));
    assert.deepEqual(received, [...Array(10).keys(), ...Array.from({ length: 10 }, (_, i) => 15 + i)]);
    assert.equal(vswitch.ports()[0]!.lastError, null);
  });

  test('changes its memory table while both rings run', async (t) => {
    const path = sockets(t);
    const vswitch = await open(t, {
      workers: 2,
      ports: ['guest', 'b', 'x', 'y'].map((name) => server(name, path(name))),
    });
    const seen = events(vswitch);
    const guest = await rawGuest(t, path('guest'), { size: 256, megabytes: 4 });
    const b = await VirtioUser.open({ path: path('b') });
    t.after(() => b.close());
    const healthy = await Traffic.start({ path: path('x') }, { path: path('y') });
    // Both know each other, so that the healthy pair isn't flooded.
    guest.lend();
    guest.send(frame(BROADCAST, mac(1)));
    const isFrom = (source: Buffer, bytes: Uint8Array) => source.compare(bytes, 6, 12) === 0;
    await until(() => {
      const bytes = b.receive();
      return bytes && isFrom(mac(1), bytes);
    }, 'b hears of the guest');
    b.send(frame(BROADCAST, mac(2)));
    await until(() => guest.received()[0], 'the guest hears of b');
    const { region } = guest;
    const half = region.size / 2n;
    const tables = [
      [region],
      // The same memory in two pieces, and at another place in the switch, behind what nobody uses.
      [
        { ...region, size: half },
        {
          ...region,
          size: half,
          guestAddress: GUEST + half,
          userAddress: USER + half,
          mmapOffset: half,
        },
      ],
      [{ ...region, guestAddress: 0n, userAddress: 0x1000n, size: 0x1000n, mmapOffset: 0x3000n }, region],
    ];
    const toB: number[] = [];
    const toGuest: number[] = [];
    let sent = 0;
    for (let turn = 0; turn < 60; turn++) {
      const change = guest.session.setMemoryTable(tables[turn % tables.length]!);
      // In the middle of the change.
      for (let i = 0; i < 4; i++) guest.send(numbered(mac(2), mac(1), sent++));
      b.send(numbered(mac(1), mac(2), turn));
      await change;
      await until(() => {
        for (let bytes = b.receive(); bytes; bytes = b.receive()) {
          if (isFrom(mac(1), bytes)) toB.push(numberOf(bytes));
        }
        return toB.length === sent;
      }, 'all that the guest sent came');
      toGuest.push(...guest.received().map(numberOf));
    }
    assert.deepEqual(toB, [...toB.keys()], 'nothing is lost or doubled');
    await until(() => guest.received().length === 0, 'the last came');
    assert.deepEqual(
      toGuest,
      [...new Set(toGuest)].sort((x, y) => x - y),
      'in order, none twice',
    );
    // A frame for the guest in the middle of a change is a counted loss.
    assert.ok(toGuest.length > 0);
    await healthy.stop();
    assert.deepEqual(
      seen.filter((word) => word.includes('guest') || word.includes('error')),
      ['up guest'],
    );
  });

  test('may leave at any moment and come back', async (t) => {
    const path = sockets(t);
    const names = ['bad', 'x', 'y'];
    const vswitch = await open(t, { workers: 2, ports: names.map((name) => server(name, path(name))) });
    const healthy = await Traffic.start({ path: path('x') }, { path: path('y') });
    const steps: ((guest: RawGuest) => unknown)[] = [
      (g) => g.negotiate(),
      (g) => g.session.setMemoryTable([g.region]),
      (g) => g.session.setVring(0, g.layout(0)),
      (g) => g.session.startVring(0, { kickFd: g.kicks[0]!, callFd: g.calls[0]!, errFd: g.errs[0]! }),
      (g) => g.session.enable(0, true),
      (g) => g.startRing(1),
      (g) => g.lend(),
      (g) => g.send(frame(mac(0xdead), mac(5))),
      (g) => until(() => g.usedIdx(1) === 1, 'the frame is taken'),
      (g) => g.session.setMemoryTable([g.region]),
      (g) => g.session.stopVring(1),
      (g) => g.session.stopVring(0),
    ];
    const fds = openFds();
    for (let turn = 0; turn < 8; turn++) {
      for (let last = 0; last <= steps.length; last++) {
        const lease = sharedPoller();
        const guest = new RawGuest(path('bad'), lease.poller);
        for (const step of steps.slice(0, last)) await step(guest);
        // Not waiting for an answer, with a request on its way, or after it was answered.
        const next = turn % 2 === 0 ? steps[last]?.(guest) : undefined;
        const ended = Promise.resolve(next).catch(() => {});
        await guest.close();
        await ended;
        await lease.release();
      }
    }
    await until(() => vswitch.ports()[0]!.state === 'listening', 'the port listens again');
    await healthy.flows();
    assert.equal(openFds(), fds);
    const back = await VirtioUser.open({ path: path('bad') });
    back.send(frame(mac(0xdead), mac(6)));
    await until(() => vswitch.fdb().some((entry) => entry.mac === macText(mac(6))), 'it works again');
    await back.close();
    await healthy.stop();
  });

  test('of a client port may restart: the switch dials again', async (t) => {
    const path = sockets(t);
    const vswitch = await open(t, { ports: [client('a', path('a')), server('b', path('b'))] });
    assert.equal(vswitch.ports()[0]!.state, 'dialing');
    const b = await VirtioUser.open({ path: path('b') });
    t.after(() => b.close());
    for (let turn = 0; turn < 3; turn++) {
      const a = await VirtioUser.open({ path: path('a'), role: 'server' });
      a.send(frame(BROADCAST, mac(1), 60, turn));
      const came = await until(() => b.receive(), 'its frame comes');
      assert.ok(frame(BROADCAST, mac(1), 60, turn).equals(came));
      await a.close();
      await until(() => vswitch.ports()[0]!.state === 'dialing', 'the switch dials again');
    }
    assert.equal(vswitch.port('a').connections, 3);
  });
});

describe('ports', () => {
  for (const poll of ['busy', 'adaptive'] as const) {
    test(`come and go under traffic, and no frame is lost elsewhere, ${poll}`, async (t) => {
      const path = sockets(t);
      const vswitch = await open(t, {
        workers: 2,
        poll,
        ports: [server('x', path('x')), server('y', path('y'))],
      });
      const healthy = await Traffic.start({ path: path('x') }, { path: path('y') });
      for (let turn = 0; turn < 12; turn++) {
        const names = [`p${turn}`, 'again'];
        await Promise.all(names.map((name) => vswitch.addPort(server(name, path(name)))));
        const [c, d] = await Promise.all(names.map((name) => VirtioUser.open({ path: path(name) })));
        c!.send(frame(BROADCAST, mac(100 + turn)));
        d!.send(frame(BROADCAST, mac(200 + turn)));
        await until(() => c!.receive(), 'the new guests hear each other');
        // Gone in the middle of a burst, the port or the guest first.
        c!.floodFrames(frame(mac(200 + turn), mac(100 + turn)), 200);
        if (turn % 2 === 0) await Promise.all([c!.close(), d!.close()]);
        await Promise.all(names.map((name) => vswitch.removePort(name)));
        if (turn % 2 === 1) await Promise.all([c!.close(), d!.close()]);
        for (const name of names) assert.ok(!existsSync(path(name)), 'its socket is gone');
        assert.ok(!vswitch.fdb().some(({ port }) => names.includes(port)), 'its addresses are forgotten');
        assert.equal(vswitch.status().fdb.entries, 2, 'those of the healthy pair are all that is left');
        await healthy.flows(50);
      }
      await healthy.stop();
      assert.deepEqual(
        vswitch.ports().map(({ name }) => name),
        ['x', 'y'],
      );
    });
  }

  test('have names and sockets of their own', async (t) => {
    const path = sockets(t);
    const vswitch = await open(t, { ports: [server('a', path('a'))] });
    await refused(vswitch.addPort(server('a', path('other'))), 'PORT_EXISTS', /a port named "a" exists/);
    await refused(vswitch.removePort('z'), 'NO_SUCH_PORT', /no port is named "z"; there are: a/);
    assert.throws(() => vswitch.port('z'), /no port is named/);
    await refused(vswitch.addPort(server('b', path('a'))), 'BAD_SPEC', /already/);
    // Nothing of the refused ones is left: their place is free for the next.
    for (let i = 0; i < 20; i++) {
      await refused(
        vswitch.addPort(server('b', '/nowhere/at/all.sock')),
        'SOCKET',
        /\/nowhere\/at\/all\.sock/,
      );
      await vswitch.addPort(server('c', path('c')));
      const device = await VirtioUser.open({ path: path('c') });
      device.send(frame(BROADCAST, mac(i + 1)));
      await until(() => vswitch.fdb().some((entry) => entry.port === 'c'), 'the next port works');
      await device.close();
      await vswitch.removePort('c');
    }
    assert.deepEqual(
      vswitch.ports().map(({ name }) => name),
      ['a'],
    );
  });

  test('replace a stale socket, and leave a live one and what is no socket alone', async (t) => {
    const path = sockets(t);
    const first = await open(t, { ports: [server('a', path('a'))] });
    const second = await open(t);
    await refused(second.addPort(server('a', path('a'))), 'SOCKET', /uses this socket/);
    const device = await VirtioUser.open({ path: path('a') });
    await refused(second.addPort(server('a', path('a'))), 'SOCKET', /uses this socket/);
    device.send(frame(BROADCAST, mac(1)));
    await until(() => first.fdb().length === 1, 'the live one works as before');
    await device.close();
    writeFileSync(path('file'), 'precious');
    await refused(second.addPort(server('f', path('file'))), 'SOCKET', /not a socket/);
    assert.ok(existsSync(path('file')));
    // A process that was killed leaves its socket file behind.
    const script = `require('net').createServer().listen(${JSON.stringify(path('stale'))}, () => process.kill(process.pid, 9))`;
    assert.equal(spawnSync(process.execPath, ['-e', script]).signal, 'SIGKILL');
    assert.ok(existsSync(path('stale')));
    await second.addPort(server('stale', path('stale')));
    const guest = await VirtioUser.open({ path: path('stale') });
    await guest.close();
  });

  test('limit the addresses that they learn', async (t) => {
    const path = sockets(t);
    const ports = [{ ...server('a', path('a')), maxAddresses: 3 }, server('b', path('b'))];
    const vswitch = await open(t, { maxAddressesPerPort: 5, ports });
    for (const [name, limit] of [
      ['a', 3],
      ['b', 5],
    ] as const) {
      const device = await VirtioUser.open({ path: path(name) });
      for (let i = 0; i < 50; i++) device.send(frame(BROADCAST, mac(limit * 100 + i)));
      await until(() => vswitch.port(name).rxPackets === 50, 'all frames are taken');
      assert.deepEqual(vswitch.port(name).addresses, { learned: limit, limit });
      await device.close();
    }
    assert.equal(vswitch.fdb().length, 8);
    assert.equal(vswitch.status().fdb.entries, 8);
    assert.equal(await vswitch.flushFdb({ port: 'a' }), 3);
    assert.deepEqual(
      vswitch.fdb().map(({ port }) => port),
      Array(5).fill('b'),
    );
    assert.equal(await vswitch.flushFdb(), 5);
    assert.deepEqual(vswitch.fdb(), []);
  });
});

describe('an adaptive switch', () => {
  test('sleeps when nothing comes, and a kick wakes it', async (t) => {
    const path = sockets(t);
    const vswitch = await open(t, { workers: 2, ports: [server('a', path('a')), server('b', path('b'))] });
    const [a, b] = [await rawGuest(t, path('a')), await rawGuest(t, path('b'))];
    b.lend();
    let number = 0;
    for (let turn = 0; turn < 20; turn++) {
      // used.flags says that a kick is wanted: the worker is about to sleep, or sleeps.
      await until(() => a.kickWanted(1), 'the worker asks for a kick');
      a.send(numbered(BROADCAST, mac(1), number++));
      const [came] = await until(() => {
        const frames = b.received();
        return frames.length > 0 && frames;
      }, 'the frame comes');
      assert.equal(numberOf(came!), number - 1);
      await until(() => drain(b.calls[0]!), 'the guest is interrupted');
    }
    assert.equal(vswitch.status().workers.length, 2);
  });
});

describe('a switch that closes', () => {
  for (const workers of [1, 2]) {
    test(`leaves nothing behind, ${workers} workers`, async (t) => {
      const path = sockets(t);
      // What is made once a process is there already.
      await (await createSwitch()).close();
      const fds = openFds();
      const ports = [
        ...['a', 'b', 'idle'].map((name) => server(name, path(name))),
        client('dial', path('nobody')),
      ];
      const vswitch = await createSwitch({ workers, ports });
      const [x, y] = await Promise.all(['a', 'b'].map((name) => VirtioUser.open({ path: path(name) })));
      const lease = sharedPoller();
      const guest = new RawGuest(path('idle'), lease.poller);
      await guest.start();
      // With guests on it, in the middle of a burst, asked twice.
      x!.floodFrames(frame(BROADCAST, mac(1)), 200);
      await Promise.all([vswitch.close(), y!.close(), vswitch.close()]);
      await x!.close();
      await vswitch.close();
      await guest.close();
      await lease.release();
      for (const name of ['a', 'b', 'idle']) assert.ok(!existsSync(path(name)));
      assert.equal(openFds(), fds);
      await refused(vswitch.addPort(server('late', path('late'))), 'LIMIT', /closing/);
    });
  }

  test('also when it could not start', async (t) => {
    const path = sockets(t);
    await (await createSwitch()).close();
    const fds = openFds();
    const ports = [server('a', path('a')), server('b', '/nowhere/at/all.sock')];
    await refused(createSwitch({ ports }), 'SOCKET', /port b/);
    assert.ok(!existsSync(path('a')));
    assert.equal(openFds(), fds);
    {
      await using vswitch = await createSwitch({ ports: [server('a', path('a'))] });
      assert.equal(vswitch.ports().length, 1);
    }
    assert.equal(openFds(), fds);
  });
});
