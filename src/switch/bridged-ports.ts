/**
 * The ports that bridges know, which are all but members of bonds and those that mirrors copy to, and what they are
 * to each other: who has VLANs because others have, who is in a spanning tree, who is asked for groups. Whoever adds,
 * removes or changes a port or a bridge has that brought to the tables here.
 */
import { isDeepStrictEqual } from 'node:util';
import type { Structures } from '../arena/index.ts';
import { Rstp } from '../rstp/rstp.ts';
import { askedIn, hasVlans, vlansOf } from '../rules/vlan.ts';
import type { Workers } from '../workers/workers.ts';
import { type Bridges, bridgeOf } from './bridges.ts';
import type { Fdb } from './fdb.ts';
import type { GroupTables } from './groups.ts';
import type { Mirrors } from './mirrors.ts';
import type { Places } from './places.ts';
import { given } from './port-status.ts';
import { type Entry, isMember, type PortRecord, type PortTable, ruled } from './port-table.ts';
import type { BridgeStatus, PortSpec } from './types.ts';

interface Options {
  structures: Structures;
  workers: Workers;
  ports: PortTable;
  bridges: Bridges;
  mirrors: Mirrors;
  fdb: Fdb;
  groups: GroupTables;
  places: Places;
  rstp: Rstp;
}

const NO_TAG = new Uint8Array();
const untagged = (vlan: number) => (vlan === 0 ? NO_TAG : undefined);

export class BridgedPorts {
  readonly #options: Options;

  constructor(options: Options) {
    this.#options = options;
  }

  list(): Entry[] {
    const { ports, mirrors } = this.#options;
    const monitors = mirrors.monitors();
    return ports.list().filter((entry) => !isMember(entry) && !monitors.has(entry.spec.name));
  }

  /** Those of one bridge. */
  on(bridge: string): Entry[] {
    return this.list().filter(({ spec }) => bridgeOf(spec) === bridge);
  }

  /** Every bridge, the default one first. */
  status(): BridgeStatus[] {
    const { structures, bridges, fdb, rstp } = this.#options;
    const addresses = new Map<string, number>();
    for (const { bridge } of fdb.list()) addresses.set(bridge, (addresses.get(bridge) ?? 0) + 1);
    return bridges.list().map(({ name, ageing, snooping = false, querier = false }) => {
      const ports = this.on(name);
      return {
        name,
        ageing: ageing ?? structures.header.get('ageing'),
        vlans: ports.some(({ vlanAware }) => vlanAware),
        reserved: bridges.reserved(name),
        snooping,
        querier,
        ports: ports.map(({ spec }) => spec.name),
        addresses: addresses.get(name) ?? 0,
        ...given('spanningTree', rstp.bridge(name)),
      };
    });
  }

  /** Tells the bridges how many ports each has. */
  count(): void {
    this.#options.bridges.count(this.list().map(({ spec }) => spec));
  }

  /** The ports on the bridge of this one, but for itself. */
  #mates(spec: PortSpec): Entry[] {
    if (this.#options.ports.bondOf(spec.name)) return [];
    return this.on(bridgeOf(spec)).filter((other) => other.spec.name !== spec.name);
  }

  /**
   * Makes room for a port that comes, or will be as its specification says: gives the others of a bridge that gets
   * VLANs their place in them. Returns what the port itself will be. Throws ArenaFullError.
   */
  admit(spec: PortSpec): Pick<PortRecord, 'vlanAware' | 'spanned'> {
    const mates = this.#mates(spec);
    if (hasVlans(spec)) for (const other of mates) becomeAware(other, true);
    const vlanAware = hasVlans(spec) || mates.some((other) => hasVlans(other.spec));
    return { vlanAware, spanned: this.isSpanned(spec) };
  }

