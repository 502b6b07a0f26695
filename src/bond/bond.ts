/**
 * A bond: a port made of other ports of the switch, its members (docs/bond.md). The data plane has it leave by the
 * members of a table, and takes what comes from those that are open (src/dataplane/bond.ts); which ones these are is
 * decided here, by the mode and the members' links.
 */
import type { Arena, BondMemberStruct, BondStruct, Range, Structures, VringStruct } from '../arena/index.ts';
import type { DetailOfKind, Port, PortEvents } from '../ports/port.ts';
import type { BondMemberStatus, Counters, PortSpec, PortStatus } from '../switch/types.ts';
import { DROP_REASONS } from '../vhost/drop-reasons.ts';
import { nextFlowTable } from '../vhost/flow-table.ts';
import { randomMac } from '../virtio/random-mac.ts';
import type { Workers } from '../workers/workers.ts';
import { Lacp } from './lacp.ts';
import { answerMarker } from './lacpdu.ts';
import { membersOf } from './members.ts';

/** Bond.hash by the field `hash`; an active member takes all. */
const HASHES = { l2: 1, 'l3+4': 2 } as const;

/** What a bond is told of a port that it has. */
export interface MemberPort {
  /** Index of the port in the data plane. */
  slot: number;
  isUp(): boolean;
  status(): PortStatus;
}

/** What the switch lends to a bond. */
export interface BondContext {
  arena: Arena;
  structures: Structures;
  workers: Workers;
  slot: number;
  maxAddresses: number;
  /** A port that is there. */
  member(name: string): MemberPort;
  /** Another member carries the frames: whoever is behind the bond is to learn that. */
  moved(): void;
  events: PortEvents;
}

/** 01-80-C2-00-00-02 as a bit of what a port hands over (src/rules/protocols.ts). */
const SLOW_PROTOCOLS = 1 << 2;
/** Milliseconds between two looks of LACP at the clock. */
const TICK = 100;

interface Member {
  readonly name: string;
  readonly port: MemberPort;
  readonly shared: BondMemberStruct;
  isUp: boolean;
  /** Frames of slow protocols that were none. */
  bad: number;
}

export class BondPort implements Port {
  readonly spec: PortSpec;
  readonly #context: BondContext;
  readonly #members: Member[];
  readonly #rooms: Range[] = [];
  readonly #bond: BondStruct;
  /** Counts what finds no member. */
  readonly #ring: VringStruct;
  /** Those that frames leave by. */
  #used: Member[] = [];
  readonly #lacp: Lacp | undefined;
  #system = '';
  #clock: NodeJS.Timeout | undefined;
  #stopped = false;

