/**
 * IGMP and MLD snooping (RFC 4541) over real rings, with a clock that the test turns: who gets the frames for a group,
 * how long, and that no message, however it was made, does harm.
 */
import assert from 'node:assert/strict';
import { after, afterEach, beforeEach, describe, test } from 'node:test';
import { GroupTables } from '../../src/switch/groups.ts';
import type { GroupsStatus } from '../../src/switch/types.ts';
import { Driver, type DriverOptions } from '../support/driver.ts';
import { mac } from '../support/ethernet.ts';
import {
  groupData,
  groupFrame,
  groupMac,
  igmp,
  igmp3Report,
  igmpLeave,
  igmpQuery,
  igmpReport,
  mld,
  mld2Report,
  mldDone,
  mldQuery,
  mldReport,
  pimHello,
} from '../support/igmp.ts';
import { Plane } from '../support/plane.ts';
import { Random } from '../support/random.ts';

const START = 1000;
const LIMIT = 16;
const plane = new Plane();
const { header } = plane.structures;
/** What the switch has sent by itself, as `<port> <type> <group>`. */
const sent: string[] = [];
const tables = new GroupTables(
  plane.arena,
  plane.structures,
  async () => {},
  (slot, frame) => {
    const six = frame[12] === 0x86;
    const address = six ? frame.subarray(70, 86).toString('hex') : frame.subarray(42, 46).join('.');
    sent.push(`${names[slot]} ${six ? frame[62] : frame[38]} ${address}`);
  },
);
const names = ['router', 'a', 'b', 'c'];

let all: Driver[];
beforeEach(() => open());
afterEach(close);
after(() => plane.clear());

function open(options: DriverOptions = {}): void {
  header.set('now', START);
  tables.set(0, true);
  all = names.map(() => new Driver(plane, { size: 64, tableEntries: 1, ...options }));
  for (const { port } of all) {
    port.struct.set('groupFlags', 0);
    port.struct.set('groupLimit', LIMIT);
    port.struct.set('groupsRefused', 0);
  }
}

function close(): void {
  tables.set(0, false);
  plane.clear();
}

const who = (name: string) => names.indexOf(name);
const DROPS = 10;
const badMessages = (name: string) => {
  const { vring } = all[who(name)]!.port.tx;
  return Number(plane.arena.u64[((vring.at + vring.offsets.drops) >>> 3) + DROPS]);
};

/** Sends frames as one burst; the names of those who got each of them. */
function send(from: string, ...frames: Buffer[]): string[] {
  const sender = all[who(from)]!;
  for (const bytes of frames) assert.equal(sender.send(bytes), 1);
  sender.publish();
  assert.equal(plane.poll().packets, frames.length);
  const got = frames.map((): string[] => []);
  for (const [i, name] of names.entries()) {
    const left = frames.map((bytes, number) => ({ bytes, number }));
    for (let came = all[i]!.receive(); came !== undefined; came = all[i]!.receive()) {
      const at = left.findIndex(({ bytes }) => bytes.equals(came as Buffer));
      assert.ok(at >= 0, `${name} got a frame that nobody sent, or out of order`);
      got[left[at]!.number]!.push(name);
      left.splice(0, at + 1);
    }
  }
  return got.map((list) => list.join(' '));
}

/** Turns the clock on, as the switch does each second. */
function wait(seconds: number): void {
  header.set('now', header.get('now') + seconds);
  tables.tick();
}

const list = (): GroupsStatus =>
  tables.list(
    () => 'default',
    (slot) => names[slot],
  );
const members = () =>
  list().groups.map(({ group, ports }) => `${group} ${ports.map(({ port }) => port).sort()}`);
const routers = () =>
  list().routers.map(
    ({ family, querier, ports }) =>
      `${family} ${querier?.address ?? '-'} ${ports.map(({ port }) => port).sort()}`,
  );

const MACS = Object.fromEntries(names.map((name, i) => [name, mac(i + 1)])) as Record<string, Buffer>;
const from = (name: string) => MACS[name]!;
const [G, H] = ['239.1.1.1', '239.1.1.2'];
const [G6, H6] = ['ff0e::1:1', 'ff0e::1:2'];
const data = (name: string, group: string) => send(name, groupData(from(name), group))[0]!;

