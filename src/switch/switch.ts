/**
 * A switch: ports on bridges, and the workers that move packets between them. What it does at anybody's word is here,
 * in this order: it starts, has ports, bridges, mirrors, addresses, groups and captures, takes a whole configuration,
 * ends. What ports are to each other is in the files that it puts together (bridged-ports.ts, links.ts, bonds.ts,
 * mirror-wiring.ts).
 *
 * One switch owns one arena. The control plane (this) writes tables; the workers read them. See docs/architecture.md.
 */
import { randomBytes } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { readFileSync } from 'node:fs';
import { Arena, Structures } from '../arena/index.ts';
import { BondPort } from '../bond/bond.ts';
import { IoThreads } from '../io/index.ts';
import type { Patches } from '../ports/patch.ts';
import type { PortEvents } from '../ports/port.ts';
import { isBpdu } from '../rstp/bpdu.ts';
import { Rstp } from '../rstp/rstp.ts';
import { PortRules } from '../rules/index.ts';
import { type PollerLease, sharedPoller } from '../sys/index.ts';
import { Workers } from '../workers/workers.ts';
import { applyDifference, bondsLast } from './apply.ts';
import { Bonds } from './bonds.ts';
import { BridgedPorts } from './bridged-ports.ts';
import { Bridges, DEFAULT_BRIDGE } from './bridges.ts';
import { Captures } from './captures.ts';
import { difference, type Settings } from './difference.ts';
import { closingError, SwitchError } from './errors.ts';
import { Fdb } from './fdb.ts';
import { GroupTables } from './groups.ts';
import { Links } from './links.ts';
import { MirrorWiring } from './mirror-wiring.ts';
import { Mirrors } from './mirrors.ts';
import { openPort } from './open-port.ts';
import { Places } from './places.ts';
import { checkChangedPort, checkNewPort, checkUnused } from './port-checks.ts';
import { given, portDetail, portStatus } from './port-status.ts';
import { type Entry, type PortRecord, PortTable, ruled } from './port-table.ts';
import { releaseSlot, showSlot, takeSlot } from './slots.ts';
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
} from './spec.ts';
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
  MirrorChange,
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

/** Most addresses that a switch learns. */
const MAX_ADDRESSES = 65_536;
/** Milliseconds between two ticks of the data plane's clock. */
const TICK = 1000;
/** Ticks between two sweeps for addresses that are too old. */
const SWEEP = 15;

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

/** What isn't said. */
const withDefaults = (options: SwitchOptions) => ({
  ...options,
  name: options.name ?? 'vireo',
  workers: options.workers ?? options.cpus?.length ?? 1,
  poll: options.poll ?? 'adaptive',
  ageing: options.ageing ?? 300,
  maxAddressesPerPort: options.maxAddressesPerPort ?? 4096,
});

/** Made by createSwitch(). Emits the events of SwitchEvents. */
export class Switch extends EventEmitter<SwitchEvents> {
  readonly name: string;
  #options: ReturnType<typeof withDefaults>;
  readonly #arena = new Arena();
  readonly #structures = new Structures(this.#arena);
  readonly #workers: Workers;
  readonly #io: IoThreads;
  readonly #poller: PollerLease = sharedPoller();
  readonly #ports = new PortTable();
  readonly #patches: Patches = new Map();
  readonly #groups: GroupTables;
  readonly #bridges: Bridges;
  readonly #places: Places;
  readonly #fdb: Fdb;
  readonly #mirrors: Mirrors;
  readonly #rstp: Rstp;
  readonly #bridged: BridgedPorts;
  readonly #links: Links;
  readonly #bonds: Bonds;
  readonly #captures: Captures;
  readonly #wiring: MirrorWiring;
  readonly #started = performance.now();
  #clock: NodeJS.Timeout | null = null;
  #ticks = 0;
  #closing: Promise<void> | null = null;
  /** One configuration at a time. */
  #applied: Promise<unknown> = Promise.resolve();

