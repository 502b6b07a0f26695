/**
 * The network device behind a vhost-user socket: turns what a session negotiated (device.ts) into memory and
 * vrings in the arena, which the workers then poll.
 *
 * Theory of operation. What the device is lies in its state (net-state.ts); what happens to it is in a file each:
 * rings are started, changed and stopped (rings.ts), placed in memory (ring-place.ts), let run and paused (ring-run.ts),
 * and spread over flows (spread.ts); memory is replaced under them (memory-change.ts); behind an IOMMU they wait for
 * translations (ring-waits.ts); a driver's commands come by the control queue (control-queue.ts).
 *
 * Whatever changes under a running ring is changed while it is paused: the ring's state is set, the workers pass
 * by (quiescence), and only then is something unmapped, closed or written. Nor is a command of the driver in work then.
 */
import type { Arena, Structures } from '../arena/index.ts';
import type { Poller } from '../sys/index.ts';
import { features as VIRTIO } from '../virtio/features.ts';
import type { Workers } from '../workers/workers.ts';
import { rarp } from './announcement.ts';
import { report } from './broken-rings.ts';
import { ConfigSpace, type DeviceLimits } from './config-space.ts';
import { applyOffloads, forgetCommands } from './control-queue.ts';
import type {
  ConfigChannel,
  LogSetup,
  MemoryRegion,
  VhostUserDevice,
  VringChange,
  VringSetup,
} from './device.ts';
import { DeviceControl } from './device-control.ts';
import type { DeviceState } from './device-state.ts';
import { DirtyLogging } from './dirty-logging.ts';
import { Inflight } from './inflight.ts';
import { type IotlbChannel, Misses } from './iotlb-misses.ts';
import { changeMemory } from './memory-change.ts';
import { MemoryCuts } from './memory-cuts.ts';
import { MemoryTable } from './memory-table.ts';
import type { InflightLayout, IotlbMessage } from './messages.ts';
import { isControl, isPacked, type NetDeviceEvents, type NetState, queueOf } from './net-state.ts';
import { Postcopy, type PostcopyOptions } from './postcopy.ts';
import { BROKEN, type Queue } from './queue.ts';
import { goOn, isPostponed } from './ring-run.ts';
import { askIfNeeded, refuseIotlb, retry, setIotlb, useIotlb } from './ring-waits.ts';
import { changeRing, startRing, stopRings } from './rings.ts';
import { enabledPairs, spread } from './spread.ts';

export interface NetDeviceContext {
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
  /** Memory files that could be made shorter are refused. */
  sealed?: boolean | undefined;
  events: NetDeviceEvents;
}

export class NetDevice implements VhostUserDevice {
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  readonly queuePairs: number;
  readonly #s: NetState;