/** A querier is there, and all have had the time to answer it. */
function ask(): void {
  send('router', igmpQuery(from('router'), '10.0.0.1'), mldQuery(from('router'), 'fe80::1'));
  wait(11);
}

describe('frames for groups', () => {
  test('go to all until a querier has been answered, then to members and routers', () => {
    send('a', igmpReport(from('a'), G), mldReport(from('a'), G6));
    assert.equal(data('b', G), 'router a c', 'nobody asks');
    send('router', igmpQuery(from('router'), '10.0.0.1'), mldQuery(from('router'), 'fe80::1'));
    assert.equal(data('b', G), 'router a c', 'members have ten seconds to answer');
    assert.deepEqual(routers(), ['IPv4 10.0.0.1 router', 'IPv6 fe80::1 router']);
    wait(11);
    for (const group of [G, G6]) {
      assert.equal(data('b', group), 'router a');
      assert.equal(data('a', group), 'router', 'who sends gets nothing back');
      assert.equal(data('router', group), 'a');
    }
    for (const group of [H, H6]) {
      assert.equal(data('b', group), 'router', 'nobody has joined');
      assert.equal(data('router', group), '');
    }
    // One of 32 groups with the same MAC.
    assert.deepEqual(groupMac('224.129.1.1'), groupMac(G));
    assert.equal(data('b', '224.129.1.1'), 'router');
    send('c', igmpReport(from('c'), '224.129.1.1'));
    assert.deepEqual(send('b', groupData(from('b'), G), groupData(from('b'), '224.129.1.1')), [
      'router a',
      'router c',
    ]);
  });

  test('that all are in, or that are no IP, go to all', () => {
    ask();
    for (const group of ['224.0.0.251', '224.0.0.1', 'ff02::1']) assert.equal(data('b', group), 'router a c');
    assert.equal(data('b', 'ff02::fb'), 'router', 'is joined like any other');
    const other = groupData(from('b'), G);
    other.writeUInt16BE(0x88b5, 12);
    assert.deepEqual(send('b', other), ['router a c']);
    // Behind a tag it is another network's; and what isn't for the address that its MAC is of.
    const tagged = Buffer.concat([
      other.subarray(0, 12),
      Buffer.from([0x81, 0, 0, 5, 8, 0]),
      groupData(from('b'), G).subarray(14),
    ]);
    assert.deepEqual(send('b', tagged), ['router a c']);
    const strange = groupData(from('b'), G);
    groupMac(H).copy(strange);
    assert.deepEqual(send('b', strange), ['router a c']);
  });

  test('in one burst each go where they belong, in their order', () => {
    ask();
    send('a', igmpReport(from('a'), G));
    send('c', igmpReport(from('c'), H), mldReport(from('c'), G6));
    const frames = [G, H, G, '224.0.0.9', G6, H, H6, G].map((group, i) => groupData(from('b'), group, i));
    assert.deepEqual(send('b', ...frames), [
      'router a',
      'router c',
      'router a',
      'router a c',
      'router c',
      'router c',
      'router',
      'router a',
    ]);
  });
});

