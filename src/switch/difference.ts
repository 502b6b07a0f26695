/**
 * What differs between a running switch and a configuration, so that only that is touched: ports that are as they
 * should be are not, and their guests notice nothing. apply.ts acts on it.
 */
import { isDeepStrictEqual } from 'node:util';
import { membersOf } from '../bond/members.ts';
import { DEFAULT_BRIDGE } from './bridges.ts';
import { SwitchError } from './errors.ts';
import { SETTABLE } from './spec.ts';
import type {
  AddressSpec,
  BridgeSpec,
  GroupSpec,
  MirrorSpec,
  PortChange,
  PortSpec,
  SwitchOptions,
} from './types.ts';

/** What differs between a switch and a configuration. */
export interface Difference {
  /** Names of ports, in the order in which they are worked on: first what goes, then what comes. */
  remove: string[];
  /** Ports of which only what can be set while they are there differs. */
  set: { name: string; change: PortChange }[];
  /** Ports that are there otherwise: they go, and come as the configuration has them. */
  change: PortSpec[];
  add: PortSpec[];
  unchanged: string[];
  bridges: { add: BridgeSpec[]; set: BridgeSpec[]; remove: string[] };
  fdb: { add: AddressSpec[]; remove: AddressSpec[] };
  groups: { add: GroupSpec[]; remove: GroupSpec[] };
  mirrors: { add: MirrorSpec[]; set: MirrorSpec[]; remove: string[] };
  /** Settings of the switch with their new values. */
  settings: Settings;
}

/** What a running switch can be told anew. */
const SETTINGS = ['ageing', 'maxAddressesPerPort', 'maxPorts'] as const;
export type Settings = Pick<SwitchOptions, (typeof SETTINGS)[number]>;
/** What it is born with. */
const FIXED = ['name', 'workers', 'cpus', 'poll'] as const;

/** Equal where every field has the same value; one without a value is as good as absent. */
function same(one: object, other: object): boolean {
  const given = (value: object) =>
    Object.fromEntries(Object.entries(value).filter(([, field]) => field !== undefined));
  return isDeepStrictEqual(given(one), given(other));
}

const fixed = (spec: PortSpec) =>
  Object.fromEntries(Object.entries(spec).filter(([field]) => !SETTABLE.includes(field)));

/** All that can be set: what the specification has no word of goes back to its default. */
const settable = (spec: PortSpec): PortChange =>
  Object.fromEntries(SETTABLE.map((field) => [field, spec[field as keyof PortSpec] ?? null]));

/** Of a list whose entries only come and go. */
function listDifference<T extends object>(current: T[], wanted = current): { add: T[]; remove: T[] } {
  const without = (list: T[], others: T[]) =>
    list.filter((spec) => !others.some((other) => same(spec, other)));
  return { add: without(wanted, current), remove: without(current, wanted) };
}

/** Of a list whose entries have names, and can be set anew. */
function namedDifference<T extends { name: string }>(
  current: readonly T[],
  wanted = current,
): { add: T[]; set: T[]; remove: string[] } {
  const found: { add: T[]; set: T[]; remove: string[] } = { add: [], set: [], remove: [] };
  const all = (list: readonly T[]) => new Map(list.map((spec) => [spec.name, spec]));
  const [there, asked] = [all(current), all(wanted)];
  for (const [name, spec] of asked) {
    const before = there.get(name);
    if (!before) found.add.push(spec);
    else if (!same(before, spec)) found.set.push(spec);
  }
  found.remove.push(...[...there.keys()].filter((name) => !asked.has(name)));
  return found;
}

/** The default one is always there, in a list or not. */
const withDefault = (list: BridgeSpec[]) => [{ name: DEFAULT_BRIDGE }, ...list];

/** Throws SwitchError `BAD_SPEC` where a port is to be on a bridge that isn't there. */
function checkBridges(ports: readonly PortSpec[], bridges: readonly BridgeSpec[]): void {
  const known = [...new Set(bridges.map(({ name }) => name))];
  for (const [index, { name, bridge = DEFAULT_BRIDGE }] of ports.entries()) {
    if (known.includes(bridge)) continue;
    const field = `ports[${index}].bridge`;
    const message = `${field}: expected a bridge that is there (${known.join(', ')}) for port ${name}, found ${JSON.stringify(bridge)}: name it under \`bridges\`, or add it before`;
    throw new SwitchError('BAD_SPEC', message, field);
  }
}

/**
 * What `wanted` asks of a switch that is as `current` says. Settings that `wanted` doesn't have stay as they are, and
 * so do all ports where it has no list of them. Throws SwitchError `BAD_SPEC` for what only a new start can change.
 */
export function difference(current: SwitchOptions, wanted: SwitchOptions): Difference {
  for (const field of FIXED) {
    if (wanted[field] === undefined || isDeepStrictEqual(current[field], wanted[field])) continue;
    throw new SwitchError(
      'BAD_SPEC',
      `${field}: expected ${JSON.stringify(current[field]) ?? 'none'}, which a running switch can't change, found ${JSON.stringify(wanted[field])}: leave it out, or start the switch anew`,
      field,
    );
  }
  const settings = Object.fromEntries(
    SETTINGS.filter((key) => wanted[key] !== undefined && wanted[key] !== current[key]).map((key) => [
      key,
      wanted[key],
    ]),
  );
  const there = new Map((current.ports ?? []).map((spec) => [spec.name, spec]));
  const bridges = namedDifference<BridgeSpec>(
    withDefault(current.bridges ?? []),
    wanted.bridges && withDefault(wanted.bridges),
  );
  const fdb = listDifference(current.fdb ?? [], wanted.fdb);
  const groups = listDifference(current.groups ?? [], wanted.groups);
  const mirrors = namedDifference(current.mirrors ?? [], wanted.mirrors);
  const found: Difference = {
    remove: [],
    set: [],
    change: [],
    add: [],
    unchanged: [],
    bridges,
    fdb,
    groups,
    mirrors,
    settings,
  };
  if (wanted.ports === undefined) return { ...found, unchanged: [...there.keys()] };
  // With a list of bridges, that they are among them is checked with it.
  if (wanted.bridges === undefined) checkBridges(wanted.ports, withDefault(current.bridges ?? []));
  for (const spec of wanted.ports) {
    const before = there.get(spec.name);
    there.delete(spec.name);
    if (before === undefined) found.add.push(spec);
    else if (same(before, spec)) found.unchanged.push(spec.name);
    else if (same(fixed(before), fixed(spec))) found.set.push({ name: spec.name, change: settable(spec) });
    else found.change.push(spec);
  }
  found.remove.push(...there.keys());
  // A bond goes and comes with its members.
  const change = new Set(found.change.map(({ name }) => name));
  for (const spec of wanted.ports) {
    if (
      change.has(spec.name) ||
      found.add.includes(spec) ||
      !membersOf(spec).some((name) => change.has(name))
    )
      continue;
    found.set = found.set.filter(({ name }) => name !== spec.name);
    found.unchanged = found.unchanged.filter((name) => name !== spec.name);
    found.change.push(spec);
  }
  return found;
}