  /** Throws ArenaFullError. */
  constructor(context: NetDeviceContext) {
    this.features = context.features;
    this.protocolFeatures = context.protocolFeatures;
    this.queuePairs = context.queuePairs;
    this.#s = newState(context);
    queueOf(this.#s, 0);
    this.#s.port.set('table', this.#s.flows.start);
    spread(this.#s);
  }

  /** Even ones go to the guest, odd ones come from it (virtio 1.3, 5.1.2): the first pair, and what was started. */
  get queues(): readonly Queue[] {
    return this.#s.queues;
  }

  get memory(): MemoryTable {
    return this.#s.memory;
  }

  get acknowledged(): bigint {
    return this.#s.acknowledged;
  }

  /** The rings are packed ones. */
  get packed(): boolean {
    return isPacked(this.#s);
  }

  /** Is this the control queue, as far as is agreed? */
  isControl(index: number): boolean {
    return isControl(this.#s, index);
  }

  /** Queue pairs of which both directions run and are enabled. */
  get enabledPairs(): number {
    return enabledPairs(this.#s);
  }

  get needsReset(): boolean {
    return this.queues.some(({ vring }) => vring.get('state') === BROKEN);
  }

  /** What the guest was told to keep to; null where nobody told it anything. */
  get mtu(): number | null {
    return this.#s.config.mtu;
  }

  setMtu(mtu: number): void {
    this.#s.config.setMtu(mtu);
  }

  config(): Uint8Array {
    return this.#s.config.bytes;
  }

  setMac(mac: Uint8Array): Promise<void> {
    this.#s.config.setMac(mac);
    return this.#alone(() => this.#s.control.macChanged());
  }

  /** A driver that asks, or is told that its configuration has changed, finds the link up or down. */
  setLink(up: boolean): void {
    if (this.#s.config.setLink(up) && this.tellsLink) void this.#s.channel?.configChanged?.();
  }

  /** The driver believes what its configuration says of the link, and can be told that it has changed. */
  get tellsLink(): boolean {
    return (this.#s.acknowledged & VIRTIO.VIRTIO_NET_F_STATUS) !== 0n && this.#s.channel !== undefined;
  }

  saveState(): DeviceState {
    return this.#s.config.save();
  }

  loadState({ mtu, mac }: DeviceState): void {
    if (mtu !== null) this.setMtu(mtu);
    void this.setMac(Uint8Array.from(mac.split(':'), (octet) => Number.parseInt(octet, 16)));
  }

  announce(mac: bigint): Promise<void> {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(mac);
    return this.#s.workers.send(this.#s.slot, rarp(bytes.subarray(0, 6)), 'from');
  }

  setFeatures(features: bigint): Promise<void> {
    const s = this.#s;
    return this.#alone(async () => {
      useIotlb(s, (features & VIRTIO.VIRTIO_F_ACCESS_PLATFORM) !== 0n);
      const change = (s.acknowledged ^ features) & ~VIRTIO.VHOST_F_LOG_ALL;
      s.acknowledged = features;
      const settled = !s.log.use((features & VIRTIO.VHOST_F_LOG_ALL) !== 0n);
      if (change !== 0n) await forgetCommands(s);
      else if (!settled) await s.workers.quiesce();
    });
  }

  setInflight(layout: (InflightLayout & { fd: number }) | null): void {
    const s = this.#s;
    const old = s.inflight;
    s.inflight = layout && new Inflight(s.arena, layout, this.packed, s.memory.sealedOnly);
    for (const q of s.queues) q.vring.set('inflight', 0);
    old?.close();
  }

  setLog(setup: LogSetup): Promise<void> {
    return this.#alone(() => this.#s.log.set(setup));
  }

  setLogFd(fd: number): void {
    this.#s.log.signal(fd);
  }

  setMemoryTable(regions: MemoryRegion[]): Promise<void> {
    return this.#changeMemory((memory) => memory.replace(regions));
  }

  addRegion(region: MemoryRegion): Promise<void> {
    return this.#changeMemory((memory) => memory.add(region));
  }

  removeRegion({ guestAddress }: Pick<MemoryRegion, 'guestAddress'>): Promise<void> {
    return this.#changeMemory((memory) => memory.remove(guestAddress));
  }

  #changeMemory(change: (memory: MemoryTable) => void): Promise<void> {
    return this.#alone(() => changeMemory(this.#s, () => change(this.#s.memory)));
  }

  openPostcopy(events: Pick<PostcopyOptions, 'patience' | 'onGiveUp'>): Postcopy {
    const s = this.#s;
    s.postcopy = new Postcopy({
      ...events,
      quiesce: () => s.workers.quiesce(),
      onKnown: () => {
        for (const q of s.queues) if (isPostponed(s, q)) goOn(s, q);
      },
    });
    return s.postcopy;
  }

  setChannel(channel: (IotlbChannel & Partial<ConfigChannel>) | undefined): void {
    this.#s.channel = channel;
    this.#s.misses.use(channel);
    if (channel) for (const q of this.queues) retry(this.#s, q);
  }

  setIotlb(message: IotlbMessage): Promise<void> {
    return this.#alone(() => setIotlb(this.#s, message));
  }

  /** There is no translation of these bytes, which were asked for: whoever waits for it breaks. */
  refuseIotlb(page: bigint, size: bigint): void {
    refuseIotlb(this.#s, page, size);
  }

  startVring(index: number, setup: VringSetup): Promise<void> {
    return this.#alone(() => startRing(this.#s, index, setup));
  }

  updateVring(index: number, change: VringChange): Promise<void> {
    return this.#alone(() => changeRing(this.#s, index, change));
  }

  async stopVring(index: number): Promise<number> {
    await this.#alone(() => stopRings(this.#s, [this.queues[index]!]));
    this.#s.events.onRings();
    const { vring } = this.queues[index]!;
    const next = vring.get('lastAvail');
    return this.packed ? (next | (vring.get('usedIdx') << 16)) >>> 0 : next;
  }

  /** Looks for rings that the data plane has stopped; each is reported once. */
  reportBroken(): void {
    for (const q of this.queues) {
      if (q.vring.get('state') === BROKEN) report(this.#s, q);
      // The translation may have come meanwhile.
      retry(this.#s, q);
      askIfNeeded(this.#s, q);
    }
  }

  /** Says nothing of the rings: whoever resets knows why. */
  async reset(): Promise<void> {
    const s = this.#s;
    await this.#alone(() => stopRings(s, [...s.queues]));
    s.postcopy = null;
    s.memory.clear();
    s.cuts.watch();
    s.misses.use(undefined);
    useIotlb(s, false);
    s.acknowledged = 0n;
    await forgetCommands(s);
    s.log.close();
    this.setInflight(null);
    s.config.reset();
  }

  /** Resets, and gives the tables back. */
  async close(): Promise<void> {
    const s = this.#s;
    await this.reset();
    // A worker may have looked up an address and be about to send here: nobody finds this port any more, and
    // whoever has found it before passes by.
    s.arena.dataplane.functions.flush(s.slot, 0);
    await s.workers.quiesce();
    s.control.close();
    s.memory.close();
    for (const range of [s.flows, ...s.tables]) s.arena.freeTable(range);
  }

  /** Runs a change while no command is in work, nor begins. */
  async #alone<T>(change: () => Promise<T>): Promise<T> {
    const ring = this.#s.controlRing;
    await ring?.hold();
    try {
      return await change();
    } finally {
      ring?.release();
    }
  }
}

/** A device that nothing was said to. */
function newState(context: NetDeviceContext): NetState {
  const { arena, structures, workers, poller, events, slot, queuePairs } = context;
  const port = structures.port(slot);
  const memory = new MemoryTable(arena, structures, port, context.sealed);
  const flowCount = structures.constant('FLOWS');
  const queues: Queue[] = [];
  const config = new ConfigSpace(context.config ?? {}, queuePairs, context.features);
  const s: NetState = {
    ...{
      arena,
      structures,
      workers,
      poller,
      events,
      slot,
      port,
      queuePairs,
      queues,
      memory,
      config,
      flowCount,
    },
    view: new DataView(arena.memory.buffer),
    patient: context.patient ?? false,
    tables: [],
    flows: arena.takeTable((flowCount + 1) * 4),
    cuts: new MemoryCuts(memory, queues, (reason) => events.onMemoryLost?.(reason)),
    log: new DirtyLogging({ arena, structures, workers, memory, queues }),
    acknowledged: 0n,
    iotlb: null,
    misses: new Misses(),
    control: new DeviceControl({
      ...{ arena, structures, port, queuePairs },
      device: {
        respread: () => void spread(s),
        applyOffloads: () => applyOffloads(s),
        mac: () => config.mac,
        setMac: (mac) => config.setMac(mac),
        announced: () => config.askAnnouncement(false),
        quiesce: () => workers.quiesce(),
      },
    }),
    controlRing: null,
    forgotten: true,
    channel: undefined,
    inflight: null,
    postcopy: null,
  };
  return s;
}
