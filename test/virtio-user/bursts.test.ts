/** Bursts of virtio-user, by poll and by interrupt, on several queues; what it counts, and what it says of itself. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createSwitch, type PortSpec } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import type { VirtioUserError } from '../../src/virtio-user/errors.ts';
import { BROADCAST, frame, mac, macText } from '../support/ethernet.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

const port = (name: string, target: string, more: Partial<PortSpec> = {}): PortSpec => ({
  name,
  type: 'vhost-user',
  target,
  ...more,
});

for (const packed of [false, true]) {
  test(`bursts arrive whole and in order, what doesn't fit is left to send again, ${packed ? 'packed' : 'split'}`, async (t) => {
    const path = sockets(t);
    await using _ = await createSwitch({ ports: [port('a', path('a')), port('b', path('b'))] });
    await using a = await VirtioUser.open({ path: path('a'), packed, queueSize: 64 });
    await using b = await VirtioUser.open({ path: path('b'), packed, queueSize: 1024 });
    const frames = Array.from({ length: 500 }, (_, i) => frame(BROADCAST, mac(1), 60 + 3 * i, i));
    assert.deepEqual(a.sendBurst([]), 0);
    let sent = a.sendBurst(frames);
    assert.ok(sent >= 64 && sent < 500, `${sent} fitted into 64 descriptors`);
    const came: Uint8Array[] = [];
    await until(() => {
      sent += a.sendBurst(frames.slice(sent));
      const burst = b.receiveBurst(50);
      assert.ok(burst.length <= 50);
      came.push(...burst);
      return came.length === frames.length;
    }, 'all frames');
    for (const [i, bytes] of came.entries()) assert.ok(frames[i]!.equals(bytes), `frame ${i}`);
    assert.deepEqual(b.receiveBurst(), []);
  });
}

test('bursts() gives frames as they come, and ends with the device', async (t) => {
  const path = sockets(t);
  await using _ = await createSwitch({ ports: [port('a', path('a')), port('b', path('b'))] });
  await using a = await VirtioUser.open({ path: path('a') });
  const b = await VirtioUser.open({ path: path('b') });
  const lengths: number[] = [];
  const reading = (async () => {
    for await (const burst of b.bursts()) lengths.push(...burst.map(({ length }) => length));
  })();
  for (let i = 0; i < 300; i++) {
    await until(() => a.send(frame(BROADCAST, mac(1), 60 + i)), 'room');
    if (i % 10 === 0) await until(() => lengths.length === i + 1, `frame ${i} is read`);
  }
  await until(() => lengths.length === 300, 'all frames');
  assert.deepEqual(
    lengths,
    Array.from({ length: 300 }, (_, i) => 60 + i),
  );
  await b.close();
  await reading;
});

test('bursts() ends when the back-end is gone and nobody connects again', async (t) => {
  const path = sockets(t);
  const vswitch = await createSwitch({ ports: [port('a', path('a'))] });
  await using a = await VirtioUser.open({ path: path('a') });
  const downs: string[] = [];
  a.on('linkDown', ({ reason }) => downs.push(reason));
  const reading = (async () => {
    for await (const _ of a.bursts()) assert.fail('nobody sends');
  })();
  assert.equal(a.linkUp, true);
  await vswitch.close();
  await reading;
  assert.equal(a.linkUp, false);
  assert.deepEqual(downs, ['the back-end closed the connection']);
  assert.equal(a.send(frame(BROADCAST, mac(1))), true, 'the ring has room still');
});

test('sizes and casts are counted by the names of DPDK, exactly', async (t) => {
  const path = sockets(t);
  await using _ = await createSwitch({ ports: [port('a', path('a')), port('b', path('b'))] });
  await using a = await VirtioUser.open({ path: path('a') });
  await using b = await VirtioUser.open({ path: path('b') });
  const group = Buffer.from([1, 0, 94, 0, 0, 1]);
  const sizes: [name: string, ...lengths: number[]][] = [
    ['undersize_packets', 20, 63],
    ['size_64_packets', 64],
    ['size_65_127_packets', 65, 100, 127],
    ['size_128_255_packets', 128, 255],
    ['size_256_511_packets', 256, 511],
    ['size_512_1023_packets', 512, 1023],
    ['size_1024_1518_packets', 1024, 1518],
    ['size_1519_max_packets', 1519, 9000, 65550],
  ];
  const all = sizes
    .flatMap(([, ...lengths]) => lengths)
    .flatMap((length) => [BROADCAST, group, mac(9)].map((to) => frame(to, mac(1), length)));
  const bytes = all.reduce((sum, { length }) => sum + length, 0);
  for (const each of all) {
    await until(() => a.send(each), 'room');
    await until(() => b.receiveBurst().length > 0, 'it comes');
  }
  for (const [device, way] of [
    [a, 'tx'],
    [b, 'rx'],
  ] as const) {
    const stats = device.xstats();
    for (const [name, ...lengths] of sizes)
      assert.equal(stats[`${way}_q0_${name}`], 3 * lengths.length, `${way} ${name}`);
    assert.equal(stats[`${way}_q0_good_packets`], all.length);
    assert.equal(stats[`${way}_q0_good_bytes`], bytes);
    assert.equal(stats[`${way}_q0_multicast_packets`], all.length / 3);
    assert.equal(stats[`${way}_q0_broadcast_packets`], all.length / 3);
  }
  assert.equal(b.xstats().rx_q0_errors, 0);
  assert.equal(Object.keys(a.xstats()).length, 13 + 12);
  assert.deepEqual(
    [a.counters().txPackets, a.counters().txBytes, a.counters().rxPackets],
    [all.length, bytes, 0],
  );
});

test('the device says what its back-end says: address, MTU, speed, link', async (t) => {
  const path = sockets(t);
  const address = '52:54:00:aa:bb:cc';
  await using _ = await createSwitch({
    ports: [port('a', path('a'), { mac: address, speed: 10_000, mtu: 1400 }), port('b', path('b'))],
  });
  await using a = await VirtioUser.open({ path: path('a') });
  assert.deepEqual([a.mac, a.speed, a.mtu, a.linkUp], [address, 10_000, 1400, true]);
  await using b = await VirtioUser.open({ path: path('b') });
  assert.match(b.mac, /^.[26ae]:/, 'a local address, for one');
  assert.deepEqual([b.speed, b.mtu], [undefined, undefined]);
  await b.close();
  await using c = await VirtioUser.open({ path: path('b'), mac: macText(mac(7)) });
  assert.equal(c.mac, macText(mac(7)));
});

test('errors have a code for programs', async (t) => {
  const path = sockets(t);
  await using _ = await createSwitch({ ports: [port('a', path('a'), { queues: 2 })] });
  const code = async (promise: Promise<unknown>) =>
    promise.then(
      () => 'nothing',
      (error: VirtioUserError) => `${error.name} ${error.code}`,
    );
  const a = path('a');
  assert.equal(await code(VirtioUser.open({ path: path('none') })), 'VirtioUserError NO_BACKEND');
  for (const options of [
    { path: '' },
    { path: a, role: 'both' as 'client' },
    { path: a, timeout: 0 },
    { path: a, mac: '52:54' },
    { path: a, reconnect: { initialDelay: 10, maxDelay: 1 } },
    { path: a, queues: 129 },
  ])
    assert.equal(await code(VirtioUser.open(options)), 'VirtioUserError BAD_OPTION', JSON.stringify(options));
  assert.equal(await code(VirtioUser.open({ path: a, queues: 3 })), 'VirtioUserError BACKEND');
  assert.equal(
    await code(VirtioUser.open({ path: a, queues: 2, queueSize: 32768, bufferLength: 1 << 20 })),
    'VirtioUserError RESOURCES',
  );
  const device = await VirtioUser.open({ path: a });
  assert.throws(() => device.send(new Uint8Array(13)), /at least the 14 bytes/);
  await device.close();
  assert.throws(
    () => device.receive(),
    (error: VirtioUserError) => error.code === 'CLOSED',
  );
});