  /** Use createSwitch(). */
  constructor(options: SwitchOptions) {
    super();
    this.#options = withDefaults(options);
    const { name, workers: count, cpus = [], poll, ageing } = this.#options;
    this.name = name;
    const { header } = this.#structures;
    header.set64('fdbSeed', randomBytes(8).readBigUInt64LE());
    header.set('fdbLimit', MAX_ADDRESSES);
    header.set('ageing', ageing);
    // The packets of every guest pass through the workers: a switch without one must not pretend to run. Where
    // nobody listens this ends the process, as every 'error' event does.
    const onFailure = (error: Error) => void this.emit('error', error);
    const onError = (port: string, error: string) => void this.emit('portError', { port, error });
    const [arena, structures, ports] = [this.#arena, this.#structures, this.#ports];
    this.#io = new IoThreads(arena, count);
    const workers = new Workers(arena, structures, {
      count,
      cpus,
      busy: poll === 'busy',
      onBroken: () => {
        for (const { port } of ports.list()) port.reportBroken();
      },
      onFrame: (slot, frame) => (isBpdu(frame) ? this.#rstp : this.#bonds).receive(slot, frame),
      onFailure,
    });
    const groups = new GroupTables(
      arena,
      structures,
      () => workers.quiesce(),
      (slot, frame) => void workers.send(slot, frame),
    );
    const bridges = new Bridges(structures, groups);
    const places = new Places(ports, bridges);
    const fdb = new Fdb(arena, structures, ports, bridges, places);
    const mirrors = new Mirrors(arena, structures, (port) => ports.bondOf(port) !== undefined);
    const rstp = new Rstp({
      arena,
      structures,
      workers,
      onChange: (bridge) => groups.stir(bridges.index(bridge)),
      onShut: (port) => onError(port, 'bpduGuard: a bridge is behind the port, which is shut'),
    });
    const bridged = new BridgedPorts({
      structures,
      workers,
      rstp,
      ports,
      bridges,
      groups,
      places,
      fdb,
      mirrors,
    });
    const captures = new Captures({ arena, structures, workers, ports, onError });
    this.#workers = workers;
    this.#groups = groups;
    this.#bridges = bridges;
    this.#places = places;
    this.#fdb = fdb;
    this.#mirrors = mirrors;
    this.#rstp = rstp;
    this.#bridged = bridged;
    this.#links = new Links(ports, rstp);
    this.#bonds = new Bonds({ structures, workers, rstp, ports, bridges, groups, fdb, bridged });
    this.#captures = captures;
    this.#wiring = new MirrorWiring({ workers, rstp, ports, fdb, mirrors, bridged, captures, onError });
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
    if (++this.#ticks % SWEEP === 0) this.#fdb.sweep();
  }

  /**
   * Adds a port. Rejects with a SwitchError: BAD_SPEC, PORT_EXISTS, LIMIT or SOCKET.
   * `socketFd`: a unix socket that is open already, one that listens or a connection; then `target` is only its
   * name, and a connection is served until it ends (state `failed`).
   */
  async addPort(input: PortSpec, { socketFd }: { socketFd?: number } = {}): Promise<void> {
    const spec = checkPortSpec(input);
    const { name } = spec;
    if (this.#closing) throw closingError();
    checkNewPort(spec, this.#ports, this.#bridges, this.#mirrors.monitors());
    const slot = takeSlot(this.#structures, this.#bridges.index(spec.bridge), this.#options.maxPorts);
    const rules = new PortRules({
      arena: this.#arena,
      structures: this.#structures,
      slot,
      quiesce: () => this.#workers.quiesce(),
    });
    try {
      const record: PortRecord = {
        slot,
        rules,
        spec,
        ...this.#bridged.admit(spec),
        beside: {},
        carrier: false,
        unplugged: this.#links.isUnplugged(spec),
      };
      rules.write(ruled(record));
      const port = openPort(spec, {
        ...this.#bonds.context(spec),
        arena: this.#arena,
        structures: this.#structures,
        workers: this.#workers,
        io: this.#io,
        poller: this.#poller.poller,
        patches: this.#patches,
        slot,
        socketFd,
        maxAddresses: this.#addressLimit(spec),
        events: this.#eventsOf(record),
      });
      // The port tells its events by the record.
      const entry = Object.assign(record, { port });
      this.#ports.add(entry);
      if (entry.unplugged) port.setLink?.(false);
      if (port instanceof BondPort) await this.#bonds.join(entry, port);
      this.#bridged.count();
      this.#bridged.refreshGroups();
    } catch (error) {
      const entry = this.#ports.get(name);
      if (entry) {
        this.#ports.leave(entry);
        await this.#closePort(entry);
        this.#ports.removed(entry);
      }
      await rules.close();
      releaseSlot(this.#structures, slot);
      await this.#bridged.settleVlans();
      throw new SwitchError('SOCKET', `port ${name}: ${(error as Error).message}`, 'target');
    }
    showSlot(this.#structures, slot);
    this.#links.settle();
    await this.#bridged.span();
    await this.#captures.look(name);
    await this.#wiring.rewire(name);
  }

  /** What a port has to tell. */
  #eventsOf(record: PortRecord): PortEvents {
    const port = record.spec.name;
    return {
      guestUp: () => {
        this.#links.carrier(record, true);
        this.emit('guestUp', { port });
      },
      guestDown: (reason) => {
        this.#links.carrier(record, false);
        this.emit('guestDown', { port, reason });
      },
      queueBroken: (queue, reason) => this.emit('queueBroken', { port, queue, reason }),
      portError: (error) => this.emit('portError', { port, error }),
    };
  }

  #addressLimit({ maxAddresses }: PortSpec): number {
    return maxAddresses ?? this.#options.maxAddressesPerPort;
  }

  /** Removes a port: its guest loses its link, others notice nothing. Rejects with a SwitchError: NO_SUCH_PORT, IN_USE. */
  async removePort(name: string): Promise<void> {
    this.#ports.find(name);
    const [mirror] = this.#mirrors.needing(name);
    if (mirror !== undefined) {
      const message = `port ${name}: mirror ${mirror} names it: remove that first`;
      throw new SwitchError('IN_USE', message, 'name');
    }
    await this.#dropPort(name);
  }

  /** The same for a port that comes again, which mirrors wait for. */
  async #dropPort(name: string): Promise<void> {
    const entry = this.#ports.find(name);
    checkUnused(entry, this.#ports);
    this.#ports.leave(entry);
    this.#links.settle();
    this.#bridged.count();
    this.#rstp.leave(name);
    try {
      await this.#wiring.rewire(name);
      await this.#workers.sent();
      await this.#closePort(entry);
      await entry.rules.close();
      this.#captures.forget(name);
      this.#fdb.statics.remove(({ port }) => port === name);
      this.#groups.statics.remove(({ port }) => port === name);
      this.#groups.forget(entry.slot);
      releaseSlot(this.#structures, entry.slot);
    } finally {
      this.#ports.removed(entry);
      await this.#bridged.settleVlans();
    }
  }

  async #closePort({ port }: Entry): Promise<void> {
    if (port instanceof BondPort) await this.#bonds.part(port);
    await port.close();
  }

  /**
   * Sets rules of a port anew, and the bound of its addresses; null brings a field back to its default. Rejects with a
   * SwitchError, NO_SUCH_PORT, LIMIT or BAD_SPEC, and then nothing has changed.
   */
  async setPort(name: string, change: PortChange): Promise<void> {
    const entry = this.#ports.find(name);
    const spec = changePortSpec(entry.spec, change);
    checkChangedPort(spec, this.#ports, this.#bridges);
    try {
      await this.#bridged.change(entry, spec);
      this.#links.settle();
    } catch (error) {
      throw new SwitchError('LIMIT', `port ${name}: ${(error as Error).message}`);
    } finally {
      await this.#bridged.settleVlans();
      await this.#bridged.span();
    }
    this.#structures.port(entry.slot).set('addressLimit', this.#addressLimit(spec));
    await this.#wiring.rewire(name);
  }

  /** Every port, in the order in which they were added. */
  ports(): PortStatus[] {
    return this.#ports.list().map(portStatus);
  }

  /** Everything about one port. Throws a SwitchError, NO_SUCH_PORT. */
  port(name: string): PortDetail {
    const entry = this.#ports.find(name);
    return portDetail(entry, {
      groups: this.#groups.ofPort(entry.slot),
      ...given('spanningTree', this.#rstp.port(name)),
      ...given('bond', this.#ports.bondOf(name)?.spec.name),
      mirrors: this.#mirrors.at(entry),
    });
  }

  /** Adds a bridge. Rejects with a SwitchError: BAD_SPEC, BRIDGE_EXISTS or LIMIT. */
  async addBridge(spec: BridgeSpec): Promise<void> {
    this.#bridges.add(checkBridgeSpec(spec));
    await this.#settleBridges();
  }

  /** Sets fields of a bridge anew, null: the default. Rejects with a SwitchError: NO_SUCH_BRIDGE or BAD_SPEC. */
  async setBridge(name: string, change: BridgeChange): Promise<void> {
    this.#bridges.set(changeBridgeSpec(this.#bridges.get(name), change));
    await this.#settleBridges();
  }

  async #settleBridges(): Promise<void> {
    this.#bridged.refreshGroups();
    await this.#bridged.span();
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
    await this.#bridged.span();
  }

  /** Every bridge, the default one first. */
  bridges(): BridgeStatus[] {
    return this.#bridged.status();
  }

  /** One bridge. Throws a SwitchError, NO_SUCH_BRIDGE. */
  bridge(name: string): BridgeStatus {
    this.#bridges.get(name);
    return this.bridges().find((bridge) => bridge.name === name)!;
  }

  /**
   * Adds a mirror. Rejects with a SwitchError, BAD_SPEC, MIRROR_EXISTS, LIMIT or SOCKET (the file), and then nothing
   * has changed.
   */
  async addMirror(spec: MirrorSpec): Promise<void> {
    await this.#wiring.add(checkMirrorSpec(spec));
  }

  /**
   * Sets fields of a mirror anew, null: the default; no frame that it wants before and after is missed. Rejects with a
   * SwitchError, NO_SUCH_MIRROR, BAD_SPEC, LIMIT or SOCKET (the file), and then nothing has changed.
   */
  async setMirror(name: string, change: MirrorChange): Promise<void> {
    await this.#wiring.set(name, change);
  }

  /** Removes a mirror; resolves when it copies nothing any more. Rejects with a SwitchError, NO_SUCH_MIRROR. */
  async removeMirror(name: string): Promise<void> {
    await this.#wiring.remove(name);
  }

  mirrors(): MirrorStatus[] {
    return this.#mirrors.list().map(({ name }) => this.mirror(name));
  }

  /** One mirror. Throws a SwitchError, NO_SUCH_MIRROR. */
  mirror(name: string): MirrorStatus {
    return this.#mirrors.status(name, this.#ports.list());
  }

  /** The addresses learned and not yet too old. */
  fdb(): FdbEntry[] {
    return this.#fdb.list();
  }

  /**
   * Forgets learned addresses, all that the filter has, and with `static` those that were entered too; returns how
   * many. Rejects with a SwitchError, NO_SUCH_PORT or NO_SUCH_BRIDGE.
   */
  async flushFdb(filter: AddressFilter & { static?: boolean } = {}): Promise<number> {
    return this.#fdb.flush(filter);
  }

  /** Enters an address for good. Rejects with a SwitchError: BAD_SPEC, NO_SUCH_PORT or LIMIT. */
  async addAddress(spec: AddressSpec): Promise<void> {
    this.#fdb.add(checkAddressSpec(spec));
  }

  /**
   * Takes away an address that was entered, from all bridges and VLANs that the filter has. Rejects with a
   * SwitchError: NO_SUCH_ADDRESS, or that of the filter.
   */
  async removeAddress(mac: string, filter: AddressFilter = {}): Promise<void> {
    this.#fdb.remove(mac, filter);
  }

  /** The groups that ports have joined, and where routers are, on bridges with `snooping`. */
  groups(): GroupsStatus {
    const names = this.#ports.namesBySlot();
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
    this.#groups.add(spec, this.#places.checked(spec, spec.group));
    return spec;
  }

  /** Takes ports out of a group that they were entered into. Rejects with a SwitchError: NO_SUCH_GROUP, or that of the filter. */
  async removeGroup(group: string, filter: AddressFilter = {}): Promise<void> {
    const isMeant = this.#places.matcher(filter);
    this.#groups.remove(group, (spec) => isMeant(spec, this.#places.of(spec)));
  }

  /**
   * Captures the frames of a port, or of all: `stream()` of what is returned gives them as pcapng. To be closed, or
   * read to its end. Rejects with a SwitchError, BAD_SPEC, NO_SUCH_PORT or LIMIT.
   */
  async capture(input: CaptureOptions): Promise<CaptureStream> {
    const options = checkCaptureOptions(input);
    if (options.port !== 'any') this.#ports.find(options.port);
    return this.#captures.start(options);
  }

  /** Lets a capture's stream end with what has come by now. Throws a SwitchError, NO_SUCH_CAPTURE. */
  stopCapture(id: number): void {
    this.#captures.stop(id);
  }

  status(): SwitchStatus {
    const { header } = this.#structures;
    return {
      name: this.name,
      version,
      pid: process.pid,
      uptime: (performance.now() - this.#started) / 1000,
      node: process.version,
      poll: this.#options.poll,
      ports: this.#ports.size,
      workers: this.#workers.usage(),
      fdb: {
        entries: header.get('fdbEntries'),
        limit: header.get('fdbLimit'),
        ageing: header.get('ageing'),
        maxAddressesPerPort: this.#options.maxAddressesPerPort,
      },
      residentBytes: process.memoryUsage.rss(),
    };
  }

  /** The options that make a switch like this one, as it is now; defaults are written out. */
  config(): SwitchOptions {
    return {
      ...this.#options,
      bridges: this.#bridges
        .list()
        .filter(({ name, ...fields }) => name !== DEFAULT_BRIDGE || Object.keys(fields).length > 0),
      ports: this.#ports.specs(),
      fdb: this.#fdb.statics.list(),
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
    const before = this.#ports.specs();
    this.#set(found.settings);
    for (const spec of found.bridges.add) this.#bridges.add(spec);
    for (const spec of found.bridges.set) this.#bridges.set(spec);
    await this.#settleBridges();
    return applyDifference(found, before, this, {
      ports: this.#ports,
      addresses: this.#fdb.statics,
      groups: this.#groups.statics,
      mirrors: this.#mirrors,
      dropPort: (name) => this.#dropPort(name),
    });
  }

  #set(settings: Settings): void {
    this.#options = { ...this.#options, ...settings };
    this.#structures.header.set('ageing', this.#options.ageing);
    for (const { spec, slot } of this.#ports.list())
      this.#structures.port(slot).set('addressLimit', this.#addressLimit(spec));
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
    await this.#captures.close();
    const ports = this.#ports.list().map(({ port }) => port);
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
