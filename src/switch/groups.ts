/**
 * Groups, from the control plane (the data plane's side is src/dataplane/groups.ts): the table of each bridge that has
 * snooping on, what an operator has entered there, and what is shown of it.
 */
import { isIPv4, isIPv6, SocketAddress } from 'node:net';
import type { Arena, Range, Structures } from '../arena/index.ts';
import { ipNumber } from '../ports/addresses.ts';
import { SwitchError } from './errors.ts';
import { ANSWERED, type AskedPort, Querier } from './querier.ts';
import type { Family } from './queries.ts';
import { type Place, Statics } from './statics.ts';
import type { GroupEntry, GroupSpec, GroupsStatus, RouterEntry } from './types.ts';

/** Most groups that a port joins, unless it says otherwise. */
export const MAX_GROUPS_PER_PORT = 256;
const EVERY_PORT = 0xffff_ffff;

/** A port as the tables know it. */
export interface GroupPort extends AskedPort {
  bridge: number;
  /** Frames for groups all go there. */
  isRouter: boolean;
}

/** The address of a group in its shortest form; undefined: it is none, or one that all are in. */
export function groupAddress(text: unknown): string | undefined {
  if (typeof text !== 'string') return undefined;
  const value = ipNumber(text)?.value;
  if (value === undefined) return undefined;
  if (isIPv4(text)) return value >> 28n === 0xen && value >> 8n !== 0xe00000n ? text : undefined;
  const isGroup =
    value >> 120n === 0xffn && ((value >> 112n) & 0xfn) > 1n && value !== (0xff02n << 112n) + 1n;
  return isGroup ? new SocketAddress({ address: text, family: 'ipv6' }).address : undefined;
}

/** The address as two numbers of the data plane: bytes of the wire, loaded little-endian. */
function keyOf(group: string): [high: bigint, low: bigint] {
  const bytes = Buffer.alloc(16);
  const { bits, value } = ipNumber(group)!;
  for (let i = bits / 8 - 1, left = value; i >= 0; i--, left >>= 8n) bytes[i] = Number(left & 0xffn);
  const [first, second] = [bytes.readBigUInt64LE(0), bytes.readBigUInt64LE(8)];
  return bits === 32 ? [0n, first] : [first, second];
}

function addressText(high: bigint, low: bigint): string {
  const bytes = Buffer.alloc(16);
  if (high === 0n) {
    bytes.writeBigUInt64LE(low, 0);
    return bytes.subarray(0, 4).join('.');
  }
  bytes.writeBigUInt64LE(high, 0);
  bytes.writeBigUInt64LE(low, 8);
  const address = bytes.toString('hex').replace(/....(?=.)/g, '$&:');
  return isIPv6(address) ? new SocketAddress({ address, family: 'ipv6' }).address : '';
}

export class GroupTables {
  readonly #arena: Arena;
  readonly #structures: Structures;
  readonly #quiesce: () => Promise<void>;
  /** By the bridge's number. */
  readonly #tables = new Map<number, Range>();
  /** Numbers of bridges that ask. */
  readonly #asking = new Set<number>();
  readonly #querier: Querier;
  readonly statics: Statics<GroupSpec>;

  /** `quiesce` resolves when no worker can look at what was there before; `send` has a frame sent by a port. */
  constructor(
    arena: Arena,
    structures: Structures,
    quiesce: () => Promise<void>,
    send: (slot: number, frame: Buffer) => void,
  ) {
    this.#arena = arena;
    this.#structures = structures;
    this.#quiesce = quiesce;
    this.#querier = new Querier(arena, structures, send);
    const { pinMember, unpinMember } = arena.dataplane.functions;
    this.statics = new Statics<GroupSpec>({
      isSame: (one, other) => one.group === other.group && one.port === other.port,
      enter: ({ group }, { fid, slot }) => pinMember(this.#of(fid), ...keyOf(group), fid, slot),
      leave: ({ group }, { fid, slot }) => {
        const table = this.#of(fid);
        if (table !== 0) unpinMember(table, ...keyOf(group), fid, slot);
      },
      taken: ({ group, port }) =>
        new SwitchError('BAD_SPEC', `group: ${group} is entered for port ${port} already`, 'group'),
      full: ({ group }) => new SwitchError('LIMIT', `the bridge has no room for group ${group}`),
    });
  }

  #of(fid: number): number {
    return this.#tables.get(fid >>> 12)?.start ?? 0;
  }

