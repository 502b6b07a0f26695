/** Captures of a switch: what comes and goes, what became of it, and that nobody else notices. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockReader, type Captured, packetBlock, type Said } from '../../src/capture/pcapng.ts';
import { summary } from '../../src/capture/summary.ts';
import type { CaptureOptions, CaptureStream } from '../../src/index.ts';
import { lab } from '../rules/lab.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { faults, frameOf, layout, type Segment } from '../support/ip.ts';
import { Random } from '../support/random.ts';
import { during, type Taken, take } from '../support/taken.ts';
import { until } from '../support/until.ts';

const told = ({ packets }: Taken) =>
  packets.map(({ port, way, bytes, comment }) => [port, way, Buffer.from(bytes).toString('hex'), comment]);

test('a capture of one port, and of any, has each frame where it passes, in order and on time', async (t) => {
  const { vswitch, exchange } = await lab(t, { a: {}, b: {}, c: {} });
  const hello = frame(BROADCAST, mac(1), 60);
  const answer = frame(mac(1), mac(2), 1514);
  const one = await during(vswitch, { port: 'a' }, async () => {
    await exchange('a', hello);
    await exchange('b', answer);
  });
  assert.deepEqual(one.names, ['a']);
  assert.deepEqual(told(one), [
    ['a', 'in', hello.toString('hex'), undefined],
    ['a', 'out', answer.toString('hex'), undefined],
  ]);
  assert.equal(one.lost, 0n);
  const now = BigInt(Date.now()) * 1_000_000n;
  for (const { time } of one.packets) assert.ok(time <= now && time > now - 3_600_000_000_000n, `${time}`);
  assert.ok(one.packets[0]!.time < one.packets[1]!.time);

  const any = await during(vswitch, { port: 'any', snaplen: 100 }, async () => {
    await exchange('a', hello);
    await exchange('b', answer);
  });
  assert.deepEqual(any.names, ['a', 'b', 'c']);
  assert.deepEqual(
    any.packets.map(({ port, way, length, bytes }) => [port, way, length, bytes.length]),
    [
      ['a', 'in', 60, 60],
      ['b', 'out', 60, 60],
      ['c', 'out', 60, 60],
      ['b', 'in', 1514, 100],
      ['a', 'out', 1514, 100],
    ],
  );
  // Nothing is left on the ports.
  assert.deepEqual(vswitch.port('a').rules, {});
  assert.deepEqual(await exchange('a', hello), { b: [hello], c: [hello] });
});

for (const packed of [false, true])
  test(`frames that were dropped say why, ${packed ? 'packed' : 'split'} rings, two workers`, async (t) => {
    const ports = { a: { isolated: true }, b: { isolated: true }, c: {} };
    const { vswitch, guests, exchange } = await lab(t, ports, { workers: 2 }, { packed });
    await exchange('b', frame(BROADCAST, mac(2)));
    const toIsolated = frame(mac(2), mac(1));
    const toSelf = frame(mac(3), mac(3));
    const taken = await during(vswitch, { port: 'any', filter: 'not ether broadcast' }, async () => {
      await exchange('a', toIsolated);
      await exchange('c', toSelf);
    });
    assert.deepEqual(told(taken), [
      ['a', 'in', toIsolated.toString('hex'), 'dropped: isolated'],
      ['c', 'in', toSelf.toString('hex'), 'dropped: samePort'],
    ]);

    // The guest of c doesn't give its buffers back: its ring has 256.
    const burst = await during(vswitch, { port: 'c', filter: 'ether src 02:00:00:00:00:01' }, async () => {
      for (let i = 0; i < 300; ) {
        if (guests.a!.send(frame(BROADCAST, mac(1), 60, i))) i++;
        else await new Promise(setImmediate);
      }
      while (guests.a!.pending() > 0) await new Promise(setImmediate);
    });
    const dropped = burst.packets.filter(({ comment }) => comment === 'dropped: ringFull');
    assert.equal(burst.packets.length, 300);
    assert.equal(dropped.length, vswitch.port('c').drops.ringFull);
    assert.ok(dropped.length > 0);
    assert.ok(burst.packets.slice(0, 100).every(({ comment }) => comment === undefined));
  });

test('VLAN tags are as they are on each port', async (t) => {
  const { vswitch, exchange } = await lab(t, { a: { vlan: 10 }, b: { trunk: '10' }, c: { vlan: 20 } });
  const hello = frame(BROADCAST, mac(1));
  const any = await during(vswitch, { port: 'any' }, () => exchange('a', hello));
  assert.deepEqual(
    any.packets.map(({ port, way, bytes }) => [port, way, Buffer.from(bytes).toString('hex', 12, 18)]),
    [
      ['a', 'in', hello.toString('hex', 12, 18)],
      ['b', 'out', `8100000a${hello.toString('hex', 12, 14)}`],
    ],
  );
  const tagged = await during(vswitch, { port: 'any', filter: 'vlan 10' }, () => exchange('a', hello));
  assert.deepEqual(
    tagged.packets.map(({ port }) => port),
    ['b'],
  );
});

test('checksums and large segments are complete in the capture, and undone to the guests', async (t) => {
  const { vswitch, guests } = await lab(t, { a: {}, b: {} }, {}, { offloads: true });
  const kinds: Segment[] = [4, 6].flatMap((version) =>
    [undefined, 10].flatMap((vlan) =>
      [
        { protocol: 'tcp' as const, payload: Buffer.alloc(101, 7) },
        { protocol: 'udp' as const, payload: Buffer.alloc(40, 3) },
        { protocol: 'tcp' as const, payload: Buffer.alloc(9001, 9) },
      ].map((kind) => ({ version: version as 4 | 6, ...(vlan === undefined ? {} : { vlan }), ...kind })),
    ),
  );
  const sent: Buffer[] = [];
  const taken = await during(vswitch, { port: 'any' }, async () => {
    for (const kind of kinds) {
      const { transport, field } = layout(kind);
      const bytes = frameOf(BROADCAST, mac(1), kind, true);
      const gso = { type: kind.version === 4 ? 'tcp4' : 'tcp6', size: 1000 } as const;
      const large = kind.payload.length > 1000;
      const offload = { csumStart: transport, csumOffset: field, ...(large ? { gso } : {}) };
      assert.ok(guests.a!.send(bytes, offload));
      sent.push(bytes);
    }
    while (guests.a!.pending() > 0) await new Promise(setImmediate);
  });
  assert.deepEqual(
    guests.b!.receiveBurst(64).map((bytes) => Buffer.from(bytes).toString('hex')),
    sent.map((bytes) => bytes.toString('hex')),
  );
  assert.equal(taken.packets.length, 2 * kinds.length);
  for (const way of ['in', 'out'] as const) {
    const packets = taken.packets.filter((packet) => packet.way === way);
    for (const [i, kind] of kinds.entries()) {
      assert.deepEqual(
        faults(Buffer.from(packets[i]!.bytes), kind),
        [],
        `${way} ${JSON.stringify(kind).slice(0, 60)}`,
      );
      assert.equal(packets[i]!.length, sent[i]!.length);
    }
  }
});

test('a slow reader loses frames of the capture, counted, and nobody else loses one', async (t) => {
  const { vswitch, exchange } = await lab(t, { a: {}, b: {} });
  const capture = await vswitch.capture({ port: 'any' });
  const bytes = frame(BROADCAST, mac(1), 60_000);
  for (let sent = 0; sent < 100; sent++) assert.deepEqual((await exchange('a', bytes)).b, [bytes]);
  assert.ok(capture.lost > 0n);
  const lost = capture.lost;
  capture.stop();
  const taken = await take(capture.stream());
  assert.equal(taken.lost, lost);
  assert.equal(taken.packets.length + Number(lost), 200);
  assert.ok(taken.packets.every((packet) => Buffer.from(packet.bytes).equals(bytes)));
});

test('ports come and go under a capture of any; one of a port that goes ends', async (t) => {
  const { vswitch, exchange } = await lab(t, { a: {}, b: {} });
  const any = await vswitch.capture({ port: 'any' });
  const one = await vswitch.capture({ port: 'b' });
  const [all, single] = [take(any.stream()), take(one.stream())];
  await vswitch.addPort({ name: 'n', type: 'null', target: '' });
  await until(() => vswitch.port('n').queues.every(({ enabled }) => enabled), 'the port takes frames');
  await exchange('a', frame(BROADCAST, mac(1)));
  await vswitch.removePort('b');
  assert.deepEqual(
    (await single).packets.map(({ way }) => way),
    ['out'],
  );
  await exchange('a', frame(BROADCAST, mac(1)));
  any.stop();
  const { names, packets } = await all;
  assert.deepEqual(names, ['a', 'b', 'n']);
  assert.deepEqual(
    packets.map(({ port, way }) => `${port} ${way}`),
    ['a in', 'b out', 'n out', 'a in', 'n out'],
  );
});

test('captures are bounded, and give everything back', async (t) => {
  const { vswitch, exchange } = await lab(t, { a: {}, b: {} });
  const refused = (options: object, words: RegExp) =>
    assert.rejects(vswitch.capture(options as CaptureOptions), words);
  await refused({ port: 'x' }, /no port is named "x"/);
  await refused({}, /port: expected the name of a port, or "any"/);
  await refused({ port: 'a', filter: 'tcp prot 80' }, /filter: expected .*, found "prot", at column 5/);
  await refused({ port: 'a', snaplen: 0 }, /snaplen: expected a whole number of bytes from 1 to 262144/);
  await refused({ port: 'a', fliter: 'tcp' }, /fliter: unknown key, did you mean filter\?/);
  for (let round = 0; round < 20; round++) {
    const captures: CaptureStream[] = [];
    for (let i = 0; i < 8; i++)
      captures.push(await vswitch.capture({ port: i % 2 ? 'any' : 'a', filter: 'greater 60' }));
    await refused({ port: 'a' }, /8 captures run, which is the limit/);
    await exchange('a', frame(BROADCAST, mac(1)));
    // Some that were never read, some in the midst of it.
    const reads = captures.filter((_, i) => i % 3 === 0).map((capture) => take(capture.stream()));
    await Promise.all(captures.map((capture) => capture.close()));
    await Promise.all(reads);
  }
  assert.equal(
    (await during(vswitch, { port: 'a', count: 1 }, () => exchange('a', frame(BROADCAST, mac(1))))).packets
      .length,
    1,
  );
});

test('what a frame says in one line, and whatever bytes say, is said', () => {
  const [to, from] = [mac(2), mac(1)];
  const line = (bytes: Buffer) => summary(bytes, bytes.length);
  const tcp = frameOf(to, from, { version: 4, protocol: 'tcp', payload: Buffer.alloc(10) }, false);
  assert.equal(
    line(tcp),
    'IP 10.1.2.3.1234 > 10.4.5.6.80: Flags [.], seq 1000:1010, ack 0, win 5000, 10 bytes, length 64',
  );
  const udp = frameOf(to, from, { version: 6, protocol: 'udp', vlan: 10, payload: Buffer.alloc(3) }, false);
  assert.match(line(udp), /^vlan 10, IP6 10e:.*\.1234 > d1.*\.80: UDP, 3 bytes, length 69$/);
  assert.equal(line(frame(to, from)), '02:00:00:00:00:01 > 02:00:00:00:00:02: ethertype 0x88b5, length 60');
  const random = new Random(3);
  for (let i = 0; i < 20_000; i++) {
    const bytes = random.pick([tcp, udp, random.bytes(60)]);
    const changed = Buffer.from(bytes.subarray(0, random.below(bytes.length + 1)));
    for (let n = random.below(6); n > 0 && changed.length > 0; n--)
      changed[random.below(changed.length)] = random.below(256);
    assert.match(line(changed), /length \d+$/);
  }
});

test('blocks are read in whatever pieces they come', () => {
  const packet: Captured = {
    interface: 0,
    time: 1n << 60n,
    way: 'in',
    length: 70,
    bytes: frame(mac(1), mac(2), 61),
    comment: 'dropped: why',
  };
  const bytes = packetBlock(packet);
  const reader = new BlockReader();
  const said: Said[] = [];
  for (const byte of Buffer.concat([bytes, bytes])) said.push(...reader.read(Buffer.of(byte)));
  assert.deepEqual(said, [
    { kind: 'packet', packet },
    { kind: 'packet', packet },
  ]);
  assert.throws(() => [...new BlockReader().read(Buffer.alloc(12))], /a block of 0 bytes/);
});
