/** Mirrors: who is copied, what a monitor gets and what it doesn't, and that nobody else notices. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { BlockReader } from '../../src/capture/pcapng.ts';
import { createSwitch, type PortSpec, type Switch, SwitchError } from '../../src/index.ts';
import { sharedPoller } from '../../src/sys/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { faults, frameOf, layout, type Segment } from '../support/ip.ts';
import { Random } from '../support/random.ts';
import { RawGuest } from '../support/raw-guest.ts';
import { sockets } from '../support/sockets.ts';
import { Traffic } from '../support/traffic.ts';
import { until } from '../support/until.ts';
import { lab } from './lab.ts';

const tagged = (vlan: number, bytes: Buffer, priority = 0) =>
  Buffer.concat([
    bytes.subarray(0, 12),
    Buffer.from([0x81, 0, (priority << 5) | (vlan >> 8), vlan & 255]),
    bytes.subarray(12),
  ]);

const counts = (vswitch: Switch, name = 'm') => {
  const { copied, lost } = vswitch.mirror(name);
  return { copied, lost };
};

/** A port and a guest more. */
async function plug(
  t: TestContext,
  vswitch: Switch,
  path: string,
  spec: Partial<PortSpec> = {},
  device = {},
) {
  await vswitch.addPort({ name: 'mon', type: 'vhost-user', target: path, ...spec });
  const guest = await VirtioUser.open({ path, queueSize: 256, ...device });
  t.after(() => guest.close());
  await until(() => vswitch.port('mon').state === 'up', 'the monitor is up');
  return guest;
}

function drain(guest: VirtioUser): Buffer[] {
  const got: Buffer[] = [];
  for (let came = guest.receive(); came !== undefined; came = guest.receive()) got.push(Buffer.from(came));
  return got;
}

for (const [packed, workers] of [
  [false, 1],
  [true, 2],
] as const)
  test(`a monitor gets what comes from ports, goes to them, or both; ${packed ? 'packed rings, two workers' : 'split rings'}`, async (t) => {
    const { vswitch, exchange } = await lab(t, { a: {}, b: {}, c: {}, mon: {} }, { workers }, { packed });
    const hello = frame(BROADCAST, mac(1));
    const toA = frame(mac(1), mac(2), 1514);
    const toB = frame(mac(2), mac(1), 200);
    // It is a port like others, and was known, before the mirror comes.
    const own = frame(BROADCAST, mac(9));
    assert.deepEqual(await exchange('mon', own), { a: [own], b: [own], c: [own] });
    await vswitch.addMirror({ name: 'm', from: 'a', to: 'mon' });
    assert.deepEqual(await exchange('a', hello), { b: [hello], c: [hello], mon: [hello] });
    assert.deepEqual(await exchange('b', toA), { a: [toA], c: [], mon: [toA] });
    assert.deepEqual(await exchange('a', toB), { b: [toB], c: [], mon: [toB] });
    // What doesn't concern the port isn't copied, and what is for everybody, or for the monitor, doesn't go there.
    const toC = frame(mac(3), mac(2));
    const others = frame(BROADCAST, mac(3));
    assert.deepEqual(await exchange('c', others), { a: [others], b: [others], mon: [others] });
    assert.deepEqual(await exchange('b', toC), { a: [], c: [toC], mon: [] });
    const toMonitor = frame(mac(9), mac(2));
    assert.deepEqual(await exchange('b', toMonitor), { a: [toMonitor], c: [toMonitor], mon: [toMonitor] });
    assert.deepEqual(counts(vswitch), { copied: 5, lost: 0 });
    // Nothing is taken from it.
    assert.deepEqual(await exchange('mon', hello, toA), { a: [], b: [], c: [] });
    assert.equal(vswitch.port('mon').drops.fromMonitor, 2);
    assert.ok(!vswitch.fdb().some(({ port }) => port === 'mon'));
    assert.deepEqual(vswitch.port('a').mirrors, { from: ['m'], to: [] });
    assert.deepEqual(vswitch.port('mon').mirrors, { from: [], to: ['m'] });

    await vswitch.removeMirror('m');
    await vswitch.addMirror({ name: 'm', from: 'a', direction: 'in', to: 'mon' });
    assert.deepEqual(await exchange('b', toA), { a: [toA], c: [], mon: [] });
    assert.deepEqual(await exchange('a', toB), { b: [toB], c: [], mon: [toB] });
    await vswitch.removeMirror('m');
    await vswitch.addMirror({ name: 'm', from: 'a+b', direction: 'out', to: 'mon' });
    assert.deepEqual(await exchange('c', others), { a: [others], b: [others], mon: [others, others] });
    await vswitch.removeMirror('m');
    // Of every port: where it comes from, and where it goes to.
    await vswitch.addMirror({ name: 'm', to: 'mon' });
    assert.deepEqual(await exchange('a', toB), { b: [toB], c: [], mon: [toB, toB] });
    assert.deepEqual(await exchange('a', hello), { b: [hello], c: [hello], mon: [hello, hello, hello] });
    assert.deepEqual(counts(vswitch), { copied: 5, lost: 0 });
    await vswitch.removeMirror('m');
    // A port like others again.
    assert.deepEqual(await exchange('a', hello), { b: [hello], c: [hello], mon: [hello] });
    assert.deepEqual(await exchange('mon', own), { a: [own], b: [own], c: [own] });
  });

test('what a rule turns away was received, and is copied; what is for an address of the monitor is counted', async (t) => {
  const { vswitch, exchange } = await lab(t, { a: { rateIn: '1pps' }, b: {}, mon: {} });
  await vswitch.addMirror({ name: 'm', from: 'a', to: 'mon' });
  const one = frame(BROADCAST, mac(1));
  const got = await exchange('a', ...Array.from({ length: 100 }, () => one));
  assert.equal(got.mon!.length, 100);
  assert.equal(got.b!.length, 100 - vswitch.port('a').drops.rateIn!);
  assert.ok(vswitch.port('a').drops.rateIn! > 0);
  await vswitch.addAddress({ mac: '02:00:00:00:00:09', port: 'mon' });
  assert.deepEqual(await exchange('b', frame(mac(9), mac(2))), { a: [], mon: [] });
  assert.equal(vswitch.port('mon').drops.toMonitor, 1);
  // Two ports and a monitor are a cable.
  assert.equal(vswitch.bridge('default').reserved, 'pass');
});

