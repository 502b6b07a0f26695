/** VLANs: who gets what, and in which form, held against a switch in plain TypeScript; and set while frames go on. */
import assert from 'node:assert/strict';
import { describe, type TestContext, test } from 'node:test';
import { PortRules } from '../../src/rules/index.ts';
import type { RuledPort } from '../../src/rules/rule.ts';
import { Driver } from '../support/driver.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { faults, frameOf, layout, type Segment } from '../support/ip.ts';
import { CSUM, MAX_FRAME, MERGEABLE, OFFLOADS, PACKED, Plane, TSO4, TSO6 } from '../support/plane.ts';
import { Random } from '../support/random.ts';
import { lab } from './lab.ts';

type Settings = Pick<RuledPort, 'vlan' | 'trunk' | 'native' | 'qinq' | 'tags'>;

/** Puts a tag into a frame. */
function tag(bytes: Buffer, tci: number, type = 0x8100): Buffer {
  const words = Buffer.alloc(4);
  words.writeUInt16BE(type, 0);
  words.writeUInt16BE(tci, 2);
  return Buffer.concat([bytes.subarray(0, 12), words, bytes.subarray(12)]);
}

const untag = (bytes: Buffer) => Buffer.concat([bytes.subarray(0, 12), bytes.subarray(16)]);

/** The VLANs of a list such as `1+3-5`. */
function listed(list: string): Set<number> {
  if (list === 'all') return new Set(Array.from({ length: 4095 }, (_, vlan) => vlan));
  const parts = list.split('+').map((part) => part.split('-').map(Number));
  return new Set(
    parts.flatMap(([from, to]) => Array.from({ length: (to ?? from!) - from! + 1 }, (_, i) => from! + i)),
  );
}

/** A port as the standard has it: what it admits, and how frames leave it. */
function modelPort({ vlan, trunk, native, qinq, tags }: Settings) {
  const own = vlan ?? qinq;
  const type = qinq !== undefined ? undefined : tags === '802.1ad' ? 0x88a8 : 0x8100;
  const members = own !== undefined ? new Set([own]) : listed(trunk ?? 'all');
  if (native !== undefined) members.add(native).delete(0);
  const pvid = own ?? native ?? 0;
  return {
    /** The VLAN of a frame that comes, its priority, and the frame without the tag; undefined: it is turned away. */
    admit(bytes: Buffer): { vlan: number; priority: number; inner: Buffer } | undefined {
      let found = { vlan: pvid, priority: 0, inner: bytes };
      if (bytes.readUInt16BE(12) === type) {
        if (bytes.length < 18) return undefined;
        const tci = bytes.readUInt16BE(14);
        if (own !== undefined && tci % 4096 !== 0) return undefined;
        found = { vlan: tci % 4096 || pvid, priority: tci >> 12, inner: untag(bytes) };
      }
      return found.vlan !== 4095 && members.has(found.vlan) ? found : undefined;
    },
    /** The frame as it leaves; undefined: it doesn't. */
    leave(vlan: number, priority: number, inner: Buffer): Buffer | undefined {
      if (!members.has(vlan)) return undefined;
      if (vlan === pvid) return inner.readUInt16BE(12) === type ? undefined : inner;
      if (inner.length + 4 > MAX_FRAME) return undefined;
      return tag(inner, priority * 4096 + vlan, type);
    },
  };
}

/** Ports of the data plane with these settings, on a bridge with VLANs. */
function ruled(t: TestContext, plane: Plane, drivers: Driver[], settings: Settings[]): PortRules[] {
  return drivers.map(({ port: { slot } }, i) => {
    const { arena, structures } = plane;
    const rules = new PortRules({ arena, structures, slot, quiesce: async () => {} });
    t.after(() => rules.close());
    rules.write({ name: 'p', type: 'null', target: '', vlanAware: true, ...settings[i] });
    return rules;
  });
}

function arrived(driver: Driver): Buffer[] {
  const all: Buffer[] = [];
  for (let came = driver.receive(); came !== undefined; came = driver.receive()) {
    assert.ok(came instanceof Buffer);
    all.push(came);
  }
  return all;
}

/** The place of a frame among the sizes that are counted. */
const sizeOf = (length: number) =>
  [64, 65, 128, 256, 512, 1024, 1519].filter((bound) => length >= bound).length;

const SEED = Number(process.env.VIREO_SEED ?? 20261125);

