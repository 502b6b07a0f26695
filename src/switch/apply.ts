/**
 * Brings a running switch to a configuration by what differs (difference.ts), in an order in which ports may change
 * places and names may be taken anew. What fails is told, and the rest goes on.
 */
import { applyMirrors, type MirrorCommands } from './apply-mirrors.ts';
import type { Difference } from './difference.ts';
import type { Mirrors } from './mirrors.ts';
import type { PortTable } from './port-table.ts';
import type { Statics } from './statics.ts';
import type { AddressSpec, Applied, GroupSpec, PortChange, PortSpec } from './types.ts';

/** Commands of the switch. */
interface Commands extends MirrorCommands {
  addPort(spec: PortSpec): Promise<void>;
  setPort(name: string, change: PortChange): Promise<void>;
  removePort(name: string): Promise<void>;
  addAddress(spec: AddressSpec): Promise<void>;
  addGroup(spec: GroupSpec): Promise<GroupSpec>;
  removeBridge(name: string): Promise<void>;
}

/** What a switch is made of, as far as this needs it. */
interface Parts {
  ports: PortTable;
  addresses: Statics<AddressSpec>;
  groups: Statics<GroupSpec>;
  mirrors: Mirrors;
  /** Removes a port that comes again, which mirrors wait for. */
  dropPort(name: string): Promise<void>;
}

/** Bonds come after the ports that they are made of, and go before them. */
export const bondsLast = (ports: readonly PortSpec[]): PortSpec[] =>
  [...ports].sort((a, b) => Number(a.type === 'bond') - Number(b.type === 'bond'));
const bondsFirst = (ports: readonly PortSpec[]): PortSpec[] =>
  [...ports].sort((a, b) => Number(b.type === 'bond') - Number(a.type === 'bond'));

/**
 * Does what `found` says, but for settings of the switch and bridges that come or change, which are there already.
 * `before` are the ports as they were.
 */
export async function applyDifference(
  found: Difference,
  before: readonly PortSpec[],
  vswitch: Commands,
  { ports, addresses, groups, mirrors, dropPort }: Parts,
): Promise<Applied> {
  const applied: Applied = {
    added: [],
    removed: [],
    changed: [],
    unchanged: found.unchanged,
    bridges: {
      added: found.bridges.add.map(({ name }) => name),
      removed: [],
      changed: found.bridges.set.map(({ name }) => name),
    },
    fdb: { added: [], removed: found.fdb.remove.map(({ mac }) => mac) },
    groups: { added: [], removed: found.groups.remove.map(({ group }) => group) },
    mirrors: { added: [], removed: [], changed: [], failed: [] },
    settings: Object.keys(found.settings),
    failed: [],
  };
  const attempt = async (port: string, done: string[], act: () => Promise<void>, name = port) => {
    try {
      await act();
      done.push(name);
    } catch (error) {
      applied.failed.push({ port, error: (error as Error).message });
    }
  };
  const finishMirrors = await applyMirrors(found, mirrors, vswitch, applied.mirrors);
  const keptAddresses = takeAway(addresses, found.fdb.remove);
  const keptGroups = takeAway(groups, found.groups.remove);

  // What goes and what changes goes before anything comes: ports may change places. Bonds go before their members.
  const gone: string[] = [];
  const was = new Map(before.map((spec) => [spec.name, spec]));
  const leaving = [...found.remove, ...found.change.map(({ name }) => name)].map((name) => was.get(name)!);
  for (const { name } of bondsFirst(leaving))
    if (found.remove.includes(name)) await attempt(name, applied.removed, () => vswitch.removePort(name));
    else await attempt(name, gone, () => dropPort(name));
  for (const { name, change } of found.set)
    await attempt(name, applied.changed, () => vswitch.setPort(name, change));
  const coming = [...found.change.filter(({ name }) => gone.includes(name)), ...found.add];
  for (const spec of bondsLast(coming)) {
    const done = gone.includes(spec.name) ? applied.changed : applied.added;
    await attempt(spec.name, done, () => vswitch.addPort(spec));
  }
  for (const spec of bondsLast(applied.failed.flatMap(({ port }) => was.get(port) ?? []))) {
    // Its place may be taken by now; what failed is told already.
    if (!ports.has(spec.name)) await vswitch.addPort(spec).catch(() => {});
  }

  // Those of ports that went and came, and new ones.
  for (const spec of keptAddresses)
    if (ports.has(spec.port) && !addresses.list().includes(spec))
      await attempt(spec.port, [], () => vswitch.addAddress(spec));
  for (const spec of found.fdb.add)
    await attempt(spec.port, applied.fdb.added, () => vswitch.addAddress(spec), spec.mac);
  const addGroup = async (spec: GroupSpec) => void (await vswitch.addGroup(spec));
  for (const spec of keptGroups)
    if (ports.has(spec.port) && !groups.list().includes(spec))
      await attempt(spec.port, [], () => addGroup(spec));
  for (const spec of found.groups.add)
    await attempt(spec.port, applied.groups.added, () => addGroup(spec), spec.group);
  await finishMirrors();
  // One that ports stay on, for what failed or was not asked for, stays.
  for (const name of found.bridges.remove)
    await attempt(name, applied.bridges.removed, () => vswitch.removeBridge(name));
  return applied;
}

/** Takes away what was entered, and returns the rest. */
function takeAway<Spec>(statics: Statics<Spec>, gone: readonly Spec[]): Spec[] {
  statics.remove((spec) => gone.includes(spec));
  return statics.list();
}
