/**
 * The network device behind a vhost-user socket: turns what a session negotiated (device.ts) into memory and
 * vrings in the arena, which the workers then poll.
 *
 * Whatever changes under a running ring is changed while it is paused: the ring's state is set, the workers pass
 * by (quiescence), and only then is something unmapped, closed or written.
 */
import {
  type Arena,
  ArenaFullError,
  type PortStruct,
  type Range,
  type Structures,
  type VringStruct,
} from '../arena/index.ts';
import { closeFd, type Poller } from '../sys/index.ts';
import { controlQueueIndex, executeControl } from '../virtio/control-queue.ts';
import { features as VIRTIO } from '../virtio/features.ts';
import { askAnnouncement, encodeNetConfig, type NetConfig, sayLink } from '../virtio/net-config.ts';
import { maySend, takes } from '../virtio/offloads.ts';
import type { Workers } from '../workers/workers.ts';
import { rarp } from './announcement.ts';
import { ControlRing } from './control-ring.ts';
import type {
  ConfigChannel,
  LogSetup,
  MemoryRegion,
  VhostUserDevice,
  VringChange,
  VringSetup,
} from './device.ts';
import { DeviceControl, RSS_LIMITS } from './device-control.ts';
import type { DeviceState } from './device-state.ts';
import { DirtyLog } from './dirty-log.ts';
import { nextFlowTable } from './flow-table.ts';
import { Inflight } from './inflight.ts';
import { Iotlb } from './iotlb.ts';
import { buffersAhead, type IotlbChannel, Misses } from './iotlb-misses.ts';
import { MemoryTable } from './memory-table.ts';
import { ACCESS_READ, ACCESS_WRITE, type InflightLayout, type IotlbMessage, iotlb } from './messages.ts';
import { Postcopy, type PostcopyOptions } from './postcopy.ts';
import {
  BROKEN,
  closeDescriptors,
  isOpen,
  isRunning,
  newQueue,
  type Queue,
  RUNNING,
  STOPPED,
  WAITING,
} from './queue.ts';
import { NO_ACCESS, ringError } from './ring-errors.ts';
import { checkPackedBase, placeParts, ringParts } from './ring-parts.ts';
import { Windows } from './windows.ts';

/** VIRTQ_USED_F_NO_NOTIFY (2.7.10). */
const NO_NOTIFY = 1;
/** RING_EVENT_FLAGS_DISABLE (2.8.10). */
const EVENT_DISABLE = 1;

/** Milliseconds between two looks at whether something new is in the log. */
const LOG_PERIOD = 100;

/** Milliseconds between two looks at whether a memory file was made shorter. */
const CUT_PERIOD = 200;

/** Vring.callRound of a ring that is in no list of calls. */
const NO_ROUND = 0xffff_ffff;

/** Vring.flags, and the feature that each follows. */
const FLAGS = [
  [1, VIRTIO.VIRTIO_F_EVENT_IDX],
  [2, VIRTIO.VIRTIO_F_INDIRECT_DESC],
  [4, VIRTIO.VIRTIO_NET_F_MRG_RXBUF],
  [8, VIRTIO.VIRTIO_F_IN_ORDER],
  [16, VIRTIO.VIRTIO_F_RING_PACKED],
] as const;

/** Vring.flags of a ring whose frames may have work left to be done. */
const OFFLOADS = 32;
/** Vring.flags: frames wait for whom they are for. */
const PATIENT = 64;
/** Vring.flags: not all of the guest's memory lies in the arena. */
const LARGE = 0x1_0000;

/** Vring.flags: addresses are translated by the IOTLB. */
const IOMMU = 0x2_0000;

/**
 * Pages of a ring's next buffers that are asked for together. A front-end answers one by one, and QEMU holds up its
 * guest for that: more than are needed soon does harm. The largest frame takes 45 buffers of a guest with an MTU of
 * 1500 that merges them, and 17 pages of one that sends it.
 */
const TOGETHER_TO_GUEST = 64;
const TOGETHER_FROM_GUEST = 32;

export const DROP_REASONS = [
  'ringFull',
  'tooBigForBuffers',
  'tooShort',
  'oversize',
  'samePort',
  'noGuest',
  'queueBroken',
  'queueDisabled',
  'badOffload',
  'reservedAddress',
  'badGroupMessage',
] as const;

/** What the device tells the port. */
export interface NetDeviceEvents {
  /** A ring started, was stopped, enabled or disabled by the front-end, or broke. */
  onRings(): void;
  onQueueBroken(queue: number, reason: string): void;
  /** Once for a memory table: guest memory has gone under the device, which is of no use until it is reset. */
  onMemoryLost?(reason: string): void;
}

/** What a port says of the device itself; a front-end may have its own ideas of what it doesn't. */
export type DeviceLimits = Pick<NetConfig, 'mac' | 'mtu' | 'speed'>;