describe('VLANs in the data plane', () => {
  test('frames of all kinds, in buffers of all kinds, through ports of all kinds, as the model has it', (t) => {
    const random = new Random(SEED);
    t.diagnostic(`seed ${SEED}`);
    const vlan = () => 1 + random.below(4);
    const list = () => random.pick(['all', '0-2', '1+3-4', '2', '0+4']);
    const settings = (): Settings =>
      random.pick<() => Settings>([
        () => ({}),
        () => ({ vlan: vlan() }),
        () => ({ trunk: list() }),
        () => ({ native: vlan() }),
        () => ({ native: vlan(), trunk: list() }),
        () => ({ qinq: vlan() }),
        () => ({ tags: '802.1ad', trunk: list() }),
        () => ({ tags: '802.1ad', native: vlan() }),
      ])();
    const randomFrame = (from: number): Buffer => {
      const to = random.below(3) === 0 ? BROADCAST : mac(1 + random.below(12));
      const source = random.below(4) === 0 ? mac(1 + random.below(12)) : mac(1 + from * 2);
      const length = random.pick([
        () => 14 + random.below(8),
        () => 60,
        () => 112 + random.below(32),
        () => 200 + random.below(1300),
        () => 9000,
        () => MAX_FRAME - random.below(10),
      ])();
      let bytes = frame(to, source, length, random.u32() & 0xff);
      for (let tags = random.pick([0, 0, 1, 1, 2, 3]); tags > 0; tags--) {
        const id = random.pick([0, 1, 2, 3, 4, 5, 4095]);
        bytes = tag(bytes, random.below(16) * 4096 + id, random.pick([0x8100, 0x8100, 0x88a8]));
      }
      // A tag that the frame ends in, too.
      return bytes.subarray(0, length);
    };
    for (let round = 0; round < 60; round++) {
      const plane = new Plane();
      const options = (i: number) => ({
        flags: MERGEABLE | (i % 2 ? PACKED : 0),
        size: 1024,
        bufferLength: 2048,
        segmentLength: random.pick([2048, 2048, 700, 100]),
        headerAlone: random.below(2) === 0,
        tableEntries: 1,
        reach: random.pick(['mapped', 'mapped', 'copies'] as const),
      });
      const drivers = Array.from({ length: 5 }, (_, i) => new Driver(plane, options(i)));
      const wanted = drivers.map(settings);
      const rules = ruled(t, plane, drivers, wanted);
      const model = wanted.map(modelPort);
      const learned = new Map<string, number>();
      const counted = drivers.map(() => ({ bytes: 0, sizes: new Array<number>(8).fill(0) }));
      for (let burst = 0; burst < 12; burst++) {
        const from = random.below(drivers.length);
        const expected: Buffer[][] = drivers.map(() => []);
        const sender = drivers[from]!;
        let sent = 0;
        let last = { to: '', port: undefined as number | undefined };
        for (let i = 1 + random.below(12); i > 0; i--) {
          const bytes = randomFrame(from);
          if (sender.send(bytes) !== 1) break;
          sent++;
          const admitted = model[from]!.admit(bytes);
          if (!admitted) continue;
          const key = (at: number) => `${admitted.vlan} ${bytes.toString('hex', at, at + 6)}`;
          learned.set(key(6), from);
          // Frames to one address that follow each other share a lookup.
          if (key(0) !== last.to)
            last = { to: key(0), port: bytes[0]! & 1 ? undefined : learned.get(key(0)) };
          const known = last.port;
          for (const [to, port] of model.entries()) {
            if (to === from || (known !== undefined && known !== to)) continue;
            const out = port.leave(admitted.vlan, admitted.priority, admitted.inner);
            if (out) expected[to]!.push(out);
          }
        }
        sender.publish();
        assert.equal(plane.poll().packets, sent);
        for (const [to, driver] of drivers.entries()) {
          const came = arrived(driver);
          const told = `round ${round}, burst ${burst}, ${JSON.stringify(wanted[from])} to ${JSON.stringify(wanted[to])}`;
          assert.equal(came.length, expected[to]!.length, `frames, ${told}`);
          // Each port gets what the burst has for it in order.
          for (const [i, bytes] of came.entries()) {
            assert.ok(bytes.equals(expected[to]![i]!), `frame ${i}, ${told}`);
            counted[to]!.bytes += bytes.length;
            counted[to]!.sizes[sizeOf(bytes.length)]!++;
          }
        }
      }
      for (const [i, { port }] of drivers.entries()) {
        const { vring } = port.rx;
        assert.equal(Number(vring.get64('bytes')), counted[i]!.bytes);
        const at = (vring.at + vring.offsets.sizes) >>> 3;
        assert.deepEqual(Array.from(plane.arena.u64.subarray(at, at + 8), Number), counted[i]!.sizes);
        assert.deepEqual(plane.drops(vring), {});
        assert.equal(vring.get('error'), 0);
      }
      for (const rule of rules) void rule.close();
      plane.clear();
    }
  });

  test('what a sender left undone is done behind the tag that comes or goes', (t) => {
    const plane = new Plane();
    t.after(() => plane.clear());
    const ALL = CSUM | TSO4 | TSO6;
    const guest = (accepts: number, format = 0) =>
      new Driver(plane, {
        flags: OFFLOADS | MERGEABLE | format,
        size: 256,
        may: ALL,
        accepts,
        tableEntries: 1,
      });
    const drivers = [
      guest(ALL),
      guest(ALL, PACKED),
      guest(ALL),
      guest(0),
      guest(0, PACKED),
      guest(CSUM),
      guest(CSUM),
    ];
    ruled(t, plane, drivers, [
      { vlan: 5 },
      { trunk: '5' },
      { vlan: 5 },
      { trunk: '5' },
      { vlan: 5 },
      { trunk: '5' },
      { qinq: 5 },
    ]);
    const payload = Buffer.from(Array.from({ length: 4000 }, (_, i) => i * 31 + (i >>> 8) * 7));
    for (const version of [4, 6] as const) {
      for (const options of [0, 40]) {
        for (const from of [0, 1]) {
          const segment = (tagged: boolean): Segment => ({
            version,
            protocol: 'tcp',
            options,
            payload,
            ...(tagged && { vlan: 5 }),
          });
          const tagged = from === 1;
          const { transport, headers } = layout(segment(tagged));
          const bytes = frameOf(BROADCAST, mac(1), segment(tagged), true);
          const header = Buffer.alloc(12);
          header.set([1, version === 4 ? 1 : 4]);
          header.writeUInt16LE(headers, 2);
          header.writeUInt16LE(1448, 4);
          header.writeUInt16LE(transport, 6);
          header.writeUInt16LE(16, 8);
          drivers[from]!.header.set(header);
          assert.equal(drivers[from]!.send(bytes), 1);
          drivers[from]!.publish();
          assert.equal(plane.poll().packets, 1);
          for (const [i, driver] of drivers.entries()) {
            if (i === from) continue;
            const out = segment(i === 1 || i === 3 || i === 5);
            const places = layout(out);
            const came: { bytes: Buffer; header: Buffer }[] = [];
            for (let next = driver.receive(); next instanceof Buffer; next = driver.receive())
              came.push({ bytes: next, header: Buffer.from(driver.header) });
            if (i < 3) {
              assert.equal(came.length, 1);
              assert.ok(came[0]!.bytes.equals(frameOf(BROADCAST, mac(1), out, true)), `whole, to ${i}`);
              const told = Buffer.from(header);
              told.writeUInt16LE(places.headers, 2);
              told.writeUInt16LE(places.transport, 6);
              assert.deepEqual(came[0]!.header.subarray(0, 10), told.subarray(0, 10));
              continue;
            }
            assert.equal(came.length, 3, `segments, to ${i}`);
            const parts = came.map((part) => part.bytes.subarray(places.headers));
            assert.ok(Buffer.concat(parts).equals(payload));
            for (const part of came) {
              assert.equal(part.bytes.readUInt16BE(12) === 0x8100, out.vlan !== undefined);
              const told = part.header.readUInt16LE(6);
              assert.equal(told, i < 5 ? 0 : places.transport);
              if (i < 5) assert.deepEqual(faults(part.bytes, out), []);
            }
          }
        }
      }
    }
  });

  test('a checksum that would be written before the end of all tags is refused', (t) => {
    const plane = new Plane();
    t.after(() => plane.clear());
    const options = { flags: OFFLOADS | MERGEABLE, size: 64, may: CSUM, tableEntries: 1 };
    const [a, b] = [new Driver(plane, options), new Driver(plane, options)];
    ruled(t, plane, [a, b], [{}, {}]);
    const bytes = tag(tag(frame(BROADCAST, mac(1), 60), 7), 5);
    for (const [start, passes] of [
      [14, false],
      [18, false],
      [20, false],
      [22, true],
    ] as const) {
      const header = Buffer.alloc(12);
      header[0] = 1;
      header.writeUInt16LE(start, 6);
      a.header.set(header);
      a.send(bytes);
      a.publish();
      plane.poll();
      const came = arrived(b);
      assert.equal(came.length, passes ? 1 : 0, `csum_start ${start}`);
      for (const one of came) assert.ok(one.subarray(0, 22).equals(bytes.subarray(0, 22)));
    }
  });
});

