/** The state machines of RSTP among themselves: bridges that are joined anyhow find one tree, and another one after each cut. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Bpdu } from '../../src/rstp/bpdu.ts';
import { MIGRATE_TIME, type PortSettings } from '../../src/rstp/port.ts';
import { bridgeId } from '../../src/rstp/priority.ts';
import { Tree } from '../../src/rstp/tree.ts';
import { Network } from './network.ts';

const SEEDS = Number(process.env.VIREO_MATRIX ? 2000 : 60);

test('any network comes to the tree of the standard, and to another after each change', () => {
  let slowest = 0;
  let loops = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    const network = new Network(seed);
    const { random } = network;
    const bridges = 2 + random.below(7);
    for (let i = 0; i < bridges; i++) network.addBridge(4096 * random.below(4), i + 1);
    for (let i = bridges + random.below(2 * bridges); i > 0; i--)
      network.connect(
        random.below(bridges),
        random.below(bridges),
        random.pick([200, 2000, 20_000]),
        16 * random.below(3),
      );
    try {
      network.settle();
      network.check();
      for (let changes = 0; changes < 5; changes++) {
        const cable = random.pick(network.cables);
        network.set(cable, !cable.up);
        slowest = Math.max(slowest, network.settle());
        network.check();
      }
      loops += network.loops;
    } catch (error) {
      throw new Error(`seed ${seed}: ${(error as Error).message}`);
    }
  }
  assert.equal(loops, 0);
  assert.ok(slowest <= 10, `one took ${slowest} seconds`);
});

test('a bridge that goes, and comes back, with all its links', () => {
  for (let seed = 1; seed <= 40; seed++) {
    const network = new Network(seed);
    const { random } = network;
    const bridges = 3 + random.below(5);
    for (let i = 0; i < bridges; i++) network.addBridge(32_768, i + 1);
    for (let i = 1; i < bridges; i++) network.connect(random.below(i), i);
    for (let i = 0; i < bridges; i++) network.connect(random.below(bridges), random.below(bridges));
    try {
      network.settle();
      // The first one is the root, whose name goes on going round until it is too old.
      const lost = network.cables.filter(({ ends }) => ends.some(({ bridge }) => bridge === 0));
      for (const up of [false, true]) {
        for (const cable of lost) network.set(cable, up);
        network.settle();
        network.check();
      }
    } catch (error) {
      throw new Error(`seed ${seed}: ${(error as Error).message}`);
    }
  }
});

test('a cut tells the bridges that addresses have moved', () => {
  const network = new Network(1);
  for (let i = 0; i < 3; i++) network.addBridge();
  const [first] = [network.connect(0, 1), network.connect(1, 2), network.connect(0, 2)];
  network.settle();
  network.flushes.clear();
  network.set(first!, false);
  network.settle();
  network.check();
  const { ends } = network.cables[2]!;
  assert.ok(network.flushes.get(ends[1].port), 'what is behind bridge 1 is no longer behind the root');
  // At the others no port has anybody else to tell (14.8.1.1.3).
  assert.equal(network.trees[2]!.topologyChanges, 2);
});

test('a port that nobody answers at is an edge after 3 s; one that hears itself discards', () => {
  const network = new Network(1);
  network.addBridge();
  const { ends } = network.connect(0, 0);
  const [{ port }, { port: other }] = ends;
  network.set(network.cables[0]!, false);
  const tree = network.trees[0]!;
  tree.setLink(port, true);
  for (let second = 1; second <= MIGRATE_TIME; second++) {
    assert.equal(port.forwarding, false);
    tree.tick();
  }
  assert.ok(port.forwarding && port.operEdge);
  assert.equal(other.role, 'disabled');
  // What it sends comes back.
  for (let second = 0; second < 100; second++) {
    tree.receive(port, {
      kind: 'rstp',
      role: 'designated',
      vector: port.designatedVector,
      times: port.designatedTimes,
      tc: false,
      proposal: port.proposing,
      learning: port.learning,
      forwarding: port.forwarding,
      agreement: false,
    });
    assert.ok(!port.forwarding && !port.learning, `it goes on in second ${second}`);
    tree.tick();
    tree.tick();
  }
  // And no more.
  for (let second = 0; second < 30; second++) tree.tick();
  assert.ok(port.forwarding);
});

test('whatever comes, the machines come to rest', () => {
  for (let seed = 1; seed <= 20; seed++) {
    const network = new Network(seed);
    const { random } = network;
    network.addBridge();
    const tree = network.trees[0]!;
    const ports = [1, 2, 3].map(() => network.connect(0, 0).ends[0].port);
    const id = () => random.pick([tree.id, tree.id - 1n, tree.id + 1n, 0n, 0xffff_ffff_ffff_ffffn]);
    const flag = () => random.below(2) === 1;
    for (let i = 0; i < 1000; i++) {
      const port = random.pick(ports);
      const role = random.pick(['alternate', 'root', 'designated'] as const);
      const times = {
        messageAge: random.below(30),
        maxAge: 6 + random.below(35),
        helloTime: 1 + random.below(10),
        forwardDelay: 4 + random.below(27),
      };
      const vector = {
        root: id(),
        cost: random.pick([0, 2000, 0xffff_ffff]),
        bridge: id(),
        port: random.pick(ports).id + random.below(2),
      };
      const content = { vector, times, tc: flag() };
      const what = random.below(10);
      if (what === 0) tree.setLink(port, flag());
      else if (what === 1) tree.tick();
      else if (what === 2) tree.receive(port, { kind: 'notification' });
      else if (what === 3) tree.receive(port, { kind: 'stp', tcAck: flag(), ...content });
      else
        tree.receive(port, {
          kind: 'rstp',
          role,
          proposal: flag(),
          learning: flag(),
          forwarding: flag(),
          agreement: flag(),
          ...content,
        });
      assert.equal(tree.unsettled, 0, `seed ${seed}, event ${i}`);
      assert.ok(tree.ports.size === 6 && [...tree.ports].filter(({ role }) => role === 'root').length <= 1);
    }
  }
});

/** A bridge with a port, what it has sent, and a neighbour's word. */
function neighbour(settings: Partial<PortSettings> = {}) {
  const sent: Bpdu[] = [];
  const effects = { transmit: (_: unknown, bpdu: Bpdu) => void sent.push(bpdu), setState() {}, flush() {} };
  const tree = new Tree({ id: bridgeId(32_768, '02:00:00:00:00:05'), maxAge: 20, forwardDelay: 15 }, effects);
  const port = tree.add({ pathCost: 2000, id: 0x8001, edge: 'auto', pointToPoint: true, ...settings });
  tree.setLink(port, true);
  const times = { messageAge: 0, maxAge: 20, helloTime: 2, forwardDelay: 15 };
  return {
    tree,
    port,
    /** Kinds of the messages since the last look. */
    kinds: () => new Set(sent.splice(0).map(({ kind }) => kind)),
    say(kind: 'stp' | 'rstp', priority: number): void {
      const id = bridgeId(priority, '02:00:00:00:00:01');
      const content = { vector: { root: id, cost: 0, bridge: id, port: 0x8001 }, times, tc: false };
      const flags = { proposal: false, learning: false, forwarding: false, agreement: false };
      if (kind === 'stp') tree.receive(port, { kind, tcAck: false, ...content });
      else tree.receive(port, { kind, role: 'designated', ...flags, ...content });
    },
    seconds(count: number, each = () => {}): void {
      for (; count > 0; count--) {
        each();
        tree.tick();
      }
    },
  };
}