export class NetDevice implements VhostUserDevice {
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  readonly queuePairs: number;
  readonly memory: MemoryTable;
  /** Even ones go to the guest, odd ones come from it (virtio 1.3, 5.1.2): the first pair, and what was started. */
  readonly queues: Queue[] = [];
  readonly #arena: Arena;
  readonly #structures: Structures;
  readonly #workers: Workers;
  readonly #events: NetDeviceEvents;
  readonly #slot: number;
  readonly #port: PortStruct;
  /** Rings by flow, for the workers, and its entries. */
  readonly #flows: Range;
  readonly #flowCount: number;
  readonly #tables: Range[] = [];
  #acknowledged = 0n;
  readonly #view: DataView;
  /** There while VIRTIO_F_ACCESS_PLATFORM is acknowledged. */
  #iotlb: Iotlb | null = null;
  readonly #misses = new Misses();
  /** What the driver said by commands, where it may, and the ring that they come on while that runs. */
  readonly #control: DeviceControl;
  #controlRing: ControlRing | null = null;
  /** The driver may have given commands before that nobody here knows of. */
  #forgotten = true;
  readonly #poller: Poller;
  #channel: Partial<ConfigChannel> | undefined;
  #log: DirtyLog | null = null;
  #inflight: Inflight | null = null;
  #postcopy: Postcopy | null = null;
  /** Runs while there is memory whose file may be made shorter. */
  #cutTimer: NodeJS.Timeout | null = null;
  #logFd = -1;
  #logTimer: NodeJS.Timeout | null = null;
  readonly #limits: DeviceLimits;
  readonly #patient: boolean;
  #mtu: number | null;
  #linkUp = true;
  #config: Uint8Array;

  constructor(context: {
    arena: Arena;
    structures: Structures;
    workers: Workers;
    poller: Poller;
    /** Index of the port in the data plane. */
    slot: number;
    /** Most queue pairs, 1 to 128. */
    queuePairs: number;
    features: bigint;
    protocolFeatures: bigint;
    /** What the driver sends waits for whom it is for (src/dataplane/patience.ts); split rings alone. */
    patient?: boolean;
    /** What the back-end owns of the device's configuration. */
    config?: DeviceLimits | undefined;
    events: NetDeviceEvents;
  }) {
    this.#limits = context.config ?? {};
    this.#mtu = this.#limits.mtu ?? null;
    this.queuePairs = context.queuePairs;
    this.#patient = context.patient ?? false;
    this.features = context.features;
    this.#config = this.#initialConfig();
    this.#arena = context.arena;
    this.#view = new DataView(context.arena.memory.buffer);
    this.#structures = context.structures;
    this.#workers = context.workers;
    this.#poller = context.poller;
    this.#events = context.events;
    this.protocolFeatures = context.protocolFeatures;
    this.#slot = context.slot;
    this.#port = context.structures.port(context.slot);
    this.memory = new MemoryTable(context.arena, context.structures, this.#port);
    this.#flowCount = context.structures.constant('FLOWS');
    this.#flows = context.arena.takeTable((this.#flowCount + 1) * 4);
    this.#control = new DeviceControl({
      ...context,
      port: this.#port,
      device: {
        respread: () => void this.#spread(),
        applyOffloads: () => this.#applyOffloads(),
        mac: () => this.#config.subarray(0, 6),
        setMac: (mac) => this.#config.set(mac),
        announced: () => askAnnouncement(this.#config, false),
        quiesce: () => this.#workers.quiesce(),
      },
    });
    this.#queue(0);
    this.#port.set('table', this.#flows.start);
    this.#spread();
  }

  /** A queue by its number. A pair gets its vrings when it is first asked for: few guests have as many as they may. */
  #queue(index: number): Queue {
    const stride = this.#structures.constant('VRING_STRIDE');
    while (this.queues.length <= index) {
      const pair = this.#arena.takeTable(2 * stride);
      this.#tables.push(pair);
      for (const at of [pair.start, pair.start + stride]) {
        const vring = this.#structures.vring(at);
        vring.set('port', this.#slot);
        vring.set('callFd', -1);
        vring.set('callQueue', -1);
        vring.set('writes', this.queues.length % 2 === 0 ? 1 : 0);
        this.queues.push(newQueue(this.queues.length, vring));
      }
    }
    return this.queues[index]!;
  }

  /** The rings are packed ones. */
  get packed(): boolean {
    return (this.#acknowledged & VIRTIO.VIRTIO_F_RING_PACKED) !== 0n;
  }

  get acknowledged(): bigint {
    return this.#acknowledged;
  }

  /** What the guest was told to keep to; null where nobody told it anything. */
  get mtu(): number | null {
    return this.#mtu;
  }

  #initialConfig(): Uint8Array {
    const hashes = this.features & (VIRTIO.VIRTIO_NET_F_RSS | VIRTIO.VIRTIO_NET_F_HASH_REPORT);
    return encodeNetConfig({
      ...this.#limits,
      pairs: this.queuePairs,
      linkUp: this.#linkUp,
      ...(hashes ? { rss: RSS_LIMITS } : {}),
    });
  }

  config(): Uint8Array {
    return this.#config;
  }

