/**
 * A switch: ports, a forwarding database and the workers that move packets between them.
 *
 * One switch owns one arena. The control plane (this) writes tables; the workers read them. See docs/architecture.md.
 */
import { randomBytes } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { readFileSync } from 'node:fs';
import { isDeepStrictEqual } from 'node:util';
import { Arena, Structures } from '../arena/index.ts';
import { type BondContext, BondPort } from '../bond/bond.ts';
import { bondOf, fieldsOfBond, memberFault, membersOf } from '../bond/members.ts';
import { Capture, type Choice } from '../capture/capture.ts';
import { CaptureFile, openAnew } from '../capture/file.ts';
import { FilterError } from '../capture/filter.ts';
import { IoThreads } from '../io/index.ts';
import { packetSockets } from '../ports/af-packet.ts';
import { xdpSockets } from '../ports/af-xdp.ts';
import { openDgramEnd } from '../ports/dgram.ts';
import { InterfaceEnd } from '../ports/interface.ts';
import { KernelPort } from '../ports/kernel-port.ts';
import { NullEnd } from '../ports/null.ts';
import { PatchEnd, type Patches } from '../ports/patch.ts';
import { PcapEnd } from '../ports/pcap.ts';
import type { Port, PortContext } from '../ports/port.ts';
import { StreamEnd } from '../ports/stream.ts';
import { TapEnd } from '../ports/tap.ts';
import { UserEnd } from '../ports/user.ts';
import { VdusePort } from '../ports/vduse.ts';
import { VhostUserPort } from '../ports/vhost-user.ts';
import { VxlanEnd } from '../ports/vxlan.ts';
import { isBpdu } from '../rstp/bpdu.ts';
import { Rstp } from '../rstp/rstp.ts';
import { PortRules, RULE_FIELDS } from '../rules/index.ts';
import { REASONS } from '../rules/reasons.ts';
import type { Beside, RuledPort } from '../rules/rule.ts';
import { askedIn, hasVlans, vlansOf } from '../rules/vlan.ts';
import { type PollerLease, sharedPoller } from '../sys/index.ts';
import { rarp } from '../vhost/announcement.ts';
import { Workers } from '../workers/workers.ts';
import { difference } from './apply.ts';
import { Bridges, bridgeOf, DEFAULT_BRIDGE } from './bridges.ts';
import { SwitchError } from './errors.ts';
import { GroupTables, groupAddress, MAX_GROUPS_PER_PORT } from './groups.ts';
import { Mirrors, targetOf } from './mirrors.ts';
import {
  changeBridgeSpec,
  changePortSpec,
  checkAddressSpec,
  checkBridgeSpec,
  checkCaptureOptions,
  checkGroupSpec,
  checkMirrorSpec,
  checkPortSpec,
  checkSwitchOptions,
  isShared,
} from './spec.ts';
import { staticAddresses } from './static-addresses.ts';
import type { Place } from './statics.ts';
import type {
  AddressFilter,
  AddressSpec,
  Applied,
  BridgeChange,
  BridgeSpec,
  BridgeStatus,
  CaptureOptions,
  CaptureStream,
  FdbEntry,
  GroupSpec,
  GroupsStatus,
  MirrorSpec,
  MirrorStatus,
  PortChange,
  PortDetail,
  PortSpec,
  PortStatus,
  SwitchEvents,
  SwitchOptions,
  SwitchStatus,
} from './types.ts';

const AGEING = 300;
const MAX_ADDRESSES = 65_536;
const MAX_ADDRESSES_PER_PORT = 4096;
/** Milliseconds between two ticks of the data plane's clock. */
const TICK = 1000;
/** Ticks between two sweeps for addresses that are too old. */
const SWEEP = 15;
const EVERY_PORT = 0xffff_ffff;
const BAD_LACPDU = REASONS.findIndex(({ name }) => name === 'badLacpdu');

const version: string = JSON.parse(
  readFileSync(new URL(import.meta.resolve('vireo/package.json')), 'utf8'),
).version;

/**
 * Starts a switch: its workers poll and its ports listen or dial when the promise resolves.
 * Rejects with a SwitchError that names the field or the socket; nothing is left behind then.
 */
export async function createSwitch(options: SwitchOptions = {}): Promise<Switch> {
  const {
    ports = [],
    bridges = [],
    fdb = [],
    groups = [],
    mirrors = [],
    ...rest
  } = checkSwitchOptions(options);
  const vswitch = new Switch(rest);
  try {
    await vswitch.start();
    for (const { name, ...fields } of bridges)
      if (name === DEFAULT_BRIDGE) await vswitch.setBridge(name, fields);
      else await vswitch.addBridge({ name, ...fields });
    for (const spec of bondsLast(ports)) await vswitch.addPort(spec);
    for (const spec of fdb) await vswitch.addAddress(spec);
    for (const spec of groups) await vswitch.addGroup(spec);
    for (const spec of mirrors) await vswitch.addMirror(spec);
  } catch (error) {
    await vswitch.close();
    throw error;
  }
  return vswitch;
}

/** A port of the switch, with its place in the data plane. */
interface Entry {
  port: Port;
  slot: number;
  rules: PortRules;
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
  /** As it is now: the port's own has the rules that it came with. */
  spec: PortSpec;
}