  /**
   * Sets a port anew; settleVlans() and span() must follow. Rejects with ArenaFullError, and the port is as it was
   * then.
   */
  async change(entry: Entry, spec: PortSpec): Promise<void> {
    const { structures, workers, bridges, fdb, groups, rstp } = this.#options;
    const { slot } = entry;
    const index = bridges.index(spec.bridge);
    // Others have their tags before this one tells frames by them, and lose them after it.
    const { vlanAware, spanned: isSpanned } = this.admit(spec);
    // Whatever tree it leaves or comes into: it discards until it is there.
    if (bridgeOf(entry.spec) !== bridgeOf(spec)) rstp.leave(spec.name);
    const spanned = entry.spanned || (!isMember(entry) && isSpanned);
    await entry.rules.set(ruled({ ...entry, spec, vlanAware, spanned }));
    const struct = structures.port(slot);
    const bridge = isMember(entry) ? structures.constant('NO_BRIDGE') : index;
    const moved = struct.get('bridge') !== bridge || !isDeepStrictEqual(vlansOf(entry.spec), vlansOf(spec));
    struct.set('bridge', bridge);
    Object.assign(entry, { spec, vlanAware, spanned });
    this.count();
    if (!moved) return;
    // A burst in work learns addresses where the port was.
    await workers.quiesce();
    fdb.forget(slot);
    groups.forget(slot);
  }

  /** Ends VLANs on bridges where no port has settings of them any more; for others nothing changes. */
  async settleVlans(): Promise<void> {
    const { fdb, places } = this.#options;
    const all = this.list();
    const aware = new Set(all.filter(({ spec }) => hasVlans(spec)).map(({ spec }) => bridgeOf(spec)));
    const changed = all.filter((entry) => becomeAware(entry, aware.has(bridgeOf(entry.spec))));
    fdb.statics.refresh((spec) => places.of(spec));
    this.refreshGroups();
    for (const { rules } of changed) await rules.settle();
  }

  /** Tells the tables of groups what ports there are, and where those that were entered belong. */
  refreshGroups(): void {
    const { bridges, groups, places } = this.#options;
    const ports = this.list().map(({ slot, spec, vlanAware }) => ({
      slot,
      ...(vlanAware ? askedIn(spec) : { names: [0], tag: untagged }),
      bridge: bridges.index(spec.bridge),
      isRouter: spec.multicastRouter === 'always',
    }));
    groups.refresh(ports, (spec) => places.of(spec));
  }

  /** Is a port in a spanning tree, once it is as its specification says? */
  isSpanned(spec: PortSpec): boolean {
    const { bridges, mirrors } = this.#options;
    if (mirrors.monitors().has(spec.name)) return false;
    return Rstp.isSpanned(bridges.get(bridgeOf(spec)), spec);
  }

  /** Brings the spanning trees to the bridges and ports as they are now. Rejects with ArenaFullError. */
  async span(): Promise<void> {
    const { ports, bridges, rstp } = this.#options;
    const all = this.list();
    const change = (entry: Entry, spanned: boolean) => {
      entry.spanned = spanned;
      entry.rules.write(ruled(entry));
    };
    // Who comes into a tree discards before anything else, who leaves one goes on when nobody decides for it any more.
    const coming = all.filter(({ spanned, spec }) => !spanned && this.isSpanned(spec));
    const leaving = ports.list().filter(({ spanned, spec }) => spanned && !this.isSpanned(spec));
    for (const entry of coming) change(entry, true);
    rstp.update(bridges.list(), all);
    for (const entry of leaving) change(entry, false);
    for (const { rules } of [...coming, ...leaving]) await rules.settle();
  }
}

/** Has the data plane know that the port's bridge has VLANs, or has none; false: it knew. Throws ArenaFullError. */
function becomeAware(entry: Entry, vlanAware: boolean): boolean {
  if (entry.vlanAware === vlanAware) return false;
  entry.rules.write({ ...ruled(entry), vlanAware });
  entry.vlanAware = vlanAware;
  return true;
}
