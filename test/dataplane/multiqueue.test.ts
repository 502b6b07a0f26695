/** Frames for a guest with several queues: which ring each flow goes to, and that it stays there in its order. */
import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import { nextFlowTable } from '../../src/vhost/flow-table.ts';
import { Driver, type DriverOptions, multiqueue } from '../support/driver.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { type Flow, flowFrame } from '../support/flows.ts';
import { BROKEN, Plane, STOPPED } from '../support/plane.ts';
import { Random } from '../support/random.ts';

const plane = new Plane();
const FLOWS = plane.structures.constant('FLOWS');
const SNAPSHOT = 128;
afterEach(() => plane.clear());

const scratch = plane.arena.takeTable(4096).start;
function hash(bytes: Uint8Array): number {
  plane.arena.u8.set(bytes, scratch);
  return plane.functions.flowHash(scratch, bytes.length) >>> 0;
}

const other = (flow: Flow): Flow => ({
  ...flow,
  source: flow.destination,
  destination: flow.source,
  sourcePort: flow.destinationPort,
  destinationPort: flow.sourcePort,
});

describe('the flow of a frame', () => {
  const TCP4: Flow = {
    source: '10.0.0.1',
    destination: '10.0.0.2',
    protocol: 6,
    sourcePort: 1000,
    destinationPort: 80,
  };
  const TCP6: Flow = { ...TCP4, source: 'fd00::1', destination: 'fd00::2' };
  const kinds: [string, Flow][] = [
    ['TCP over IPv4', TCP4],
    ['UDP over IPv4', { ...TCP4, protocol: 17 }],
    ['SCTP over IPv4', { ...TCP4, protocol: 132 }],
    ['IPv4 with options', { ...TCP4, options: 40 }],
    ['TCP over IPv6', TCP6],
    ['UDP behind headers of IPv6', { ...TCP6, protocol: 17, headers: [0, 60, 43, 51] }],
    ['a VLAN', { ...TCP4, vlan: 7 }],
    ['IPv6 in a VLAN', { ...TCP6, vlan: 4095 }],
    ['a VLAN of a customer in one of a provider', { ...TCP4, vlan: 7, outer: 100 }],
    ['IPv6 in both', { ...TCP6, vlan: 7, outer: 100 }],
  ];
  for (const [name, flow] of kinds) {
    test(`${name}: by addresses and ports, the same both ways, whatever else the frame says`, () => {
      const h = hash(flowFrame(flow));
      assert.equal(hash(flowFrame(other(flow))), h);
      assert.equal(hash(flowFrame({ ...flow, length: 1514, salt: 9, to: mac(8), from: mac(9) })), h);
      const changes: Partial<Flow>[] = [
        { sourcePort: 1001 },
        { destinationPort: 81 },
        { source: flow.source.replace('1', '3') },
      ];
      for (const change of changes)
        assert.notEqual(hash(flowFrame({ ...flow, ...change })), h, JSON.stringify(change));
      // Ports that change sides are another connection.
      const crossed = { sourcePort: flow.destinationPort, destinationPort: flow.sourcePort };
      assert.notEqual(hash(flowFrame({ ...flow, ...crossed })), h);
    });
  }

  test('all fragments of a datagram are one flow, first or not', () => {
    for (const base of [TCP4, TCP6]) {
      const fragments = [
        { fragment: 0x2000 },
        { fragment: 0x2001, sourcePort: 7 },
        { fragment: 0x0123, sourcePort: 9, destinationPort: 11 },
      ].map((change) => hash(flowFrame({ ...base, ...change })));
      assert.equal(new Set(fragments).size, 1);
      assert.notEqual(fragments[0], hash(flowFrame(base)));
      assert.notEqual(
        hash(flowFrame({ ...base, fragment: 0x2000, destination: base.destination.replace('2', '5') })),
        fragments[0],
      );
    }
    // "Don't fragment" is not a fragment.
    assert.equal(hash(flowFrame({ ...TCP4, fragment: 0x4000 })), hash(flowFrame(TCP4)));
  });

  test('a protocol without ports goes by its addresses, what is no IP by its MAC addresses', () => {
    const icmp: Flow = { ...TCP4, protocol: 1 };
    assert.equal(hash(flowFrame(icmp)), hash(flowFrame({ ...icmp, sourcePort: 5, destinationPort: 6 })));
    assert.notEqual(hash(flowFrame(icmp)), hash(flowFrame({ ...icmp, protocol: 47 })));
    const plain = hash(frame(mac(1), mac(2)));
    assert.equal(hash(frame(mac(2), mac(1), 500, 5)), plain);
    assert.notEqual(hash(frame(mac(1), mac(3))), plain);
  });

  test('nothing behind the end of a short frame has a say', () => {
    const random = new Random(3);
    for (const [, flow] of kinds) {
      const whole = flowFrame({ ...flow, length: SNAPSHOT });
      for (let length = 14; length <= SNAPSHOT; length++) {
        const short = whole.subarray(0, length);
        plane.arena.u8.fill(0, scratch, scratch + SNAPSHOT);
        const h = hash(short);
        for (let i = length; i < SNAPSHOT; i++) plane.arena.u8[scratch + i] = random.below(256);
        assert.equal(hash(short), h, `${length} bytes`);
      }
    }
    // Nor do lengths that lie: header lengths and headers of all kinds, anywhere.
    for (let turn = 0; turn < 2000; turn++) {
      const bytes = flowFrame(random.pick(kinds)[1]);
      const length = 14 + random.below(bytes.length - 14);
      for (let i = 0; i < 5; i++) bytes[12 + random.below(60)] = random.below(256);
      const h = hash(bytes.subarray(0, length));
      plane.arena.u8.fill(random.below(256), scratch + length, scratch + 2048);
      assert.equal(hash(bytes.subarray(0, length)), h);
    }
  });
});