describe('members', () => {
  test('of every version are learned, and forgotten when they say no more', () => {
    ask();
    send('a', igmpReport(from('a'), G, 1));
    send('b', igmpReport(from('b'), G));
    send('c', igmp3Report(from('c'), { type: 4, group: G }, { type: 2, group: H }));
    send('a', mldReport(from('a'), G6));
    send('b', mld2Report(from('b'), { type: 4, group: G6 }, { type: 2, group: H6, aux: 3 }));
    assert.deepEqual(members(), [`${G} a,b,c`, `${H} c`, `${G6} a,b`, `${H6} b`]);
    wait(200);
    send('b', igmpReport(from('b'), G), mldReport(from('b'), G6));
    // The querier asks on.
    send('router', igmpQuery(from('router'), '10.0.0.1'), mldQuery(from('router'), 'fe80::1'));
    wait(61);
    assert.deepEqual(members(), [`${G} b`, `${G6} b`]);
    assert.equal(data('c', G), 'router b');
    wait(200);
    assert.deepEqual(members(), []);
    assert.equal(plane.structures.groups(plane.structures.bridge(0).get('groups')).get('groups'), 0);
    assert.equal(data('c', G), 'router a b', 'the querier is gone, too');
    assert.ok(all.every(({ port }) => port.struct.get('groups') === 0));
  });

  test('by records with sources: from some is in, from none is out', () => {
    ask();
    const record = (type: number, ...sources: string[]) =>
      send('a', igmp3Report(from('a'), { type, group: G, sources }));
    record(3, '10.0.0.8');
    assert.deepEqual(members(), [`${G} a`]);
    // Blocks some; allows nobody; says nothing that is known.
    for (const type of [6, 5, 0, 7]) record(type);
    record(6, '10.0.0.8');
    assert.deepEqual(members(), [`${G} a`]);
    all[who('a')]!.port.struct.set('groupFlags', plane.structures.constant('GROUPS_FAST_LEAVE'));
    record(3);
    assert.deepEqual(members(), []);
    for (const type of [1, 5]) {
      record(type, '10.0.0.8', '10.0.0.9');
      assert.deepEqual(members(), [`${G} a`]);
      record(1);
      assert.deepEqual(members(), []);
    }
    // Groups that all are in, and addresses of none.
    send('a', igmp3Report(from('a'), { type: 2, group: '224.0.0.251' }, { type: 2, group: '10.0.0.1' }));
    send('a', mld2Report(from('a'), { type: 2, group: 'ff02::1' }, { type: 2, group: 'ff01::5' }));
    assert.deepEqual(members(), []);
  });

  test('that leave go when the querier has asked in vain, at once with fast leave', () => {
    ask();
    send('a', igmpReport(from('a'), G), mldReport(from('a'), G6));
    send('b', igmpReport(from('b'), G), mldReport(from('b'), G6));
    assert.deepEqual(send('a', igmpLeave(from('a'), G), mldDone(from('a'), G6)), ['router', 'router']);
    assert.equal(data('c', G), 'router a b', 'others behind the port may be in it');
    // Seconds: one, twice.
    const last = [
      igmpQuery(from('router'), '10.0.0.1', { group: G, wait: 10 }),
      mldQuery(from('router'), 'fe80::1', { group: G6, wait: 1000 }),
    ];
    assert.deepEqual(send('router', ...last), ['a b c', 'a b c']);
    wait(1);
    send('b', igmpReport(from('b'), G), mldReport(from('b'), G6));
    wait(1);
    assert.deepEqual(members(), [`${G} a,b`, `${G6} a,b`]);
    wait(1);
    assert.deepEqual(members(), [`${G} b`, `${G6} b`]);
    // A router that has heard from members says so: nobody is asked for that.
    const quiet = { group: G, wait: 10, version: 3, quiet: true };
    send('router', igmpQuery(from('router'), '10.0.0.1', quiet));
    send('router', igmpQuery(from('router'), '10.0.0.1', { ...quiet, quiet: false, sources: ['10.0.0.8'] }));
    wait(10);
    assert.deepEqual(members(), [`${G} b`, `${G6} b`]);
    all[who('b')]!.port.struct.set('groupFlags', plane.structures.constant('GROUPS_FAST_LEAVE'));
    send('b', igmp3Report(from('b'), { type: 3, group: G }), mld2Report(from('b'), { type: 3, group: G6 }));
    assert.deepEqual(members(), []);
  });

  test('without a querier leave within three seconds', () => {
    send('a', igmpReport(from('a'), G), igmpReport(from('a'), H));
    send('a', igmpLeave(from('a'), G));
    wait(2);
    assert.deepEqual(members(), [`${G} a`, `${H} a`]);
    wait(1);
    assert.deepEqual(members(), [`${H} a`]);
  });

  test('are as many as a port may have, and others have room all the same', () => {
    ask();
    const groups = Array.from({ length: LIMIT + 4 }, (_, i) => `239.2.0.${i}`);
    for (const group of groups) send('a', igmpReport(from('a'), group));
    assert.equal(members().length, LIMIT);
    const { struct } = all[who('a')]!.port;
    assert.deepEqual([struct.get('groups'), struct.get('groupsRefused')], [LIMIT, 4]);
    // What is there may be said again, and others join what it couldn't.
    send('a', igmpReport(from('a'), groups[0]!));
    assert.equal(struct.get('groupsRefused'), 4);
    send('b', igmpReport(from('b'), groups.at(-1)!));
    assert.equal(data('c', groups.at(-1)!), 'router b');
    tables.forget(who('a'));
    assert.equal(struct.get('groups'), 0);
    assert.deepEqual(members(), [`${groups.at(-1)} b`]);
  });

  test('without room in the table get the frames for groups as all do, for a while', () => {
    const most = plane.structures.constant('MAX_GROUPS');
    for (const { port } of all) port.struct.set('groupLimit', most);
    ask();
    const groups = Array.from({ length: most }, (_, i) => `239.3.${i >>> 8}.${i & 255}`);
    for (let i = 0; i < groups.length; i += 32) {
      const records = groups.slice(i, i + 32).map((group) => ({ type: 4, group }));
      send('a', igmp3Report(from('a'), ...records));
    }
    const table = plane.structures.groups(plane.structures.bridge(0).get('groups'));
    // Two are the routers', and a bucket may be full before the table is.
    assert.ok(table.get('groups') <= most && table.get('groups') > most - 100);
    assert.equal(data('c', groups[0]!), 'router a b');
    assert.deepEqual(send('c', igmpReport(from('c'), groups[0]!)), ['router a b']);
    wait(200);
    send('router', igmpQuery(from('router'), '10.0.0.1'));
    wait(61);
    assert.equal(data('c', groups[0]!), 'router', 'all have said no more');
    send('b', igmpReport(from('b'), groups[0]!));
    assert.equal(data('c', groups[0]!), 'router b');
  });
});

