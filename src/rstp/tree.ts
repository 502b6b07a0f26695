/**
 * A bridge's part in a spanning tree: its ports, and the state machines that are run until none of them moves any
 * more (IEEE 802.1D-2004, 17.16), with the one that is the bridge's own: who is the root, and what role each port has
 * (17.28).
 *
 * Nothing here knows a switch, a clock or a socket: what happens comes in by tick(), receive(), setLink() and so on,
 * and what is to be done goes out by Effects. The same events make the same tree.
 */
import { isDeepStrictEqual } from 'node:util';
import type { Bpdu } from './bpdu.ts';
import { detect, migrate, receiveMessage } from './machines/hearing.ts';
import { inform } from './machines/information.ts';
import { changeRole } from './machines/roles.ts';
import { changeTopology } from './machines/topology.ts';
import { transmit } from './machines/transmit.ts';
import {
  countDown,
  HELLO_TIME,
  newPort,
  type Port,
  type PortSettings,
  type PortState,
  stateOf,
} from './port.ts';
import { addressOf, compare, sameTimes, type Times, type Vector } from './priority.ts';

/** What a tree has done to the bridge. Called while the machines run. */
export interface Effects {
  transmit(port: Port, bpdu: Bpdu): void;
  /** The port is to be in this state from now on. */
  setState(port: Port, state: PortState): void;
  /** The addresses that were learned behind the port may have moved. */
  flush(port: Port): void;
}

export interface TreeSettings {
  /** Bridge identifier. */
  id: bigint;
  /** Seconds, which hold for everybody while this bridge is the root. */
  maxAge: number;
  forwardDelay: number;
}

/** Rounds after which machines that haven't come to rest go on with the next event. */
const MOST_ROUNDS = 1000;
const MOST_COST = 0xffff_ffff;

export class Tree {
  readonly ports = new Set<Port>();
  readonly effects: Effects;
  #settings: TreeSettings;
  /** What the best port says of the root, or this bridge of itself (17.18.6). */
  rootVector: Vector;
  rootTimes: Times;
  rootPort: Port | undefined;
  /** Times that the topology changed, and how many seconds ago it last did. */
  topologyChanges = 0;
  sinceTopologyChange = 0;
  #changing = false;
  /** Events whose effects MOST_ROUNDS have not seen the end of. */
  unsettled = 0;

  constructor(settings: TreeSettings, effects: Effects) {
    this.#settings = settings;
    this.effects = effects;
    this.rootVector = this.#ownVector();
    this.rootTimes = this.#ownTimes();
  }

  get id(): bigint {
    return this.#settings.id;
  }

