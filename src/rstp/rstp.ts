/**
 * RSTP in a switch: a Tree for each bridge that has it, told of links, seconds and messages, whose decisions go to the
 * data plane (src/dataplane/span.ts).
 */
import { type Arena, clock, type Structures } from '../arena/index.ts';
import type { PortRules } from '../rules/index.ts';
import { REASONS } from '../rules/reasons.ts';
import { setPortState } from '../rules/rstp.ts';
import { bridgeOf } from '../switch/bridges.ts';
import type { BridgeSpec, PortSpec, RstpBridgeStatus, RstpPortStatus } from '../switch/types.ts';
import { randomMac } from '../virtio/random-mac.ts';
import type { Workers } from '../workers/workers.ts';
import { type Bpdu, readBpdu, writeBpdu } from './bpdu.ts';
import { DEFAULTS } from './defaults.ts';
import { HELLO_TIME, type Port, type PortSettings, type PortState, stateOf } from './port.ts';
import { bridgeId, formatBridgeId, portId } from './priority.ts';
import { Tree, type TreeSettings } from './tree.ts';

/** A port of the switch, as it is given to the trees. */
export interface Member {
  spec: PortSpec;
  slot: number;
  rules: PortRules;
}

/** A port in a tree. */
interface Seat extends Member {
  tree: Tree;
  port: Port;
  mac: Buffer;
  /** What the data plane was told last. */
  leased: boolean;
  /** A BPDU came though none may (bpduGuard). */
  shut: boolean;
  received: number;
  sent: number;
}

interface Options {
  arena: Arena;
  structures: Structures;
  workers: Workers;
  /** The topology has changed: stations of the bridge may be behind other ports than before. */
  onChange(bridge: string): void;
  /** A port was shut by its guard. */
  onShut(port: string): void;
}

/** Mbit/s of a port that doesn't say, and the product of speed and cost (table 17-3). */
const SPEED = 10_000;
const COST_AT_1_MBIT = 20_000_000;
/**
 * Nanoseconds for which ports forward from each second on. A neighbour waits 5 seconds at least from the last message
 * until it takes the link to be free.
 */
const LEASE = 4e9;

export class Rstp {
  readonly #options: Options;
  readonly #trees = new Map<string, { tree: Tree; mac: Buffer; changes: number }>();
  readonly #seats = new Map<string, Seat>();
  readonly #byPort = new Map<Port, Seat>();
  readonly #bySlot = new Map<number, Seat>();
  /** Addresses of bridges that have none of their own, drawn once. */
  readonly #macs = new Map<string, string>();
  readonly #badBpdu = REASONS.findIndex(({ name }) => name === 'badBpdu');
  #flushes = new Set<number>();
  /** Bridges whose addresses may have moved. */
  readonly #changed = new Set<string>();

  constructor(options: Options) {
    this.#options = options;
  }

  /** Is a port in a tree, on a bridge with these settings? */
  static isSpanned(bridge: BridgeSpec, { rstp = true }: PortSpec): boolean {
    return bridge.rstp === true && rstp;
  }

