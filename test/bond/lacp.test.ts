/** LACP between two systems of ours, by frames and a clock that the test moves, and what it makes of frames that are none. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Lacp } from '../../src/bond/lacp.ts';
import { answerMarker, readLacpdu, writeLacpdu } from '../../src/bond/lacpdu.ts';
import { Random } from '../support/random.ts';

const [ONE, TWO, THREE] = ['02:00:00:00:00:01', '02:00:00:00:00:02', '02:00:00:00:00:03'];

interface Cable {
  /** A member of a system on each end. */
  ends: [system: number, member: number][];
  cut?: boolean;
}

/** Systems with cables between their members, and a clock. */
class Net {
  readonly systems: Lacp[];
  readonly cables: Cable[];
  readonly frames: Buffer[] = [];
  now = 0;

  constructor(macs: string[], cables: Cable['ends'][], fast = true) {
    this.cables = cables.map((ends) => ({ ends }));
    const waiting: (() => void)[] = [];
    this.systems = macs.map(
      (system, number) =>
        new Lacp({
          system,
          key: 7,
          fast,
          members: 4,
          send: (member, frame) => {
            this.frames.push(frame);
            waiting.push(() => this.#carry(number, member, frame));
          },
        }),
    );
    this.#deliver = () => {
      for (let next = waiting.shift(); next; next = waiting.shift()) next();
    };
    for (const { ends } of this.cables)
      for (const [system, member] of ends) this.systems[system]!.link(member, true);
  }

  readonly #deliver: () => void;

  #carry(system: number, member: number, frame: Buffer): void {
    const cable = this.cables.find(({ ends }) => ends.some(([s, m]) => s === system && m === member));
    const other = cable?.ends.find(([s, m]) => s !== system || m !== member);
    if (other && !cable!.cut) this.systems[other[0]]!.receive(other[1], frame);
  }

  /** Milliseconds pass. */
  run(milliseconds: number): void {
    for (const end = this.now + milliseconds; this.now < end; this.now += 100) {
      for (const system of this.systems) system.tick(this.now);
      this.#deliver();
    }
  }

  used = (system: number) => this.systems[system]!.distributing;
}

const PAIR: Cable['ends'][] = [[[0, 0], [1, 0]], [[0, 1], [1, 1]]]; // biome-ignore format: a table

test('two systems bundle the cables between them, and a cable that is silent leaves the bundle', () => {
  const net = new Net([ONE!, TWO!], PAIR);
  net.run(4000);
  assert.deepEqual([net.used(0), net.used(1)], [[0, 1], [0, 1]]); // biome-ignore format: one line
  assert.deepEqual(net.systems[0]!.status(0), {
    receive: 'current',
    mux: 'distributing',
    state: 'activity timeout aggregation synchronization collecting distributing',
    partner: {
      system: TWO,
      key: 7,
      port: 1,
      state: 'activity timeout aggregation synchronization collecting distributing',
    },
    received: net.systems[0]!.status(0).received,
    sent: net.systems[0]!.status(0).sent,
  });
  // Each speaks once a second then, and no more.
  const { sent } = net.systems[0]!.status(0);
  net.run(10_000);
  assert.equal(net.systems[0]!.status(0).sent, sent + 10);
  net.cables[0]!.cut = true;
  net.run(3200);
  assert.deepEqual([net.used(0), net.used(1)], [[1], [1]]);
  assert.equal(net.systems[0]!.status(0).receive, 'expired');
  net.run(3000);
  assert.equal(net.systems[0]!.status(0).receive, 'defaulted');
  net.cables[0]!.cut = false;
  net.run(4000);
  assert.deepEqual([net.used(0), net.used(1)], [[0, 1], [0, 1]]); // biome-ignore format: one line
  // A link that goes is out at once, on both sides.
  net.systems[0]!.link(1, false);
  net.systems[1]!.link(1, false);
  assert.deepEqual([net.used(0), net.used(1)], [[0], [0]]);
});

test('at the slow rate a frame in 30 seconds is enough, and silence is noticed after 90', () => {
  const net = new Net([ONE!, TWO!], PAIR, false);
  net.run(6000);
  assert.deepEqual(net.used(0), [0, 1]);
  const { sent } = net.systems[0]!.status(0);
  net.run(300_000);
  assert.equal(net.systems[0]!.status(0).sent, sent + 10);
  net.cables[0]!.cut = true;
  net.run(59_000);
  assert.deepEqual(net.used(0), [0, 1]);
  net.run(32_000);
  assert.deepEqual(net.used(0), [1]);
});