  /** Throws an ArenaFullError. Members come in by start(). */
  constructor(spec: PortSpec, context: BondContext) {
    this.spec = spec;
    this.#context = context;
    const { structures, slot } = context;
    const names = membersOf(spec);
    try {
      const stride = structures.constant('BOND_MEMBER_STRIDE');
      const members = this.#room(names.length * stride);
      this.#members = names.map((name, i) => {
        const shared = structures.bondMember(members + i * stride);
        shared.set('bond', slot);
        return { name, port: context.member(name), shared, isUp: false, bad: 0 };
      });
      this.#bond = structures.bond(this.#room(structures.constant('BOND_STRIDE')));
      this.#ring = structures.vring(this.#room(structures.constant('VRING_STRIDE')));
    } catch (error) {
      this.#free();
      throw error;
    }
    const { mode = 'active-backup', hash = 'l3+4' } = spec;
    this.#bond.set('hash', mode === 'active-backup' ? 0 : HASHES[hash]);
    this.#lacp = mode === 'lacp' ? this.#startLacp() : undefined;
    this.#ring.set('port', slot);
    this.#ring.set('callFd', -1);
    this.#ring.set('callQueue', -1);
    const port = structures.port(slot);
    port.set('addressLimit', context.maxAddresses);
    port.set('reception', 0);
    port.set('pairs', 0);
    port.set('ring', this.#ring.at);
  }

  #startLacp(): Lacp {
    const { mac = randomMac(), lacpRate = 'slow' } = this.spec;
    const { workers, slot } = this.#context;
    this.#system = mac;
    return new Lacp({
      system: mac.toLowerCase(),
      key: slot + 1,
      fast: lacpRate === 'fast',
      members: this.#members.length,
      send: (index, frame) => void workers.send(this.#members[index]!.port.slot, frame),
    });
  }

  #room(length: number): number {
    const room = this.#context.arena.takeTable(length);
    this.#rooms.push(room);
    return room.start;
  }

  /** Where the data plane finds it. */
  get at(): number {
    return this.#bond.at;
  }

  get members(): string[] {
    return this.#members.map(({ name }) => name);
  }

  /** Where the data plane finds a member of it. */
  memberAt(name: string): number {
    return this.#member(name).shared.at;
  }

  #member(name: string): Member {
    return this.#members.find((member) => member.name === name)!;
  }

  /** Frames that its members hand over. */
  get protocols(): number {
    return this.#lacp ? SLOW_PROTOCOLS : 0;
  }

  /** The members are the bond's in the data plane: begins. */
  start(): void {
    this.#lacp?.tick(performance.now());
    for (const [index, member] of this.#members.entries()) {
      member.isUp = member.port.isUp();
      this.#lacp?.link(index, member.isUp);
    }
    this.#choose();
    if (!this.#lacp) return;
    this.#clock = setInterval(() => {
      this.#lacp!.tick(performance.now());
      this.#choose();
    }, TICK);
  }

  /** Sends by no member any more: they may go once the workers have passed by. */
  stop(): void {
    this.#stopped = true;
    clearInterval(this.#clock);
    this.#used = [];
    this.#context.structures.port(this.#context.slot).set('pairs', 0);
  }

  /** What a member has handed over; false: it is nothing that anybody knows. */
  receive(name: string, frame: Buffer): boolean {
    const index = this.members.indexOf(name);
    const answer = answerMarker(frame, this.#system);
    if (answer) void this.#context.workers.send(this.#members[index]!.port.slot, answer);
    const isGood = answer !== undefined || this.#lacp?.receive(index, frame) === true;
    if (!isGood) this.#members[index]!.bad++;
    this.#choose();
    return isGood;
  }

  /** The link of a member has gone up or down. */
  linkChanged(name: string, isUp: boolean): void {
    const member = this.#member(name);
    if (member.isUp === isUp) return;
    member.isUp = isUp;
    this.#lacp?.link(this.#members.indexOf(member), isUp);
    this.#choose();
  }

  /** Chooses the members that frames leave by, and those whose frames count. */
  #choose(): void {
    if (this.#lacp) {
      const { distributing, collecting } = this.#lacp;
      const at = (index: number) => this.#members[index]!;
      this.#use(distributing.map(at), collecting.map(at));
      return;
    }
    const up = this.#members.filter(({ isUp }) => isUp);
    if (this.spec.mode === 'balance') {
      this.#use(up, up);
      return;
    }
    const active =
      up.find(({ name }) => name === this.spec.primary) ??
      up.find((one) => this.#used.includes(one)) ??
      up[0];
    const chosen = active ? [active] : [];
    this.#use(chosen, chosen);
  }

  #use(used: Member[], open: Member[]): void {
    if (this.#stopped) return;
    const before = this.#used;
    this.#used = used;
    // LACP looks often, and seldom finds a change.
    if (used.length > 0 && !isSame(used, before)) this.#spread(used.map(({ port }) => port.slot));
    for (const member of this.#members) member.shared.set('open', open.includes(member) ? 1 : 0);
    const { structures, slot, events } = this.#context;
    structures.port(slot).set('pairs', used.length > 0 ? 1 : 0);
    if (before.length === 0 && used.length > 0) events.guestUp();
    if (before.length > 0 && used.length === 0) events.guestDown('no member is up');
    const { mode = 'active-backup' } = this.spec;
    if (mode === 'active-backup' && used[0] !== undefined && used[0] !== before[0]) this.#context.moved();
  }

  /** Writes the table: all entries name a member at any moment, and as few change as can be. */
  #spread(slots: number[]): void {
    const { arena, structures } = this.#context;
    const size = structures.constant('FLOWS');
    const at = (this.#bond.at + structures.constant('BOND_STRIDE') - 4 * size) >>> 2;
    const before = Array.from(arena.u32.subarray(at, at + size));
    for (const [flow, slot] of nextFlowTable(before, slots, size).entries())
      Atomics.store(arena.u32, at + flow, slot);
  }

  reportBroken(): void {}

  /** What all members together have counted, and what found none. */
  #counters(): Counters {
    const sum: Counters = { rxPackets: 0, rxBytes: 0, rxDrops: 0, txPackets: 0, txBytes: 0, txDrops: 0 };
    for (const { port } of this.#members) {
      const status = port.status();
      for (const key of Object.keys(sum) as (keyof Counters)[]) sum[key] += status[key];
    }
    for (const count of Object.values(this.#drops())) sum.txDrops += count;
    return sum;
  }

  #drops(): Record<string, number> {
    const at = (this.#ring.at + this.#ring.offsets.drops) >>> 3;
    const counts = DROP_REASONS.map(
      (reason, i) => [reason, Number(this.#context.arena.u64[at + i]!)] as const,
    );
    return Object.fromEntries(counts.filter(([, count]) => count > 0));
  }

  status(): PortStatus {
    const { name, type, target } = this.spec;
    return {
      name,
      type,
      target,
      role: null,
      state: this.#used.length > 0 ? 'up' : 'down',
      rings: this.#words(),
      lastError: null,
      ...this.#counters(),
    };
  }

  /** For the table of ports. */
  #words(): string {
    const { mode = 'active-backup' } = this.spec;
    if (mode === 'active-backup') return `${mode}, ${this.#used[0]?.name ?? 'none'}`;
    return `${mode}, ${this.#used.length} of ${this.#members.length}`;
  }

  memberStatus(): BondMemberStatus[] {
    return this.#members.map((member) => ({
      port: member.name,
      link: member.isUp ? 'up' : 'down',
      sends: this.#used.includes(member),
      receives: member.shared.get('open') === 1,
      ...(this.#lacp && { lacp: { ...this.#lacp.status(this.#members.indexOf(member)), bad: member.bad } }),
    }));
  }

  detail(): DetailOfKind {
    const port = this.#context.structures.port(this.#context.slot);
    return {
      ...this.status(),
      mtu: null,
      driverStatus: '',
      features: { offered: [], acknowledged: [], missing: [] },
      protocolFeatures: { offered: [], acknowledged: [] },
      queues: [],
      memory: [],
      drops: this.#drops(),
      filtered: 0,
      addresses: { learned: port.get('addresses'), limit: port.get('addressLimit') },
      connections: 0,
      members: this.memberStatus(),
    };
  }

  /** Frees everything. No member is the bond's in the data plane any more. */
  async close(): Promise<void> {
    const { arena, workers, slot } = this.#context;
    this.stop();
    // As of any port: nobody finds it any more, and whoever has found it passes by.
    arena.dataplane.functions.flush(slot, 0);
    await workers.quiesce();
    this.#free();
  }

  #free(): void {
    for (const room of this.#rooms.splice(0)) this.#context.arena.freeTable(room);
  }
}

const isSame = (one: Member[], other: Member[]): boolean =>
  one.length === other.length && one.every((member) => other.includes(member));
