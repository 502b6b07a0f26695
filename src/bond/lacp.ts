/**
 * LACP for the members of a bond (IEEE 802.1AX-2014, 6.4): the receive, periodic, mux and transmit machines of each
 * member, and the selection of those that are bundled. It has no clock and no ports: tick() tells the time, frames are
 * given and taken.
 *
 * All members have one key, so that those whose neighbour has the same system and key can be bundled. Of several
 * such groups one is used: the one that is used already, as long as a member of it is there, else the largest. Members
 * whose neighbour speaks no LACP are used by nobody: the bundle would be one on this side only.
 */
import {
  ACTIVITY,
  AGGREGATION,
  COLLECTING,
  DEFAULTED,
  DISTRIBUTING,
  EXPIRED,
  type LinkEnd,
  readLacpdu,
  SYNCHRONIZATION,
  TIMEOUT,
  writeLacpdu,
} from './lacpdu.ts';

/** Milliseconds (6.4.4). */
const FAST_PERIODIC = 1000;
const SLOW_PERIODIC = 30_000;
const SHORT_TIMEOUT = 3 * FAST_PERIODIC;
const LONG_TIMEOUT = 3 * SLOW_PERIODIC;
const AGGREGATE_WAIT = 2000;
/** Frames in FAST_PERIODIC at most (6.4.16). */
const MOST_SENT = 3;
/** 0x8000 is what the standard recommends (6.3.2, 6.3.4). */
const PRIORITY = 0x8000;

/** Who is there where nobody has said so (recordDefault, 6.4.9). */
const NOBODY: LinkEnd = {
  systemPriority: 0,
  system: '00:00:00:00:00:00',
  key: 0,
  portPriority: 0,
  port: 0,
  state: 0,
};

type Receive = 'disabled' | 'expired' | 'defaulted' | 'current';
type Mux = 'detached' | 'waiting' | 'attached' | 'collecting' | 'distributing';

/** What is told of a member. */
export interface LacpStatus {
  receive: Receive;
  mux: Mux;
  /** Set bits of its own state, and of its partner's, such as `activity aggregation synchronization`. */
  state: string;
  partner: { system: string; key: number; port: number; state: string };
  received: number;
  sent: number;
}

interface Member {
  /** From 1 on. */
  readonly number: number;
  isUp: boolean;
  receive: Receive;
  /** Until when what was received holds. */
  until: number;
  mux: Mux;
  /** Until when it waits for others that could be bundled with it. */
  waits: number;
  selected: boolean;
  /** What its partner says of itself. */
  partner: LinkEnd;
  /** When it sends next, whatever happens. */
  next: number;
  /** The rate of that. */
  period: number;
  /** It has something to tell (NTT). */
  ntt: boolean;
  /** When it sent the last frames. */
  times: number[];
  received: number;
  sent: number;
}

export interface LacpOptions {
  /** MAC of this system. */
  system: string;
  key: number;
  /** Asks for a frame a second in place of one in 30. */
  fast: boolean;
  members: number;
  /** Sends a frame by a member. */
  send(member: number, frame: Buffer): void;
}

export class Lacp {
  readonly #options: LacpOptions;
  readonly #members: Member[];
  /** The group that is used. */
  #group: string | undefined;
  #now = 0;