  /** Brings the trees to what bridges and ports there are, and their settings. */
  update(bridges: readonly BridgeSpec[], members: readonly Member[]): void {
    const named = new Map(bridges.map((bridge) => [bridge.name, bridge]));
    const wanted = new Map(
      members
        .filter(({ spec }) => Rstp.isSpanned(named.get(bridgeOf(spec))!, spec))
        .map((member) => [member.spec.name, member]),
    );
    for (const [name, seat] of this.#seats) {
      const member = wanted.get(name);
      if (member?.rules !== seat.rules || this.#trees.get(bridgeOf(member.spec))?.tree !== seat.tree)
        this.#leave(name, seat);
    }
    for (const name of this.#trees.keys()) if (!named.get(name)?.rstp) this.#trees.delete(name);
    for (const name of this.#macs.keys()) if (!named.has(name)) this.#macs.delete(name);
    for (const bridge of bridges) if (bridge.rstp) this.#plant(bridge);
    for (const member of wanted.values()) this.#seat(member);
    this.#settle();
  }

  #plant(bridge: BridgeSpec): void {
    const drawn = this.#macs.get(bridge.name) ?? randomMac();
    this.#macs.set(bridge.name, drawn);
    const mac = bridge.mac ?? drawn;
    const {
      priority = DEFAULTS.priority,
      maxAge = DEFAULTS.maxAge,
      forwardDelay = DEFAULTS.forwardDelay,
    } = bridge;
    const settings: TreeSettings = { id: bridgeId(priority, mac), maxAge, forwardDelay };
    const there = this.#trees.get(bridge.name);
    const bytes = Buffer.from(mac.replaceAll(':', ''), 'hex');
    if (there) {
      there.mac = bytes;
      there.tree.set(settings);
    } else {
      this.#trees.set(bridge.name, { tree: new Tree(settings, this.#effects), mac: bytes, changes: 0 });
      this.#renew();
    }
  }

  readonly #effects = {
    transmit: (port: Port, bpdu: Bpdu) => {
      const seat = this.#byPort.get(port);
      if (!seat) return;
      seat.sent++;
      void this.#options.workers.send(seat.slot, writeBpdu(bpdu, seat.mac));
    },
    setState: (port: Port, state: PortState) => {
      const seat = this.#byPort.get(port);
      if (seat) this.#setState(seat, state);
    },
    flush: (port: Port) => {
      const seat = this.#byPort.get(port);
      if (!seat) return;
      this.#flushes.add(seat.slot);
      this.#changed.add(bridgeOf(seat.spec));
    },
  };

  #tell(seat: Seat, state: PortState): void {
    seat.leased = !seat.port.operEdge;
    seat.rules.change((table) => setPortState(table, state, seat.leased));
  }

