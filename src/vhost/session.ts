/**
 * What the handlers of a vhost-user session's messages share: the state that the front-end has set up so far
 * (backend.ts has the connection and hands each message to its handler, ring-messages.ts and its likes).
 */
import type { Poller } from '../sys/index.ts';
import type { BackendChannel } from './backend-channel.ts';
import type { VhostUserDevice } from './device.ts';
import type { StateTransfer } from './device-state.ts';
import type { InBandQueue } from './in-band.ts';
import { ProtocolError, type RegionLayout, requestName } from './messages.ts';
import type { Postcopy } from './postcopy.ts';

export const MAX_VRING_SIZE = 32768;
export const END_OF_ADDRESSES = 1n << 64n;

/** A queue as the front-end has set it up. */
export interface QueueState {
  /** Entries; 0: not set. */
  readonly size: number;
  /** Next entry of the available ring, as of the last start or stop. */
  readonly base: number;
  readonly running: boolean;
  readonly enabled: boolean;
}

export interface Vring extends QueueState {
  size: number;
  base: number;
  running: boolean;
  enabled: boolean;
  address: { descUser: bigint; usedUser: bigint; availUser: bigint } | undefined;
  /** Guest address for the log of writes to the used ring. */
  logUsed: bigint | null;
  /** SET_VRING_CALL has come, with an eventfd or to say that the guest polls. */
  callGiven: boolean;
  /** Came before the ring started, -1 for none; a running ring's belongs to the device. */
  callFd: number;
  /** Stays here, the device gets a copy: QEMU sends it once a connection, and rings start again and again. */
  errFd: number;
}

/** An answer with a descriptor, which is closed when it has left. */
export interface FileAnswer {
  payload: Uint8Array;
  fd: number;
}

export type Answer = Uint8Array | FileAnswer | undefined;

export interface Session {
  readonly device: VhostUserDevice;
  readonly poller: Poller;
  /** Milliseconds in which the device's state must be through, and in which a page must come that a thread waits for. */
  readonly patience: number;
  /** Those that the front-end has spoken of. */
  readonly vrings: Vring[];
  /** Acknowledged virtio features; undefined before that. */
  features: bigint | undefined;
  /** The last SET_FEATURES was taken: device and driver agree on what they have. */
  settled: boolean;
  protocolFeatures: bigint;
  /** The device status that the driver has set. */
  status: number;
  /** The transfer of the device's state that is under way or was the last. */
  state: StateTransfer | undefined;
  postcopy: Postcopy | undefined;
  /** Notifications by messages, by queue. */
  readonly inBand: Map<number, InBandQueue>;
  memory: RegionLayout[];
  /** Bytes of the dirty log; undefined: there is none. */
  logSize: bigint | undefined;
  channel: BackendChannel | undefined;
  /** Notes an error that the session survives. */
  report(message: string): void;
  /** Tells that features, memory or a queue's state have changed. */
  changed(): undefined;
  /** Ends the connection. */
  close(reason?: Error): void;
  /** What to do when the front-end has gone while a message is being handled. */
  onHangUp(act: (() => void) | undefined): void;
}

/** The same kind of error with the request's name before it. */
export function named(request: number, error: unknown): ProtocolError {
  const { message } = error as Error;
  const name = requestName(request);
  return new ProtocolError(message.startsWith(`${name}: `) ? message : `${name}: ${message}`);
}

export function hex(value: bigint): string {
  return `0x${value.toString(16)}`;
}