test('a neighbour that speaks STP is spoken to in STP, until it speaks RSTP', () => {
  const { port, say, seconds, kinds } = neighbour();
  // For the first three seconds it may be mistaken for one that has just heard of us.
  seconds(MIGRATE_TIME, () => say('stp', 61_440));
  assert.deepEqual(kinds(), new Set(['rstp']));
  say('stp', 61_440);
  assert.equal(port.sendRstp, false);
  // It is worse: ours is the root, and waits the long time, twice.
  let waited = 0;
  seconds(60, () => {
    say('stp', 61_440);
    if (!port.forwarding) waited++;
  });
  assert.ok(port.forwarding && !port.operEdge);
  assert.ok(waited >= 30, `it forwards after ${waited} s`);
  assert.deepEqual(kinds(), new Set(['stp']));
  // A better one: what there is to say to the root is that the topology changes.
  say('stp', 4096);
  assert.equal(port.role, 'root');
  seconds(10, () => say('stp', 4096));
  assert.deepEqual(kinds(), new Set(['notification']));
  say('rstp', 4096);
  assert.equal(port.sendRstp, true);
  seconds(3, () => say('rstp', 61_440));
  assert.deepEqual(kinds(), new Set(['rstp']));
});

test('an edge is none any more when a bridge is heard, until its link has gone', () => {
  const { tree, port, say, seconds } = neighbour({ edge: true });
  assert.ok(port.forwarding);
  say('rstp', 61_440);
  assert.equal(port.operEdge, false);
  seconds(30);
  tree.setLink(port, false);
  assert.equal(port.forwarding, false);
  tree.setLink(port, true);
  assert.ok(port.operEdge && port.forwarding);
});

test('what was heard of the root is forgotten after three of its hello times', () => {
  const { port, say, seconds } = neighbour();
  say('rstp', 4096);
  assert.equal(port.role, 'root');
  seconds(5);
  assert.equal(port.role, 'root');
  seconds(1);
  assert.equal(port.role, 'designated');
});
