/**
 * The switch asks hosts what groups they are in, where nobody else does: the querier of RFC 3376, 6, and RFC 3810, 7.
 * It gives way to any other in the VLAN that has an address, or over IPv6 a lower one. It sends on the second's tick:
 * general queries to all ports, and to those that have come up a second ago; and to a port where a host has left a
 * group whether somebody else there is in it.
 */
import { randomBytes } from 'node:crypto';
import type { Arena, Structures } from '../arena/index.ts';
import { ipNumber } from '../ports/addresses.ts';
import { type Family, linkLocal, QUERY_INTERVAL, query, RESPONSE_INTERVAL } from './queries.ts';

/** VLANs that are asked in at most. */
const MOST_VLANS = 256;
/** General queries at the start, and seconds between them (RFC 3376, 8.6 and 8.7). */
const STARTUP = 2;
const STARTUP_INTERVAL = 31;
/** Questions after groups that were left that a port gets in a second at most. */
const MOST_QUESTIONS = 16;
/** Seconds until all have answered who are asked on the next tick. */
export const ANSWERED = RESPONSE_INTERVAL + 2;
const FAMILIES: readonly Family[] = ['IPv4', 'IPv6'];

/** A port as it is asked: in the VLANs that it is in, with a tag (its 4 bytes) or without. */
export interface AskedPort {
  slot: number;
  /** VLANs that its settings name. */
  names: readonly number[];
  /** Undefined: the port isn't in the VLAN. */
  tag(vlan: number): Uint8Array | undefined;
}

/** A bridge that asks. */
interface Asking {
  table: number;
  ports: readonly AskedPort[];
  vlans: readonly number[];
  /** When all are asked next, in seconds, and how many of the first queries are left. */
  next: number;
  startup: number;
  /** Ports that were up when they were looked at last, and those of them that were asked since. */
  up: ReadonlySet<number>;
  asked: ReadonlySet<number>;
}

export class Querier {
  readonly #arena: Arena;
  readonly #structures: Structures;
  readonly #send: (slot: number, frame: Buffer) => void;
  /** Of one station, administered locally. */
  readonly #mac = Buffer.from([(randomBytes(1)[0]! & 0xfc) | 2, ...randomBytes(5)]);
  readonly #address = linkLocal(this.#mac);
  /** By the bridge's number. */
  readonly #asking = new Map<number, Asking>();

  /** `send` has a frame sent by a port. */
  constructor(arena: Arena, structures: Structures, send: (slot: number, frame: Buffer) => void) {
    this.#arena = arena;
    this.#structures = structures;
    this.#send = send;
  }

  /** A bridge asks, in the VLANs that its ports name, or doesn't any more (undefined). `table` is its table of groups. */
  set(bridge: number, table: number, ports: readonly AskedPort[] | undefined): void {
    const before = this.#asking.get(bridge);
    if (!ports) {
      this.#asking.delete(bridge);
      if (before?.table === table) this.#structures.groups(table).set('asks', 0);
      return;
    }
    const vlans = [...new Set(ports.flatMap(({ names }) => names))]
      .sort((a, b) => a - b)
      .slice(0, MOST_VLANS);
    const known = before?.table === table && before.vlans.join() === vlans.join() ? before : undefined;
    this.#asking.set(bridge, {
      ...(known ?? { next: 0, startup: STARTUP, up: new Set(), asked: new Set() }),
      ...{ table, ports, vlans },
    });
    if (known) return;
    const bits = new Uint32Array(4096 / 32);
    for (const vlan of vlans) bits[vlan >>> 5]! |= 1 << (vlan & 31);
    // Until all have had the time to answer, frames for groups go to all.
    const now = this.#structures.header.get('now');
    this.#structures.groups(table).set('asks', now + ANSWERED);
    this.#arena.u32.set(bits, (table + this.#structures.constant('ASKED_VLANS')) >>> 2);
  }

  /** Each second. `querierOf`: the address of another querier in a VLAN, undefined where there is none. */
  tick(querierOf: (bridge: number, vlan: number, family: Family) => string | undefined): void {
    const now = this.#structures.header.get('now');
    for (const [bridge, asking] of this.#asking) {
      const all = now >= asking.next;
      const up = new Set(asking.ports.map(({ slot }) => slot).filter((slot) => this.#isUp(slot)));
      // A guest that has just come has no buffers yet.
      const stays = ({ slot }: AskedPort) => up.has(slot) && asking.up.has(slot);
      const asked = asking.ports.filter((port) => stays(port) && (all || !asking.asked.has(port.slot)));
      const mayAsk = (vlan: number, family: Family) =>
        !this.#outranked(family, querierOf(bridge, vlan, family));
      for (const family of FAMILIES)
        for (const vlan of asked.length > 0 ? asking.vlans : [])
          if (mayAsk(vlan, family)) this.#ask(asked, vlan, family);
      asking.asked = new Set(asking.ports.filter(stays).map(({ slot }) => slot));
      asking.up = up;
      if (all) {
        asking.next = now + (asking.startup > 0 ? STARTUP_INTERVAL : QUERY_INTERVAL);
        asking.startup--;
      }
    }
  }

  /** Asks a port who is still in a group that a host there has left. */
  question(bridge: number, left: readonly { slot: number; vlan: number; group: string }[]): void {
    const asking = this.#asking.get(bridge);
    if (!asking) return;
    const count = new Map<number, number>();
    for (const { slot, vlan, group } of left) {
      const number = (count.get(slot) ?? 0) + 1;
      count.set(slot, number);
      const tag = asking.ports.find((port) => port.slot === slot)?.tag(vlan);
      if (!tag || number > MOST_QUESTIONS || !this.#isUp(slot)) continue;
      this.#send(slot, query(group.includes(':') ? 'IPv6' : 'IPv4', this.#mac, tag, 1, group));
    }
  }

  /** A bridge asks all on its next tick. */
  hurry(bridge: number): void {
    const asking = this.#asking.get(bridge);
    if (asking) asking.next = 0;
  }

  /** Is there a guest, and does the port forward (RSTP)? */
  #isUp(slot: number): boolean {
    const port = this.#structures.port(slot);
    const rules = port.get('rules');
    const stages = rules === 0 ? 0 : this.#structures.rules(rules).get('ingress');
    return port.get('pairs') > 0 && (stages & this.#structures.constant('STAGE_BLOCKED')) === 0;
  }

  #ask(ports: readonly AskedPort[], vlan: number, family: Family): void {
    for (const { slot, tag } of ports) {
      const form = tag(vlan);
      if (form) this.#send(slot, query(family, this.#mac, form, RESPONSE_INTERVAL));
    }
  }

  /** Does another querier go before this one? */
  #outranked(family: Family, other: string | undefined): boolean {
    if (other === undefined) return false;
    const { value } = ipNumber(other)!;
    return family === 'IPv4' ? value !== 0n : value < BigInt(`0x${this.#address.toString('hex')}`);
  }
}