test('VLANs are chosen by where a frame is on its port, in the form that it has there', async (t) => {
  const ports = { a: { vlan: 10 }, b: { vlan: 20 }, up: { trunk: '10+20+30', native: 30 }, mon: {} };
  const { vswitch, exchange } = await lab(t, ports);
  await vswitch.addMirror({ name: 'm', from: 'a+b+up', vlans: '20-30', to: 'mon' });
  const all = frame(BROADCAST, mac(1), 300);
  // In VLAN 10, which nobody wants.
  assert.deepEqual(await exchange('a', all), { b: [], up: [tagged(10, all)], mon: [] });
  // From an access port, and to a trunk.
  assert.deepEqual(await exchange('b', all), { a: [], up: [tagged(20, all)], mon: [all, tagged(20, all)] });
  // From the trunk, in VLANs 30 (native), 20 and 10.
  const two = tagged(20, all, 5);
  assert.deepEqual(await exchange('up', all, two, tagged(10, all)), {
    a: [all],
    b: [all],
    mon: [all, two, all],
  });
  assert.deepEqual(counts(vswitch), { copied: 5, lost: 0 });

  // Without VLANs a tag is as good.
  await vswitch.removeMirror('m');
  const plain = Object.fromEntries(['vlan', 'trunk', 'native'].map((field) => [field, null]));
  for (const name of ['a', 'b', 'up']) await vswitch.setPort(name, plain);
  await vswitch.addMirror({ name: 'm', from: 'a', vlans: '0+20', to: 'mon' });
  const frames = [all, tagged(20, all), tagged(10, all), tagged(0, all)];
  const got = await exchange('a', ...frames);
  assert.deepEqual(got.b, frames);
  assert.deepEqual(got.mon, [frames[0], frames[1], frames[3]]);
});

for (const device of [{}, { packed: true, headerAlone: true }, { segmentLength: 15, bufferLength: 300 }])
  test(`copies in a VLAN (RSPAN) reach the ports that name it, and the frames go on as they were: ${JSON.stringify(device)}`, async (t) => {
    const ports = { a: { vlan: 10 }, b: {}, up: { trunk: '10+900' }, probe: { vlan: 900 } };
    const { vswitch, exchange } = await lab(t, ports, {}, device);
    await vswitch.addMirror({ name: 'm', from: 'a+b', to: 'vlan:900' });
    assert.deepEqual(vswitch.mirror('m').ports, ['up', 'probe']);
    const lengths = [60, 123, 124, 125, 126, 127, 128, 129, 132, 133, 500, 1514];
    const frames = lengths.map((length, i) => frame(BROADCAST, mac(1), length, i));
    // From a without a tag, to b and up with that of its VLAN: copies of both on their ports, but for up's own.
    for (const bytes of frames)
      assert.deepEqual(await exchange('a', bytes), {
        b: [tagged(10, bytes)],
        up: [tagged(900, bytes), tagged(900, bytes), tagged(10, bytes)],
        probe: [bytes, bytes],
      });
    assert.deepEqual(counts(vswitch), { copied: lengths.length * 4, lost: 0 });
    for (const [i, bytes] of frames.entries()) {
      // A tag's place is taken, its priority stays.
      const came = tagged(10, frame(mac(1), mac(2), lengths[i]), 3);
      const plain = frame(mac(1), mac(2), lengths[i]);
      const got = await exchange('b', came);
      assert.deepEqual(got.a, [plain]);
      assert.deepEqual(got.up, [tagged(900, plain, 3), tagged(900, plain)]);
      assert.deepEqual(got.probe, [plain, plain]);
      // What comes as a copy from elsewhere isn't copied again, and goes on in its VLAN.
      assert.deepEqual(await exchange('up', tagged(900, bytes)), {
        a: [],
        b: [tagged(900, bytes)],
        probe: [bytes],
      });
    }
    assert.deepEqual(vswitch.port('b').drops, {});
    // With the VLAN the copies leave a port.
    await vswitch.setPort('up', { trunk: '10' });
    assert.deepEqual(vswitch.mirror('m').ports, ['probe']);
  });

test('random frames come back from a copy in another VLAN as they were, whatever tags they have', async (t) => {
  const ports = { a: { native: 7 }, b: { trunk: 'all' }, probe: { trunk: '900', tags: '802.1ad' as const } };
  const { vswitch, exchange } = await lab(t, ports, {}, { segmentLength: 70, bufferLength: 500 });
  await vswitch.addMirror({ name: 'm', from: 'a', to: 'vlan:900' });
  const random = new Random(42);
  for (let i = 0; i < 200; i++) {
    const bytes = frame(BROADCAST, mac(1), 60 + random.below(200), i);
    const tags = random.pick([[], [0], [7], [100], [100, 200], [4000, 900, 1]] as const);
    // The first tag is the outermost.
    const whole = [...tags].reverse().reduce((inner, vlan) => tagged(vlan, inner, i % 8), bytes);
    const outer = tags[0] === undefined ? whole : Buffer.concat([whole.subarray(0, 12), whole.subarray(16)]);
    const priority = tags[0] === undefined ? 0 : i % 8;
    const copy = tagged(900, outer, priority);
    copy.writeUInt16BE(0x88a8, 12);
    const vlan = tags[0] || 7;
    assert.deepEqual(
      await exchange('a', whole),
      { b: [tagged(vlan, outer, priority)], probe: [copy] },
      `${i} ${tags}`,
    );
  }
  assert.deepEqual(counts(vswitch), { copied: 200, lost: 0 });
});

