/**
 * Bridges and links for tests of the state machines: trees without a switch, whose messages go as bytes over links
 * that keep their order and take any time up to a second. Everything random comes from a seed.
 */
import assert from 'node:assert/strict';
import { type Bpdu, readBpdu, writeBpdu } from '../../src/rstp/bpdu.ts';
import { HELLO_TIME, type Port, stateOf } from '../../src/rstp/port.ts';
import { bridgeId, portId } from '../../src/rstp/priority.ts';
import { Tree } from '../../src/rstp/tree.ts';
import { mac, macText } from '../support/ethernet.ts';
import { Random } from '../support/random.ts';

/** A port at the end of a link. */
export interface End {
  bridge: number;
  port: Port;
}

export interface Cable {
  ends: [End, End];
  up: boolean;
  /** Messages under way to each end. */
  queues: [Buffer[], Buffer[]];
}

export class Network {
  readonly random: Random;
  readonly trees: Tree[] = [];
  readonly cables: Cable[] = [];
  /** Moments at which frames could go round, and flushes by port. */
  loops = 0;
  readonly flushes = new Map<Port, number>();

  constructor(seed: number) {
    this.random = new Random(seed);
  }

  addBridge(priority = 32_768, address = this.trees.length + 1): number {
    const id = bridgeId(priority, macText(mac(address)));
    const tree = new Tree(
      { id, maxAge: 20, forwardDelay: 15 },
      {
        transmit: (port, bpdu) => this.#transmit(port, bpdu),
        setState: () => {},
        flush: (port) => this.flushes.set(port, (this.flushes.get(port) ?? 0) + 1),
      },
    );
    return this.trees.push(tree) - 1;
  }

  #transmit(port: Port, bpdu: Bpdu): void {
    for (const cable of this.cables)
      for (const side of [0, 1] as const)
        if (cable.up && cable.ends[side].port === port)
          cable.queues[side === 0 ? 1 : 0].push(writeBpdu(bpdu, mac(99)));
  }

  /** A link between two bridges, or from one to itself. */
  connect(one: number, other: number, cost = 2000, priority = 128): Cable {
    const end = (bridge: number): End => {
      const tree = this.trees[bridge]!;
      const id = portId(priority, tree.ports.size + 1);
      return { bridge, port: tree.add({ pathCost: cost, id, edge: 'auto', pointToPoint: true }) };
    };
    const cable: Cable = { ends: [end(one), end(other)], up: false, queues: [[], []] };
    this.cables.push(cable);
    this.set(cable, true);
    return cable;
  }

  set(cable: Cable, up: boolean): void {
    cable.up = up;
    if (!up) cable.queues = [[], []];
    for (const { bridge, port } of cable.ends) this.trees[bridge]!.setLink(port, up);
    this.#look();
  }

  /** Lets a second pass: bridges count it one after the other, and messages arrive in between. */
  second(): void {
    for (const tree of shuffled(this.trees, this.random)) {
      tree.tick();
      this.#look();
      for (let n = this.random.below(8); n > 0; n--) if (!this.#deliverOne()) break;
    }
    while (this.#deliverOne());
  }

  #deliverOne(): boolean {
    const ways = this.cables.flatMap((cable) =>
      ([0, 1] as const).filter((side) => cable.queues[side].length > 0).map((side) => ({ cable, side })),
    );
    if (ways.length === 0) return false;
    const { cable, side } = this.random.pick(ways);
    const frame = cable.queues[side].shift()!;
    const bpdu = readBpdu(frame);
    assert.ok(typeof bpdu === 'object', `a bridge has sent what none can read: ${bpdu}`);
    const { bridge, port } = cable.ends[side];
    this.trees[bridge]!.receive(port, bpdu);
    this.#look();
    return true;
  }

  /** Lets seconds pass until roles and states have stayed as they are for a while; how many that took. */
  settle(most = 120): number {
    const quiet = 3 * HELLO_TIME + 2;
    for (let seconds = 0, last = '', since = 0; seconds < most; seconds++) {
      this.second();
      const now = this.picture();
      if (now !== last) since = seconds;
      last = now;
      if (seconds - since >= quiet) return since;
    }
    assert.fail(`no rest within ${most} seconds:\n${this.picture()}`);
  }

  picture(): string {
    return this.cables
      .map(
        ({ up, ends }) =>
          `${up} ${ends.map(({ bridge, port }) => `${bridge}:${port.role}:${stateOf(port)}`).join(' ')}`,
      )
      .join('\n');
  }

  /** Links that frames pass. */
  active(): Cable[] {
    return this.cables.filter(({ up, ends }) => up && ends.every(({ port }) => port.forwarding));
  }

  #look(): void {
    const groups = new Groups(this.trees.length);
    if (this.active().some(({ ends }) => !groups.join(ends[0].bridge, ends[1].bridge))) this.loops++;
  }

  /** The tree is that of the standard: the best root, the shortest way to it from everywhere, and no way beside. */
  check(): void {
    const whole = new Groups(this.trees.length);
    for (const { up, ends } of this.cables) if (up) whole.join(ends[0].bridge, ends[1].bridge);
    const spanned = new Groups(this.trees.length);
    for (const { ends } of this.active())
      assert.ok(spanned.join(ends[0].bridge, ends[1].bridge), `a loop:\n${this.picture()}`);
    for (const [index, tree] of this.trees.entries()) {
      const mates = [...this.trees.keys()].filter((other) => whole.of(other) === whole.of(index));
      const root = mates.reduce((best, other) =>
        this.trees[other]!.id < this.trees[best]!.id ? other : best,
      );
      assert.equal(tree.rootVector.root, this.trees[root]!.id, `bridge ${index} has another root`);
      assert.equal(tree.rootVector.cost, this.#distance(root, index), `cost of bridge ${index}`);
      assert.equal(spanned.of(index), spanned.of(root), `bridge ${index} is cut off:\n${this.picture()}`);
    }
    for (const { up, ends } of this.cables) {
      const blocked = ends.filter(({ port }) => !port.forwarding);
      if (up) assert.ok(blocked.length < 2, `a link that nobody needs to block twice:\n${this.picture()}`);
      if (!up) assert.ok(ends.every(({ port }) => port.role === 'disabled'));
      for (const { port } of up ? blocked : []) assert.match(port.role, /alternate|backup/);
    }
  }

  #distance(from: number, to: number): number {
    const known = new Map([[from, 0]]);
    // Bellman and Ford: as many rounds as there are bridges.
    for (const _ of this.trees)
      for (const { up, ends } of this.cables)
        for (const [one, other] of [ends, [ends[1], ends[0]] as const]) {
          const cost = (known.get(one.bridge) ?? Number.POSITIVE_INFINITY) + other.port.pathCost;
          if (up && cost < (known.get(other.bridge) ?? Number.POSITIVE_INFINITY))
            known.set(other.bridge, cost);
        }
    return known.get(to)!;
  }
}

/** Which bridges are joined. */
class Groups {
  readonly #leaders: number[];

  constructor(count: number) {
    this.#leaders = Array.from({ length: count }, (_, i) => i);
  }

  of(index: number): number {
    while (this.#leaders[index] !== index) index = this.#leaders[index]!;
    return index;
  }

  /** False: they were joined already. */
  join(one: number, other: number): boolean {
    const [a, b] = [this.of(one), this.of(other)];
    this.#leaders[a] = b;
    return a !== b;
  }
}

function shuffled<T>(list: readonly T[], random: Random): T[] {
  const rest = [...list];
  return list.map(() => rest.splice(random.below(rest.length), 1)[0]!);
}