  /** A driver that asks, or is told that its configuration has changed, finds the link up or down. */
  setLink(up: boolean): void {
    if (up === this.#linkUp) return;
    this.#linkUp = up;
    sayLink(this.#config, up);
    if (this.tellsLink) void this.#channel?.configChanged?.();
  }

  /** The driver believes what its configuration says of the link, and can be told that it has changed. */
  get tellsLink(): boolean {
    return (this.#acknowledged & VIRTIO.VIRTIO_NET_F_STATUS) !== 0n && this.#channel !== undefined;
  }

  setMac(mac: Uint8Array): Promise<void> {
    this.#config.set(mac);
    return this.#alone(() => this.#control.macChanged());
  }

  saveState(): DeviceState {
    const mac = Buffer.from(this.#config.subarray(0, 6))
      .toString('hex')
      .replace(/..(?=.)/g, '$&:');
    return { mtu: this.#mtu, mac };
  }

  loadState({ mtu, mac }: DeviceState): void {
    if (mtu !== null) this.setMtu(mtu);
    void this.setMac(Uint8Array.from(mac.split(':'), (octet) => Number.parseInt(octet, 16)));
  }

  setMtu(mtu: number): void {
    const { mtu: limit } = this.#limits;
    if (limit !== undefined && mtu > limit)
      throw new Error(`an MTU of ${mtu}, but this port's limit is mtu=${limit}`);
    this.#mtu = mtu;
  }

  setFeatures(features: bigint): Promise<void> {
    return this.#alone(async () => {
      this.#useIotlb((features & VIRTIO.VIRTIO_F_ACCESS_PLATFORM) !== 0n);
      const change = (this.#acknowledged ^ features) & ~VIRTIO.VHOST_F_LOG_ALL;
      this.#acknowledged = features;
      const settled = !this.#useLog();
      if (change !== 0n) await this.#forgetCommands();
      else if (!settled) await this.#workers.quiesce();
    });
  }

  /** Is this the control queue, as far as is agreed? */
  isControl(index: number): boolean {
    const { VIRTIO_NET_F_CTRL_VQ } = VIRTIO;
    return (
      (this.#acknowledged & VIRTIO_NET_F_CTRL_VQ) !== 0n &&
      index === controlQueueIndex(this.#acknowledged, this.queuePairs)
    );
  }

  /** Frames for the guest go there. */
  #isReceiver(index: number): boolean {
    return index % 2 === 0 && !this.isControl(index);
  }

  /** Runs a change while no command is in work, nor begins. */
  async #alone<T>(change: () => Promise<T>): Promise<T> {
    const ring = this.#controlRing;
    await ring?.hold();
    try {
      return await change();
    } finally {
      ring?.release();
    }
  }

  /** What the driver is to find at its start. */
  async #forgetCommands(): Promise<void> {
    this.#control.reset(this.#acknowledged);
    askAnnouncement(this.#config, false);
    this.#applyOffloads();
    this.#spread();
    this.#forgotten = true;
    await this.#workers.quiesce();
  }

  #applyOffloads(): void {
    const accepts = takes(this.#control.offloads(this.#acknowledged));
    for (const { index, vring } of this.queues) if (this.#isReceiver(index)) vring.set('offloads', accepts);
  }

  /**
   * Serves the control queue. A ring at its very beginning is that of a driver that starts. Another one's driver has
   * been there, and if it is new here it has moved: it is asked to say so, since nobody else knows all its addresses.
   */
  async #startControl(q: Queue, setup: VringSetup): Promise<void> {
    const begins = (setup.base & 0xffff) === (this.packed ? 0x8000 : 0);
    if (begins) await this.#forgetCommands();
    else if (this.#forgotten && this.#acknowledged & VIRTIO.VIRTIO_NET_F_GUEST_ANNOUNCE) {
      askAnnouncement(this.#config, true);
      void this.#channel?.configChanged?.();
    }
    this.#forgotten = false;
    const { vring } = q;
    this.#controlRing = new ControlRing({
      arena: this.#arena,
      structures: this.#structures,
      poller: this.#poller,
      vring,
      execute: (command) => executeControl(command, this.#control.limits, this.#control),
      interrupt: () => {
        const fd = q.setup?.callFd ?? -1;
        if (fd >= 0) this.#workers.notify(fd);
      },
      onStopped: () => {
        if (vring.get('state') === BROKEN) this.#report(q);
        else this.#retry(q);
      },
    });
    this.#controlRing.watch(setup.kickFd);
  }

  setInflight(layout: InflightLayout & { fd: number }): void {
    const old = this.#inflight;
    this.#inflight = new Inflight(this.#arena, layout, this.packed);
    old?.close();
  }

  announce(mac: bigint): Promise<void> {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(mac);
    return this.#workers.send(this.#slot, rarp(bytes.subarray(0, 6)), 'from');
  }

  setLog(setup: LogSetup): Promise<void> {
    return this.#alone(() => this.#setLog(setup));
  }

  async #setLog(setup: LogSetup): Promise<void> {
    const log = new DirtyLog(this.#arena, this.#structures, setup);
    log.setRegions(this.memory.places);
    const old = this.#log;
    this.#log = log;
    this.#useLog();
    await this.#workers.quiesce();
    old?.close();
  }

  setLogFd(fd: number): void {
    if (this.#logFd >= 0) closeFd(this.#logFd);
    this.#logFd = fd;
    if (this.#logTimer) clearInterval(this.#logTimer);
    this.#logTimer = null;
    if (fd < 0) return;
    let writes = 0n;
    this.#logTimer = setInterval(() => {
      const now = this.#log?.struct.get64('writes') ?? 0n;
      if (now !== writes) this.#workers.notify(fd);
      writes = now;
    }, LOG_PERIOD);
  }

  /** Lets every ring log, or none, as was negotiated; true when that changed something. */
  #useLog(): boolean {
    const at = this.#acknowledged & VIRTIO.VHOST_F_LOG_ALL ? (this.#log?.struct.at ?? 0) : 0;
    const changed = this.queues.filter(({ vring }) => vring.get('log') !== at);
    for (const { vring } of changed) vring.set('log', at);
    return changed.length > 0;
  }

  /** Writes to the used ring are logged under a guest address of its own. */
  #logUsed(vring: VringStruct, address: bigint | null = null): void {
    vring.set('logUsed', 0);
    vring.set64('logUsedAddress', address ?? 0n);
    vring.set('logUsed', address === null ? 0 : 1);
  }

  setMemoryTable(regions: MemoryRegion[]): Promise<void> {
    return this.#changeMemory(() => this.memory.replace(regions));
  }

  addRegion(region: MemoryRegion): Promise<void> {
    return this.#changeMemory(() => this.memory.add(region));
  }

  removeRegion({ guestAddress }: Pick<MemoryRegion, 'guestAddress'>): Promise<void> {
    return this.#changeMemory(() => this.memory.remove(guestAddress));
  }

  /** Runs a change of the memory table while no worker reads it; rings that ran go on where they were. */
  #changeMemory(change: () => void): Promise<void> {
    return this.#alone(() => this.#paused((running) => this.#change(change, running)));
  }

  #change(change: () => void, running: readonly Queue[]): void {
    for (const q of this.queues) this.#forgetTranslation(q);
    change();
    this.#lookForCuts();
    if (this.#postcopy?.active) this.#watchMemory(this.#postcopy);
    this.#iotlb?.resolve(this.memory);
    for (const q of running) {
      // With an IOMMU its parts are looked for when it goes on.
      q.placed = false;
      if (!this.#iotlb) this.#place(q, q.setup!);
      q.vring.set('flags', this.#flags(q));
    }
    this.#log?.setRegions(this.memory.places);
  }

  /** Runs something while no worker looks at a ring; those that ran, which it is given, go on after it. */
  async #paused(change: (running: readonly Queue[]) => void): Promise<void> {
    const stopped = this.queues.filter((q) => isRunning(q) || this.#isPostponed(q));
    for (const q of stopped) q.vring.set('state', STOPPED);
    await this.#workers.quiesce();
    // One may have broken in its last round, before or after its state was set.
    const running = stopped.filter((q) => q.vring.get('error') === 0);
    for (const q of stopped) if (!running.includes(q)) this.#stayBroken(q);
    for (const q of running) q.vring.set('state', STOPPED);
    change(running);
    for (const q of running) this.#goOn(q);
  }

  /** A file that takes no seal may be made shorter: whoever touches what is missing finds zeros (src/sys/guard.ts). */
  #lookForCuts(): void {
    if (this.#cutTimer) clearInterval(this.#cutTimer);
    this.#cutTimer = null;
    if (this.memory.regions.every(({ sealed }) => sealed)) return;
    this.#cutTimer = setInterval(() => {
      const { cut } = this.memory;
      if (cut === undefined && !this.queues.some(({ windows }) => windows?.cut)) return;
      if (this.#cutTimer) clearInterval(this.#cutTimer);
      this.#cutTimer = null;
      const region = cut === undefined ? '' : `region at guest address 0x${cut.toString(16)}: `;
      this.#events.onMemoryLost?.(`${region}the file of guest memory was made shorter while it was in use`);
    }, CUT_PERIOD);
  }

  openPostcopy(events: Pick<PostcopyOptions, 'patience' | 'onGiveUp'>): Postcopy {
    this.#postcopy = new Postcopy({
      ...events,
      quiesce: () => this.#workers.quiesce(),
      onKnown: () => {
        for (const q of this.queues) if (this.#isPostponed(q)) this.#goOn(q);
      },
    });
    return this.#postcopy;
  }

  /** Memory whose pages come late must be looked at where it is: windows come and go, and copies can't wait. */
  #watchMemory(postcopy: Postcopy): void {
    if (this.memory.large)
      throw new Error(
        'memory that does not fit the arena as a whole can not come by postcopy: let the guest have less of it, ' +
          'or migrate it without postcopy',
      );
    postcopy.watch(this.memory.inProcess);
  }