test('bonds and their members are mirrored, each by itself, and a bond may be a monitor', async (t) => {
  const { vswitch, exchange } = await lab(t, { a: {}, p: {}, q: {}, r: {}, s: {}, mon: {} });
  await vswitch.addPort({ name: 'bond', type: 'bond', target: 'p+q' });
  await vswitch.addMirror({ name: 'whole', from: 'bond', to: 'mon' });
  await vswitch.addMirror({ name: 'part', from: 'p', to: 'mon' });
  await vswitch.addPort({ name: 'probe', type: 'bond', target: 'r+s' });
  await vswitch.addMirror({ name: 'any', direction: 'in', to: 'probe' });
  const hello = frame(BROADCAST, mac(1));
  // To the bond, and by its active member.
  assert.deepEqual(await exchange('a', hello), { p: [hello], q: [], r: [hello], s: [], mon: [hello, hello] });
  // From the member, and so from the bond; a member isn't any port.
  const other = frame(BROADCAST, mac(2), 300);
  assert.deepEqual(await exchange('p', other), { a: [other], q: [], r: [other], s: [], mon: [other, other] });
  // From the one that isn't active: it is turned away before it is from the bond.
  assert.deepEqual(await exchange('q', other), { a: [], p: [], r: [], s: [], mon: [] });
  // And nothing is taken from a monitor.
  assert.deepEqual(await exchange('r', other), { a: [], p: [], q: [], s: [], mon: [] });
  assert.deepEqual(
    [counts(vswitch, 'whole'), counts(vswitch, 'part'), counts(vswitch, 'any')],
    [
      { copied: 2, lost: 0 },
      { copied: 2, lost: 0 },
      { copied: 2, lost: 0 },
    ],
  );
  for (const to of ['q', 's'])
    await assert.rejects(
      vswitch.addMirror({ name: 'm', from: 'a', to }),
      /^SwitchError: to: expected a port that is no member of a bond/,
    );
  await assert.rejects(
    vswitch.addPort({ name: 'third', type: 'bond', target: 'mon' }),
    /target: expected ports that no mirror copies to, found mon/,
  );
});

test('a monitor has no part in a spanning tree while it is one', async (t) => {
  const { vswitch } = await lab(t, { a: {}, mon: {} }, { bridges: [{ name: 'default', rstp: true }] });
  const names = () => vswitch.bridge('default').spanningTree!.ports.map(({ name }) => name);
  assert.deepEqual(names(), ['a', 'mon']);
  await vswitch.addMirror({ name: 'm', from: 'a', to: 'mon' });
  assert.deepEqual(names(), ['a']);
  // Whatever is set meanwhile.
  await vswitch.setPort('mon', { maxAddresses: 7 });
  await vswitch.setBridge('default', { rstp: null });
  await vswitch.setBridge('default', { rstp: true });
  assert.deepEqual(names(), ['a']);
  assert.equal(vswitch.port('mon').spanningTree, undefined);
  await vswitch.removeMirror('m');
  assert.deepEqual(names(), ['a', 'mon']);
});

test('a copy is completed and cut for a monitor that takes no offloads, and only for that', async (t) => {
  const { vswitch, guests } = await lab(t, { a: {}, b: {} }, {}, { offloads: true });
  const monitor = await plug(t, vswitch, sockets(t)('mon'));
  await vswitch.addMirror({ name: 'm', from: 'a', to: 'mon' });
  const random = new Random(7);
  for (const version of [4, 6] as const)
    for (const protocol of ['tcp', 'udp'] as const)
      for (const vlan of [undefined, 5]) {
        const segment: Segment = { version, protocol, ...(vlan && { vlan }), payload: random.bytes(3000) };
        const { transport, field, headers } = layout(segment);
        const csum = { csumStart: transport, csumOffset: field };
        const partial = frameOf(BROADCAST, mac(1), segment, true);
        guests.a!.send(partial, csum);
        const whole = await until(() => drain(monitor)[0], 'the copy comes');
        assert.deepEqual(faults(whole, segment), [], `${version} ${protocol}`);
        assert.ok(whole.subarray(headers).equals(segment.payload));
        const came = await until(() => guests.b!.receive(), 'the frame comes');
        assert.ok(partial.equals(came));
        if (protocol === 'udp') continue;
        guests.a!.send(partial, { ...csum, gso: { type: version === 4 ? 'tcp4' : 'tcp6', size: 1000 } });
        const pieces: Buffer[] = [];
        await until(() => {
          pieces.push(...drain(monitor));
          return pieces.length === 3;
        }, 'three copies come');
        for (const piece of pieces) assert.deepEqual(faults(piece, segment), []);
        assert.ok(Buffer.concat(pieces.map((piece) => piece.subarray(headers))).equals(segment.payload));
        assert.ok(partial.equals(await until(() => guests.b!.receive(), 'the segment comes whole')));
      }
  // Frames are counted, not what they are cut into.
  assert.deepEqual(counts(vswitch), { copied: 12, lost: 0 });
  assert.equal(vswitch.port('mon').txPackets, 8 + 4 * 3);
});