test('guests in two VLANs, a trunk, a tunnel; set and taken back while they are there', async (t) => {
  const { vswitch, exchange } = await lab(t, {
    a: { vlan: 10 },
    b: { vlan: 10 },
    c: { vlan: 20 },
    up: { trunk: '10+100', tags: '802.1ad' },
    wan: { qinq: 100 },
    plain: {},
  });
  const hello = frame(BROADCAST, mac(1));
  const s = (bytes: Buffer, vlan: number) => tag(bytes, vlan, 0x88a8);
  assert.deepEqual(await exchange('a', hello), {
    b: [hello],
    c: [],
    up: [s(hello, 10)],
    wan: [],
    plain: [tag(hello, 10)],
  });
  // The same address in two VLANs is two; what a customer's frame has goes through the tunnel as it is.
  const there = tag(frame(mac(1), mac(7)), 20);
  assert.deepEqual(await exchange('wan', there), {
    a: [],
    b: [],
    c: [],
    up: [s(there, 100)],
    plain: [tag(there, 100)],
  });
  assert.deepEqual(await exchange('up', s(frame(mac(1), mac(8)), 10), s(frame(mac(7), mac(8)), 100)), {
    a: [frame(mac(1), mac(8))],
    b: [],
    c: [],
    wan: [frame(mac(7), mac(8))],
    plain: [],
  });
  const nowhere = { b: [], c: [], up: [], wan: [], plain: [] };
  assert.deepEqual(await exchange('a', tag(hello, 10), tag(hello, 20)), nowhere);
  assert.deepEqual(await exchange('up', hello, s(hello, 20)), {
    a: [],
    b: [],
    c: [],
    wan: [],
    plain: [],
  });
  assert.deepEqual(vswitch.port('a').drops, { vlanNotAdmitted: 2 });
  assert.equal(vswitch.port('a').rxDrops, 2);
  assert.deepEqual(vswitch.port('up').drops, { vlanNotAdmitted: 2 });

  // Without the last setting the bridge is one that passes on what comes.
  for (const { name } of vswitch.ports())
    await vswitch.setPort(name, { vlan: null, trunk: null, tags: null, qinq: null });
  assert.deepEqual(await exchange('a', tag(frame(BROADCAST, mac(1)), 10)), {
    b: [tag(hello, 10)],
    c: [tag(hello, 10)],
    up: [tag(hello, 10)],
    wan: [tag(hello, 10)],
    plain: [tag(hello, 10)],
  });
  await vswitch.setPort('b', { vlan: 10 });
  assert.deepEqual(await exchange('b', hello), {
    a: [tag(hello, 10)],
    c: [tag(hello, 10)],
    up: [tag(hello, 10)],
    wan: [tag(hello, 10)],
    plain: [tag(hello, 10)],
  });
  await vswitch.removePort('b');
  assert.deepEqual(await exchange('a', hello), {
    b: [],
    c: [hello],
    up: [hello],
    wan: [hello],
    plain: [hello],
  });
});

test('contradictions and wrong lists are told by field', async (t) => {
  const { vswitch } = await lab(t, { a: {} });
  const refused = (change: object, words: RegExp) => assert.rejects(vswitch.setPort('a', change), words);
  await refused({ vlan: 4095 }, /vlan: expected a whole number from 1 to 4094, found 4095/);
  await refused(
    { vlan: 10, native: 1 },
    /native: expected none beside vlan=10, the one VLAN of the port, found 1/,
  );
  await refused({ qinq: 10, vlan: 10 }, /qinq: expected none beside vlan=10/);
  await refused({ qinq: 10, tags: '802.1q' }, /tags: expected none beside qinq=10/);
  await refused({ tags: 'both' }, /tags: expected "802.1q" or "802.1ad", found "both"/);
  for (const trunk of ['', '1,2', '5-1', '4095', '1++2', 'x', '1-', '1-2-3'])
    await refused({ trunk }, /trunk: expected VLANs from 0 to 4094, such as "10\+20-30", or "all", found/);
  await vswitch.setPort('a', { trunk: 10 as unknown as string });
  assert.deepEqual(vswitch.port('a').rules, { trunk: '10' });
});