describe('the table of flows', () => {
  test('gives every ring its share and moves only what it must', () => {
    const random = new Random(5);
    let table: number[] = Array(FLOWS).fill(0);
    for (let turn = 0; turn < 500; turn++) {
      const count = 1 + random.below(FLOWS);
      const rings = [...new Set(Array.from({ length: count }, () => 64 * (1 + random.below(140))))].slice(
        0,
        FLOWS,
      );
      const next = nextFlowTable(table, rings, FLOWS);
      assert.equal(next.length, FLOWS);
      const shares = rings.map((ring) => next.filter((entry) => entry === ring).length);
      assert.equal(
        shares.reduce((a, b) => a + b),
        FLOWS,
        'every entry is a ring that is there',
      );
      const least = Math.floor(FLOWS / rings.length);
      assert.ok(
        shares.every((share) => share === least || share === least + 1),
        String(shares),
      );
      // What stays is as much as there is room for.
      let room = FLOWS % rings.length;
      let mayStay = 0;
      for (const ring of rings) {
        const had = table.filter((entry) => entry === ring).length;
        if (had > least && room-- > 0) mayStay += least + 1;
        else mayStay += Math.min(had, least);
      }
      const stayed = next.filter((entry, i) => entry === table[i]).length;
      assert.equal(stayed, mayStay);
      table = next;
    }
  });
});

/** A sender, and a guest with several queues whose address the switch knows. */
function pair(pairs: number, options: DriverOptions = {}) {
  const sender = new Driver(plane, { size: 256, tableEntries: 1, ...options });
  const queues = multiqueue(plane, pairs, { size: 256, tableEntries: 1, ...options });
  queues[0]!.send(frame(BROADCAST, mac(2)));
  queues[0]!.publish();
  assert.equal(plane.poll().packets, 1);
  sender.receive();
  return { sender, queues };
}

function receiveAll(driver: Driver): Buffer[] {
  const frames: Buffer[] = [];
  for (let came = driver.receive(); came !== undefined; came = driver.receive()) {
    assert.notEqual(came, -1);
    frames.push(came as Buffer);
  }
  return frames;
}

const nth = (i: number): Flow => ({
  to: mac(2),
  from: mac(1),
  source: `10.0.${i >>> 8}.${i & 255}`,
  destination: '10.1.0.1',
  protocol: i % 2 ? 6 : 17,
  sourcePort: 1024 + i,
  destinationPort: 80,
});

/** Number of a flow, and of a frame in it, as a frame tells them in its last bytes. */
const SALT = 0;
function stamped(i: number, sequence: number): Buffer {
  const bytes = flowFrame({ ...nth(i), salt: SALT, length: 80 });
  bytes.writeUInt32LE(i, 72);
  bytes.writeUInt32LE(sequence, 76);
  return bytes;
}