test('what is left undone stays right in a copy with another tag, and in the frame behind it', async (t) => {
  const { vswitch, guests } = await lab(t, { a: { vlan: 10 }, b: { trunk: '10' } }, {}, { offloads: true });
  const path = sockets(t);
  const probe = await plug(t, vswitch, path('mon'), { trunk: '900' });
  await vswitch.addMirror({ name: 'm', from: 'a+b', direction: 'in', to: 'vlan:900' });
  const random = new Random(9);
  for (const [from, to, vlan] of [
    ['a', 'b', undefined],
    ['b', 'a', 10],
  ] as const) {
    const segment: Segment = {
      version: 4,
      protocol: 'tcp',
      ...(vlan && { vlan }),
      payload: random.bytes(3000),
    };
    const { transport, field } = layout(segment);
    const offload = { csumStart: transport, csumOffset: field, gso: { type: 'tcp4' as const, size: 1000 } };
    guests[from]!.send(frameOf(BROADCAST, mac(1), segment, true), offload);
    const copies: Buffer[] = [];
    await until(() => {
      copies.push(...drain(probe));
      return copies.length === 3;
    }, 'three copies come');
    const there: Segment = { ...segment, vlan: 900 };
    for (const copy of copies) {
      assert.deepEqual(faults(copy, there), []);
      assert.equal(copy.readUInt32BE(12), 0x8100_0384);
    }
    assert.ok(
      Buffer.concat(copies.map((copy) => copy.subarray(layout(there).headers))).equals(segment.payload),
    );
    // To the other one whole, with its tag or without.
    const came = await until(() => guests[to]!.receive(), 'the segment comes whole');
    const { vlan: _, ...plain } = segment;
    const arrives: Segment = vlan === undefined ? { ...plain, vlan: 10 } : plain;
    assert.ok(frameOf(BROADCAST, mac(1), arrives, true).equals(came));
    assert.equal(guests[to]!.received?.csumStart, layout(arrives).transport);
    assert.equal(guests[to]!.received?.gso?.size, 1000);
  }
});

test('a monitor that is slow, or gone, loses its own copies, counted, and nobody else a frame', async (t) => {
  const { vswitch, guests, exchange } = await lab(t, { a: {}, b: {}, mon: {} });
  await vswitch.addMirror({ name: 'm', from: 'a', direction: 'in', to: 'mon' });
  let sent = 0;
  const pour = async (some: number) => {
    for (const end = sent + some; sent < end; ) {
      const bytes = frame(mac(2), mac(1), 100, sent);
      await until(() => guests.a!.send(bytes), 'the ring takes a frame');
      await until(() => {
        const came = guests.b!.receive();
        return came !== undefined && bytes.equals(came);
      }, 'the frame comes');
      sent++;
    }
  };
  guests.b!.send(frame(BROADCAST, mac(2)));
  await until(() => guests.a!.receive(), 'b is known');
  // Its ring has 256 buffers, and it gives none back.
  await pour(600);
  await until(() => guests.a!.pending() === 0, 'the switch has done with what was sent');
  const slow = counts(vswitch);
  assert.equal(slow.copied + slow.lost, 600);
  assert.ok(slow.lost > 0);
  assert.equal(slow.lost, vswitch.port('mon').drops.ringFull);
  assert.equal(drain(guests.mon!).length, slow.copied);
  // It takes them again, and goes.
  await pour(10);
  await until(() => drain(guests.mon!).length > 0, 'copies come again');
  await guests.mon!.close();
  await until(() => vswitch.port('mon').state !== 'up', 'the monitor has gone');
  const before = counts(vswitch);
  await pour(100);
  await until(() => counts(vswitch).lost === before.lost + 100, 'all copies are lost');
  assert.equal(counts(vswitch).copied, before.copied);
  assert.equal(vswitch.port('b').txDrops, 0);
  delete guests.mon;
  assert.deepEqual(await exchange('b', frame(mac(1), mac(2))), { a: [frame(mac(1), mac(2))] });
});

test('a monitor whose guest breaks its ring is stopped, its copies are lost and counted, and nobody else notices', async (t) => {
  const path = sockets(t);
  const vswitch = await createSwitch({
    ports: ['a', 'b', 'mon'].map((name) => ({ name, type: 'vhost-user', target: path(name) })),
  });
  t.after(() => vswitch.close());
  const lease = sharedPoller();
  const bad = new RawGuest(path('mon'), lease.poller);
  t.after(async () => {
    await bad.close();
    await lease.release();
  });
  await bad.start();
  bad.lend(20);
  await until(() => vswitch.port('mon').state === 'up', 'the monitor is up');
  await vswitch.addMirror({ name: 'm', from: 'a', direction: 'in', to: 'mon' });
  const traffic = await Traffic.start({ path: path('a') }, { path: path('b') });
  await until(() => counts(vswitch).copied === 20, 'what it has buffers for is copied');
  assert.equal(bad.usedIdx(0), 20);
  // A descriptor that the ring doesn't have.
  bad.offer(0, 1000);
  await until(() => vswitch.port('mon').state === 'broken', 'its ring is broken');
  const { lost } = counts(vswitch);
  await traffic.flows(500);
  await until(() => counts(vswitch).lost > lost + 100, 'copies are lost and counted');
  assert.equal(counts(vswitch).copied, 20);
  await traffic.stop();
  await until(() => vswitch.port('a').state !== 'up', 'a has gone');
  const { copied, lost: all } = counts(vswitch);
  assert.equal(copied + all, vswitch.port('a').rxPackets);
});

test('of bursts that go different ways each frame is copied where it passes', async (t) => {
  const { vswitch, guests } = await lab(t, { a: {}, b: {}, c: {}, p: {}, q: {} }, {}, { queueSize: 1024 });
  guests.mon = await plug(t, vswitch, sockets(t)('mon'), {}, { queueSize: 1024, queues: 2 });
  await vswitch.addPort({ name: 'bond', type: 'bond', target: 'p+q', mode: 'balance', hash: 'l2' });
  for (const [name, n] of [
    ['b', 2],
    ['c', 3],
    ['p', 4],
  ] as const)
    guests[name]!.send(frame(BROADCAST, mac(n)));
  await until(() => vswitch.fdb().length === 3, 'all are known');
  for (const guest of Object.values(guests)) drain(guest);
  await vswitch.addMirror({ name: 'm', from: 'b+bond', direction: 'out', to: 'mon' });
  // Bursts of 64, so that one has frames for several.
  const frames = Array.from({ length: 640 }, (_, i) => {
    const segment: Segment = { version: 4, protocol: 'udp', payload: Buffer.alloc(i, i) };
    const bytes = frameOf(mac(2 + ((i * 7) % 3)), mac(100 + (i % 50)), segment, false);
    bytes[29] = i % 50;
    return bytes;
  });
  const came: Record<string, Buffer[]> = { b: [], c: [], p: [], q: [], mon: [] };
  for (let i = 0; i < frames.length; ) {
    i += guests.a!.sendBurst(frames.slice(i, i + 64));
    await until(() => guests.a!.pending() === 0, 'the switch has done with what was sent');
    for (const [name, list] of Object.entries(came)) list.push(...drain(guests[name]!));
  }
  const to = (n: number) => frames.filter((bytes) => bytes[5] === n);
  assert.deepEqual(came.b, to(2));
  assert.deepEqual(came.c, to(3));
  assert.ok(came.p!.length > 0 && came.q!.length > 0);
  // By two queues: in order in each.
  const sorted = (list: Buffer[]) => list.map((bytes) => bytes.toString('hex')).sort();
  assert.deepEqual(sorted([...came.p!, ...came.q!]), sorted(to(4)));
  assert.deepEqual(sorted(came.mon!), sorted([...to(2), ...to(4)]));
  assert.deepEqual(counts(vswitch), { copied: to(2).length + to(4).length, lost: 0 });
});