  /** It would run if the front-end knew where the guest's memory lies. */
  #isPostponed({ setup, vring }: Queue): boolean {
    return this.#postcopy?.active === true && setup !== null && vring.get('state') === STOPPED;
  }

  startVring(index: number, setup: VringSetup): Promise<void> {
    return this.#alone(() => this.#startVring(index, setup));
  }

  async #startVring(index: number, setup: VringSetup): Promise<void> {
    let q: Queue;
    try {
      q = this.#queue(index);
      this.#forgetTranslation(q);
      if (this.packed) checkPackedBase(setup);
      q.placed = false;
      q.launched = false;
      q.vring.set('inflight', 0);
      q.vring.set('size', setup.size);
      if (!this.#iotlb) {
        this.#place(q, setup);
        if (this.#postcopy?.active) await this.#takeUpLate(q, setup, this.#postcopy);
        else this.#takeUp(q, setup);
      }
      if (this.#iotlb && this.#isReceiver(index)) this.#letHold(q);
      // Only what comes from the guest is polled; the other ring is written to by whoever has a packet for it. But
      // frames that waited for a translation are written by the worker that polls the ring.
      if (index % 2 === 1 || (this.#iotlb && !this.isControl(index)))
        q.worker = this.#workers.place(this.#polling, this.#slot + (index >>> 1));
    } catch (error) {
      this.#forgetTranslation(this.#queue(index));
      closeDescriptors(setup);
      throw error;
    }
    const { vring } = q;
    q.setup = setup;
    q.error = null;
    // The log has to know where the ring lies before anything is written to it.
    if (this.#log && this.memory.large) await this.#paused(() => this.#log?.setRegions(this.memory.places));
    const modern = this.#acknowledged & (VIRTIO.VIRTIO_F_VERSION_1 | VIRTIO.VIRTIO_NET_F_MRG_RXBUF);
    // Even rings go to the guest, odd ones come from it (virtio 1.3, 5.1.2).
    const offloads =
      index % 2 === 0 ? takes(this.#control.offloads(this.#acknowledged)) : maySend(this.#acknowledged);
    const hashed = this.#acknowledged & VIRTIO.VIRTIO_NET_F_HASH_REPORT;
    vring.set('flags', this.#flags(q));
    vring.set('offloads', offloads);
    // Without VERSION_1 the header has no num_buffers unless buffers can be merged (5.1.6, legacy).
    vring.set('headerLength', hashed ? 20 : modern ? 12 : 10);
    if (this.#iotlb) {
      vring.set('lastAvail', setup.base & 0xffff);
      vring.set('usedIdx', setup.base >>> 16 || setup.base);
    }
    vring.set('signalledValid', 0);
    vring.set('error', 0);
    vring.set('fullSince', 0);
    vring.set('callFd', setup.callFd);
    vring.set('callQueue', setup.callQueue ?? -1);
    vring.set('callRound', NO_ROUND);
    vring.set('enabled', setup.enabled ? 1 : 0);
    // Commands are read, then answered (src/dataplane/control.ts).
    vring.set('writes', this.#isReceiver(index) ? 1 : 0);
    if (this.isControl(index)) await this.#startControl(q, setup);
    this.#goOn(q);
    if (q.worker !== null) {
      this.#workers.assign(vring.at, q.worker);
      if (setup.kickFd >= 0) this.#workers.watch(setup.kickFd, q.worker);
      this.#workers.wake(q.worker);
    }
    // What the guest did before may wait for an interrupt that a predecessor of ours never sent.
    if (setup.callFd >= 0) this.#workers.notify(setup.callFd, setup.callQueue);
    this.#changed();
  }

  /** The workers that poll queues of this device, one entry a queue. */
  get #polling(): number[] {
    return this.queues.flatMap(({ worker }) => (worker === null ? [] : [worker]));
  }

  /**
   * Says where a ring goes on; notes of buffers in work know it better. Throws where they are wrong. `usedIdx` where
   * the ring's memory isn't to be looked at.
   */
  #takeUp({ index, vring }: Queue, { base }: VringSetup, usedIdx?: number): void {
    // A back-end that died could not say where it was: the used ring can, and what it had in work comes again,
    // unless there are notes. (DPDK's virtio-user starts the rings of a back-end that came back with base 0.)
    // A packed ring has no such place; the front-end then says it all (QEMU's higher half may be missing).
    const used = this.packed ? base >>> 16 || base : (usedIdx ?? this.#readUsedIdx(vring));
    vring.set('lastAvail', this.packed ? base & 0xffff : used);
    vring.set('usedIdx', used);
    if (!this.isControl(index)) this.#inflight?.start(index, vring, this.packed);
  }

  /** Reads and writes what a ring has in memory at its start, once its parts are found. */
  #launch(q: Queue): void {
    const { vring } = q;
    const setup = q.setup!;
    q.launched = true;
    // No kicks until a worker asks for them; for buffers to receive into, never (2.7.10: used.flags).
    if (!this.#postcopy?.active) {
      if (this.packed) this.#arena.u32[vring.get('used') >>> 2] = EVENT_DISABLE << 16;
      else this.#arena.u8[vring.get('used')] = NO_NOTIFY;
    }
    this.#useLog();
    this.#logUsed(vring, setup.logUsed);
    this.#arena.dataplane.functions.markStart(vring.at);
  }

  /** What #takeUp and #launch do in the ring's memory, which may be long in coming. */
  async #takeUpLate(q: Queue, setup: VringSetup, postcopy: Postcopy): Promise<void> {
    // What they say of a ring is done in its memory, by this thread.
    if (this.#inflight)
      throw new Error('notes of buffers in work can not be read while memory comes by postcopy');
    const used = this.#arena.base + BigInt(q.vring.get('used'));
    const index = this.packed ? 0 : (await postcopy.read(used + 2n, 2)).readUInt16LE();
    this.#takeUp(q, setup, index);
    await postcopy.write(
      used,
      this.packed ? Uint8Array.of(0, 0, EVENT_DISABLE, 0) : Uint8Array.of(NO_NOTIFY),
    );
  }

  /** Lets a ring run, or wait for the translations that it needs, or for the front-end to know where memory lies. */
  #goOn(q: Queue): void {
    if (this.#postcopy?.unknown) return;
    if (this.#iotlb && !q.placed && !this.#find(q)) {
      q.vring.set('state', WAITING);
      return;
    }
    if (!q.launched) this.#launch(q);
    q.missing = null;
    q.vring.set('state', RUNNING);
    this.#wake(q);
    // A guest that takes all back at once has its next buffers asked for before a frame comes.
    if (this.#iotlb) this.#askAhead(q);
  }

  /** Gives a ring room for frames that wait for a translation; without it they are dropped. */
  #letHold(q: Queue): void {
    try {
      q.held ??= this.#arena.reserve(this.#structures.constant('HELD_LENGTH'));
    } catch (error) {
      if (!(error instanceof ArenaFullError)) throw error;
    }
    q.vring.set('held', q.held?.start ?? 0);
  }

  #useIotlb(used: boolean): void {
    if (used === (this.#iotlb !== null)) return;
    if (used) this.#iotlb = new Iotlb(this.#arena, this.#structures, this.#port);
    else {
      this.#iotlb!.close();
      this.#iotlb = null;
    }
  }

  setChannel(channel: (IotlbChannel & Partial<ConfigChannel>) | undefined): void {
    this.#channel = channel;
    this.#misses.use(channel);
    if (channel) for (const q of this.queues) this.#retry(q);
  }

  /** Takes a translation, or takes some away; when it resolves no worker uses what was taken away. */
  setIotlb(message: IotlbMessage): Promise<void> {
    return this.#alone(() => this.#setIotlb(message));
  }

  async #setIotlb({ type, iova, size, userAddress, access }: IotlbMessage): Promise<void> {
    const tlb = this.#iotlb!;
    if (type === iotlb.UPDATE) {
      tlb.update(iova, size, userAddress, access, this.memory);
      this.#misses.answered(iova, size);
    } else {
      tlb.invalidate(iova, size);
      for (const q of this.queues) if (q.placed && this.#lies(q, iova, size)) q.placed = false;
      for (const q of this.queues) if (isRunning(q) && !q.placed) q.vring.set('state', WAITING);
    }
    await this.#workers.quiesce();
    for (const q of this.queues) this.#retry(q);
    if (type === iotlb.UPDATE) return;
    for (const q of this.queues) if (q.placed && isRunning(q)) this.#askAhead(q);
  }

  /** Lets a ring go on that waits, if what it waits for is there now; else asks for it. */
  #retry(q: Queue): void {
    const { vring } = q;
    if (vring.get('state') !== WAITING || !this.#iotlb) return;
    // It broke just as it was made to wait.
    if (vring.get('error') !== 0) {
      this.#stayBroken(q);
      return;
    }
    if (!q.placed) {
      this.#goOn(q);
      return;
    }
    const address = vring.get64('missAddress');
    const needed = vring.get('missAccess');
    const access = this.#iotlb.access(address);
    if (access !== undefined && (access & needed) === needed) {
      this.#goOn(q);
      return;
    }
    if (access !== undefined) {
      // It was translated, and that isn't allowed.
      this.#misses.refuse(address, needed);
      this.#forbid(q, address);
      return;
    }
    this.#misses.ask(address, needed, q.missing !== address);
    q.missing = address;
  }

  /** A worker broke the ring at the moment at which its state was set to another one. */
  #stayBroken(q: Queue): void {
    q.vring.set('state', BROKEN);
    this.#report(q);
  }

  /** Breaks a ring that waits for a translation which there won't be. */
  #forbid(q: Queue, address: bigint): void {
    q.vring.set('error', NO_ACCESS);
    q.vring.set64('errorValue', address);
    q.vring.set('state', BROKEN);
    this.#report(q);
  }

  /** There is no translation of this page, which was asked for: whoever waits for it breaks. */
  refuseIotlb(page: bigint, size: bigint): void {
    this.#misses.answered(page, size);
    for (const q of this.queues) {
      if (q.vring.get('state') !== WAITING) continue;
      const address = q.vring.get64('missAddress');
      if (q.placed && address >= page && address < page + size) this.#forbid(q, address);
      else if (!q.placed && this.#lies(q, page, size))
        this.#misfit(q, 'the I/O addresses at which it should lie are not mapped');
    }
  }

  /** Asks for the translations of the next buffers of a ring. */
  #askAhead({ vring }: Queue): void {
    vring.set('asking', 0);
    let left = vring.get('writes') === 1 ? TOGETHER_TO_GUEST : TOGETHER_FROM_GUEST;
    for (const buffer of buffersAhead(this.#view, vring, this.packed, left)) {
      if (left-- === 0) return;
      if (this.#iotlb!.access(buffer.address) === undefined) this.#misses.ask(buffer.address, buffer.access);
    }
  }

  /** Does a part of the ring lie in this range of I/O addresses? */
  #lies({ setup }: Queue, iova: bigint, size: bigint): boolean {
    if (!setup) return false;
    return ringParts(this.packed).some(([, user, length]) => {
      const start = setup[user];
      return start < iova + size && iova < start + BigInt(length(setup.size));
    });
  }

  /** Places a ring whose addresses are I/O addresses; false: what is missing has been asked for. */
  #find(q: Queue): boolean {
    const setup = { ...q.setup! };
    let found = true;
    for (const [, user, length, , name] of ringParts(this.packed)) {
      const place = this.#iotlb!.toUser(setup[user], length(setup.size), ACCESS_READ | ACCESS_WRITE);
      if (place && 'user' in place) {
        setup[user] = place.user;
        continue;
      }
      found = false;
      if (place) this.#misses.ask(place.missing, ACCESS_READ | ACCESS_WRITE);
      else this.#misfit(q, `${name} at I/O address 0x${setup[user].toString(16)} lies in several pieces`);
    }
    if (!found) return false;
    try {
      this.#forgetTranslation(q);
      this.#place(q, setup);
      if (!q.launched) this.#takeUp(q, setup);
      q.placed = true;
      // What was wrong with its place before isn't any more.
      if (q.vring.get('error') === 0) q.error = null;
    } catch (error) {
      this.#misfit(q, (error as Error).message);
    }
    return q.placed;
  }

  /** A ring that can't be placed where it was said to be: there is nobody to answer, so it is told once. */
  #misfit(q: Queue, reason: string): void {
    if (q.error === reason) return;
    q.error = reason;
    if (q.setup && q.setup.errFd >= 0) this.#workers.notify(q.setup.errFd);
    this.#events.onQueueBroken(q.index, reason);
  }

  updateVring(index: number, change: VringChange): Promise<void> {
    return this.#alone(() => this.#updateVring(index, change));
  }

  async #updateVring(index: number, change: VringChange): Promise<void> {
    const q = this.queues[index]!;
    const setup = q.setup!;
    const replaced: number[] = [];
    if (change.enabled !== undefined) {
      setup.enabled = change.enabled;
      // First nobody sends there any more: what is on its way to the guest when it takes a queue away arrives.
      if (!change.enabled && this.#spread([q])) await this.#workers.quiesce();
      q.vring.set('enabled', change.enabled ? 1 : 0);
      this.#changed();
    }
    if (change.kickFd !== undefined) {
      if (q.worker !== null && setup.kickFd >= 0) this.#workers.unwatch(setup.kickFd, q.worker);
      if (q.worker !== null && change.kickFd >= 0) this.#workers.watch(change.kickFd, q.worker);
      if (this.isControl(index)) this.#controlRing?.watch(change.kickFd);
      replaced.push(setup.kickFd);
      setup.kickFd = change.kickFd;
    }
    if (change.callFd !== undefined) {
      q.vring.set('callFd', change.callFd);
      replaced.push(setup.callFd);
      setup.callFd = change.callFd;
      // An interrupt may have gone to the old one unseen.
      if (change.callFd >= 0) this.#workers.notify(change.callFd);
    }
    if (change.logUsed !== undefined) {
      this.#logUsed(q.vring, change.logUsed);
      // What was written to the used ring before, and not logged, is none of the log's business.
      await this.#workers.quiesce();
    }
    if (change.errFd !== undefined) {
      replaced.push(setup.errFd);
      setup.errFd = change.errFd;
      if (q.error !== null && change.errFd >= 0) this.#workers.notify(change.errFd);
    }
    const closing = replaced.filter((fd) => fd >= 0);
    if (closing.length > 0) {
      await this.#workers.quiesce();
      for (const fd of closing) closeFd(fd);
    }
    this.#wake(q);
  }

  async stopVring(index: number): Promise<number> {
    await this.#alone(() => this.#stop([this.queues[index]!]));
    this.#events.onRings();
    const { vring } = this.queues[index]!;
    const next = vring.get('lastAvail');
    return this.packed ? (next | (vring.get('usedIdx') << 16)) >>> 0 : next;
  }

  /** Says nothing of the rings: whoever resets knows why. */
  async reset(): Promise<void> {
    await this.#alone(() => this.#stop([...this.queues]));
    this.#postcopy = null;
    this.memory.clear();
    this.#lookForCuts();
    this.#misses.use(undefined);
    this.#useIotlb(false);
    this.#acknowledged = 0n;
    await this.#forgetCommands();
    this.#useLog();
    this.setLogFd(-1);
    this.#log?.close();
    this.#log = null;
    for (const q of this.queues) q.vring.set('inflight', 0);
    this.#inflight?.close();
    this.#inflight = null;
    this.#mtu = this.#limits.mtu ?? null;
    this.#config = this.#initialConfig();
  }

  async #stop(queues: Queue[]): Promise<void> {
    // Where other rings go on, no frame is to find a stopped one.
    if (this.#spread(queues)) await this.#workers.quiesce();
    for (const q of queues) {
      q.vring.set('state', STOPPED);
      q.vring.set('enabled', 0);
      if (this.isControl(q.index)) {
        this.#controlRing?.unwatch();
        this.#controlRing = null;
      }
      if (q.worker === null) continue;
      this.#workers.unassign(q.vring.at, q.worker);
      if (q.setup && q.setup.kickFd >= 0) this.#workers.unwatch(q.setup.kickFd, q.worker);
      q.worker = null;
    }
    await this.#workers.quiesce();
    for (const q of queues) {
      // It may have broken just before, and nobody has been told yet.
      this.#report(q);
      q.vring.set('state', STOPPED);
      this.#arena.dataplane.functions.discardHeld(q.vring.at);
      q.vring.set('held', 0);
      if (q.held) this.#arena.unmap(q.held);
      q.held = null;
      q.vring.set('error', 0);
      q.vring.set('callFd', -1);
      this.#forgetTranslation(q);
      if (q.setup) closeDescriptors(q.setup);
      q.setup = null;
      q.error = null;
    }
  }

  #flags({ index }: Queue): number {
    let flags = (this.memory.large ? LARGE : 0) | (this.#iotlb ? IOMMU : 0);
    if (index % 2 === 1 && maySend(this.#acknowledged) !== 0) flags |= OFFLOADS;
    if (index % 2 === 1 && this.#patient) flags |= PATIENT;
    for (const [flag, feature] of FLAGS) if (this.#acknowledged & feature) flags |= flag;
    return flags;
  }

  /**
   * Finds the ring's parts in the arena, and windows for its buffers where it takes some. Throws an Error that
   * names the part and what is wrong with it.
   */
  #place(q: Queue, setup: VringSetup): void {
    placeParts(q, setup, ringParts(this.packed), this.memory);
    if (this.memory.windowed) q.windows = Windows.open(this.#arena, this.#structures, q.vring);
  }

  #readUsedIdx(vring: VringStruct): number {
    const at = vring.get('used') + 2;
    return this.#arena.u8[at]! | (this.#arena.u8[at + 1]! << 8);
  }

  #forgetTranslation(q: Queue): void {
    q.vring.set64('cacheSize', 0n);
    q.windows?.close(q.vring);
    q.windows = null;
  }

  #wake(q: Queue): void {
    if (q.worker !== null) this.#workers.wake(q.worker);
    else if (this.isControl(q.index)) this.#controlRing?.look();
  }

  /** Queue pairs of which both directions run and are enabled. */
  get enabledPairs(): number {
    return this.#openReceivers().filter((q) => isOpen(this.queues[q.index + 1]!)).length;
  }

  /** Queues that frames may go to: they run, are enabled, and the driver uses them. */
  #openReceivers(): Queue[] {
    return this.queues.filter(
      (q) => this.#isReceiver(q.index) && isOpen(q) && this.#control.uses(q.index >>> 1),
    );
  }

  #changed(): void {
    this.#spread();
    this.#events.onRings();
  }

  /**
   * Lets the workers send to the rings that take frames now, but for some. True when those others had been sent to
   * and there still are rings: then a worker may be about to send to them until it has passed by.
   */
  #spread(without: readonly Queue[] = []): boolean {
    const open = this.#openReceivers();
    const rings = open.filter((q) => !without.includes(q)).map((q) => q.vring.at);
    const { u32 } = this.#arena;
    const at = this.#flows.start >>> 2;
    const before = Array.from(u32.subarray(at, at + this.#flowCount));
    const first = this.queues[0]!.vring.at;
    const { rss } = this.#control;
    const ringOf = (pair: number) => {
      const ring = this.queues[2 * pair]?.vring.at;
      return ring !== undefined && rings.includes(ring) ? ring : (rings[0] ?? first);
    };
    const table = rss
      ? before.map((_, hash) => ringOf(rss.table[hash % rss.table.length]!))
      : nextFlowTable(before, rings.length > 0 ? rings : [first], this.#flowCount);
    table.push(ringOf(rss?.unclassified ?? 0));
    for (const [flow, ring] of table.entries()) Atomics.store(u32, at + flow, ring);
    this.#port.set('ring', rings[0] ?? first);
    this.#port.set('pairs', rings.length);
    return rings.length > 0 && rings.length < open.length;
  }

  /** Looks for rings that the data plane has stopped; each is reported once. */
  reportBroken(): void {
    for (const q of this.queues) {
      if (q.vring.get('state') === BROKEN) this.#report(q);
      // The translation may have come meanwhile.
      this.#retry(q);
      if (this.#iotlb && q.placed && (q.vring.get('state') === WAITING || q.vring.get('asking') === 1))
        this.#askAhead(q);
    }
  }

  #report(q: Queue): void {
    if (q.vring.get('error') === 0 || q.error !== null) return;
    q.error = ringError(q.vring);
    if (q.setup && q.setup.errFd >= 0) this.#workers.notify(q.setup.errFd);
    this.#changed();
    this.#events.onQueueBroken(q.index, q.error);
  }

  /** Resets, and gives the tables back. */
  async close(): Promise<void> {
    await this.reset();
    // A worker may have looked up an address and be about to send here: nobody finds this port any more, and
    // whoever has found it before passes by.
    this.#arena.dataplane.functions.flush(this.#slot, 0);
    await this.#workers.quiesce();
    this.#control.close();
    this.memory.close();
    for (const range of [this.#flows, ...this.#tables]) this.#arena.freeTable(range);
  }
}