  #setState(seat: Seat, state: PortState): void {
    this.#tell(seat, state);
    // What was learned there is of no use while nothing goes there (7.8: the port learns anew).
    if (state === 'discarding') this.#flushes.add(seat.slot);
  }

  #seat(member: Member): void {
    const { tree, mac } = this.#trees.get(bridgeOf(member.spec))!;
    const settings = settingsOf(member);
    const there = this.#seats.get(member.spec.name);
    if (there) {
      Object.assign(there, { spec: member.spec, mac, shut: there.shut && member.spec.bpduGuard === true });
      if (differs(there.port, settings)) tree.setPort(there.port, settings);
      this.#tell(there, stateOf(there.port));
    } else {
      const port = tree.add(settings);
      const seat: Seat = { ...member, tree, mac, port, leased: false, shut: false, received: 0, sent: 0 };
      this.#seats.set(member.spec.name, seat);
      this.#byPort.set(port, seat);
      this.#bySlot.set(seat.slot, seat);
      this.#tell(seat, 'discarding');
    }
    this.#follow(this.#seats.get(member.spec.name)!);
  }

  /** The port goes, or another tree has it from now on: it discards until that says otherwise. */
  #leave(name: string, seat: Seat): void {
    seat.tree.remove(seat.port);
    this.#seats.delete(name);
    this.#byPort.delete(seat.port);
    this.#bySlot.delete(seat.slot);
  }

  /** The port is about to change to another bridge. */
  leave(name: string): void {
    const seat = this.#seats.get(name);
    if (!seat) return;
    this.#leave(name, seat);
    this.#settle();
  }

  /** The port's link may have gone up or down. */
  link(name: string): void {
    const seat = this.#seats.get(name);
    if (!seat) return;
    this.#follow(seat);
    this.#settle();
  }

  #follow(seat: Seat): void {
    const up = this.#options.structures.port(seat.slot).get('pairs') > 0;
    if (!up) seat.shut = false;
    seat.tree.setLink(seat.port, up && !seat.shut);
  }

  /** A second has passed. */
  tick(): void {
    if (this.#trees.size === 0) return;
    this.#renew();
    for (const seat of this.#seats.values()) this.#follow(seat);
    for (const { tree } of this.#trees.values()) tree.tick();
    this.#settle();
  }

  #renew(): void {
    this.#options.structures.header.set64('lease', BigInt(Math.round(clock() + LEASE)));
  }

  /** A BPDU came from the port in `slot`. */
  receive(slot: number, frame: Buffer): void {
    const seat = this.#bySlot.get(slot);
    // It may have left its tree meanwhile.
    if (!seat) return;
    const bpdu = readBpdu(frame);
    if (typeof bpdu === 'string') {
      seat.rules.count(this.#badBpdu);
      return;
    }
    seat.received++;
    if (seat.spec.bpduGuard && !seat.shut) {
      seat.shut = true;
      seat.tree.setLink(seat.port, false);
      this.#options.onShut(seat.spec.name);
    }
    seat.tree.receive(seat.port, bpdu);
    this.#settle();
  }

  /** Does what the machines have left to be done. */
  #settle(): void {
    for (const seat of this.#seats.values())
      if (seat.leased === seat.port.operEdge) this.#tell(seat, stateOf(seat.port));
    for (const [name, planted] of this.#trees) {
      const { topologyChanges } = planted.tree;
      if (planted.changes !== topologyChanges || this.#changed.has(name)) this.#options.onChange(name);
      planted.changes = topologyChanges;
    }
    this.#changed.clear();
    if (this.#flushes.size > 0) void this.#flush();
  }

  async #flush(): Promise<void> {
    const slots = this.#flushes;
    this.#flushes = new Set();
    const { arena, structures, workers } = this.#options;
    // A burst in work may still learn there.
    await workers.quiesce();
    for (const slot of slots)
      if (structures.port(slot).get('addresses') > 0) arena.dataplane.functions.flush(slot, 0);
  }

  /** Undefined for a bridge without RSTP. */
  bridge(name: string): RstpBridgeStatus | undefined {
    const planted = this.#trees.get(name);
    if (!planted) return undefined;
    const { tree } = planted;
    const seats = [...this.#seats.values()].filter((seat) => seat.tree === tree);
    return {
      id: formatBridgeId(tree.id),
      root: formatBridgeId(tree.rootVector.root),
      rootPort: seats.find(({ port }) => port === tree.rootPort)?.spec.name ?? null,
      rootCost: tree.rootVector.cost,
      helloTime: HELLO_TIME,
      maxAge: tree.rootTimes.maxAge,
      forwardDelay: tree.rootTimes.forwardDelay,
      topologyChanges: tree.topologyChanges,
      sinceTopologyChange: tree.topologyChanges > 0 ? tree.sinceTopologyChange : null,
      ports: seats.map(({ spec, port }) => ({
        name: spec.name,
        role: port.role,
        state: stateOf(port),
        pathCost: port.pathCost,
      })),
    };
  }

  /** Undefined for a port that is in no tree. */
  port(name: string): RstpPortStatus | undefined {
    const seat = this.#seats.get(name);
    if (!seat) return undefined;
    const { port } = seat;
    return {
      role: port.role,
      state: stateOf(port),
      id: port.id.toString(16).padStart(4, '0'),
      pathCost: port.pathCost,
      root: formatBridgeId(port.portVector.root),
      rootCost: port.portVector.cost,
      designatedBridge: formatBridgeId(port.portVector.bridge),
      designatedPort: port.portVector.port.toString(16).padStart(4, '0'),
      edge: port.operEdge,
      pointToPoint: port.pointToPoint,
      speaks: port.sendRstp ? 'rstp' : 'stp',
      shut: seat.shut,
      received: seat.received,
      sent: seat.sent,
    };
  }

  /** Nothing is to come any more. */
  close(): void {
    this.#seats.clear();
    this.#byPort.clear();
    this.#bySlot.clear();
    this.#trees.clear();
  }
}

function settingsOf({ spec, slot }: Member): PortSettings {
  const {
    speed = SPEED,
    pathCost,
    portPriority = DEFAULTS.portPriority,
    edge = 'auto',
    pointToPoint = true,
  } = spec;
  return {
    pathCost: pathCost ?? Math.max(1, Math.round(COST_AT_1_MBIT / speed)),
    id: portId(portPriority, slot + 1),
    edge,
    pointToPoint,
  };
}

const differs = (port: Port, settings: PortSettings): boolean =>
  Object.entries(settings).some(([field, value]) => port[field as keyof PortSettings] !== value);