test("a frame that was cut is lost once, and who sends doesn't hear the copies in the VLAN that he carries", async (t) => {
  const { vswitch, guests } = await lab(
    t,
    { a: { trunk: '10+900' }, b: { vlan: 10 } },
    {},
    { offloads: true },
  );
  const monitor = await plug(t, vswitch, sockets(t)('mon'), { vlan: 900 }, { queueSize: 8 });
  await vswitch.addMirror({ name: 'm', from: 'a', to: 'vlan:900' });
  const segment: Segment = { version: 4, protocol: 'tcp', vlan: 10, payload: Buffer.alloc(5000, 'x') };
  const { transport, field } = layout(segment);
  const offload = { csumStart: transport, csumOffset: field, gso: { type: 'tcp4' as const, size: 1000 } };
  for (let i = 0; i < 20; i++)
    await until(
      () => guests.a!.send(frameOf(BROADCAST, mac(1), segment, true), offload),
      'the ring takes it',
    );
  await until(() => guests.a!.pending() === 0, 'the switch has done with what was sent');
  // 8 buffers take one in 5 pieces, and part of the next.
  assert.deepEqual(counts(vswitch), { copied: 1, lost: 19 });
  assert.equal(drain(monitor).length, 8);
  assert.equal(drain(guests.b!).length, 20);
  assert.equal(drain(guests.a!).length, 0);
});

test('copies are spread over the queues of a monitor, wait for its rate, and reach all members of a bond', async (t) => {
  const { vswitch, guests } = await lab(t, { a: {}, p: {}, q: {} });
  const monitor = await plug(
    t,
    vswitch,
    sockets(t)('mon'),
    { rateOut: '1Mbit', burstOut: '16KiB' },
    { queues: 2 },
  );
  await vswitch.addPort({ name: 'bond', type: 'bond', target: 'p+q', mode: 'balance' });
  await vswitch.addMirror({ name: 'm', from: 'a', to: 'mon' });
  await vswitch.addMirror({ name: 'n', from: 'a', to: 'bond' });
  const frames = Array.from({ length: 200 }, (_, i) => frame(mac(50), mac(i % 60), 200, i));
  // Ethernet alone has one flow: addresses of IP make more.
  for (const [i, bytes] of frames.entries()) {
    const ip = frameOf(
      mac(50),
      mac(i % 60),
      { version: 4, protocol: 'udp', payload: Buffer.from([i]) },
      false,
    );
    ip[26] = i % 60;
    ip.copy(bytes);
  }
  const others: Buffer[] = [];
  for (const bytes of frames) {
    await until(() => guests.a!.send(bytes), 'the ring takes a frame');
    for (const name of ['p', 'q']) others.push(...drain(guests[name]!));
  }
  const got: Buffer[] = [];
  await until(() => {
    got.push(...drain(monitor));
    for (const name of ['p', 'q']) others.push(...drain(guests[name]!));
    return got.length >= 200 && others.length >= 200;
  }, 'all copies come');
  const sorted = (list: Buffer[]) => list.map((bytes) => bytes.toString('hex')).sort();
  assert.deepEqual(sorted(got), sorted(frames));
  assert.deepEqual(sorted(others), sorted(frames));
  assert.deepEqual(
    [counts(vswitch), counts(vswitch, 'n')],
    [
      { copied: 200, lost: 0 },
      { copied: 200, lost: 0 },
    ],
  );
  for (const { direction, packets } of vswitch.port('mon').queues)
    if (direction === 'tx') assert.ok(packets > 0 && packets < 200, `${packets} in a queue`);
  for (const name of ['p', 'q']) assert.ok(vswitch.port(name).txPackets > 0, `${name} has some`);
  // One of them takes nothing any more.
  await guests.q!.close();
  await guests.p!.close();
  await until(() => vswitch.port('bond').state !== 'up', 'the bond has nobody');
  await until(() => guests.a!.send(frames[0]!), 'the ring takes a frame');
  await until(() => counts(vswitch, 'n').lost === 1, 'the copy is lost');
});

test('mirrors come and go, and so do their ports, while frames flow', async (t) => {
  const path = sockets(t);
  const vswitch = await createSwitch({
    workers: 2,
    ports: ['a', 'b', 'mon'].map((name) => ({ name, type: 'vhost-user', target: path(name) })),
  });
  t.after(() => vswitch.close());
  const monitor = await VirtioUser.open({ path: path('mon'), queueSize: 256 });
  t.after(() => monitor.close());
  await until(() => vswitch.port('mon').state === 'up', 'the monitor is up');
  const traffic = await Traffic.start({ path: path('a') }, { path: path('b') });
  for (let i = 0; i < 30; i++) {
    const [from, direction] = [[undefined, 'a', 'b', 'a+b'][i % 4], (['in', 'out', 'both'] as const)[i % 3]!];
    await vswitch.addMirror({ name: 'm', direction, to: 'mon', ...(from && { from }) });
    await until(() => drain(monitor).length > 0, 'copies come');
    if (i % 5 === 0) {
      await vswitch.addPort({ name: 'c', type: 'null', target: '' });
      await vswitch.removePort('c');
    }
    await vswitch.removeMirror('m');
    await traffic.flows(50);
    drain(monitor);
    const { txPackets } = vswitch.port('mon');
    await traffic.flows(50);
    assert.equal(vswitch.port('mon').txPackets, txPackets, 'no copies come');
  }
  await traffic.stop();
  assert.equal(vswitch.port('a').txDrops + vswitch.port('b').txDrops, 0);
});