  /** Has the bridge with this number snooping on? */
  has(bridge: number): boolean {
    return this.#tables.has(bridge);
  }

  /** Switches snooping on a bridge on or off, and whether it asks; refresh() follows. Throws a SwitchError, LIMIT. */
  set(bridge: number, on: boolean, asks = false): void {
    const before = this.#tables.get(bridge);
    const made = on && !before ? this.#make() : undefined;
    if (asks) this.#asking.add(bridge);
    else this.#asking.delete(bridge);
    if (on === (before !== undefined)) return;
    if (made) {
      this.#tables.set(bridge, made);
      this.#structures.bridge(bridge).set('groups', made.start);
    }
    if (!before) return;
    this.#querier.set(bridge, before.start, undefined);
    this.#structures.bridge(bridge).set('groups', 0);
    this.#tables.delete(bridge);
    void this.#free(before);
  }

  #make(): Range {
    try {
      return this.#arena.takeTable(this.#structures.constant('GROUPS_LENGTH'));
    } catch (error) {
      throw new SwitchError('LIMIT', `snooping: ${(error as Error).message}`, 'snooping');
    }
  }

  async #free(table: Range): Promise<void> {
    await this.#quiesce();
    // Ports count what they have joined.
    this.#arena.dataplane.functions.forgetMembers(table.start, EVERY_PORT, 0);
    this.#arena.freeTable(table);
  }

  /** Tells which ports there are, by their rules and bridges. */
  refresh(ports: readonly GroupPort[], placeOf: (spec: GroupSpec) => Place | undefined): void {
    for (const [bridge, { start }] of this.#tables) {
      const set = new Uint32Array(this.#structures.constant('MAX_PORTS') / 32);
      for (const port of ports)
        if (port.bridge === bridge && port.isRouter) set[port.slot >>> 5]! |= 1 << (port.slot & 31);
      this.#arena.u32.set(set, (start + this.#structures.constant('EVERY_GROUP')) >>> 2);
      const asked = ports.filter((port) => port.bridge === bridge);
      this.#querier.set(bridge, start, this.#asking.has(bridge) ? asked : undefined);
    }
    this.statics.refresh((spec) => this.#snooped(placeOf(spec)));
  }

  /** Without snooping there is no table to enter anything into: it waits. */
  #snooped(place: Place | undefined): Place | undefined {
    return place && this.has(place.fid >>> 12) ? place : undefined;
  }

  /** Enters a port into a group for good. Throws a SwitchError, BAD_SPEC or LIMIT. */
  add(spec: GroupSpec, place: Place): void {
    this.statics.add(spec, this.#snooped(place));
  }

  /** Takes out those that are meant. Throws a SwitchError, NO_SUCH_GROUP, where there are none. */
  remove(group: string, isMeant: (spec: GroupSpec) => boolean): void {
    const address = groupAddress(group);
    if (this.statics.remove((spec) => spec.group === address && isMeant(spec)).length > 0) return;
    throw new SwitchError(
      'NO_SUCH_GROUP',
      `no port was entered into a group ${JSON.stringify(group)} there: \`vireo groups\` lists them`,
      'group',
    );
  }

  /** Each second: forgets what is over, and asks where that is due. */
  tick(): void {
    for (const [bridge, { start }] of this.#tables) {
      if (this.#structures.groups(start).get('members') === 0) continue;
      this.#arena.dataplane.functions.forgetMembers(start, 0, 1);
      if (this.#asking.has(bridge)) this.#querier.question(bridge, this.#left(start));
    }
    if (this.#asking.size === 0) return;
    const { routers } = this.list(
      (bridge) => String(bridge),
      (slot) => String(slot),
    );
    const queriers = new Map(
      routers.map(({ bridge, vlan, family, querier }) => [`${bridge} ${vlan} ${family}`, querier?.address]),
    );
    this.#querier.tick((bridge, vlan, family) => queriers.get(`${bridge} ${vlan} ${family}`));
  }

  /** Groups that hosts have left, by the ports that they are behind. */
  #left(start: number): { slot: number; vlan: number; group: string }[] {
    const flag = this.#structures.constant('LEFT_MEMBER');
    const found: { slot: number; vlan: number; group: string }[] = [];
    for (let i = 1; i <= this.#structures.groups(start).get('used'); i++) {
      const member = this.#structures.member(start, i);
      const [place, number] = [member.get('port'), member.get('group')];
      if ((place & flag) === 0 || number === 0) continue;
      const group = this.#structures.group(start, number);
      const text = addressText(group.get64('high'), group.get64('low'));
      if (groupAddress(text) !== undefined)
        found.push({ slot: place & (flag - 1), vlan: group.get('fid') & 0xfff, group: text });
    }
    return found;
  }

  /**
   * Stations of the bridge may be behind other ports than before: until they have said again what they are in, frames
   * for groups go to all (RFC 4541, 2.1.1).
   */
  stir(bridge: number): void {
    const table = this.#tables.get(bridge);
    if (!table) return;
    const wait = this.#asking.has(bridge) ? ANSWERED : this.#structures.constant('REMEMBERED');
    this.#structures.groups(table.start).set('full', this.#structures.header.get('now') + wait);
    this.#querier.hurry(bridge);
  }

  /** Forgets what a port has joined: it goes, or goes elsewhere. */
  forget(slot: number): void {
    for (const { start } of this.#tables.values())
      this.#arena.dataplane.functions.forgetMembers(start, slot, 0);
  }

  /** What a port has joined; null: its bridge has no snooping. */
  ofPort(slot: number): { joined: number; limit: number; refused: number } | null {
    const port = this.#structures.port(slot);
    if (!this.has(port.get('bridge'))) return null;
    return {
      joined: port.get('groups'),
      limit: port.get('groupLimit'),
      refused: port.get('groupsRefused'),
    };
  }

  /** What is known, by the names of bridges and ports. */
  list(bridgeName: (index: number) => string, portName: (slot: number) => string | undefined): GroupsStatus {
    const found: GroupsStatus = { groups: [], routers: [] };
    for (const [index, { start }] of this.#tables) this.#listTable(start, bridgeName(index), portName, found);
    found.groups.sort((a, b) => a.vlan - b.vlan || (a.group < b.group ? -1 : 1));
    found.routers.sort((a, b) => a.vlan - b.vlan || (a.family < b.family ? -1 : 1));
    return found;
  }

  #listTable(
    start: number,
    bridge: string,
    portName: (slot: number) => string | undefined,
    found: GroupsStatus,
  ): void {
    const now = this.#structures.header.get('now');
    const [pinned, left] = [
      this.#structures.constant('PINNED_MEMBER'),
      this.#structures.constant('LEFT_MEMBER'),
    ];
    const byGroup = new Map<number, GroupEntry | RouterEntry>();
    for (let i = 1; i <= this.#structures.groups(start).get('used'); i++) {
      const member = this.#structures.member(start, i);
      const number = member.get('group');
      const place = member.get('port');
      const isStatic = place >= pinned;
      const port = portName(place & (left - 1));
      const expires = isStatic ? null : Math.max(0, member.get('until') - now);
      if (number === 0 || port === undefined || expires === 0) continue;
      let entry = byGroup.get(number);
      if (!entry) {
        const group = this.#structures.group(start, number);
        const vlan = group.get('fid') & 0xfff;
        const [high, low] = [group.get64('high'), group.get64('low')];
        if (high === 0n && low <= 2n) {
          const there = group.get('querierUntil') > now;
          const address = addressText(group.get64('querierHigh'), group.get64('querierLow'));
          const querierPort = portName(group.get('querierPort'));
          const family: Family = low === 1n ? 'IPv4' : 'IPv6';
          entry = {
            bridge,
            vlan,
            family,
            querier: there && querierPort !== undefined ? { address, port: querierPort } : null,
            ports: [],
          };
          found.routers.push(entry);
        } else {
          entry = { bridge, vlan, group: addressText(high, low), ports: [] };
          found.groups.push(entry);
        }
        byGroup.set(number, entry);
      }
      entry.ports.push({ port, static: isStatic, expires });
    }
  }
}
