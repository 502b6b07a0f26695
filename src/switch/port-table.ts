/** The ports of a switch by their names, and what it knows of each. */
import { bondOf } from '../bond/members.ts';
import type { Port } from '../ports/port.ts';
import type { PortRules } from '../rules/index.ts';
import type { Beside, RuledPort } from '../rules/rule.ts';
import { SwitchError } from './errors.ts';
import type { PortSpec } from './types.ts';

/** What the switch knows of a port, from before it is open. */
export interface PortRecord {
  /** Index of the port in the data plane. */
  readonly slot: number;
  readonly rules: PortRules;
  /** As it is now: the port's own has the rules that it came with. */
  spec: PortSpec;
  /** Its bridge has VLANs. */
  vlanAware: boolean;
  /** The data plane takes it to be in a spanning tree. */
  spanned: boolean;
  /** What else its rules depend on. */
  beside: Beside;
  /** Frames pass there, as far as the port itself knows. */
  carrier: boolean;
  /** Its link is set down, or follows one that is (`link`, `linkFollows`). */
  unplugged: boolean;
}

/** A port that is open. */
export interface Entry extends PortRecord {
  readonly port: Port;
}

/** What a port's rules are made of. */
export const ruled = ({ spec, beside, vlanAware, spanned, unplugged }: PortRecord): RuledPort => ({
  ...spec,
  ...beside,
  vlanAware,
  spanned,
  unplugged,
});

export const isUp = ({ carrier, unplugged }: PortRecord): boolean => carrier && !unplugged;

/** Is it a member of a bond, which bridges know in its place? */
export const isMember = ({ beside }: PortRecord): boolean => beside.memberAt !== undefined;

export class PortTable {
  readonly #ports = new Map<string, Entry>();
  /** Those that are being removed: nobody finds them, and their names are taken. */
  readonly #leaving = new Set<Entry>();

  get size(): number {
    return this.#ports.size;
  }

  /** Those that are there, in the order in which they were added. */
  list(): Entry[] {
    return [...this.#ports.values()];
  }

  specs(): PortSpec[] {
    return this.list().map(({ spec }) => spec);
  }

  /** With those that are being removed. */
  all(): Entry[] {
    return [...this.#ports.values(), ...this.#leaving];
  }

  has(name: string): boolean {
    return this.#ports.has(name);
  }

  get(name: string): Entry | undefined {
    return this.#ports.get(name);
  }

  /** Throws a SwitchError, NO_SUCH_PORT. */
  find(name: string): Entry {
    const entry = this.#ports.get(name);
    if (entry) return entry;
    const known = [...this.#ports.keys()].join(', ') || 'none';
    throw new SwitchError(
      'NO_SUCH_PORT',
      `no port is named ${JSON.stringify(name)}; there are: ${known}`,
      'name',
    );
  }

  /** The names by the ports' places in the data plane. */
  namesBySlot(): Map<number, string> {
    return new Map(this.list().map(({ slot, spec }) => [slot, spec.name]));
  }

  /** The bond that a port is a member of. */
  bondOf(name: string): Entry | undefined {
    const spec = bondOf(name, this.specs());
    return spec && this.#ports.get(spec.name);
  }

  isTaken(name: string): boolean {
    return this.all().some(({ spec }) => spec.name === name);
  }

  add(entry: Entry): void {
    this.#ports.set(entry.spec.name, entry);
  }

  /** It is about to go: removed() follows. */
  leave(entry: Entry): void {
    this.#ports.delete(entry.spec.name);
    this.#leaving.add(entry);
  }

  removed(entry: Entry): void {
    this.#leaving.delete(entry);
  }

  clear(): void {
    this.#ports.clear();
  }
}
