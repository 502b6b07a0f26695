/**
 * What a back-end session drives: the device behind a vhost-user socket. The session has checked everything that
 * can be checked from the protocol alone (see backend.ts); what needs the mapped memory is the device's to check.
 *
 * The session makes one call at a time and waits for it. Descriptors that are passed belong to the device from
 * the moment of the call, whatever its outcome: it closes them when it has no more use for them, also when the
 * call fails.
 */

import type { DeviceState } from './device-state.ts';
import type { IotlbChannel } from './iotlb-misses.ts';
import type { InflightLayout, IotlbMessage } from './messages.ts';
import type { Postcopy, PostcopyOptions } from './postcopy.ts';

/** One region of the memory table. Addresses and sizes are bytes, at full 64-bit width. */
export interface MemoryRegion {
  guestAddress: bigint;
  size: bigint;
  /** Where the front-end itself has the region mapped; ring addresses are given in this space. */
  userAddress: bigint;
  /** Where the region begins in the file. */
  mmapOffset: bigint;
  /** A regular file or memfd that reaches at least to `mmapOffset + size`. */
  fd: number;
}

/** Everything a ring needs to start. */
export interface VringSetup {
  /** Entries of the descriptor table, a power of 2 from 1 to 32768. */
  size: number;
  /** Next entry of the available ring to look at, 0 to 65535. */
  base: number;
  /** User addresses of the three parts; not checked for alignment or translation yet. */
  descUser: bigint;
  usedUser: bigint;
  availUser: bigint;
  /** Eventfd on which the guest announces buffers; -1: there is none, the ring has to be polled. */
  kickFd: number;
  /** Eventfd that interrupts the guest; -1: the guest polls. */
  callFd: number;
  /** There where `callFd` is a VDUSE device: the queue that is interrupted through it. */
  callQueue?: number;
  /** Eventfd that tells the front-end that the ring is broken; -1: none. */
  errFd: number;
  /** A ring that runs but isn't enabled takes packets from the guest, drops them, and gives none. */
  enabled: boolean;
  /** Guest address under which writes to the used ring are logged; null: they aren't. */
  logUsed?: bigint | null;
}

/** What may change while a ring runs; an absent field stays as it is. */
export interface VringChange {
  kickFd?: number;
  callFd?: number;
  errFd?: number;
  enabled?: boolean;
  logUsed?: bigint | null;
}

/** Bytes of a file that hold a dirty log: one bit a page of 4 KiB, from guest address 0 on. */
export interface LogSetup {
  /** A regular file or memfd that reaches at least to `offset + size`. */
  fd: number;
  offset: bigint;
  size: bigint;
}

/** Whoever can be told that the configuration space has changed; resolves with whether it was taken. */
export interface ConfigChannel {
  configChanged(): Promise<boolean>;
}

export interface VhostUserDevice {
  /** Virtio feature bits offered, with VHOST_USER_F_PROTOCOL_FEATURES. */
  readonly features: bigint;
  /** vhost-user protocol feature bits offered. */
  readonly protocolFeatures: bigint;
  /** Most queue pairs; there are twice as many vrings. */
  readonly queuePairs: number;
  /** Most bytes of payload in a frame, as the front-end has told the guest: 68 to 65535. Throws where it's too much. */
  setMtu(mtu: number): void;
  /** The configuration space, whole; where the front-end asks for more there are zeros. */
  config(): Uint8Array;
  /** What another back-end has to know to go on with this device. */
  saveState(): DeviceState;
  /** Goes on as another back-end left it. Throws an Error that says why it can't. */
  loadState(state: DeviceState): void;
  /** A ring broke a rule: a driver gets it back only by a reset. */
  readonly needsReset?: boolean;
  /** A new MAC address in the configuration space, of 6 bytes; when it resolves frames are filtered by it. */
  setMac(mac: Uint8Array): void | Promise<void>;
  /**
   * The features that the front-end acknowledged: always a subset of those offered. While a ring runs only
   * VHOST_F_LOG_ALL changes; when the promise resolves every write to guest memory is logged, or none is.
   */
  setFeatures(features: bigint): void | Promise<void>;
  /**
   * Tells the network that the guest is here now. `mac`: its address as it stands in a frame, the first byte
   * lowest; a unicast one.
   */
  announce(mac: bigint): Promise<void>;
  /**
   * Where to note the buffers in work, and to find what a predecessor that died has noted; while no ring runs, and
   * instead of what was set before; null: nowhere. `fd` is that of a file that was checked. Throws an Error that
   * names the reason.
   */
  setInflight(layout: (InflightLayout & { fd: number }) | null): void;
  /** Where to log writes to, in place of the log before. Rejects with an Error that names the reason. */
  setLog(log: LogSetup): Promise<void>;
  /** An eventfd that is signalled now and then while there is something new in the log; -1: none. */
  setLogFd(fd: number): void;
  /**
   * Replaces the whole memory table. Rings that run are paused, translated again and resumed inside.
   * Rejects with an Error whose message names the reason; the session ends after that.
   */
  setMemoryTable(regions: MemoryRegion[]): Promise<void>;
  /** Adds a region that overlaps no other; rings that run are paused inside. Rejects as setMemoryTable does. */
  addRegion(region: MemoryRegion): Promise<void>;
  /** Takes a region away in which no running ring lies; rings that run are paused inside. */
  removeRegion(region: Pick<MemoryRegion, 'guestAddress'>): Promise<void>;
  /** Starts a stopped ring. Rejects with an Error that names the reason (unaligned, unmapped, ...). */
  startVring(index: number, setup: VringSetup): Promise<void>;
  /** Changes a running ring and closes the descriptors that were replaced. */
  updateVring(index: number, change: VringChange): Promise<void>;
  /**
   * Stops a running ring and closes its descriptors. When it resolves nobody touches the ring any more.
   * @returns the next entry of the available ring to look at, 0 to 65535
   */
  stopVring(index: number): Promise<number>;
  /**
   * A translation that the front-end brings, or takes away (an UPDATE or INVALIDATE; with VIRTIO_F_ACCESS_PLATFORM
   * only). When it resolves nobody uses what was taken away. Rejects where it isn't in guest memory.
   */
  setIotlb?(message: IotlbMessage): Promise<void>;
  /**
   * The guest is going to run here before all of its memory has come: regions that are mapped once this listens are
   * watched by it. Throws a SystemError where this process may not have it.
   */
  openPostcopy?(events: Pick<PostcopyOptions, 'patience' | 'onGiveUp'>): Postcopy;
  /** The way to ask something of the front-end; undefined: there is none, or none any more. */
  setChannel?(channel: (IotlbChannel & Partial<ConfigChannel>) | undefined): void;
  /** The front-end is gone: every ring stopped, all memory unmapped, all descriptors closed. */
  reset(): Promise<void>;
}
