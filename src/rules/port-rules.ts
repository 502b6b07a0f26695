/** The rules of one port, from the control plane: they are there from the first field that is set until the port goes. */
import { isDeepStrictEqual } from 'node:util';
import type { Arena, Range, RulesStruct, Structures } from '../arena/index.ts';
import { RULES } from './index.ts';
import { REASONS } from './reasons.ts';
import type { RuledPort, RuleTable } from './rule.ts';

interface Options {
  arena: Arena;
  structures: Structures;
  slot: number;
  /** Resolves when no worker can look at what was there before. */
  quiesce(): Promise<void>;
}

export class PortRules {
  readonly #options: Options;
  /** Rooms by owner; those of the rules themselves. */
  readonly #rooms = new Map<string, Range>();
  /** What no field points to any more, until the workers have passed by. */
  #old: Range[] = [];
  #rules: RulesStruct | undefined;
  #spec: RuledPort | undefined;
  #mirrored: { mirrors: readonly { at: number; ways: number }[]; monitor: boolean } = {
    mirrors: [],
    monitor: false,
  };
  #closed = false;

  constructor(options: Options) {
    this.#options = options;
  }

  /** The same as write(), and resolves when nobody looks at what was there before. Rejects with ArenaFullError. */
  async set(spec: RuledPort): Promise<void> {
    try {
      this.write(spec);
    } finally {
      await this.settle();
    }
  }

  /**
   * Brings the data plane to what the port's specification says, by what differs; settle() must follow where workers
   * may look. Throws ArenaFullError, and nothing has changed then.
   */
  write(spec: RuledPort): void {
    const before = this.#spec;
    const changed = RULES.filter(({ fields, derived = [] }) =>
      [...Object.keys(fields), ...derived].some((field) => {
        const key = field as keyof RuledPort;
        return !isDeepStrictEqual(before?.[key], spec[key]);
      }),
    );
    if (changed.length > 0) {
      this.#rules ??= this.#start();
      const table = this.#table(this.#rules);
      try {
        for (const rule of changed) rule.set(spec, table);
      } catch (error) {
        if (before) for (const rule of changed) rule.set(before, table);
        throw error;
      }
    }
    this.#spec = spec;
  }

  /** What was turned away, by reason; nothing where nothing was. */
  drops(way?: 'rx' | 'tx'): Record<string, number> {
    const drops: Record<string, number> = {};
    if (!this.#rules) return drops;
    const at = this.#rules.get('drops') >>> 3;
    for (const [i, reason] of REASONS.entries()) {
      const count = Number(this.#options.arena.u64[at + i]!);
      if (count > 0 && (way === undefined || reason.way === way)) drops[reason.name] = count;
    }
    return drops;
  }

  /**
   * Lets captures look at the port's frames, by the addresses of their `Watch`; none: nobody looks any more. Resolves
   * when no worker looks at one that was there before. Rejects with ArenaFullError, and nothing has changed then.
   */
  async watch(watches: readonly number[]): Promise<void> {
    // Somebody may still look at what goes.
    if (this.#closed) return this.#options.quiesce();
    if (watches.length === 0 && !this.#rules) return;
    const { arena } = this.#options;
    this.#rules ??= this.#start();
    const { stage } = this.#table(this.#rules);
    const on = watches.length > 0;
    const list = this.#room('watches', on ? 8 + 4 * watches.length : 0);
    if (on) arena.u32.set([watches.length, 0, ...watches], list >>> 2);
    this.#rules.set('watches', list);
    stage('ingress', 'STAGE_CAPTURE', on);
    stage('egress', 'STAGE_CAPTURE', on);
    await this.settle();
  }

  /** Lets what decides at run time set stages itself. Nothing happens once the port has gone. */
  change(act: (table: RuleTable) => void): void {
    if (this.#rules) act(this.#table(this.#rules));
  }

  /** Counts a frame that the control plane has turned away, by the reason's index. */
  count(reason: number): void {
    if (this.#rules) Atomics.add(this.#options.arena.u64, (this.#rules.get('drops') >>> 3) + reason, 1n);
  }

  /**
   * Lets mirrors copy the port's frames, by the addresses and ways of each `Mirror`, and makes it one that gets copies
   * and nothing else, or not; settle() must follow. True: it is such a port only now. Throws ArenaFullError, and
   * nothing has changed then.
   */
  mirror(mirrors: readonly { at: number; ways: number }[], monitor: boolean): boolean {
    if (this.#closed || isDeepStrictEqual(this.#mirrored, { mirrors, monitor })) return false;
    const { arena, structures } = this.#options;
    this.#rules ??= this.#start();
    const { stage } = this.#table(this.#rules);
    const list = this.#room('mirrors', mirrors.length > 0 ? 4 + 4 * mirrors.length : 0);
    if (list > 0) arena.u32.set([mirrors.length, ...mirrors.map(({ at }) => at)], list >>> 2);
    this.#rules.set('mirrors', list);
    const some = (way: string) => mirrors.some(({ ways }) => ways & structures.constant(way));
    stage('ingress', 'STAGE_MIRROR', some('WAY_IN'));
    stage('egress', 'STAGE_MIRROR', some('WAY_OUT'));
    stage('ingress', 'STAGE_MONITOR', monitor);
    stage('egress', 'STAGE_MONITOR', monitor);
    const fresh = monitor && !this.#mirrored.monitor;
    this.#mirrored = { mirrors, monitor };
    return fresh;
  }

  /** The port goes: nothing is left. */
  async close(): Promise<void> {
    this.#closed = true;
    if (!this.#rules) return;
    this.#rules = undefined;
    this.#options.structures.port(this.#options.slot).set('rules', 0);
    this.#old.push(...this.#rooms.values());
    this.#rooms.clear();
    await this.settle();
  }

  #start(): RulesStruct {
    const { structures, slot } = this.#options;
    const rules = structures.rules(this.#room('rules', structures.constant('RULES_STRIDE')));
    rules.set('drops', this.#room('drops', structures.constant('RULE_REASONS') * 8));
    structures.port(slot).set('rules', rules.at);
    return rules;
  }

  #room(owner: string, length: number): number {
    const room = length > 0 ? this.#options.arena.takeTable(length) : undefined;
    const before = this.#rooms.get(owner);
    if (before) this.#old.push(before);
    if (room) this.#rooms.set(owner, room);
    else this.#rooms.delete(owner);
    return room?.start ?? 0;
  }

  #table(rules: RulesStruct): RuleTable {
    const { arena, structures, slot } = this.#options;
    return {
      arena,
      structures,
      rules,
      slot,
      stage: (way, stage, on) => {
        const bit = structures.constant(stage);
        rules.set(way, on ? rules.get(way) | bit : rules.get(way) & ~bit);
      },
      room: (owner, length) => this.#room(owner, length),
    };
  }

  /** Frees what no field points to any more, once no worker can look at it. */
  async settle(): Promise<void> {
    const old = this.#old;
    this.#old = [];
    if (old.length === 0) return;
    await this.#options.quiesce();
    for (const room of old) this.#options.arena.freeTable(room);
  }
}