test('a mirror to a file has the frames as pcapng, of the VLANs and the way that are asked for', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'vireo-mirror-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const path = join(directory, 'a.pcapng');
  const ports = { a: { vlan: 10 }, b: { vlan: 20 }, up: {}, mon: {} };
  const { vswitch, exchange } = await lab(t, ports);
  await vswitch.addMirror({ name: 'f', from: 'a+b+up', vlans: '20', direction: 'in', to: `file:${path}` });
  await vswitch.addMirror({ name: 'any', to: `file:${path}.any` });
  await vswitch.addMirror({ name: 'm', from: 'a', to: 'mon' });
  const one = frame(BROADCAST, mac(1), 1514);
  await exchange('a', one);
  await exchange('b', one);
  await exchange('up', tagged(20, one));
  await exchange('up', tagged(10, one));
  assert.deepEqual(counts(vswitch, 'f'), { copied: 2, lost: 0 });
  assert.equal(statSync(path).mode & 0o777, 0o600);
  for (const name of ['f', 'any', 'm']) await vswitch.removeMirror(name);
  const read = (file: string) => {
    const names: string[] = [];
    return [...new BlockReader().read(readFileSync(file))].flatMap((said) => {
      if (said.kind === 'interface') names.push(said.name);
      return said.kind === 'packet'
        ? [[names[said.packet.interface]!, said.packet.way, Buffer.from(said.packet.bytes)] as const]
        : [];
    });
  };
  assert.deepEqual(read(path), [
    ['b', 'in', one],
    ['up', 'in', tagged(20, one)],
  ]);
  // No copies of copies: a monitor isn't any port.
  assert.deepEqual(
    read(`${path}.any`).map(([port, way]) => `${port} ${way}`),
    ['a in', 'up out', 'b in', 'up out', 'up in', 'b out', 'up in', 'a out'],
  );
  const refused = (to: string, words: RegExp) => assert.rejects(vswitch.addMirror({ name: 'x', to }), words);
  await refused(`file:${directory}/none/a`, /to: .* can't be written: ENOENT/);
  await refused(`file:${directory}`, /to: .* can't be written: EISDIR/);
  await refused('file:/dev/null', /to: \/dev\/null can't be written: it is no file/);
  await refused('file:/dev/full', /it is no file/);
  await vswitch.addMirror({ name: 'f', to: `file:${path}` });
  await refused(`file:${path}`, /to: expected a file of its own, found .* of mirror f/);
});

test('what is wrong with a mirror is told by name, and changes nothing', async (t) => {
  const { vswitch, exchange } = await lab(t, { a: {}, b: {}, mon: {} }, { bridges: [{ name: 'lab' }] });
  await vswitch.addPort({ name: 'p', type: 'patch', target: 'q' });
  const refused = (spec: object, code: string, words: RegExp) =>
    assert.rejects(
      vswitch.addMirror({ name: 'm', ...spec } as never),
      (error) => error instanceof SwitchError && error.code === code && words.test(error.message),
    );
  await refused({}, 'BAD_SPEC', /^to: expected a port, a VLAN from 1 to 4094 or a file/);
  await refused({ to: 'vlan:0' }, 'BAD_SPEC', /^to: expected a port, a VLAN/);
  await refused({ to: 'vlan:4095' }, 'BAD_SPEC', /^to: expected a port, a VLAN/);
  await refused({ to: 'file:' }, 'BAD_SPEC', /^to: expected a port, a VLAN/);
  await refused({ to: 'file:/tmp/a\n' }, 'BAD_SPEC', /^to: expected a port, a VLAN/);
  await refused({ to: 'nobody' }, 'BAD_SPEC', /^to: expected a port that is there \(a, b, mon, p\)/);
  await refused({ to: 'p' }, 'BAD_SPEC', /^to: expected no patch port/);
  await refused({ from: 'a+mon', to: 'mon' }, 'BAD_SPEC', /^from: expected ports other than mon/);
  await refused({ from: 'a+x', to: 'mon' }, 'BAD_SPEC', /^from: expected ports that are there .*found "x"/);
  await refused({ from: 'a+a', to: 'mon' }, 'BAD_SPEC', /^from: expected names of ports/);
  await refused({ from: '', to: 'mon' }, 'BAD_SPEC', /^from: expected names of ports/);
  await refused({ vlans: '4095', to: 'mon' }, 'BAD_SPEC', /^vlans: expected VLANs from 0 to 4094/);
  await refused({ vlans: '1-900', to: 'vlan:900' }, 'BAD_SPEC', /^to: expected a VLAN that isn't copied/);
  await refused({ direction: 'up', to: 'mon' }, 'BAD_SPEC', /^direction: expected "in", "out" or "both"/);
  await refused({ form: 'a', to: 'mon' }, 'BAD_SPEC', /^form: unknown key, did you mean from\?/);
  assert.deepEqual(vswitch.mirrors(), []);
  await vswitch.addMirror({ name: 'm', from: 'a', to: 'mon' });
  await refused({ to: 'mon' }, 'MIRROR_EXISTS', /a mirror named "m" exists/);
  await refused(
    { name: 'n', from: 'mon', to: 'b' },
    'BAD_SPEC',
    /^from: expected ports that no mirror copies to/,
  );
  await refused(
    { name: 'n', from: 'b', to: 'a' },
    'BAD_SPEC',
    /^to: expected a port that no mirror copies from/,
  );
  await assert.rejects(vswitch.removePort('a'), /port a: mirror m names it/);
  await assert.rejects(vswitch.removePort('mon'), /port mon: mirror m names it/);
  await assert.rejects(vswitch.removeMirror('n'), /no mirror is named "n"; there are: m/);
  const hello = frame(BROADCAST, mac(1));
  assert.deepEqual(await exchange('a', hello), { b: [hello], mon: [hello] });
});

const none = { added: [], removed: [], changed: [], failed: [] };

test('a mirror is changed in place: what it copies and where to, and what is wrong changes nothing', async (t) => {
  const ports = { a: { vlan: 10 }, b: { vlan: 20 }, up: {}, mon: {}, two: {}, probe: { vlan: 900 } };
  const { vswitch, exchange } = await lab(t, ports);
  const hello = frame(BROADCAST, mac(1));
  const copies = async (from: string, ...frames: Buffer[]) => {
    const { mon = [], two = [], probe = [] } = await exchange(from, ...frames);
    return [mon.length, two.length, probe.length];
  };
  await vswitch.addMirror({ name: 'm', from: 'a', to: 'mon' });
  assert.deepEqual(await copies('a', hello), [1, 1, 0]);
  await vswitch.setMirror('m', { from: 'a+b' });
  assert.deepEqual(await copies('b', hello), [1, 1, 0]);
  await vswitch.setMirror('m', { direction: 'out', vlans: '10' });
  assert.deepEqual(await copies('b', hello), [0, 1, 0]);
  assert.deepEqual(await copies('up', tagged(10, hello), tagged(20, hello)), [1, 2, 0]);
  // What it has counted stays, until it copies to somewhere else.
  assert.deepEqual(counts(vswitch), { copied: 3, lost: 0 });
  await vswitch.setMirror('m', { vlans: null, direction: null, to: 'two' });
  assert.deepEqual(vswitch.config().mirrors, [{ name: 'm', from: 'a+b', to: 'two' }]);
  assert.deepEqual(await copies('a', hello), [1, 1, 0]);
  assert.deepEqual(counts(vswitch), { copied: 1, lost: 0 });
  assert.deepEqual(vswitch.port('mon').mirrors, { from: [], to: [] });
  assert.ok(vswitch.bridge('default').ports.includes('mon'));
  assert.ok(!vswitch.bridge('default').ports.includes('two'));
  await vswitch.setMirror('m', { to: 'vlan:900' });
  assert.deepEqual(await copies('a', hello), [1, 1, 1]);

  const refused = (change: object, words: RegExp, name = 'm') =>
    assert.rejects(vswitch.setMirror(name, change as never), words);
  await refused({ to: null }, /to: expected a port, a VLAN .*, found nothing/);
  await refused(
    { from: 'x' },
    /from: expected ports that are there \(a, b, up, mon, two, probe\), found "x"/,
  );
  await refused({ vlans: '900' }, /to: expected a VLAN that isn't copied, found 900/);
  await refused({ form: 'a' }, /form: unknown key, did you mean from\?/);
  await refused({ name: 'n' }, /expected the fields to set/);
  await refused([], /expected the fields to set/);
  await refused({ to: 'file:/no/such/place' }, /to: \/no\/such\/place can't be written: ENOENT/);
  await refused({ from: 'a' }, /no mirror is named "n"; there are: m/, 'n');
  assert.deepEqual(vswitch.config().mirrors, [{ name: 'm', from: 'a+b', to: 'vlan:900' }]);
  assert.deepEqual(await copies('a', hello), [1, 1, 1]);
  assert.deepEqual(counts(vswitch), { copied: 2, lost: 0 });
});

for (const to of ['mon', 'file'] as const)
  test(`a mirror to a ${to === 'mon' ? 'port' : 'file'} that is changed under traffic misses no frame that it wants all the time`, async (t) => {
    const path = sockets(t);
    const vswitch = await createSwitch({
      workers: 2,
      ports: ['a', 'b', 'mon'].map((name) => ({ name, type: 'vhost-user', target: path(name) })),
    });
    t.after(() => vswitch.close());
    const monitor = await VirtioUser.open({ path: path('mon'), queueSize: 1024 });
    t.after(() => monitor.close());
    await until(() => vswitch.port('mon').state === 'up', 'the monitor is up');
    const traffic = await Traffic.start({ path: path('a') }, { path: path('b') });
    // What comes from a is wanted whatever is set.
    const target = to === 'mon' ? 'mon' : `file:${path('kept')}`;
    await vswitch.addMirror({ name: 'm', from: 'a', direction: 'in', to: target });
    const got: Buffer[] = [];
    let done = false;
    const collecting = (async () => {
      for (; !done; await new Promise(setImmediate)) got.push(...drain(monitor));
    })();
    for (let i = 0; i < 40; i++) {
      await vswitch.setMirror('m', {
        from: ['a', 'a+b', 'any'][i % 3]!,
        direction: (['both', 'in'] as const)[i % 2]!,
        vlans: ['0', null, '0+5'][i % 3]!,
      });
      await traffic.flows(20);
    }
    const counted = counts(vswitch);
    await traffic.stop();
    done = true;
    await collecting;
    assert.equal(counts(vswitch).lost, 0);
    assert.ok(counts(vswitch).copied >= counted.copied);
    await vswitch.removeMirror('m');
    if (to === 'file') {
      for (const said of new BlockReader().read(readFileSync(path('kept'))))
        if (said.kind === 'packet') got.push(Buffer.from(said.packet.bytes));
    } else got.push(...drain(monitor));
    // Each at least once: a frame that goes to b is there twice while b is mirrored.
    const addresses = Buffer.concat([mac(0xbb0001), mac(0xaa0001)]);
    const numbered = got.filter((bytes) => bytes.subarray(0, 12).equals(addresses));
    const seen = new Set(numbered.map((bytes) => bytes.readUInt32LE(14)));
    const first = Math.min(...seen);
    const last = Math.max(...seen);
    assert.ok(last - first > 500, `${last - first} frames`);
    assert.equal(seen.size, last - first + 1, 'none is missing');
  });

test('apply changes mirrors in place where ports and other mirrors let it, and anew where not', async (t) => {
  const names = ['a', 'b', 'c', 'd'];
  const { vswitch } = await lab(t, Object.fromEntries(names.map((name) => [name, {}])));
  const { ports = [] } = vswitch.config();
  const there = (...some: string[]) => ports.filter(({ name }) => some.includes(name));
  const without = there('a', 'b', 'c');
  const mirrors = [{ name: 'm', from: 'a+d', to: 'b' }];
  assert.deepEqual((await vswitch.apply({ ports, mirrors })).mirrors, { ...none, added: ['m'] });
  // A port that it names goes, and comes again.
  const fewer = [{ name: 'm', from: 'a', to: 'b' }];
  for (const [wanted, more] of [
    [{ ports: without, mirrors: fewer }, {}],
    [{ ports, mirrors }, {}],
  ] as const) {
    // biome-ignore format: a list
    const applied = await vswitch.apply(wanted);
    assert.deepEqual([applied.failed, applied.mirrors], [[], { ...none, changed: ['m'], ...more }]);
    assert.deepEqual(vswitch.config().mirrors, wanted.mirrors);
  }
  // All that it names go, for others; nothing of it can stay in place.
  const away = await vswitch.apply({ ports: there('c', 'd'), mirrors: [{ name: 'm', from: 'c', to: 'd' }] });
  assert.deepEqual([away.removed, away.failed, away.mirrors], [['a', 'b'], [], { ...none, changed: ['m'] }]);
  const back = await vswitch.apply({ ports: there('a', 'b'), mirrors: [{ name: 'm', from: 'a', to: 'b' }] });
  assert.deepEqual([back.failed, back.mirrors], [[], { ...none, changed: ['m'] }]);
  assert.deepEqual(vswitch.config().mirrors, [{ name: 'm', from: 'a', to: 'b' }]);
  // Each wants what the other has as yet.
  const crossed = [
    [{ name: 'm', from: 'a', to: 'b' }, { name: 'n', from: 'c', to: 'd' }],
    [{ name: 'm', from: 'd', to: 'c' }, { name: 'n', from: 'b', to: 'a' }],
    [{ name: 'm', from: 'a', to: 'c' }, { name: 'n', from: 'b', to: 'd' }],
  ]; // biome-ignore format: a table
  for (const [i, wanted] of crossed.entries()) {
    const applied = await vswitch.apply({ ports, mirrors: wanted });
    const { added, changed, failed, removed } = applied.mirrors;
    assert.deepEqual([applied.failed, failed, removed], [[], [], []]);
    assert.deepEqual([...added, ...changed].sort(), i === 0 ? ['n'] : ['m', 'n']);
    const now = [...vswitch.config().mirrors!].sort((x, y) => (x.name < y.name ? -1 : 1));
    assert.deepEqual(now, wanted);
  }
  // One that can't be is told, and is as it was.
  const bad = [crossed[2]![0]!, { name: 'n', from: 'b', to: 'file:/no/such/place' }];
  const applied = await vswitch.apply({ ports, mirrors: bad });
  assert.deepEqual(applied.mirrors.changed, []);
  assert.match(applied.mirrors.failed[0]!.error, /to: \/no\/such\/place can't be written/);
  assert.ok(vswitch.mirrors().some(({ name, to }) => name === 'n' && to === 'd'));
});

test('apply brings mirrors to what a configuration has, and keeps those whose port comes anew', async (t) => {
  const { vswitch, exchange, guests } = await lab(t, { a: {}, b: {}, mon: {} });
  const { ports = [] } = vswitch.config();
  const mirrors = [{ name: 'm', from: 'a', to: 'mon' }];
  assert.deepEqual((await vswitch.apply({ ports, mirrors })).mirrors, {
    ...none,
    added: ['m'],
  });
  assert.deepEqual(vswitch.config().mirrors, mirrors);
  assert.deepEqual((await vswitch.apply({ ports, mirrors })).mirrors, none);
  assert.deepEqual((await vswitch.apply({ ports })).mirrors, none);
  const hello = frame(BROADCAST, mac(1));
  assert.deepEqual(await exchange('a', hello), { b: [hello], mon: [hello] });
  // The monitor's port goes and comes.
  const changed = ports.map((spec) => (spec.name === 'mon' ? { ...spec, queues: 1 } : spec));
  const applied = await vswitch.apply({ ports: changed, mirrors });
  assert.deepEqual([applied.changed, applied.failed, applied.mirrors], [['mon'], [], none]);
  await guests.mon!.reconnect();
  await until(() => vswitch.port('mon').state === 'up', 'the monitor is up');
  assert.deepEqual(await exchange('a', hello), { b: [hello], mon: [hello] });
  assert.deepEqual(await exchange('b', hello), { a: [hello], mon: [hello] });
  const other = [{ ...mirrors[0]!, direction: 'in' as const }];
  assert.deepEqual((await vswitch.apply({ ports: changed, mirrors: other })).mirrors, {
    ...none,
    changed: ['m'],
  });
  assert.deepEqual(await exchange('b', hello), { a: [hello], mon: [] });
  // What names a port that isn't there is told before anything is done.
  const bad = vswitch.apply({ ports: changed, mirrors: [{ name: 'm', from: 'x', to: 'mon' }] });
  await assert.rejects(bad, /mirrors\[0\]\.from: expected ports that are there \(a, b, mon\), found "x"/);
  const two = [...other, { name: 'n', from: 'mon', to: 'b' }];
  await assert.rejects(
    vswitch.apply({ ports: changed, mirrors: two }),
    /mirrors\[1\]\.from: expected ports that no mirror copies to, found mon of mirror m/,
  );
  assert.deepEqual((await vswitch.apply({ ports: changed, mirrors: [] })).mirrors.removed, ['m']);
  assert.deepEqual(await exchange('b', hello), { a: [hello], mon: [hello] });
});