describe('routers', () => {
  test('are where queries, Hellos of PIM and advertisements come from; reports go there alone', () => {
    const advertisement = igmp(
      from('a'),
      '10.0.0.2',
      '224.0.0.106',
      Buffer.from([0x30, 20, 0, 0, 0, 0, 0, 0]),
    );
    const advertisement6 = mld(from('a'), 'fe80::2', 'ff02::6a', Buffer.from([151, 20, 0, 0, 0, 0, 0, 0]));
    assert.deepEqual(send('a', advertisement, advertisement6), ['router b c', 'router b c']);
    assert.deepEqual(send('b', pimHello(from('b'), '224.0.0.13'), pimHello(from('b'), 'ff02::d')), [
      'router a c',
      'router a c',
    ]);
    assert.deepEqual(routers(), ['IPv4 - a,b', 'IPv6 - a,b']);
    assert.equal(data('c', G), 'router a b', 'but nobody asks');
    assert.deepEqual(send('c', igmpReport(from('c'), G), mldReport(from('c'), G6)), ['a b', 'a b']);
    ask();
    assert.equal(data('c', H), 'router a b');
    wait(250);
    assert.deepEqual(routers(), []);
  });

  test('with the lowest address are the querier, whose intervals count', () => {
    const query = (name: string, source: string, interval = 125, robustness = 2) =>
      send(name, igmpQuery(from(name), source, { version: 3, interval, robustness }));
    query('b', '0.0.0.0');
    assert.deepEqual(routers(), ['IPv4 0.0.0.0 b']);
    query('a', '10.0.0.20');
    query('b', '0.0.0.0');
    assert.deepEqual(routers(), ['IPv4 10.0.0.20 a,b']);
    query('router', '10.0.0.3', 20, 3);
    query('a', '10.0.0.20');
    assert.deepEqual(routers(), ['IPv4 10.0.0.3 a,b,router']);
    send('c', igmpReport(from('c'), G));
    assert.equal(list().groups[0]!.ports[0]!.expires, 3 * 20 + 10);
    wait(66);
    query('a', '10.0.0.20', 0xff, 7);
    assert.deepEqual(routers(), ['IPv4 10.0.0.20 a,b']);
    send('c', igmpReport(from('c'), G));
    assert.equal(list().groups[0]!.ports[0]!.expires, 3600, 'nobody is remembered for days');
    tables.forget(who('a'));
    assert.deepEqual(routers(), ['IPv4 - b']);
  });

  test('are never where an operator says so, or always', () => {
    const flags = (name: string, flag: string) =>
      all[who(name)]!.port.struct.set('groupFlags', plane.structures.constant(flag));
    flags('a', 'GROUPS_NO_ROUTER');
    send('a', igmpQuery(from('a'), '10.0.0.2'), pimHello(from('a'), '224.0.0.13'));
    assert.deepEqual(routers(), []);
    ask();
    send('b', igmpReport(from('b'), G));
    send('a', igmpQuery(from('a'), '10.0.0.2', { group: G, wait: 1 }));
    wait(10);
    assert.deepEqual(members(), [`${G} b`], 'nor do they make others leave');
    const places = names.map((_, slot) => ({
      slot,
      bridge: 0,
      isRouter: slot === who('c'),
      names: [0],
      tag: () => undefined,
    }));
    tables.refresh(places, () => undefined);
    assert.equal(data('a', G), 'router b c');
    assert.equal(data('a', H6), 'router c');
  });
});