test('cables to two neighbours make no bundle: the larger group is used, until it is gone', () => {
  const net = new Net([ONE!, TWO!, THREE!], [
    [[0, 0], [2, 0]], [[0, 1], [1, 0]], [[0, 2], [1, 1]],
  ]); // biome-ignore format: a table
  // All links are up at once; who is heard of first is used.
  net.run(5000);
  const first = net.used(0);
  assert.ok(
    [[0], [1, 2]].some((group) => group.join() === first.join()),
    first.join(),
  );
  for (const member of first) net.systems[0]!.link(member, false);
  net.run(5000);
  assert.deepEqual([...first, ...net.used(0)].sort(), [0, 1, 2]);
});

test('a cable back to the same system is none, and a neighbour without LACP gets nothing', () => {
  const net = new Net([ONE!], [[[0, 0], [0, 1]], [[0, 2], [0, 3]]]); // biome-ignore format: one line
  net.run(20_000);
  assert.deepEqual(net.used(0), []);
  assert.equal(net.systems[0]!.receive(0, net.frames[0]!), false);
  const alone = new Net([ONE!, TWO!], [[[0, 0], [1, 0]]]); // biome-ignore format: one line
  alone.cables[0]!.cut = true;
  alone.run(20_000);
  assert.deepEqual([alone.used(0), alone.systems[0]!.status(0).receive], [[], 'defaulted']);
});

test('no more than three frames a second leave a member, whatever comes', () => {
  const net = new Net([ONE!, TWO!], PAIR);
  net.run(5000);
  const random = new Random(11);
  const before = net.systems[0]!.status(0).sent;
  for (let second = 0; second < 20; second++) {
    for (let i = 0; i < 50; i++) {
      const { actor, partner } = readLacpdu(net.frames.at(-1)!)!;
      const end = (name: typeof actor) => ({ ...name, state: random.below(256), port: random.below(4) });
      net.systems[0]!.receive(
        0,
        writeLacpdu({ actor: { ...end(actor), system: TWO! }, partner: end(partner) }),
      );
    }
    net.run(1000);
  }
  assert.ok(net.systems[0]!.status(0).sent - before <= 63);
});

test('frames that are no LACPDUs are told, and change nothing; seeded', () => {
  const seed = Number(process.env.VIREO_SEED ?? 5);
  const random = new Random(seed);
  const net = new Net([ONE!, TWO!], PAIR);
  net.run(5000);
  const good = net.frames.find((frame) => readLacpdu(frame)!.actor.system === TWO)!;
  let refused = 0;
  for (let i = 0; i < 20_000; i++) {
    const bytes = random.below(3) === 0 ? random.bytes(random.below(129)) : Buffer.from(good);
    for (let n = random.below(4); n > 0 && bytes.length > 0; n--)
      bytes[random.below(bytes.length)] = random.below(256);
    const frame = bytes.subarray(0, random.below(8) === 0 ? random.below(bytes.length + 1) : bytes.length);
    const before = net.systems[0]!.status(1);
    const pdu = readLacpdu(frame);
    const taken = net.systems[0]!.receive(0, frame);
    assert.equal(taken, pdu !== undefined && pdu.actor.system !== ONE, `seed ${seed}, frame ${i}`);
    if (!taken) refused++;
    if (!taken) assert.deepEqual(net.systems[0]!.status(1), before);
    answerMarker(frame, ONE!);
  }
  assert.ok(refused > 1000);
  // Whatever was said, the truth makes a bundle again.
  net.run(10_000);
  assert.deepEqual([net.used(0), net.used(1)], [[0, 1], [0, 1]]); // biome-ignore format: one line
});

test('a marker is answered as it is, from our address', () => {
  const marker = Buffer.alloc(124);
  Buffer.from('0180c2000002020000000002880902010110', 'hex').copy(marker);
  marker.write('whose marker', 18);
  const answer = answerMarker(marker, ONE!)!;
  assert.equal(answer.toString('hex', 0, 18), '0180c2000002020000000001880902010210');
  assert.deepEqual(answer.subarray(18), marker.subarray(18));
  assert.equal(answerMarker(marker.subarray(0, 30), ONE!), undefined);
});
