/** What a port can't be beside the others of its switch: each check throws a SwitchError or returns. */
import { fieldsOfBond, memberFault, membersOf } from '../bond/members.ts';
import { type Bridges, bridgeOf } from './bridges.ts';
import { SwitchError } from './errors.ts';
import { type Entry, isMember, type PortTable } from './port-table.ts';
import { isShared } from './spec.ts';
import type { PortSpec } from './types.ts';

/** `monitors`: names of the ports that mirrors copy to. Throws a SwitchError, BAD_SPEC or PORT_EXISTS. */
export function checkNewPort(
  spec: PortSpec,
  ports: PortTable,
  bridges: Bridges,
  monitors: ReadonlySet<string>,
): void {
  if (ports.isTaken(spec.name)) {
    const message = `a port named ${JSON.stringify(spec.name)} exists: choose another name`;
    throw new SwitchError('PORT_EXISTS', message, 'name');
  }
  checkRival(spec, ports);
  bridges.index(spec.bridge);
  checkPatch(spec, ports);
  checkFollows(spec, ports);
  checkBond(spec, ports, monitors);
}

/** One that is there, as it will be. Throws a SwitchError, BAD_SPEC. */
export function checkChangedPort(spec: PortSpec, ports: PortTable, bridges: Bridges): void {
  bridges.index(spec.bridge);
  checkPatch(spec, ports);
  checkFollows(spec, ports);
  checkMember(spec, ports);
}

/** One that is to go. Throws a SwitchError, IN_USE. */
export function checkUnused(entry: Entry, ports: PortTable): void {
  const { name } = entry.spec;
  // Of a bond that goes, too, as long as it may send there.
  const bond = ports.bondOf(name)?.spec.name ?? 'a bond';
  const use = isMember(entry) ? `it is a member of ${bond}: remove that first` : entry.port.inUse?.();
  if (use) throw new SwitchError('IN_USE', `port ${name}: ${use}`, 'name');
}

/** Two ports would be at one socket, file or device. */
function checkRival(spec: PortSpec, ports: PortTable): void {
  const rival = ports.specs().find(({ target }) => target === spec.target);
  if (rival && !isShared(spec))
    throw new SwitchError('BAD_SPEC', `port ${rival.name} has ${spec.target} already`, 'target');
}

/** A cable with both ends on one bridge would be a loop. */
function checkPatch({ name, type, target, ...spec }: PortSpec, ports: PortTable): void {
  const peer = ports.get(target)?.spec;
  if (type !== 'patch' || peer?.type !== 'patch' || peer.target !== name) return;
  if (bridgeOf(peer) !== bridgeOf(spec)) return;
  throw new SwitchError(
    'BAD_SPEC',
    `bridge: expected another bridge than that of ${target}, the other end, found ${JSON.stringify(bridgeOf(spec))}`,
    'bridge',
  );
}

/** A link follows one that follows none: there is no circle, in which all would stay down. */
function checkFollows({ name, linkFollows }: PortSpec, ports: PortTable): void {
  if (linkFollows === undefined) return;
  const specs = ports.specs();
  const one = specs.find((spec) => spec.name === linkFollows && spec.linkFollows !== undefined);
  const other = specs.find((spec) => spec.linkFollows === name);
  if (!one && !other) return;
  const why = one ? `which follows ${one.linkFollows}` : `and ${other!.name} follows this one`;
  const message = `linkFollows: expected a port whose link follows none, found ${JSON.stringify(linkFollows)}, ${why}`;
  throw new SwitchError('BAD_SPEC', message, 'linkFollows');
}

/** A bond's members are there, and nobody else's. */
function checkBond(spec: PortSpec, ports: PortTable, monitors: ReadonlySet<string>): void {
  const monitor = membersOf(spec).find((name) => monitors.has(name));
  const fault =
    monitor === undefined
      ? memberFault(spec, ports.specs())
      : `expected ports that no mirror copies to, found ${monitor}`;
  if (fault !== undefined) throw new SwitchError('BAD_SPEC', `target: ${fault}`, 'target');
}

/** What a member of a bond can't have, the bond has for it. */
function checkMember(spec: PortSpec, ports: PortTable): void {
  const bond = ports.bondOf(spec.name)?.spec.name;
  const field = bond === undefined ? undefined : fieldsOfBond(spec)[0];
  if (field === undefined) return;
  const message = `${field}: expected none for a member of ${bond}, found ${JSON.stringify(spec[field])}: set it for ${bond}`;
  throw new SwitchError('BAD_SPEC', message, field);
}