  constructor(options: LacpOptions) {
    this.#options = options;
    this.#members = Array.from({ length: options.members }, (_, i) => ({
      number: i + 1,
      isUp: false,
      receive: 'disabled',
      until: 0,
      mux: 'detached',
      waits: 0,
      selected: false,
      partner: { ...NOBODY },
      next: 0,
      period: 0,
      ntt: false,
      times: [],
      received: 0,
      sent: 0,
    }));
  }

  /** Members, from 0 on, that frames leave by, and such whose frames count. */
  get distributing(): number[] {
    return this.#in('distributing');
  }

  get collecting(): number[] {
    return this.#in('collecting', 'distributing');
  }

  #in(...states: Mux[]): number[] {
    return this.#members.filter(({ mux }) => states.includes(mux)).map(({ number }) => number - 1);
  }

  /** The link of a member has gone up or down. */
  link(index: number, isUp: boolean): void {
    const member = this.#members[index]!;
    if (member.isUp === isUp) return;
    member.isUp = isUp;
    if (isUp) this.#expire(member);
    else {
      // What is known of the partner stays until the link is back (PORT_DISABLED), without its synchronization.
      member.receive = 'disabled';
      member.partner.state &= ~SYNCHRONIZATION;
      member.selected = false;
    }
    this.#run();
  }

  /** Another partner is another bundle. */
  #detach(member: Member): void {
    member.selected = false;
    while (this.#step(member));
  }

  #expire(member: Member): void {
    member.receive = 'expired';
    member.partner.state = (member.partner.state & ~SYNCHRONIZATION) | TIMEOUT;
    member.until = this.#now + SHORT_TIMEOUT;
    member.ntt = true;
  }

  /** What came from a member; false: it is no LACPDU, or one of our own. */
  receive(index: number, frame: Buffer): boolean {
    const member = this.#members[index]!;
    const pdu = readLacpdu(frame);
    if (pdu === undefined || pdu.actor.system === this.#options.system) return false;
    if (member.receive === 'disabled') return true;
    member.received++;
    const own = this.#actor(member);
    if (!isSameEnd(pdu.actor, member.partner)) this.#detach(member);
    const told = ACTIVITY | TIMEOUT | AGGREGATION | SYNCHRONIZATION;
    if (!isSameEnd(pdu.partner, own) || ((pdu.partner.state ^ own.state) & told) !== 0) member.ntt = true;
    // The partner is in step only with one that it knows (recordPDU, 6.4.9), or alone.
    const knowsUs = isSameEnd(pdu.partner, own) || !(pdu.actor.state & AGGREGATION);
    member.partner = { ...pdu.actor };
    if (!knowsUs) member.partner.state &= ~SYNCHRONIZATION;
    member.receive = 'current';
    member.until = this.#now + (this.#options.fast ? SHORT_TIMEOUT : LONG_TIMEOUT);
    this.#run();
    return true;
  }

  /** It is `now`, in milliseconds, later than before. */
  tick(now: number): void {
    this.#now = now;
    for (const member of this.#members) {
      if (now < member.until) continue;
      if (member.receive === 'current') this.#expire(member);
      else if (member.receive === 'expired') {
        member.receive = 'defaulted';
        member.partner = { ...NOBODY };
        member.selected = false;
        member.ntt = true;
      }
    }
    this.#run();
  }

  #run(): void {
    this.#select();
    // A change of one member's may let another one go on.
    while (this.#members.some((member) => this.#step(member)));
    for (const member of this.#members) {
      this.#period(member);
      this.#send(member);
    }
  }

  /** Those whose neighbour is one system, with one key, form a group; whoever wants to be alone is one by himself. */
  #groupOf({ number, receive, partner }: Member): string | undefined {
    if (receive === 'disabled' || receive === 'defaulted' || partner.system === NOBODY.system)
      return undefined;
    const { systemPriority, system, key, state } = partner;
    return [systemPriority, system, key, state & AGGREGATION ? '' : number].join(' ');
  }

  #select(): void {
    const sizes = new Map<string, number>();
    for (const member of this.#members) {
      const group = this.#groupOf(member);
      if (group !== undefined) sizes.set(group, (sizes.get(group) ?? 0) + 1);
    }
    if (this.#group === undefined || !sizes.has(this.#group))
      this.#group = [...sizes].sort(([, a], [, b]) => b - a)[0]?.[0];
    for (const member of this.#members)
      member.selected = this.#group !== undefined && this.#groupOf(member) === this.#group;
  }

  /** A step of the mux machine (figure 6-21); false: there is none. */
  #step(member: Member): boolean {
    const before = member.mux;
    member.mux = this.#muxOf(member);
    if (member.mux === before) return false;
    if (member.mux === 'waiting') member.waits = this.#now + AGGREGATE_WAIT;
    else member.ntt = true;
    return true;
  }

  #muxOf({ mux, selected, partner: { state }, waits }: Member): Mux {
    const inStep = selected && (state & SYNCHRONIZATION) !== 0;
    switch (mux) {
      case 'detached':
        return selected ? 'waiting' : mux;
      case 'waiting': {
        if (!selected) return 'detached';
        const others = this.#members.filter((other) => other.mux === 'waiting');
        return this.#now >= waits && others.every((other) => this.#now >= other.waits) ? 'attached' : mux;
      }
      case 'attached':
        if (!selected) return 'detached';
        return inStep ? 'collecting' : mux;
      case 'collecting':
        if (!inStep) return 'attached';
        return state & COLLECTING ? 'distributing' : mux;
      case 'distributing':
        return inStep && state & COLLECTING ? mux : 'collecting';
    }
  }

  /** The periodic machine (6.4.13). */
  #period(member: Member): void {
    if (!member.isUp) {
      member.period = 0;
      return;
    }
    const period =
      member.partner.state & TIMEOUT || member.receive === 'defaulted' ? FAST_PERIODIC : SLOW_PERIODIC;
    if (member.period === 0 || this.#now >= member.next || period < member.period) member.ntt = true;
    else if (period === member.period) return;
    member.period = period;
    member.next = this.#now + period;
  }

  #send(member: Member): void {
    if (!member.ntt || !member.isUp) return;
    member.times = member.times.filter((time) => this.#now - time < FAST_PERIODIC);
    if (member.times.length >= MOST_SENT) return;
    member.times.push(this.#now);
    member.ntt = false;
    member.sent++;
    this.#options.send(
      member.number - 1,
      writeLacpdu({ actor: this.#actor(member), partner: member.partner }),
    );
  }

  #actor({ number, receive, mux }: Member): LinkEnd {
    const { system, key, fast } = this.#options;
    const flags: [on: boolean, bit: number][] = [
      [true, ACTIVITY | AGGREGATION],
      [fast, TIMEOUT],
      [mux === 'attached' || mux === 'collecting' || mux === 'distributing', SYNCHRONIZATION],
      [mux === 'collecting' || mux === 'distributing', COLLECTING],
      [mux === 'distributing', DISTRIBUTING],
      [receive === 'defaulted', DEFAULTED],
      [receive === 'expired', EXPIRED],
    ];
    const state = flags.reduce((all, [on, bit]) => (on ? all | bit : all), 0);
    return { systemPriority: PRIORITY, system, key, portPriority: PRIORITY, port: number, state };
  }

  status(index: number): LacpStatus {
    const member = this.#members[index]!;
    const { receive, mux, received, sent } = member;
    const { system, key, port, state } = member.partner;
    return {
      receive,
      mux,
      state: stateWords(this.#actor(member).state),
      partner: { system, key, port, state: stateWords(state) },
      received,
      sent,
    };
  }
}

/** Are they the same but for their states, and of one mind about bundles? */
const isSameEnd = (one: LinkEnd, other: LinkEnd): boolean =>
  one.systemPriority === other.systemPriority &&
  one.system === other.system &&
  one.key === other.key &&
  one.portPriority === other.portPriority &&
  one.port === other.port &&
  ((one.state ^ other.state) & AGGREGATION) === 0;

const WORDS = [
  'activity', 'timeout', 'aggregation', 'synchronization', 'collecting', 'distributing', 'defaulted', 'expired',
] as const; // biome-ignore format: a table

const stateWords = (state: number): string => WORDS.filter((_, bit) => state & (1 << bit)).join(' ');
