/** The words of the generator: what a run is made of, and what it finds. Plain data, as JSON has it. */
import type { VirtioUserOptions } from '../virtio-user/options.ts';

/** What a port does; docs/gen.md has a row for each. */
export const MODES = ['txonly', 'rxonly', 'io', 'mac', 'macswap', 'flowgen', 'icmpecho', 'latency'] as const;
export type Mode = (typeof MODES)[number];

export interface GenPort
  extends Pick<VirtioUserOptions, 'role' | 'interface' | 'queues' | 'packed' | 'features' | 'timeout'> {
  /** The back-end's socket, or ours with `role: 'server'`; or a device of the kernel, `/dev/vhost-net`. */
  path: string;
  /** Descriptors of each ring; default 1024. */
  queueSize?: number;
  /** This port's own address; default 02:00:00:00:00:01 for the first port, and so on. */
  mac?: string;
  /** Writes what comes to this pcap file. */
  capture?: string;
}

/** Values that frames take in turn: `first` and those that follow it. */
export interface Range {
  first: bigint;
  count: number;
}

/** What frames are made of. Fields that aren't given are the port's own and its peer's. */
export interface Traffic {
  /** Bytes of the frames in turn, without the frame check sequence; default 64. */
  sizes?: number[];
  sourceMac?: Range;
  destinationMac?: Range;
  /** IPv6 where one of the two addresses is; both must be of one version. */
  version?: 4 | 6;
  sourceIp?: Range;
  destinationIp?: Range;
  sourcePort?: Range;
  destinationPort?: Range;
  vlan?: Range;
}

export const CHECKS = ['payload', 'stamp'] as const;
export type Check = (typeof CHECKS)[number];

/** Of each sending port. `recorded`: the times of a replayed file. */
export type Rate = { packets: number } | { bits: number } | 'max' | 'recorded';

export interface Trial {
  /** Of all ports, or of each. */
  mode: Mode | readonly Mode[];
  traffic?: Traffic;
  /** A pcap or pcapng file whose frames are sent instead. */
  replay?: string;
  /** Default: max, with `replay` as recorded. */
  rate?: Rate;
  /** Frames that each sending port sends, or each port receives that doesn't send; default: no bound. */
  count?: number;
  /** Default: no bound, but with `replay` once through the file. */
  seconds?: number;
  /** Frames that are sent together; default 1. */
  train?: number;
  /**
   * What is looked at of a frame that comes: its whole payload (default), or its stamp alone, which costs little at any
   * length and tells of loss, order and time, but not of damage behind it.
   */
  check?: Check;
}

export interface GenOptions {
  ports: GenPort[];
  /** A thread for each, pinned to it; ports are spread over them. Default: one thread, not pinned. */
  cpus?: readonly number[];
}

/** Nanoseconds. */
export interface Latency {
  frames: number;
  least: number;
  mean: number;
  p50: number;
  p90: number;
  p99: number;
  p999: number;
  p9999: number;
  most: number;
}

/** Frames of one sender. */
export interface StreamResult {
  /** The sender's number: sending queues of all ports, counted from 0. */
  stream: number;
  /** Frames sent, where the sender is one of this run. */
  sent?: number;
  /** Different frames that came. */
  received: number;
  /** Sent, or below the highest number that came, and not among those that came. */
  lost: number;
  reordered: number;
  /** The most that a frame came behind others. */
  reorderDistance: number;
  duplicates: number;
  /** So late that it isn't known whether it had come before. */
  stale: number;
}

export interface PortResult {
  path: string;
  mode: Mode;
  sent: number;
  sentBytes: number;
  /** Packets a second from the first to the last frame; 0: fewer than two were sent. */
  sendRate: number;
  /** Of a rate that was asked for: how far the mean is from it, relatively. */
  rateError?: number;
  /** Nanoseconds that frames went out after they were due. */
  lateMean?: number;
  lateMost?: number;
  /** Looks at a full ring. */
  ringFull: number;
  received: number;
  receivedBytes: number;
  receiveRate: number;
  /** Frames without a stamp of this run. */
  foreign: number;
  /** Frames with a stamp whose stamp or payload is damaged. */
  corrupt: number;
  /** Frames that could not be sent on, or weren't answered. */
  dropped: number;
  answers?: { arp: number; echo: number };
  streams: StreamResult[];
  latency?: Latency;
  capture?: { file: string; frames: number; lost: number };
}

export interface GenResult {
  /** Seconds from the first frame to the last one. */
  seconds: number;
  /** Why it ended. */
  ended: 'count' | 'time' | 'interrupt' | 'fault';
  /** What went wrong. */
  fault?: string;
  ports: PortResult[];
  sent: number;
  received: number;
  /** Undefined where nobody looks at sequence numbers. */
  lost?: number;
  reordered: number;
  duplicates: number;
  stale: number;
  corrupt: number;
  foreign: number;
  latency?: Latency;
}

/** Counts of a run under way. */
export interface Progress {
  /** Seconds since the run began. */
  seconds: number;
  /** Share of the run that is over, 0 to 1; undefined: it has no bound. */
  share?: number;
  sent: number;
  sentBytes: number;
  received: number;
  receivedBytes: number;
  lost?: number;
  corrupt: number;
  /** Nanoseconds, of all frames so far. */
  p50?: number;
  p99?: number;
}
