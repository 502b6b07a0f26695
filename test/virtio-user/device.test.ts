/** virtio-user at the edge: what it refuses, what it says once it is closed, and what it leaves behind. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { openFds } from '../../src/sys/index.ts';
import type { Offload } from '../../src/virtio/net-header.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { faults, frameOf, layout, type Segment } from '../support/ip.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

const port = (name: string, target: string) => ({ name, type: 'vhost-user' as const, target });

test('options that no ring can be made of are refused before anything is opened', async () => {
  const path = '/nowhere/at/all.sock';
  const fds = openFds();
  for (const queueSize of [0, 1, 3, 65536, -2, 2.5, Number.NaN])
    await assert.rejects(VirtioUser.open({ path, queueSize }), /queueSize .*: a power of 2 from 2 to 32768/);
  for (const bufferLength of [0, 63, 1.5, 2 ** 32])
    await assert.rejects(VirtioUser.open({ path, bufferLength }), /bufferLength .*: 64 to/);
  for (const segmentLength of [0, 12, -1, 12.5])
    await assert.rejects(
      VirtioUser.open({ path, segmentLength }),
      /segmentLength .*: more than the 12 bytes/,
    );
  await assert.rejects(VirtioUser.open({ path }), /\/nowhere\/at\/all\.sock/);
  assert.equal(openFds(), fds);
});

test('a frame that is too long is refused and nothing is sent', async (t) => {
  const path = sockets(t);
  await using vswitch = await createSwitch({ ports: [port('a', path('a')), port('b', path('b'))] });
  const a = await VirtioUser.open({ path: path('a') });
  const b = await VirtioUser.open({ path: path('b') });
  try {
    for (const length of [65551, 1 << 20])
      assert.throws(() => a.send(new Uint8Array(length)), /a frame has at most 65550 bytes/);
    assert.throws(() => a.floodFrames(new Uint8Array(65551), 1), /at most 65550/);
    const longest = frame(BROADCAST, mac(1), 65550);
    assert.ok(a.send(longest));
    assert.ok(longest.equals(await until(() => b.receive(), 'the longest frame comes')));
    assert.equal(vswitch.ports()[0]!.rxPackets, 1);
  } finally {
    await a.close();
    await b.close();
  }
});

test('a closed device says so, and a wait for it ends', async (t) => {
  const path = sockets(t);
  await using _ = await createSwitch({ ports: [port('a', path('a'))] });
  const fds = openFds();
  const device = await VirtioUser.open({ path: path('a') });
  let waited: boolean | null = null;
  void device.wait(600_000).then((came) => {
    waited = came;
  });
  await assert.rejects(device.wait(1), /somebody waits for frames of this device already/);
  await device.close();
  await until(() => waited !== null, 'the wait ends');
  assert.equal(waited, false);
  const bytes = frame(BROADCAST, mac(1));
  const calls = [
    () => device.send(bytes),
    () => device.receive(),
    () => device.floodFrames(bytes, 1),
    () => device.drainFrames(1),
    () => device.sleep(1),
  ];
  for (const call of calls) assert.throws(call, /this virtio-user device is closed/);
  await assert.rejects(device.wait(1), /this virtio-user device is closed/);
  await device.close();
  await until(() => openFds() === fds, 'the switch has closed its end');
});

test('a wait ends when a frame comes', async (t) => {
  const path = sockets(t);
  await using _ = await createSwitch({ ports: [port('a', path('a')), port('b', path('b'))] });
  const a = await VirtioUser.open({ path: path('a') });
  const b = await VirtioUser.open({ path: path('b') });
  try {
    for (let i = 0; i < 50; i++) {
      const waiting = b.wait(20_000);
      a.send(frame(BROADCAST, mac(1), 60, i));
      assert.equal(await waiting, true);
      assert.ok(frame(BROADCAST, mac(1), 60, i).equals(b.receive()!));
      assert.equal(b.receive(), undefined);
    }
  } finally {
    await a.close();
    await b.close();
  }
});

test('a switch that is out of descriptors tries again now and then, and serves the guest once it can', async (t) => {
  const path = sockets(t)('a');
  const script = new URL('../switch/out-of-descriptors.js', import.meta.url).pathname;
  const child = spawn('sh', ['-c', 'ulimit -n 400; exec "$0" "$@"', process.execPath, script, path], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  const exit = once(child, 'exit');
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  assert.equal((await lines.next()).value, 'full');
  const opening = VirtioUser.open({ path, timeout: 20_000 });
  const errors = JSON.parse((await lines.next()).value ?? '[]') as string[];
  assert.match(errors[0]!, /accept4.*EMFILE/);
  assert.ok(errors.length < 20, `${errors.length} tries`);
  await (await opening).close();
  assert.equal((await lines.next()).value, 'done');
  assert.deepEqual(await exit, [0, null]);
});

test('a frame crosses with work left undone where it was negotiated, and is refused where it was not', async (t) => {
  const path = sockets(t);
  const names = ['a', 'b', 'c'];
  await using _ = await createSwitch({ ports: names.map((name) => port(name, path(name))) });
  await using a = await VirtioUser.open({ path: path('a'), offloads: true });
  await using b = await VirtioUser.open({ path: path('b'), offloads: true, packed: true });
  await using c = await VirtioUser.open({ path: path('c') });
  const segment: Segment = { version: 4, protocol: 'tcp', payload: Buffer.alloc(50_000, 7) };
  const { transport, field, headers } = layout(segment);
  const whole = frameOf(BROADCAST, mac(1), segment, true);
  const offload: Offload = {
    csumStart: transport,
    csumOffset: field,
    gso: { type: 'tcp4', size: 1448, headerLength: headers, ecn: false },
  };
  assert.throws(() => c.send(whole, offload), /no offload was negotiated/);
  assert.ok(a.send(whole, offload));
  assert.ok(await b.wait(20_000));
  assert.deepEqual(Buffer.from(b.receive()!), whole);
  assert.deepEqual(b.received, offload);
  let pieces = 0;
  await until(() => {
    for (let frame = c.receive(); frame; frame = c.receive()) {
      const payload = segment.payload.subarray(pieces * 1448, ++pieces * 1448);
      assert.deepEqual(faults(Buffer.from(frame), { ...segment, payload }), []);
    }
    return pieces === Math.ceil(50_000 / 1448);
  }, 'all pieces');
  assert.equal(c.received, undefined);
  const plain = frame(BROADCAST, mac(1));
  assert.ok(a.send(plain));
  await until(() => b.receive() !== undefined, 'the plain frame');
  assert.equal(b.received, undefined);
});
