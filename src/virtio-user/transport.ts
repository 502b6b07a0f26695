/**
 * How a virtio-user device reaches its back-end. The device (device.ts) knows rings, frames and features; what is
 * on the other side of a path knows one of these: a vhost-user socket (vhost-user.ts), or a character device of the
 * kernel.
 *
 * The order of calls, which is that of virtio 1.3, 3.1.1: connect, negotiate, config, share, then for each ring
 * setRing and startRing, and enableRing; ready. Then stopRing for each ring, and close. After close, or when the
 * connection has ended by itself, connect may be called again: a new beginning with the same back-end, or with
 * another one in its place.
 */
import type { NetConfig } from '../virtio/net-config.ts';

/** What the back-end says of the device. A field is only valid with its feature: mac, mtu, speed, linkUp, announce. */
export type DeviceConfig = NetConfig & { linkUp: boolean; announce: boolean };

/** What both sides have agreed on. */
export interface Agreement {
  features: bigint;
  /** Most queue pairs that the back-end has. */
  queuePairs: number;
  /** The back-end notes which buffers it has in work, so that packed rings can go on with another one. */
  inflight: boolean;
}

/** All memory that rings and buffers lie in. Device addresses in the rings are addresses of this process. */
export interface SharedMemory {
  /** The memory file; `length` bytes of it from 0 on are mapped at `address`. */
  fd: number;
  address: bigint;
  length: number;
  /** Rings in it, two a queue pair, and the descriptors of each. */
  rings: number;
  ringSize: number;
}

/** Size, position and place of a ring. */
export interface RingPlace {
  /** Descriptors. */
  size: number;
  /** The next entry that the back-end looks at; of a packed ring with its wrap counter in bit 15. */
  base: number;
  descUser: bigint;
  availUser: bigint;
  usedUser: bigint;
}

/** What a transport tells, between connect and close. */
export interface TransportEvents {
  /** Once a connection: it has ended, by the back-end or by close. */
  onClose(reason: string): void;
  /** The configuration has changed: config() gives the new one. */
  onConfigChange(): void;
}

/** Every method rejects with an Error that names what failed; the caller closes the transport then. */
export interface Transport {
  /** Reaches the back-end, or waits for it. Rejects when `signal` aborts, with its reason. */
  connect(signal: AbortSignal): Promise<void>;
  /** Settles the features (3.1.1, steps 1 to 6): of those wanted, the ones that the back-end offers. */
  negotiate(wanted: bigint): Promise<Agreement>;
  /** The device's configuration space; undefined where the back-end has none. */
  config(): Promise<DeviceConfig | undefined>;
  /** Lets the back-end at the memory, in which the rings are `fresh` or go on. The descriptor stays the caller's. */
  share(memory: SharedMemory, fresh: boolean): Promise<void>;
  /** Describes a stopped ring: 2n is what queue pair n receives on, 2n + 1 what it sends on (5.1.2). */
  setRing(index: number, place: RingPlace): Promise<void>;
  /** Starts a ring. The eventfds stay the caller's. */
  startRing(index: number, fds: { kickFd: number; callFd: number }): Promise<void>;
  /** Enables or disables a ring: a disabled one gets nothing, and what is sent on it is dropped. */
  enableRing(index: number, enabled: boolean): Promise<void>;
  /** Everything is set up: the driver goes on to drive (3.1.1, step 8). */
  ready(): Promise<void>;
  /** Stops a ring; resolves once the back-end doesn't touch it any more. */
  stopRing(index: number): Promise<void>;
  /** Ends the connection; after it the back-end's end is gone, and descriptors of it are closed. Never rejects. */
  close(): Promise<void>;
  /** Frees what outlives a connection. The last call. */
  dispose(): void;
}