describe('messages that are wrong', () => {
  const broken = (bytes: Buffer, change: (copy: Buffer) => void) => {
    const copy = Buffer.from(bytes);
    change(copy);
    return copy;
  };

  test('are counted, go nowhere, and teach nothing', () => {
    const report = igmpReport(from('a'), G);
    const records = igmp3Report(from('a'), { type: 4, group: G }, { type: 4, group: H });
    const six = mld2Report(from('a'), { type: 4, group: G6 });
    // The header has 24 bytes.
    const wrong: [string, Buffer][] = [
      ['the checksum of IGMP', broken(report, (b) => b.writeUInt8(b[40]! ^ 1, 40))],
      ['the checksum of IPv4', broken(report, (b) => b.writeUInt8(b[22]! ^ 1, 22))],
      ['a fragment', groupFrame(from('a'), '10.0.0.9', G, 2, Buffer.alloc(4))],
      ['a length beyond the frame', broken(report, (b) => b.writeUInt16BE(600, 16))],
      [
        'more records than there are',
        igmp(
          from('a'),
          '10.0.0.9',
          '224.0.0.22',
          Buffer.from([0x22, 0, 0, 0, 0, 0, 0, 2, 4, 0, 0, 0, 239, 1, 1, 1]),
        ),
      ],
      [
        'more sources than there are',
        igmp(
          from('a'),
          '10.0.0.9',
          '224.0.0.22',
          Buffer.from([0x22, 0, 0, 0, 0, 0, 0, 1, 4, 0, 255, 255, 239, 1, 1, 1]),
        ),
      ],
      ['the checksum of MLD', broken(six, (b) => b.writeUInt8(b[b.length - 1]! ^ 1, b.length - 1))],
      ['records that are cut off', six.subarray(0, six.length - 4)],
      [
        'a query for a group that is sent to another',
        igmp(from('a'), '10.0.0.9', H, Buffer.from([0x11, 10, 0, 0, 239, 1, 1, 1])),
      ],
      [
        'a general query that not all get',
        igmp(from('a'), '10.0.0.9', H, Buffer.from([0x11, 100, 0, 0, 0, 0, 0, 0])),
      ],
      [
        'a query of no version',
        igmp(from('a'), '10.0.0.9', '224.0.0.1', Buffer.from([0x11, 10, 0, 0, 0, 0, 0, 0, 2, 125])),
      ],
      ['MLD from afar', mldFrom('2001:db8::1', 1)],
      ['MLD that was routed', mldFrom('fe80::1', 64)],
      ['MLD without the option for routers', mldFrom('fe80::1', 1, Buffer.alloc(0))],
      ['a query of MLD from nobody', mldQuery(from('a'), '::')],
    ];
    for (const [i, [what, bytes]] of wrong.entries()) {
      assert.deepEqual(send('a', bytes), [''], what);
      assert.equal(badMessages('a'), i + 1, what);
    }
    assert.deepEqual(list(), { groups: [], routers: [] });
    // So does a frame like these that is whole.
    assert.deepEqual(send('a', records), ['router b c']);
    assert.deepEqual(members(), [`${G} a`, `${H} a`]);
    assert.equal(badMessages('a'), wrong.length);

    function mldFrom(source: string, hops: number, options?: Buffer<ArrayBuffer>): Buffer {
      const message = Buffer.from([131, 0, 0, 0, 0, 0, 0, 0, 0xff, 0x0e, ...Buffer.alloc(13), 1]);
      return mld(from('a'), source, 'ff0e::1', message, { hops, ...(options && { options }) });
    }
  });

  test('of kinds that nobody knows go to all', () => {
    ask();
    const dvmrp = igmp(from('a'), '10.0.0.9', '224.0.0.4', Buffer.from([0x13, 1, 0, 0, 0, 0, 0, 0]));
    assert.deepEqual(send('a', dvmrp), ['router b c']);
    const solicitation = mld(from('a'), 'fe80::9', 'ff02::1', Buffer.from([152, 0, 0, 0]));
    assert.deepEqual(send('a', solicitation), ['router b c']);
  });

  test('made at random from right ones do no harm', () => {
    close();
    open({ bufferLength: 256 });
    const seed = 0x5eed;
    const random = new Random(seed);
    const groups = [G, H, '239.9.9.9', '224.0.0.22'];
    const groups6 = [G6, H6, 'ff02::fb', 'ff05::1:3'];
    const sources = (list: string[]) => Array.from({ length: random.below(4) }, () => random.pick(list));
    const record = (list: string[]) => ({
      type: random.below(8),
      group: random.pick(list),
      sources: sources(list),
      aux: random.below(3),
    });
    const records = (list: string[]) => Array.from({ length: random.below(9) }, () => record(list));
    const query = (list: string[]) => ({
      version: random.below(4),
      wait: random.below(256),
      robustness: random.below(8),
      interval: random.below(256),
      quiet: random.below(4) === 0,
      sources: sources(list),
      ...(random.below(2) && { group: random.pick(list) }),
    });
    const kinds = [
      (m: Buffer) => igmpQuery(m, random.pick(['10.0.0.1', '0.0.0.0']), query(groups)),
      (m: Buffer) => igmpReport(m, random.pick(groups), 1 + random.below(2)),
      (m: Buffer) => igmpLeave(m, random.pick(groups)),
      (m: Buffer) => igmp3Report(m, ...records(groups)),
      (m: Buffer) => mldQuery(m, random.pick(['fe80::1', 'fe80::2']), query(groups6)),
      (m: Buffer) => mldReport(m, random.pick(groups6)),
      (m: Buffer) => mldDone(m, random.pick(groups6)),
      (m: Buffer) => mld2Report(m, ...records(groups6)),
      (m: Buffer) => pimHello(m, random.pick(['224.0.0.13', 'ff02::d'] as const)),
      (m: Buffer) => groupData(m, random.pick([...groups, ...groups6])),
    ];
    let refused = 0;
    for (let i = 0; i < 20_000; i++) {
      const name = random.pick(names);
      let bytes = random.pick(kinds)(from(name));
      // Half stay as they are.
      for (let change = random.below(2) * random.below(4); change > 0; change--) {
        if (random.below(4) === 0) bytes = bytes.subarray(0, 14 + random.below(bytes.length - 13));
        else bytes[random.below(bytes.length)] = random.below(256);
      }
      const sender = all[who(name)]!;
      const before = badMessages(name);
      assert.equal(sender.send(bytes), 1, `seed ${seed}, ${i}`);
      sender.publish();
      assert.equal(plane.poll().packets, 1, `seed ${seed}, ${i}: ${bytes.toString('hex')}`);
      for (const driver of all)
        for (let came = driver.receive(); came !== undefined; came = driver.receive())
          assert.ok(bytes.equals(came as Buffer), `seed ${seed}, ${i}: ${bytes.toString('hex')}`);
      refused += badMessages(name) - before;
      if (random.below(8) === 0) wait(random.below(30));
      if (i % 100 === 0) consistent(`seed ${seed}, ${i}`);
    }
    assert.ok(refused > 1000, `${refused} were wrong`);
    wait(4000);
    const table = plane.structures.groups(plane.structures.bridge(0).get('groups'));
    assert.deepEqual([table.get('groups'), table.get('members')], [0, 0]);
    assert.ok(all.every(({ port }) => port.struct.get('groups') === 0));
  });

  /** What is listed is what is counted. */
  function consistent(when: string): void {
    const { groups, routers } = list();
    const table = plane.structures.groups(plane.structures.bridge(0).get('groups'));
    const places = [...groups, ...routers].flatMap(({ ports }) => ports.map(({ port }) => port));
    assert.ok(table.get('members') >= places.length, when);
    for (const [i, name] of names.entries()) {
      const { struct } = all[i]!.port;
      assert.ok(struct.get('groups') <= LIMIT, when);
      assert.ok(struct.get('groups') >= places.filter((place) => place === name).length, when);
    }
  }
});

