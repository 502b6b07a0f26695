/** The contract between the switch and a kind of port. */
import type { Arena, Structures } from '../arena/index.ts';
import type { IoThreads } from '../io/index.ts';
import type { PortDetail, PortSpec, PortStatus } from '../switch/types.ts';
import type { Poller } from '../sys/index.ts';
import type { Workers } from '../workers/workers.ts';
import type { Patches } from './patch.ts';

/** What a port tells the switch. */
export interface PortEvents {
  guestUp(): void;
  guestDown(reason: string): void;
  queueBroken(queue: number, reason: string): void;
  portError(error: string): void;
}

/** What the switch lends to a port. */
export interface PortContext {
  arena: Arena;
  structures: Structures;
  workers: Workers;
  io: IoThreads;
  poller: Poller;
  patches: Patches;
  /** Index of the port in the data plane. */
  slot: number;
  /** Most addresses learned. */
  maxAddresses: number;
  /** A socket that somebody else has opened, in place of the port's target; the port closes it. */
  socketFd?: number | undefined;
  events: PortEvents;
}

/** What a port says of itself; the switch adds its rules and mirrors, and its part in a spanning tree. */
export type DetailOfKind = Omit<PortDetail, 'rules' | 'mirrors' | 'spanningTree'>;

export interface Port {
  readonly spec: PortSpec;
  status(): PortStatus;
  detail(): DetailOfKind;
  /** The data plane stopped a ring somewhere: say so if it is this port's. */
  reportBroken(): void;
  /** Tells the other end that the link is up or down, where that can be told: no frames pass in any case. */
  setLink?(up: boolean): void;
  /** Why it can't be removed now, in one sentence that says what to do; undefined: it can. */
  inUse?(): string | undefined;
  /** Resolves when nothing of the port is left: no socket, no descriptor, no memory. */
  close(): Promise<void>;
}
