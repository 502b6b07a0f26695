/** A port as the state machines of RSTP know it: variables and timers by the names of IEEE 802.1D-2004, 17.17 and 17.19. */
import type { RstpState as PortState, RstpRole as Role } from '../switch/types.ts';
import type { Bpdu } from './bpdu.ts';
import type { Times, Vector } from './priority.ts';

export type { RstpRole as Role, RstpState as PortState } from '../switch/types.ts';

/** What an operator has set for a port. */
export interface PortSettings {
  /** Of the path to the root that begins here, 1 to 200,000,000. */
  pathCost: number;
  /** Identifier: priority and number. */
  id: number;
  /** No bridge is behind it; `auto`: as long as none is heard. */
  edge: 'auto' | boolean;
  /** At most one bridge is behind it. */
  pointToPoint: boolean;
}

/** Timers in seconds: each counts down to 0 (17.22). */
export interface Timers {
  edgeDelayWhile: number;
  fdWhile: number;
  helloWhen: number;
  mdelayWhile: number;
  rbWhile: number;
  rcvdInfoWhile: number;
  rrWhile: number;
  tcWhile: number;
  /** Messages sent in the last second, about. */
  txCount: number;
}

/** In which state each machine is. */
export interface States {
  receive: 'DISCARD' | 'RECEIVE';
  migration: 'CHECKING_RSTP' | 'SELECTING_STP' | 'SENSING';
  detection: 'EDGE' | 'NOT_EDGE';
  information: 'DISABLED' | 'AGED' | 'CURRENT';
  roles: 'DISABLE_PORT' | 'DISABLED_PORT' | 'ROOT_PORT' | 'DESIGNATED_PORT' | 'BLOCK_PORT' | 'ALTERNATE_PORT';
  topology: 'INACTIVE' | 'LEARNING' | 'ACTIVE';
}

export interface Port extends PortSettings, Timers {
  readonly states: States;
  /** Its link is up. */
  portEnabled: boolean;
  /** The message that is being worked on. */
  message: Bpdu | undefined;

  agree: boolean;
  agreed: boolean;
  disputed: boolean;
  fdbFlush: boolean;
  forward: boolean;
  forwarding: boolean;
  infoIs: 'received' | 'mine' | 'aged' | 'disabled';
  learn: boolean;
  learning: boolean;
  mcheck: boolean;
  newInfo: boolean;
  operEdge: boolean;
  proposed: boolean;
  proposing: boolean;
  rcvdBpdu: boolean;
  rcvdMsg: boolean;
  rcvdRstp: boolean;
  rcvdStp: boolean;
  rcvdTc: boolean;
  rcvdTcAck: boolean;
  rcvdTcn: boolean;
  reRoot: boolean;
  reselect: boolean;
  role: Role;
  selected: boolean;
  selectedRole: Role;
  sendRstp: boolean;
  sync: boolean;
  synced: boolean;
  tcAck: boolean;
  tcProp: boolean;
  updtInfo: boolean;

  portVector: Vector;
  portTimes: Times;
  designatedVector: Vector;
  designatedTimes: Times;
}

/** Seconds that a neighbour is given to show which protocol it speaks (17.13.9). */
export const MIGRATE_TIME = 3;
/** Seconds between two messages (17.14: fixed). */
export const HELLO_TIME = 2;
/** Messages that may be sent at once; one more comes each second (17.13.12). */
export const TX_HOLD_COUNT = 6;

/** All the seconds that tick away. */
const TIMERS = [
  'edgeDelayWhile',
  'fdWhile',
  'helloWhen',
  'mdelayWhile',
  'rbWhile',
  'rcvdInfoWhile',
  'rrWhile',
  'tcWhile',
  'txCount',
] as const satisfies readonly (keyof Timers)[];

/** A second has passed. */
export function countDown(port: Port): void {
  for (const timer of TIMERS) if (port[timer] > 0) port[timer]--;
}

/** A port as BEGIN leaves it (17.18.1): its link is down, and it sends nothing on. */
export function newPort(settings: PortSettings, vector: Vector, times: Times): Port {
  return {
    ...settings,
    states: {
      receive: 'DISCARD',
      migration: 'CHECKING_RSTP',
      detection: settings.edge === true ? 'EDGE' : 'NOT_EDGE',
      information: 'DISABLED',
      roles: 'DISABLE_PORT',
      topology: 'INACTIVE',
    },
    portEnabled: false,
    message: undefined,
    agree: false,
    agreed: false,
    disputed: false,
    fdbFlush: false,
    forward: false,
    forwarding: false,
    infoIs: 'disabled',
    learn: false,
    learning: false,
    mcheck: false,
    newInfo: true,
    operEdge: settings.edge === true,
    proposed: false,
    proposing: false,
    rcvdBpdu: false,
    rcvdMsg: false,
    rcvdRstp: false,
    rcvdStp: false,
    rcvdTc: false,
    rcvdTcAck: false,
    rcvdTcn: false,
    reRoot: true,
    reselect: true,
    role: 'disabled',
    selected: false,
    selectedRole: 'disabled',
    sendRstp: true,
    sync: true,
    synced: false,
    tcAck: false,
    tcProp: false,
    updtInfo: false,
    edgeDelayWhile: MIGRATE_TIME,
    fdWhile: times.maxAge,
    helloWhen: HELLO_TIME,
    mdelayWhile: MIGRATE_TIME,
    rbWhile: 0,
    rcvdInfoWhile: 0,
    rrWhile: times.forwardDelay,
    tcWhile: 0,
    txCount: 0,
    portVector: vector,
    portTimes: times,
    designatedVector: vector,
    designatedTimes: times,
  };
}

export const stateOf = ({ learning, forwarding }: Port): PortState =>
  forwarding ? 'forwarding' : learning ? 'learning' : 'discarding';