describe('the switch itself', () => {
  const ports = (there = names) =>
    there.map((name) => ({
      slot: who(name),
      bridge: 0,
      isRouter: false,
      names: [0],
      tag: (vlan: number) => (vlan === 0 ? new Uint8Array() : undefined),
    }));
  const none = () => undefined;
  const take = () => sent.splice(0).sort();
  const general = (...to: string[]) =>
    to.flatMap((name) => [`${name} 130 ${'0'.repeat(32)}`, `${name} 17 0.0.0.0`]).sort();
  const start = () => {
    sent.length = 0;
    tables.set(0, true, true);
    tables.refresh(ports(), none);
  };

  test('asks all, thrice in the first minute and then every 125 seconds, and who has come', () => {
    start();
    all[who('c')]!.port.struct.set('pairs', 0);
    wait(0);
    assert.deepEqual(take(), [], 'a port that has just come may not hear it');
    wait(1);
    assert.deepEqual(take(), general('router', 'a', 'b'));
    send('a', igmpReport(from('a'), G));
    assert.equal(data('b', G), 'router a', 'they have the time to answer');
    all[who('c')]!.port.struct.set('pairs', 1);
    wait(1);
    assert.deepEqual(take(), []);
    wait(1);
    assert.deepEqual(take(), general('c'));
    assert.equal(data('b', G), 'router a c');
    wait(9);
    assert.equal(data('b', G), 'a');
    assert.equal(data('b', H), '', 'no router is there');
    assert.deepEqual(send('b', igmpReport(from('b'), G)), [''], 'nor for reports');
    for (const [after, times] of [
      [19, 1],
      [30, 0],
      [1, 1],
      [124, 0],
      [1, 1],
      [125, 1],
    ] as const) {
      wait(after);
      assert.deepEqual(take(), times ? general(...names) : []);
    }
    // In another VLAN nobody asks.
    tables.set(0, true);
    tables.refresh(ports(), none);
    assert.equal(data('b', H), 'router a c');
    wait(300);
    assert.deepEqual(take(), []);
  });

  test('gives way to others, and asks again when they are gone', () => {
    start();
    wait(0);
    wait(1);
    take();
    const six = general(...names).filter((text) => / 130 /.test(text));
    // Zeros are a switch's, too.
    send('router', igmpQuery(from('router'), '0.0.0.0'), mldQuery(from('router'), 'febf::1'));
    wait(31);
    assert.deepEqual(take(), general(...names));
    send('router', igmpQuery(from('router'), '10.0.0.1'));
    wait(31);
    assert.deepEqual(take(), six);
    send('router', igmpQuery(from('router'), '10.0.0.1'), mldQuery(from('router'), 'fe80::1'));
    wait(125);
    assert.deepEqual(take(), []);
    wait(125);
    assert.deepEqual(take(), []);
    wait(125);
    assert.deepEqual(take(), general(...names));
  });

  test('sends frames for groups to all when hosts may be elsewhere, until they have been asked', () => {
    ask();
    send('a', igmpReport(from('a'), G));
    assert.equal(data('b', G), 'router a');
    tables.stir(0);
    assert.equal(data('b', G), 'router a c');
    assert.deepEqual(send('b', igmpReport(from('b'), H)), ['router a c']);
    wait(243);
    assert.equal(data('b', G), 'router a c');
    send('router', igmpQuery(from('router'), '10.0.0.1'));
    send('a', igmpReport(from('a'), G));
    wait(17);
    assert.equal(data('b', G), 'router a');
    // The switch itself does so at once.
    tables.forget(who('router'));
    start();
    wait(1);
    wait(12);
    take();
    tables.stir(0);
    wait(1);
    assert.deepEqual(take(), general(...names));
    assert.equal(data('b', G), 'router a c');
    wait(11);
    assert.equal(data('b', G), 'a');
  });

  test('asks on a port who is in a group that a host has left', () => {
    start();
    wait(0);
    wait(1);
    take();
    send('a', igmpReport(from('a'), G), mldReport(from('a'), G6), igmpReport(from('a'), H));
    send('a', igmpLeave(from('a'), G), mldDone(from('a'), G6));
    const both = [`a 130 ${'ff0e0000000000000000000000010001'}`, `a 17 ${G}`];
    wait(1);
    assert.deepEqual(take(), both);
    wait(1);
    assert.deepEqual(take(), both, 'one may be lost');
    send('a', igmpReport(from('a'), G));
    wait(1);
    assert.deepEqual(take(), both.slice(0, 1));
    wait(1);
    assert.deepEqual(take(), []);
    assert.deepEqual(members(), [`${G} a`, `${H} a`]);
    wait(200);
    assert.deepEqual(members(), [`${G} a`, `${H} a`]);
  });

  test('asks whether a host that drops sources has others, whose leave is never fast', () => {
    start();
    wait(0);
    wait(1);
    take();
    all[who('a')]!.port.struct.set('groupFlags', plane.structures.constant('GROUPS_FAST_LEAVE'));
    const [S, S6] = [['10.0.0.1'], ['fe80::1']];
    const records = (type: number) => [
      igmp3Report(from('a'), { type, group: G, sources: S }, { type, group: H, sources: S }),
      mld2Report(from('a'), { type, group: G6, sources: S6 }),
    ];
    send('a', ...records(5));
    assert.deepEqual(members(), [`${G} a`, `${H} a`, `${G6} a`]);
    send('a', ...records(6));
    assert.deepEqual(members(), [`${G} a`, `${H} a`, `${G6} a`]);
    wait(1);
    assert.deepEqual(take(), [`a 130 ${'ff0e0000000000000000000000010001'}`, `a 17 ${G}`, `a 17 ${H}`]);
    // It has others in one of them, and says which.
    send('a', igmp3Report(from('a'), { type: 1, group: H, sources: ['10.0.0.2'] }));
    wait(3);
    assert.deepEqual(members(), [`${H} a`]);
    wait(100);
    assert.deepEqual(members(), [`${H} a`]);
    // Who wasn't in it isn't brought in.
    send('b', igmp3Report(from('b'), { type: 6, group: H, sources: S }));
    assert.deepEqual(members(), [`${H} a`]);
  });
});

describe('ports that an operator has entered', () => {
  test('get the frames of their groups, join and leave nothing, and count for nobody', () => {
    const place = (fid: number, slot: number) => ({ fid, slot });
    tables.statics.add({ group: G, port: 'a' }, place(0, who('a')));
    tables.statics.add({ group: G6, port: 'a' }, place(0, who('a')));
    ask();
    assert.equal(data('b', G), 'router a');
    assert.equal(data('b', G6), 'router a');
    send('a', igmpReport(from('a'), G), igmpLeave(from('a'), G));
    send('router', igmpQuery(from('router'), '10.0.0.1', { group: G, wait: 1 }));
    wait(300);
    assert.deepEqual(
      list().groups.flatMap(({ ports }) => ports),
      [
        { port: 'a', static: true, expires: null },
        { port: 'a', static: true, expires: null },
      ],
    );
    assert.equal(all[who('a')]!.port.struct.get('groups'), 0);
    tables.statics.remove(({ group }) => group === G);
    assert.deepEqual(members(), [`${G6} a`]);
    assert.throws(
      () => tables.statics.add({ group: G6, port: 'a' }, place(0, who('a'))),
      /is entered for port a already/,
    );
    tables.statics.remove(() => true);
  });
});