  #ownVector(): Vector {
    return { root: this.id, cost: 0, bridge: this.id, port: 0 };
  }

  #ownTimes(): Times {
    const { maxAge, forwardDelay } = this.#settings;
    return { messageAge: 0, maxAge, helloTime: HELLO_TIME, forwardDelay };
  }

  /** Other settings: the roles are chosen anew (17.13). */
  set(settings: TreeSettings): void {
    if (isDeepStrictEqual(settings, this.#settings)) return;
    this.#settings = settings;
    this.#reselect();
  }

  #reselect(): void {
    for (const port of this.ports) {
      port.reselect = true;
      port.selected = false;
    }
    this.#run();
  }

  /** A new port, whose link is down. */
  add(settings: PortSettings): Port {
    const port = newPort(settings, this.rootVector, this.rootTimes);
    this.ports.add(port);
    this.effects.setState(port, 'discarding');
    this.#run();
    return port;
  }

  /** The port goes. */
  remove(port: Port): void {
    this.setLink(port, false);
    this.ports.delete(port);
    this.#run();
  }

  /** Other settings of a port. What is known of its neighbour is found out again where they are about that. */
  setPort(port: Port, settings: PortSettings): void {
    const anew = port.edge !== settings.edge || port.pointToPoint !== settings.pointToPoint;
    const up = port.portEnabled;
    if (anew) this.setLink(port, false);
    Object.assign(port, settings);
    if (anew) {
      port.operEdge = settings.edge === true;
      port.states.detection = port.operEdge ? 'EDGE' : 'NOT_EDGE';
      this.setLink(port, up);
    }
    this.#reselect();
  }

  setLink(port: Port, up: boolean): void {
    if (port.portEnabled === up) return;
    port.portEnabled = up;
    this.#run();
  }

  /** A message has come. */
  receive(port: Port, bpdu: Bpdu): void {
    if (!port.portEnabled) return;
    if (bpdu.kind !== 'notification' && bpdu.vector.bridge === this.id && bpdu.vector.port === port.id) {
      this.#hearItself(port);
      return;
    }
    port.message = bpdu;
    port.rcvdBpdu = true;
    this.#run();
  }

  /**
   * What the port sends comes back: whatever is behind it makes a loop of it. The standard lets it wait for an answer
   * alone; here it stays as it began for as long as it hears itself.
   */
  #hearItself(port: Port): void {
    port.operEdge = false;
    port.disputed = port.learn || port.forward;
    port.agreed = false;
    const wait = () => {
      port.fdWhile = port.edgeDelayWhile = this.rootTimes.maxAge;
    };
    wait();
    this.#run();
    // The machines have set them by what they know.
    wait();
  }

  /** A second has passed. */
  tick(): void {
    this.sinceTopologyChange++;
    for (const port of this.ports) countDown(port);
    this.#run();
  }

  #run(): void {
    let moved = true;
    for (let round = 0; moved && round < MOST_ROUNDS; round++) {
      moved = this.#selectRoles();
      for (const port of this.ports) {
        // Each moves, whether or not another one has.
        const moves = [
          receiveMessage(port),
          migrate(port),
          detect(port),
          inform(port),
          changeRole(port, this),
          this.#changeState(port),
          changeTopology(port, this),
          transmit(port, this),
        ];
        moved ||= moves.includes(true);
      }
    }
    if (moved) this.unsettled++;
    this.#noteTopology();
  }

  /** Port state transition machine (17.30). */
  #changeState(port: Port): boolean {
    const { learning, forwarding } = port;
    if (!port.learn || (forwarding && !port.forward)) port.learning = port.forwarding = false;
    else if (!learning) port.learning = true;
    else if (port.forward) port.forwarding = true;
    if (port.learning === learning && port.forwarding === forwarding) return false;
    this.effects.setState(port, stateOf(port));
    return true;
  }

  #noteTopology(): void {
    const changing = [...this.ports].some(({ tcWhile }) => tcWhile > 0);
    if (changing && !this.#changing) this.topologyChanges++;
    if (changing) this.sinceTopologyChange = 0;
    this.#changing = changing;
  }

  /** Port role selection machine (17.28). */
  #selectRoles(): boolean {
    if (![...this.ports].some(({ reselect }) => reselect)) return false;
    for (const port of this.ports) port.reselect = false;
    this.#updateRoles();
    for (const port of this.ports) port.selected = true;
    return true;
  }

  /** updtRolesTree() (17.21.25). */
  #updateRoles(): void {
    this.#chooseRoot();
    for (const port of this.ports) {
      port.designatedVector = { ...this.rootVector, bridge: this.id, port: port.id };
      port.designatedTimes = { ...this.rootTimes, helloTime: HELLO_TIME };
      port.selectedRole = this.#roleOf(port);
    }
  }

  #chooseRoot(): void {
    this.rootPort = undefined;
    this.rootVector = this.#ownVector();
    this.rootTimes = this.#ownTimes();
    let best = { vector: this.rootVector, receiver: 0 };
    for (const port of this.ports) {
      // What this bridge has said itself is no way to the root.
      if (port.infoIs !== 'received' || addressOf(port.portVector.bridge) === addressOf(this.id)) continue;
      const cost = Math.min(port.portVector.cost + port.pathCost, MOST_COST);
      const candidate = { vector: { ...port.portVector, cost }, receiver: port.id };
      const order = compare(candidate.vector, best.vector) || candidate.receiver - best.receiver;
      if (order >= 0) continue;
      best = candidate;
      this.rootPort = port;
      this.rootVector = candidate.vector;
      this.rootTimes = { ...port.portTimes, messageAge: port.portTimes.messageAge + 1 };
    }
  }

  #roleOf(port: Port): Port['role'] {
    if (port.infoIs === 'disabled') return 'disabled';
    const isOurs =
      port.infoIs === 'mine' &&
      compare(port.portVector, port.designatedVector) === 0 &&
      sameTimes(port.portTimes, port.designatedTimes);
    if (port.infoIs !== 'received') {
      if (!isOurs) port.updtInfo = true;
      return 'designated';
    }
    port.updtInfo = false;
    if (port === this.rootPort) return 'root';
    if (compare(port.designatedVector, port.portVector) >= 0)
      return addressOf(port.portVector.bridge) === addressOf(this.id) ? 'backup' : 'alternate';
    port.updtInfo = true;
    return 'designated';
  }
}