describe('a guest with several queues', () => {
  for (const pairs of [2, 3, 8, 64]) {
    test(`${pairs}: each flow has one queue and its order, every queue has flows, nothing is lost or changed`, () => {
      const { sender, queues } = pair(pairs);
      const random = new Random(pairs);
      const flows = pairs * 16;
      const next: number[] = Array(flows).fill(0);
      const home = new Map<number, number>();
      const seen: number[] = Array(flows).fill(0);
      let sent = 0;
      let came = 0;
      for (let turn = 0; turn < 60; turn++) {
        for (let i = 0; i < 64; i++) {
          const flow = random.below(flows);
          assert.equal(sender.send(stamped(flow, next[flow]!++)), 1);
          sent++;
        }
        sender.publish();
        while (plane.poll().packets > 0);
        for (const [index, queue] of queues.entries()) {
          for (const bytes of receiveAll(queue)) {
            const flow = bytes.readUInt32LE(72);
            assert.ok(bytes.equals(stamped(flow, seen[flow]!++)), 'the next of its flow, as it was sent');
            assert.equal(home.get(flow) ?? index, index, 'a flow stays in its queue');
            home.set(flow, index);
            came++;
          }
        }
      }
      assert.equal(came, sent);
      assert.equal(new Set(home.values()).size, pairs);
      // The guest is one port: what it sends on any queue teaches the switch the same.
      for (const queue of queues) {
        queue.send(frame(mac(1), mac(2)));
        queue.publish();
      }
      while (plane.poll().packets > 0);
      assert.equal(receiveAll(sender).length, pairs);
      assert.equal(plane.functions.lookup(BigInt(mac(2).readUIntLE(0, 6)), 0) >>> 0, queues[0]!.port.slot);
    });
  }

  test('gets one copy of what is flooded, beside guests with one', () => {
    const { sender, queues } = pair(4);
    const single = new Driver(plane, { size: 256, tableEntries: 1 });
    const frames = Array.from({ length: 40 }, (_, i) =>
      flowFrame({ ...nth(i), to: i % 3 ? BROADCAST : mac(2) }),
    );
    for (const bytes of frames) sender.send(bytes);
    sender.publish();
    plane.poll();
    const got = queues.map(receiveAll);
    assert.ok(got.every((list) => list.length > 0));
    const sorted = (list: Buffer[]) => list.map((bytes) => bytes.toString('hex')).sort();
    assert.deepEqual(sorted(got.flat()), sorted(frames));
    assert.deepEqual(
      receiveAll(single),
      frames.filter((_, i) => i % 3),
    );
  });

  test('loses nothing when queues go and come, and flows of queues that stay do not move', () => {
    const { sender, queues } = pair(4);
    const [port] = queues.map((queue) => queue.port);
    const count = 128;
    let sequence = 0;
    const send = () => {
      for (let flow = 0; flow < count; flow++) sender.send(stamped(flow, sequence));
      sequence++;
      sender.publish();
      while (plane.poll().packets > 0);
      const home = new Map<number, number>();
      for (const [index, queue] of queues.entries())
        for (const bytes of receiveAll(queue)) home.set(bytes.readUInt32LE(72), index);
      assert.equal(home.size, count, 'all came, each once');
      return home;
    };
    let before = send();
    for (const open of [[0, 1, 2], [0, 2], [2], [0, 1, 2, 3], [1, 3]]) {
      plane.spread(
        port!,
        open.map((i) => queues[i]!.port),
      );
      const after = send();
      assert.deepEqual([...new Set(after.values())].sort(), open);
      // With more queues than before, some leave for the new ones.
      const old = new Set(before.values());
      if (open.every((i) => old.has(i)))
        for (const [flow, index] of before) if (open.includes(index)) assert.equal(after.get(flow), index);
      before = after;
    }
  });

  test('a queue that stops or breaks counts what it loses and costs the others nothing', () => {
    const { sender, queues } = pair(2);
    const [healthy, bad] = queues as [Driver, Driver];
    for (const state of [STOPPED, BROKEN]) {
      bad.port.rx.vring.set('state', state);
      for (let flow = 0; flow < 64; flow++) sender.send(stamped(flow, 0));
      sender.publish();
      plane.poll();
      const came = receiveAll(healthy).length;
      assert.ok(came > 0 && came < 64);
      assert.deepEqual(plane.drops(bad.port.rx.vring), { noGuest: 64 - came });
      plane.clearDrops(bad.port.rx.vring);
    }
  });

  test('every queue that got frames is to be interrupted once, and only those', () => {
    const { sender, queues } = pair(8);
    for (let turn = 0; turn < 3; turn++) {
      for (let flow = 0; flow < 5; flow++) sender.send(stamped(flow, 0));
      sender.publish();
      const { calls } = plane.poll();
      const got = queues
        .filter((queue) => receiveAll(queue).length > 0)
        .map((queue) => queue.port.rx.vring.at);
      const interrupted = calls.filter((at) => at !== sender.port.tx.vring.at);
      assert.deepEqual([...interrupted].sort(), [...got].sort());
    }
  });
});