/** Made by createSwitch(). Emits the events of SwitchEvents. */
export class Switch extends EventEmitter<SwitchEvents> {
  readonly name: string;
  #options: SwitchOptions;
  readonly #arena = new Arena();
  readonly #structures = new Structures(this.#arena);
  readonly #workers: Workers;
  readonly #io: IoThreads;
  readonly #poller: PollerLease = sharedPoller();
  readonly #ports = new Map<string, Entry>();
  readonly #groups = new GroupTables(
    this.#arena,
    this.#structures,
    () => this.#workers.quiesce(),
    (slot, frame) => void this.#workers.send(slot, frame),
  );
  readonly #bridges = new Bridges(this.#structures, this.#groups);
  readonly #rstp: Rstp;
  readonly #mirrors = new Mirrors(this.#arena, this.#structures, (port) => this.#bondOf(port) !== undefined);
  readonly #patches: Patches = new Map();
  /** Those that are being removed. */
  readonly #leaving = new Set<Entry>();
  readonly #captures = new Set<Capture>();
  #lastCapture = 0;
  readonly #statics = staticAddresses(this.#arena);
  /** Who takes the frames that ports hand over (src/rules/protocols.ts), by index in the data plane. */
  readonly #listeners = new Map<number, (frame: Buffer) => void>();
  /** Names that are being added or removed. */
  readonly #busy = new Set<string>();
  readonly #started = performance.now();
  #clock: NodeJS.Timeout | null = null;
  #ticks = 0;
  #closing: Promise<void> | null = null;
  /** One configuration at a time. */
  #applied: Promise<unknown> = Promise.resolve();

  /** Use createSwitch(). */
  constructor(options: SwitchOptions) {
    super();
    this.name = options.name ?? 'vireo';
    this.#options = options;
    const { header } = this.#structures;
    header.set64('fdbSeed', randomBytes(8).readBigUInt64LE());
    header.set('fdbLimit', MAX_ADDRESSES);
    header.set('ageing', options.ageing ?? AGEING);
    const count = options.workers ?? options.cpus?.length ?? 1;
    // The packets of every guest pass through the workers: a switch without one must not pretend to run. Where
    // nobody listens this ends the process, as every 'error' event does.
    const onFailure = (error: Error) => void this.emit('error', error);
    this.#io = new IoThreads(this.#arena, count, onFailure);
    this.#workers = new Workers(this.#arena, this.#structures, {
      count,
      cpus: options.cpus ?? [],
      busy: options.poll === 'busy',
      onBroken: () => {
        for (const { port } of this.#ports.values()) port.reportBroken();
      },
      onFrame: (slot, frame) => {
        if (isBpdu(frame)) this.#rstp.receive(slot, frame);
        else this.#listeners.get(slot)?.(frame);
      },
      onFailure,
    });
    this.#rstp = new Rstp({
      arena: this.#arena,
      structures: this.#structures,
      workers: this.#workers,
      onChange: (bridge) => this.#groups.stir(this.#bridges.index(bridge)),
      onShut: (port) =>
        this.emit('portError', { port, error: 'bpduGuard: a bridge is behind the port, which is shut' }),
    });
  }

  /** Use createSwitch(). */
  async start(): Promise<void> {
    this.#tick();
    this.#clock = setInterval(() => this.#tick(), TICK);
    await this.#workers.start();
  }

  #tick(): void {
    this.#structures.header.set('now', Math.floor(performance.now() / 1000));
    this.#groups.tick();
    this.#rstp.tick();
    if (++this.#ticks % SWEEP === 0) this.#arena.dataplane.functions.flush(EVERY_PORT, 1);
  }

  /**
   * Adds a port. Rejects with a SwitchError: BAD_SPEC, PORT_EXISTS, LIMIT or SOCKET.
   * `socketFd`: a unix socket that is open already, one that listens or a connection; then `target` is only its
   * name, and a connection is served until it ends (state `failed`).
   */
  async addPort(input: PortSpec, { socketFd }: { socketFd?: number } = {}): Promise<void> {
    const spec = checkPortSpec(input);
    const { name } = spec;
    if (this.#closing) throw new SwitchError('LIMIT', 'the switch is closing');
    if (this.#ports.has(name) || this.#busy.has(name)) {
      throw new SwitchError(
        'PORT_EXISTS',
        `a port named ${JSON.stringify(name)} exists: choose another name`,
        'name',
      );
    }
    const rival = [...this.#ports.values()].find((other) => other.spec.target === spec.target)?.spec;
    if (rival && !isShared(spec)) {
      throw new SwitchError('BAD_SPEC', `port ${rival.name} has ${spec.target} already`, 'target');
    }
    const bridge = this.#bridges.index(spec.bridge);
    this.#checkPatch(spec);
    this.#checkFollows(spec);
    this.#checkBond(spec);
    const slot = this.#freeSlot();
    const struct = this.#structures.port(slot);
    struct.set('addresses', 0);
    struct.set('notLearned', 0);
    struct.set('groupFlags', 0);
    struct.set('groupLimit', MAX_GROUPS_PER_PORT);
    struct.set('groupsRefused', 0);
    struct.set('bridge', bridge);
    struct.set('used', 1);
    const rules = new PortRules({
      arena: this.#arena,
      structures: this.#structures,
      slot,
      quiesce: () => this.#workers.quiesce(),
    });
    try {
      this.#spreadVlans(spec);
      const vlanAware = this.#vlanAware(spec);
      const spanned = this.#isSpanned(spec);
      const unplugged = this.#isUnplugged(spec);
      rules.write({ ...spec, vlanAware, spanned, unplugged });
      const entry: Entry = {
        port: undefined as never,
        slot,
        rules,
        vlanAware,
        spanned,
        beside: {},
        carrier: false,
        unplugged,
        spec,
      };
      const port = openPort(spec, {
        ...this.#bondContext(spec),
        arena: this.#arena,
        structures: this.#structures,
        workers: this.#workers,
        io: this.#io,
        poller: this.#poller.poller,
        patches: this.#patches,
        slot,
        socketFd,
        maxAddresses: spec.maxAddresses ?? this.#options.maxAddressesPerPort ?? MAX_ADDRESSES_PER_PORT,
        events: {
          guestUp: () => {
            this.#link(entry, true);
            this.emit('guestUp', { port: name });
          },
          guestDown: (reason) => {
            this.#link(entry, false);
            this.emit('guestDown', { port: name, reason });
          },
          queueBroken: (queue, reason) => this.emit('queueBroken', { port: name, queue, reason }),
          portError: (error) => this.emit('portError', { port: name, error }),
        },
      });
      this.#ports.set(name, Object.assign(entry, { port }));
      if (unplugged) port.setLink?.(false);
      if (port instanceof BondPort) await this.#join(entry, port);
      this.#countPorts();
      this.#refreshGroups();
    } catch (error) {
      const entry = this.#ports.get(name);
      this.#ports.delete(name);
      if (entry?.port instanceof BondPort) {
        await this.#part(entry.port);
        await entry.port.close();
      }
      await rules.close();
      struct.set('used', 0);
      await this.#settleVlans();
      throw new SwitchError('SOCKET', `port ${name}: ${(error as Error).message}`, 'target');
    }
    const { header } = this.#structures;
    if (slot >= header.get('portCount')) header.set('portCount', slot + 1);
    this.#settleLinks();
    await this.#span();
    for (const capture of this.#captures) await this.#look(capture, name);
    await this.#rewire(name);
  }

  #countPorts(): void {
    this.#bridges.count(this.#bridged().map(({ spec }) => spec));
  }

  /** Is a port in a spanning tree, once it is as its specification says? */
  #isSpanned(spec: PortSpec): boolean {
    if (this.#mirrors.monitors().has(spec.name)) return false;
    return Rstp.isSpanned(this.#bridges.get(bridgeOf(spec)), spec);
  }

  /** Brings the spanning trees to the bridges and ports as they are now. Rejects with ArenaFullError. */
  async #span(): Promise<void> {
    const all = this.#bridged();
    const change = (entry: Entry, spanned: boolean) => {
      entry.spanned = spanned;
      entry.rules.write(ruled(entry));
    };
    // Who comes into a tree discards before anything else, who leaves one goes on when nobody decides for it any more.
    const coming = all.filter(({ spanned, spec }) => !spanned && this.#isSpanned(spec));
    const leaving = [...this.#ports.values()].filter(
      ({ spanned, spec }) => spanned && !this.#isSpanned(spec),
    );
    for (const entry of coming) change(entry, true);
    this.#rstp.update(this.#bridges.list(), all);
    for (const entry of leaving) change(entry, false);
    for (const { rules } of [...coming, ...leaving]) await rules.settle();
  }

  #freeSlot(): number {
    const most = this.#structures.constant('MAX_PORTS');
    const limit = this.#options.maxPorts ?? most;
    for (let slot = 0; slot < limit; slot++) if (this.#structures.port(slot).get('used') === 0) return slot;
    const more = limit < most ? `maxPorts may be raised to ${most}` : 'start another one beside it';
    throw new SwitchError('LIMIT', `the switch has ${limit} ports, which is its limit: ${more}`);
  }

  /** Removes a port: its guest loses its link, others notice nothing. Rejects with a SwitchError: NO_SUCH_PORT, IN_USE. */
  async removePort(name: string): Promise<void> {
    this.#find(name);
    const mirrors = this.#mirrors.needing(name);
    if (mirrors.length > 0)
      throw new SwitchError(
        'IN_USE',
        `port ${name}: mirror ${mirrors[0]} names it: remove that first`,
        'name',
      );
    await this.#dropPort(name);
  }

  /** The same for a port that comes again, which mirrors wait for. */
  async #dropPort(name: string): Promise<void> {
    const entry = this.#find(name);
    // Of one that goes, too, as long as it may send there.
    const bond = this.#bondOf(name)?.spec.name ?? 'a bond';
    const use = isMember(entry) ? `it is a member of ${bond}: remove that first` : entry.port.inUse?.();
    if (use) throw new SwitchError('IN_USE', `port ${name}: ${use}`, 'name');
    this.#ports.delete(name);
    this.#settleLinks();
    this.#countPorts();
    this.#rstp.leave(name);
    this.#busy.add(name);
    this.#leaving.add(entry);
    try {
      await this.#rewire(name);
      await this.#workers.sent();
      if (entry.port instanceof BondPort) await this.#part(entry.port);
      await entry.port.close();
      await entry.rules.close();
      for (const capture of this.#captures) capture.remove(name);
      this.#statics.remove(({ port }) => port === name);
      this.#groups.statics.remove(({ port }) => port === name);
      this.#groups.forget(entry.slot);
      this.#structures.port(entry.slot).set('used', 0);
    } finally {
      this.#busy.delete(name);
      this.#leaving.delete(entry);
      await this.#settleVlans();
    }
  }

  /**
   * Sets rules of a port anew, and the bound of its addresses; null brings a field back to its default. Rejects with a
   * SwitchError, NO_SUCH_PORT, LIMIT or BAD_SPEC, and then nothing has changed.
   */
  async setPort(name: string, change: PortChange): Promise<void> {
    const entry = this.#find(name);
    const spec = changePortSpec(entry.spec, change);
    const bridge = this.#bridges.index(spec.bridge);
    this.#checkPatch(spec);
    this.#checkFollows(spec);
    this.#checkMember(spec);
    try {
      // Others have their tags before this one tells frames by them, and lose them after it.
      this.#spreadVlans(spec);
      const vlanAware = this.#vlanAware(spec);
      // Whatever tree it leaves or comes into: it discards until it is there.
      if (bridgeOf(entry.spec) !== bridgeOf(spec)) this.#rstp.leave(name);
      const spanned = entry.spanned || (!isMember(entry) && this.#isSpanned(spec));
      await entry.rules.set({ ...spec, ...entry.beside, vlanAware, spanned, unplugged: entry.unplugged });
      entry.spanned = spanned;
      const struct = this.#structures.port(entry.slot);
      const place = isMember(entry) ? this.#structures.constant('NO_BRIDGE') : bridge;
      const moved = struct.get('bridge') !== place || !isDeepStrictEqual(vlansOf(entry.spec), vlansOf(spec));
      struct.set('bridge', place);
      Object.assign(entry, { spec, vlanAware });
      this.#settleLinks();
      this.#countPorts();
      if (moved) {
        // A burst in work learns addresses where the port was.
        await this.#workers.quiesce();
        this.#arena.dataplane.functions.flush(entry.slot, 0);
        this.#groups.forget(entry.slot);
      }
    } catch (error) {
      throw new SwitchError('LIMIT', `port ${name}: ${(error as Error).message}`);
    } finally {
      await this.#settleVlans();
      await this.#span();
    }
    const most = spec.maxAddresses ?? this.#options.maxAddressesPerPort ?? MAX_ADDRESSES_PER_PORT;
    this.#structures.port(entry.slot).set('addressLimit', most);
    await this.#rewire(name);
  }

  /** The ports that bridges know: all but the members of bonds, and those that mirrors copy to. */
  #bridged(): Entry[] {
    const monitors = this.#mirrors.monitors();
    return [...this.#ports.values()].filter((entry) => !isMember(entry) && !monitors.has(entry.spec.name));
  }

  #bondOf(name: string): Entry | undefined {
    const spec = bondOf(
      name,
      [...this.#ports.values()].map((entry) => entry.spec),
    );
    return spec && this.#ports.get(spec.name);
  }

  #checkBond(spec: PortSpec): void {
    const fault = memberFault(
      spec,
      [...this.#ports.values()].map((entry) => entry.spec),
    );
    const monitor = membersOf(spec).find((name) => this.#mirrors.monitors().has(name));
    if (monitor !== undefined)
      throw new SwitchError(
        'BAD_SPEC',
        `target: expected ports that no mirror copies to, found ${monitor}`,
        'target',
      );
    if (fault !== undefined) throw new SwitchError('BAD_SPEC', `target: ${fault}`, 'target');
  }

  /** What a member of a bond can't have, the bond has for it. */
  #checkMember(spec: PortSpec): void {
    const bond = this.#bondOf(spec.name)?.spec.name;
    const field = bond === undefined ? undefined : fieldsOfBond(spec)[0];
    if (field === undefined) return;
    const message = `${field}: expected none for a member of ${bond}, found ${JSON.stringify(spec[field])}: set it for ${bond}`;
    throw new SwitchError('BAD_SPEC', message, field);
  }

  #bondContext(spec: PortSpec): Pick<BondContext, 'member' | 'moved'> {
    return {
      member: (name) => {
        const entry = this.#ports.get(name)!;
        return { slot: entry.slot, isUp: () => isUp(entry), status: () => withRules(entry) };
      },
      moved: () => this.#announceBehind(spec.name),
    };
  }

  /** A port finds that frames pass, or none any more. */
  #link(entry: Entry, carrier: boolean): void {
    entry.carrier = carrier;
    this.#linkChanged(entry);
    this.#settleLinks();
  }

  #linkChanged(entry: Entry): void {
    this.#rstp.link(entry.spec.name);
    const bond = isMember(entry) && this.#bondOf(entry.spec.name)?.port;
    if (bond instanceof BondPort) bond.linkChanged(entry.spec.name, isUp(entry));
  }

  /** A link follows one that follows none: there is no circle, in which all would stay down. */
  #checkFollows({ name, linkFollows }: PortSpec): void {
    if (linkFollows === undefined) return;
    const specs = [...this.#ports.values()].map(({ spec }) => spec);
    const one = specs.find((spec) => spec.name === linkFollows && spec.linkFollows !== undefined);
    const other = specs.find((spec) => spec.linkFollows === name);
    if (!one && !other) return;
    const why = one ? `which follows ${one.linkFollows}` : `and ${other!.name} follows this one`;
    const message = `linkFollows: expected a port whose link follows none, found ${JSON.stringify(linkFollows)}, ${why}`;
    throw new SwitchError('BAD_SPEC', message, 'linkFollows');
  }

  /** Is a port's link down by what is set for it? */
  #isUnplugged({ link, linkFollows }: PortSpec): boolean {
    if (link === 'down') return true;
    if (linkFollows === undefined) return false;
    const other = this.#ports.get(linkFollows);
    return !other?.carrier || other.spec.link === 'down';
  }

  /** Brings all links to what is set for them, and to those that they follow. */
  #settleLinks(): void {
    for (const entry of this.#ports.values()) {
      const unplugged = this.#isUnplugged(entry.spec);
      if (unplugged === entry.unplugged) continue;
      entry.unplugged = unplugged;
      // Stages alone: the fields that say so have made room for them before.
      entry.rules.write(ruled(entry));
      entry.port.setLink?.(!unplugged);
      this.#linkChanged(entry);
    }
  }

  /** Makes ports the members of a bond: bridges know that alone from here on. Rejects with an ArenaFullError. */
  async #join(entry: Entry, bond: BondPort): Promise<void> {
    entry.beside = { bondAt: bond.at };
    entry.rules.write(ruled(entry));
    for (const member of bond.members.map((name) => this.#ports.get(name)!)) {
      const memberAt = bond.memberAt(member.spec.name);
      const { protocols } = bond;
      Object.assign(member, { beside: { memberAt, protocols }, vlanAware: false, spanned: false });
      this.#listeners.set(member.slot, (frame) => {
        if (!bond.receive(member.spec.name, frame)) member.rules.count(BAD_LACPDU);
      });
      this.#structures.port(member.slot).set('bridge', this.#structures.constant('NO_BRIDGE'));
      member.rules.write(ruled(member));
    }
    await this.#moved(bond);
    bond.start();
  }

  /** The members of a bond are ports of their own again. */
  async #part(bond: BondPort): Promise<void> {
    bond.stop();
    await this.#workers.quiesce();
    for (const member of bond.members.map((name) => this.#ports.get(name)!)) {
      this.#listeners.delete(member.slot);
      // In a tree it discards from the first frame on.
      Object.assign(member, { beside: {}, spanned: this.#isSpanned(member.spec) });
      member.rules.write(ruled(member));
      this.#structures.port(member.slot).set('bridge', this.#bridges.index(member.spec.bridge));
    }
    await this.#moved(bond);
  }

  /** What was learned of the members of a bond, and of the bond, is true no more. */
  async #moved(bond: BondPort): Promise<void> {
    this.#countPorts();
    await this.#settleVlans();
    await this.#span();
    await this.#workers.quiesce();
    for (const name of [...bond.members, bond.spec.name]) {
      const slot = this.#ports.get(name)?.slot;
      if (slot === undefined) continue;
      this.#arena.dataplane.functions.flush(slot, 0);
      this.#groups.forget(slot);
    }
  }

  /** Tells who is behind a bond where all others are. */
  #announceBehind(name: string): void {
    const entry = this.#ports.get(name);
    const state = this.#rstp.port(name)?.state ?? 'forwarding';
    if (!entry || state !== 'forwarding') return;
    const bridge = bridgeOf(entry.spec);
    const { members, pvid } = vlansOf(entry.spec);
    const tag = entry.spec.tags === '802.1ad' ? 0x88a8 : 0x8100;
    for (const { mac, vlan, ...other } of this.fdb()) {
      if (other.bridge !== bridge || other.port === name || (entry.vlanAware && !members.has(vlan))) continue;
      const tagged = entry.vlanAware && vlan !== pvid ? { type: tag, vlan } : undefined;
      void this.#workers.send(entry.slot, rarp(Buffer.from(mac.replaceAll(':', ''), 'hex'), tagged));
    }
  }

  /** A cable with both ends on one bridge would be a loop. */
  #checkPatch({ name, type, target, ...spec }: PortSpec): void {
    const peer = this.#ports.get(target)?.spec;
    if (type !== 'patch' || peer?.type !== 'patch' || peer.target !== name) return;
    if (bridgeOf(peer) !== bridgeOf(spec)) return;
    throw new SwitchError(
      'BAD_SPEC',
      `bridge: expected another bridge than that of ${target}, the other end, found ${JSON.stringify(bridgeOf(spec))}`,
      'bridge',
    );
  }

  /** The ports on the bridge of this one, but for itself. */
  #mates(spec: PortSpec): Entry[] {
    if (this.#bondOf(spec.name)) return [];
    return this.#bridged().filter(
      (other) => other.spec.name !== spec.name && bridgeOf(other.spec) === bridgeOf(spec),
    );
  }

  /** Has the port's bridge VLANs, once the port is as its specification says? */
  #vlanAware(spec: PortSpec): boolean {
    return hasVlans(spec) || this.#mates(spec).some((other) => hasVlans(other.spec));
  }

  /** Gives the other ports of a bridge that gets VLANs their place in them. Throws ArenaFullError. */
  #spreadVlans(spec: PortSpec): void {
    if (!hasVlans(spec)) return;
    for (const other of this.#mates(spec)) becomeAware(other, true);
  }

  /** Takes it from those of a bridge that has no VLANs any more; nothing changes for others. */
  async #settleVlans(): Promise<void> {
    const all = this.#bridged();
    const aware = new Set(all.filter(({ spec }) => hasVlans(spec)).map(({ spec }) => bridgeOf(spec)));
    const changed = all.filter((entry) => becomeAware(entry, aware.has(bridgeOf(entry.spec))));
    this.#statics.refresh((spec) => this.#placeOf(spec));
    this.#refreshGroups();
    for (const { rules } of changed) await rules.settle();
  }

  /** Tells the tables of groups what ports there are, and where those that were entered belong. */
  #refreshGroups(): void {
    const ports = this.#bridged().map(({ slot, spec, vlanAware }) => ({
      slot,
      ...(vlanAware ? askedIn(spec) : { names: [0], tag: untagged }),
      bridge: this.#bridges.index(spec.bridge),
      isRouter: spec.multicastRouter === 'always',
    }));
    this.#groups.refresh(ports, (spec) => {
      const place = this.#placeOf(spec);
      return place && this.#groups.has(place.fid >>> 12) ? place : undefined;
    });
  }

  #find(name: string): Entry {
    const entry = this.#ports.get(name);
    if (entry) return entry;
    const known = [...this.#ports.keys()].join(', ') || 'none';
    throw new SwitchError(
      'NO_SUCH_PORT',
      `no port is named ${JSON.stringify(name)}; there are: ${known}`,
      'name',
    );
  }

  /**
   * Adds a mirror. Rejects with a SwitchError, BAD_SPEC, MIRROR_EXISTS, LIMIT or SOCKET (the file), and then nothing
   * has changed.
   */
  async addMirror(input: MirrorSpec): Promise<void> {
    const spec = checkMirrorSpec(input);
    const check = () => {
      if (this.#closing) throw new SwitchError('LIMIT', 'the switch is closing');
      this.#mirrors.check(
        spec,
        [...this.#ports.values()].map((entry) => entry.spec),
      );
    };
    check();
    const path = targetOf(spec).file;
    const file = path === undefined ? undefined : await this.#openFile(path, this.#mirrors.choice(spec));
    try {
      // Others may have come while the file was opened.
      check();
      this.#mirrors.add(spec, file);
      await this.#wire();
    } catch (error) {
      if (this.#mirrors.list().includes(spec)) await this.removeMirror(spec.name);
      else await file?.close();
      if (error instanceof SwitchError) throw error;
      throw new SwitchError('LIMIT', `mirror ${spec.name}: ${(error as Error).message}`);
    }
  }

  async #openFile(path: string, choice: Choice): Promise<CaptureFile> {
    const file = await openAnew(path).catch((error: Error) => {
      throw new SwitchError('SOCKET', `to: ${path} can't be written: ${error.message}`, 'to');
    });
    try {
      return new CaptureFile(await this.#capture({ port: 'any' }, choice), file);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** Removes a mirror; resolves when it copies nothing any more. Rejects with a SwitchError, NO_SUCH_MIRROR. */
  async removeMirror(name: string): Promise<void> {
    await this.#mirrors.remove(name);
    await this.#wire();
  }

  mirrors(): MirrorStatus[] {
    return this.#mirrors.list().map(({ name }) => this.mirror(name));
  }

  /** One mirror. Throws a SwitchError, NO_SUCH_MIRROR. */
  mirror(name: string): MirrorStatus {
    return this.#mirrors.status(name, [...this.#ports.values()]);
  }

  /** Brings mirrors and ports together. Rejects with ArenaFullError. */
  async #wire(): Promise<void> {
    const entries = [...this.#ports.values()];
    const quiesce = () => this.#workers.quiesce();
    this.#countPorts();
    const fresh = this.#mirrors.wire(entries);
    for (const { spec } of fresh) this.#rstp.leave(spec.name);
    await this.#span();
    for (const { rules } of entries) await rules.settle();
    await this.#mirrors.settle(quiesce);
    if (fresh.length > 0) {
      // A burst in work learns addresses where nobody is to be any more.
      await quiesce();
      for (const { slot } of fresh) this.#arena.dataplane.functions.flush(slot, 0);
    }
    for (const capture of this.#captures) for (const entry of entries) await this.#review(capture, entry);
  }

  /** Ends or begins a capture's look at a port that was made a monitor, or is none any more. */
  async #review(capture: Capture, { rules, spec }: Entry): Promise<void> {
    const watch = capture.watchOf(spec.name);
    if (watch === undefined || capture.wants(spec.name)) return this.#look(capture, spec.name);
    await rules.watch(this.#watchesOf(spec.name).filter((at) => at !== watch));
    capture.remove(spec.name);
  }

  /** The same when a port has come, gone or changed. Without room for that it goes without. */
  async #rewire(port: string): Promise<void> {
    if (this.#mirrors.list().length === 0) return;
    try {
      await this.#wire();
    } catch (error) {
      this.emit('portError', { port, error: `not mirrored: ${(error as Error).message}` });
    }
  }

  /** Adds a bridge. Rejects with a SwitchError: BAD_SPEC, BRIDGE_EXISTS or LIMIT. */
  async addBridge(spec: BridgeSpec): Promise<void> {
    this.#bridges.add(checkBridgeSpec(spec));
    this.#refreshGroups();
    await this.#span();
  }

  /** Sets fields of a bridge anew, null: the default. Rejects with a SwitchError: NO_SUCH_BRIDGE or BAD_SPEC. */
  async setBridge(name: string, change: BridgeChange): Promise<void> {
    this.#bridges.set(changeBridgeSpec(this.#bridges.get(name), change));
    this.#refreshGroups();
    await this.#span();
  }

  /** Removes a bridge without ports. Rejects with a SwitchError: NO_SUCH_BRIDGE, BAD_SPEC, IN_USE. */
  async removeBridge(name: string): Promise<void> {
    const { ports } = this.bridge(name);
    if (name !== DEFAULT_BRIDGE && ports.length > 0) {
      const told = `${ports.slice(0, 10).join(', ')}${ports.length > 10 ? ' and others' : ''}`;
      const message = `bridge ${name}: it has the ports ${told}: remove them, or set their bridge anew`;
      throw new SwitchError('IN_USE', message, 'name');
    }
    this.#bridges.remove(name);
    await this.#span();
  }

  /** Every bridge, the default one first. */
  bridges(): BridgeStatus[] {
    const addresses = new Map<string, number>();
    for (const { bridge } of this.fdb()) addresses.set(bridge, (addresses.get(bridge) ?? 0) + 1);
    return this.#bridges.list().map(({ name, ageing, snooping = false, querier = false }) => {
      const ports = this.#bridged().filter(({ spec }) => bridgeOf(spec) === name);
      return {
        name,
        ageing: ageing ?? this.#options.ageing ?? AGEING,
        vlans: ports.some(({ vlanAware }) => vlanAware),
        reserved: this.#bridges.reserved(name),
        snooping,
        querier,
        ports: ports.map(({ spec }) => spec.name),
        addresses: addresses.get(name) ?? 0,
        ...given('spanningTree', this.#rstp.bridge(name)),
      };
    });
  }

  /** One bridge. Throws a SwitchError, NO_SUCH_BRIDGE. */
  bridge(name: string): BridgeStatus {
    this.#bridges.get(name);
    return this.bridges().find((bridge) => bridge.name === name)!;
  }

  /** The options that make a switch like this one, as it is now; defaults are written out. */
  config(): SwitchOptions {
    const { workers, cpus, poll, ageing, maxAddressesPerPort } = this.#options;
    return {
      ...this.#options,
      name: this.name,
      workers: workers ?? cpus?.length ?? 1,
      poll: poll ?? 'adaptive',
      ageing: ageing ?? AGEING,
      bridges: this.#bridges
        .list()
        .filter(({ name, ...fields }) => name !== DEFAULT_BRIDGE || Object.keys(fields).length > 0),
      maxAddressesPerPort: maxAddressesPerPort ?? MAX_ADDRESSES_PER_PORT,
      ports: [...this.#ports.values()].map(({ spec }) => spec),
      fdb: this.#statics.list(),
      groups: this.#groups.statics.list(),
      mirrors: this.#mirrors.list(),
    };
  }

  /**
   * Brings the switch to a configuration. Only what differs is touched: other ports lose no frame. Settings that
   * aren't given stay, and so do the ports where no list of them is given. Rejects with a SwitchError `BAD_SPEC`
   * before anything is done; a port that fails later is told in the result, and comes back as it was.
   */
  apply(options: SwitchOptions): Promise<Applied> {
    const turn = this.#applied.then(() => this.#apply(checkSwitchOptions(options)));
    this.#applied = turn.catch(() => {});
    return turn;
  }

  async #apply(wanted: SwitchOptions): Promise<Applied> {
    const found = difference(this.config(), wanted);
    const before = new Map([...this.#ports].map(([name, { spec }]) => [name, spec]));
    this.#set(found.settings);
    const { add, set, remove } = found.bridges;
    for (const spec of add) this.#bridges.add(spec);
    for (const spec of set) this.#bridges.set(spec);
    this.#refreshGroups();
    await this.#span();
    const applied: Applied = {
      added: [],
      removed: [],
      changed: [],
      unchanged: found.unchanged,
      bridges: { added: add.map(({ name }) => name), removed: [], changed: set.map(({ name }) => name) },
      fdb: { added: [], removed: found.fdb.remove.map(({ mac }) => mac) },
      groups: { added: [], removed: found.groups.remove.map(({ group }) => group) },
      mirrors: { added: [], removed: found.mirrors.remove.map(({ name }) => name), failed: [] },
      settings: Object.keys(found.settings),
      failed: [],
    };
    for (const name of applied.mirrors.removed) await this.removeMirror(name);
    const statics = this.#statics.list().filter((spec) => !found.fdb.remove.includes(spec));
    this.#statics.remove((spec) => found.fdb.remove.includes(spec));
    const groups = this.#groups.statics.list().filter((spec) => !found.groups.remove.includes(spec));
    this.#groups.statics.remove((spec) => found.groups.remove.includes(spec));
    const attempt = async (port: string, done: string[], act: () => Promise<void>) => {
      try {
        await act();
        done.push(port);
      } catch (error) {
        applied.failed.push({ port, error: (error as Error).message });
      }
    };
    // What goes and what changes goes before anything comes: ports may change places. Bonds go before their members.
    const gone: string[] = [];
    const leaving = [...found.remove, ...found.change.map(({ name }) => name)].map(
      (name) => before.get(name)!,
    );
    for (const { name } of bondsFirst(leaving))
      await attempt(name, found.remove.includes(name) ? applied.removed : gone, () =>
        found.remove.includes(name) ? this.removePort(name) : this.#dropPort(name),
      );
    for (const { name, change } of found.set)
      await attempt(name, applied.changed, () => this.setPort(name, change));
    const coming = [...found.change.filter(({ name }) => gone.includes(name)), ...found.add];
    for (const spec of bondsLast(coming))
      await attempt(spec.name, gone.includes(spec.name) ? applied.changed : applied.added, () =>
        this.addPort(spec),
      );
    for (const spec of bondsLast(applied.failed.flatMap(({ port }) => before.get(port) ?? []))) {
      // Its place may be taken by now; what failed is told already.
      if (!this.#ports.has(spec.name)) await this.addPort(spec).catch(() => {});
    }
    // Those of ports that went and came, and new ones.
    for (const spec of statics)
      if (this.#ports.has(spec.port) && !this.#statics.list().includes(spec))
        await attempt(spec.port, [], () => this.addAddress(spec));
    for (const spec of found.fdb.add)
      await attempt(spec.port, [], async () => {
        await this.addAddress(spec);
        applied.fdb.added.push(spec.mac);
      });
    for (const spec of groups)
      if (this.#ports.has(spec.port) && !this.#groups.statics.list().includes(spec))
        await attempt(spec.port, [], async () => void (await this.addGroup(spec)));
    for (const spec of found.groups.add)
      await attempt(spec.port, [], async () => {
        await this.addGroup(spec);
        applied.groups.added.push(spec.group);
      });
    for (const spec of found.mirrors.add) {
      await this.addMirror(spec).then(
        () => applied.mirrors.added.push(spec.name),
        (error: Error) => applied.mirrors.failed.push({ mirror: spec.name, error: error.message }),
      );
    }
    // One that ports stay on, for what failed or was not asked for, stays.
    for (const name of remove) await attempt(name, applied.bridges.removed, () => this.removeBridge(name));
    return applied;
  }

  #set(settings: Pick<SwitchOptions, 'ageing' | 'maxAddressesPerPort' | 'maxPorts'>): void {
    this.#options = { ...this.#options, ...settings };
    this.#structures.header.set('ageing', this.#options.ageing ?? AGEING);
    if (settings.maxAddressesPerPort === undefined) return;
    for (const { spec, slot } of this.#ports.values())
      if (spec.maxAddresses === undefined)
        this.#structures.port(slot).set('addressLimit', settings.maxAddressesPerPort);
  }

  /** Every port, in the order in which they were added. */
  ports(): PortStatus[] {
    return [...this.#ports.values()].map(withRules);
  }

  /** Everything about one port. Throws a SwitchError, NO_SUCH_PORT. */
  port(name: string): PortDetail {
    const entry = this.#find(name);
    const { port, rules, spec, slot } = entry;
    const bond = this.#bondOf(name);
    const detail = port.detail();
    const struct = this.#structures.port(slot);
    return {
      ...detail,
      ...turnedAway(detail, rules),
      ...whenUnplugged(entry),
      drops: { ...detail.drops, ...rules.drops() },
      groups: this.#groups.has(struct.get('bridge'))
        ? {
            joined: struct.get('groups'),
            limit: struct.get('groupLimit'),
            refused: struct.get('groupsRefused'),
          }
        : null,
      rules: rulesOf(spec),
      ...given('spanningTree', this.#rstp.port(name)),
      ...(bond && { bond: bond.spec.name }),
      mirrors: this.#mirrors.at({ slot, spec, rules }),
    };
  }

  /**
   * Captures the frames of a port, or of all: `stream()` of what is returned gives them as pcapng. To be closed, or
   * read to its end. Rejects with a SwitchError, BAD_SPEC, NO_SUCH_PORT or LIMIT.
   */
  async capture(input: CaptureOptions): Promise<CaptureStream> {
    const options = checkCaptureOptions(input);
    if (options.port !== 'any') this.#find(options.port);
    return this.#capture(options);
  }

  async #capture(options: CaptureOptions, choice?: Choice): Promise<Capture> {
    const most = this.#structures.constant('MAX_CAPTURES');
    if (this.#closing || this.#captures.size >= most)
      throw new SwitchError('LIMIT', `${most} captures run, which is the limit: end one of them`);
    const leave = async (capture: Capture) => {
      this.#captures.delete(capture);
      for (const { rules, spec } of [...this.#ports.values(), ...this.#leaving])
        await rules.watch(this.#watchesOf(spec.name));
    };
    let capture: Capture;
    try {
      const { count } = this.#workers;
      const id = ++this.#lastCapture;
      capture = new Capture(this.#arena, this.#structures, count, id, options, leave, choice);
    } catch (error) {
      if (error instanceof FilterError)
        throw new SwitchError('BAD_SPEC', `filter: ${error.message}`, 'filter');
      throw new SwitchError('LIMIT', `the capture: ${(error as Error).message}`);
    }
    this.#captures.add(capture);
    for (const name of [...this.#ports.keys()]) await this.#look(capture, name);
    return capture;
  }

  /** Lets a capture's stream end with what has come by now. Throws a SwitchError, NO_SUCH_CAPTURE. */
  stopCapture(id: number): void {
    const capture = [...this.#captures].find((one) => one.id === id);
    if (capture === undefined) throw new SwitchError('NO_SUCH_CAPTURE', `no capture has the number ${id}`);
    capture.stop();
  }

  /** Lets a capture look at a port that it wants. Without room for that it goes without. */
  async #look(capture: Capture, name: string): Promise<void> {
    const entry = this.#ports.get(name);
    if (entry === undefined || !capture.wants(name) || capture.watchOf(name) !== undefined) return;
    try {
      capture.add(name);
      await entry.rules.watch(this.#watchesOf(name));
    } catch (error) {
      this.emit('portError', { port: name, error: `not captured: ${(error as Error).message}` });
    }
  }

  #watchesOf(name: string): number[] {
    return [...this.#captures].flatMap((capture) => capture.watchOf(name) ?? []);
  }

  /** The addresses learned and not yet too old. */
  fdb(): FdbEntry[] {
    const { header } = this.#structures;
    const names = new Map([...this.#ports].map(([name, { slot }]) => [slot, name]));
    const at = this.#structures.constant('FDB');
    const stride = this.#structures.constant('ENTRY_STRIDE');
    const entries: FdbEntry[] = [];
    for (let i = 0; i < this.#structures.constant('FDB_SLOTS'); i++) {
      const entry = at + i * stride;
      const key = this.#arena.u64[entry >>> 3]!;
      if (key === 0n) continue;
      const port = names.get(Number(key >> 48n));
      const age = Math.max(0, header.get('now') - this.#arena.u32[(entry + 8) >>> 2]!);
      const fid = this.#arena.u32[(entry + 12) >>> 2]!;
      const bridge = this.#bridges.name((fid >>> 12) & 0xfff);
      const isStatic = fid >= this.#structures.constant('PINNED');
      const ageing = this.#bridges.get(bridge).ageing ?? header.get('ageing');
      if (port === undefined || (age > ageing && !isStatic)) continue;
      entries.push({ mac: formatMac(key), bridge, vlan: fid & 0xfff, port, static: isStatic, age });
    }
    return entries.sort((a, b) => (a.mac === b.mac ? a.vlan - b.vlan : a.mac < b.mac ? -1 : 1));
  }

  /**
   * Forgets learned addresses, all that the filter has, and with `static` those that were entered too; returns how
   * many. Rejects with a SwitchError, NO_SUCH_PORT or NO_SUCH_BRIDGE.
   */
  async flushFdb(filter: AddressFilter & { static?: boolean } = {}): Promise<number> {
    const slot = filter.port === undefined ? EVERY_PORT : this.#find(filter.port).slot;
    const bridge = filter.bridge === undefined ? undefined : this.#bridges.get(filter.bridge).name;
    const mask = (bridge === undefined ? 0 : 0xff_f000) | (filter.vlan === undefined ? 0 : 0xfff);
    const fid = (this.#bridges.index(bridge) << 12) | (filter.vlan ?? 0);
    const learned = this.#arena.dataplane.functions.flush(slot, 0, fid, mask);
    if (!filter.static) return learned;
    const isMeant = (place: Place | undefined) =>
      place !== undefined && (slot === EVERY_PORT || place.slot === slot) && ((place.fid ^ fid) & mask) === 0;
    return learned + this.#statics.remove((_, place) => isMeant(place)).length;
  }

  /** Enters an address for good. Rejects with a SwitchError: BAD_SPEC, NO_SUCH_PORT or LIMIT. */
  async addAddress(input: AddressSpec): Promise<void> {
    const spec = checkAddressSpec(input);
    this.#statics.add(spec, this.#checkedPlace(spec, spec.mac));
  }

  /**
   * Takes away an address that was entered, from all bridges and VLANs that the filter has. Rejects with a
   * SwitchError: NO_SUCH_ADDRESS, or that of the filter.
   */
  async removeAddress(mac: string, filter: AddressFilter = {}): Promise<void> {
    const port = filter.port === undefined ? undefined : this.#find(filter.port).spec.name;
    const bridge =
      filter.bridge === undefined ? undefined : this.#bridges.index(this.#bridges.get(filter.bridge).name);
    const gone = this.#statics.remove(
      (spec, place) =>
        spec.mac === mac.toLowerCase() &&
        (port === undefined || spec.port === port) &&
        (bridge === undefined || (place !== undefined && place.fid >>> 12 === bridge)) &&
        (filter.vlan === undefined || (place !== undefined && (place.fid & 0xfff) === filter.vlan)),
    );
    if (gone.length > 0) return;
    throw new SwitchError(
      'NO_SUCH_ADDRESS',
      `no address ${JSON.stringify(mac)} was entered there: \`vireo fdb\` lists them`,
      'mac',
    );
  }

  /** The groups that ports have joined, and where routers are, on bridges with `snooping`. */
  groups(): GroupsStatus {
    const names = new Map([...this.#ports].map(([name, { slot }]) => [slot, name]));
    return this.#groups.list(
      (index) => this.#bridges.name(index),
      (slot) => names.get(slot),
    );
  }

  /**
   * Enters a port into a group for good; without `snooping` of its bridge that waits. Returns it with the address in
   * its shortest form. Rejects with a SwitchError: BAD_SPEC, NO_SUCH_PORT or LIMIT.
   */
  async addGroup(input: GroupSpec): Promise<GroupSpec> {
    const spec = checkGroupSpec(input);
    const place = this.#checkedPlace(spec, spec.group);
    this.#groups.statics.add(spec, this.#groups.has(place.fid >>> 12) ? place : undefined);
    return spec;
  }

  /** Takes ports out of a group that they were entered into. Rejects with a SwitchError: NO_SUCH_GROUP, or that of the filter. */
  async removeGroup(group: string, filter: AddressFilter = {}): Promise<void> {
    const port = filter.port === undefined ? undefined : this.#find(filter.port).spec.name;
    const bridge = filter.bridge === undefined ? undefined : this.#bridges.get(filter.bridge).name;
    const address = groupAddress(group);
    const gone = this.#groups.statics.remove((spec) => {
      const place = this.#placeOf(spec);
      return (
        spec.group === address &&
        (port === undefined || spec.port === port) &&
        (bridge === undefined || (place !== undefined && this.#bridges.name(place.fid >>> 12) === bridge)) &&
        (filter.vlan === undefined || (place !== undefined && (place.fid & 0xfff) === filter.vlan))
      );
    });
    if (gone.length > 0) return;
    throw new SwitchError(
      'NO_SUCH_GROUP',
      `no port was entered into a group ${JSON.stringify(group)} there: \`vireo groups\` lists them`,
      'group',
    );
  }

  /** Where what is entered for a port belongs; `what` it is. Throws a SwitchError, NO_SUCH_PORT or BAD_SPEC. */
  #checkedPlace(spec: { port: string; vlan?: number }, what: string): Place {
    const entry = this.#find(spec.port);
    const bond = this.#bondOf(spec.port)?.spec.name;
    if (bond !== undefined)
      throw new SwitchError(
        'BAD_SPEC',
        `port: expected none that is a member of ${bond}, found ${spec.port}: name ${bond}`,
        'port',
      );
    const place = this.#placeOf(spec);
    const told = (message: string) => new SwitchError('BAD_SPEC', `vlan: ${message}`, 'vlan');
    if (!place)
      throw told(`expected the VLAN of ${what}, port ${spec.port} has none for frames without a tag`);
    if (entry.vlanAware && !vlansOf(entry.spec).members.has(place.fid & 0xfff))
      throw told(`expected a VLAN that port ${spec.port} is in, found ${place.fid & 0xfff}`);
    return place;
  }

  /** Where an address belongs; undefined: nowhere, as its port is now. */
  #placeOf({ port, vlan }: { port: string; vlan?: number }): Place | undefined {
    const entry = this.#ports.get(port);
    const own = vlan ?? (entry?.vlanAware ? vlansOf(entry.spec).pvid : 0);
    if (!entry || own === undefined || isMember(entry)) return undefined;
    return { slot: entry.slot, fid: (this.#bridges.index(entry.spec.bridge) << 12) | own };
  }

  status(): SwitchStatus {
    const { header } = this.#structures;
    return {
      name: this.name,
      version,
      pid: process.pid,
      uptime: (performance.now() - this.#started) / 1000,
      node: process.version,
      poll: this.#options.poll ?? 'adaptive',
      ports: this.#ports.size,
      workers: this.#workers.usage(),
      fdb: {
        entries: header.get('fdbEntries'),
        limit: header.get('fdbLimit'),
        ageing: header.get('ageing'),
        maxAddressesPerPort: this.#options.maxAddressesPerPort ?? MAX_ADDRESSES_PER_PORT,
      },
      residentBytes: process.memoryUsage.rss(),
    };
  }

  /** Removes every port and ends the workers; resolves when nothing is left. May be called again. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    if (this.#clock) clearInterval(this.#clock);
    this.#rstp.close();
    await this.#mirrors.close();
    await Promise.all([...this.#captures].map((capture) => capture.close()));
    const ports = [...this.#ports.values()].map(({ port }) => port);
    for (const port of ports) if (port instanceof BondPort) port.stop();
    await this.#workers.quiesce();
    await Promise.all(ports.map((port) => port.close()));
    this.#ports.clear();
    await this.#io.close();
    await this.#workers.close();
    await this.#poller.release();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** A field that is there only with a value. */
const given = <K extends string, V>(field: K, value: V | undefined) =>
  (value === undefined ? {} : { [field]: value }) as { [P in K]?: V };
/** What a port's rules are made of. */
const ruled = ({ spec, beside, vlanAware, spanned, unplugged }: Entry): RuledPort => ({
  ...spec,
  ...beside,
  vlanAware,
  spanned,
  unplugged,
});

const isUp = ({ carrier, unplugged }: Entry): boolean => carrier && !unplugged;

/** What a port with a link that is down shows. */
const whenUnplugged = ({ unplugged, spec: { link, linkFollows } }: Entry) =>
  unplugged
    ? { state: 'down' as const, note: link === 'down' ? 'set down' : `down with that of ${linkFollows}` }
    : {};

const isMember = ({ beside }: Entry): boolean => beside.memberAt !== undefined;

/** Bonds come after the ports that they are made of, and go before them. */
const bondsLast = (ports: readonly PortSpec[]): PortSpec[] =>
  [...ports].sort((a, b) => Number(a.type === 'bond') - Number(b.type === 'bond'));
const bondsFirst = (ports: readonly PortSpec[]): PortSpec[] =>
  [...ports].sort((a, b) => Number(b.type === 'bond') - Number(a.type === 'bond'));

const sum = (drops: Record<string, number>) => Object.values(drops).reduce((all, count) => all + count, 0);

/** The drops of a port, with those by its rules. */
const turnedAway = ({ rxDrops, txDrops }: PortStatus, rules: PortRules) => ({
  rxDrops: rxDrops + sum(rules.drops('rx')),
  txDrops: txDrops + sum(rules.drops('tx')),
});

const withRules = (entry: Entry): PortStatus => {
  const status = entry.port.status();
  const { state = status.state } = whenUnplugged(entry);
  return { ...status, ...turnedAway(status, entry.rules), state };
};

/** Has the data plane know that the port's bridge has VLANs, or has none; false: it knew. Throws ArenaFullError. */
function becomeAware(entry: Entry, vlanAware: boolean): boolean {
  if (entry.vlanAware === vlanAware) return false;
  entry.rules.write({ ...ruled(entry), vlanAware });
  entry.vlanAware = vlanAware;
  return true;
}

const NO_TAG = new Uint8Array();
const untagged = (vlan: number) => (vlan === 0 ? NO_TAG : undefined);

/** The fields of a port's specification that are rules. */
const rulesOf = (spec: PortSpec) =>
  Object.fromEntries(
    RULE_FIELDS.filter((field) => spec[field] !== undefined).map((field) => [field, spec[field]]),
  );

function openPort(spec: PortSpec, context: PortContext & BondContext): Port {
  switch (spec.type) {
    case 'vhost-user':
      return new VhostUserPort(spec, context);
    case 'vduse':
      return new VdusePort(spec, context);
    case 'tap':
      return new KernelPort(spec, context, new TapEnd(spec, context.poller));
    case 'af-packet':
      return new KernelPort(
        spec,
        context,
        new InterfaceEnd(spec.target, packetSockets(spec, context), context.poller),
      );
    case 'af-xdp':
      return new KernelPort(
        spec,
        context,
        new InterfaceEnd(spec.target, xdpSockets(spec, context), context.poller),
      );
    case 'stream':
      return new KernelPort(spec, context, new StreamEnd(spec, context));
    case 'dgram':
      return new KernelPort(spec, context, openDgramEnd(spec, context.poller));
    case 'pcap':
      return new KernelPort(spec, context, new PcapEnd(spec, context));
    case 'vxlan':
      return new KernelPort(spec, context, new VxlanEnd(spec));
    case 'user':
      return new KernelPort(spec, context, new UserEnd(spec, context));
    case 'patch':
      return new KernelPort(spec, context, new PatchEnd(spec, context.patches));
    case 'bond':
      return new BondPort(spec, context);
    case 'null':
      return new KernelPort(spec, context, new NullEnd());
  }
}

/** The address in a forwarding entry: low 48 bits, first byte lowest. */
function formatMac(key: bigint): string {
  const bytes = Array.from({ length: 6 }, (_, i) => Number((key >> BigInt(8 * i)) & 0xffn));
  return bytes.map((byte) => byte.toString(16).padStart(2, '0')).join(':');
}
