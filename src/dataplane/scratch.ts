/**
 * A worker's own memory: the burst in work. Laid out at the worker's area of the arena, reused for each burst.
 *
 *   +0x00_0000  Worker
 *   +0x00_9000  the packets of the burst
 *   +0x00_9800  notes of them
 *   +0x00_a000  their snapshots
 *   +0x00_d000  per port: the burst that it was last a destination of
 *   +0x00_f000  the destinations of the burst
 *   +0x01_1000  the packets for one destination; those that mirrors are asked about, and those that one of them wants
 *   +0x01_2000  its packets with their rings, where it has several
 *   +0x01_3000  used descriptors that a packed ring gets at the end of the burst
 *   +0x01_4000  where captures have the records of its packets, and rings with records
 *   +0x01_6000  its packets with the members of a bond that they leave by
 *   +0x01_8000  a message of IGMP or MLD
 *   +0x02_0000  a frame that the driver's side counts
 *   +0x03_2000  a datagram that is being fragmented
 *   +0x04_4000  a frame made from another one (segment.ts)
 *   +0x06_0000  pieces of the buffers to write to
 *   +0x10_0000  pieces of the buffers to read from
 *   +0x20_0000  used descriptors of a frame in several buffers of a packed ring
 *   +0x28_0000  rings that it polls
 *   +0x30_0000  rings whose guests want an interrupt
 *   +0x40_0000  bytes of buffers to read from that no window leads to
 *   +0x4a_0000  those of a frame to write
 *   +0x4c_0000  where these belong
 *   +0x4d_0000  a descriptor, or some bytes of one
 *   +0x4e_0000  queues of frames that wait for their time
 *   +0x4f_0000  frames for the control plane, and such as it wants sent (control-frames.ts)
 */
import { BURST, MAX_WORKERS, SNAPSHOT, Worker, WORKER_STRIDE, WORKERS } from './layout';

const PACKETS: usize = 0x9000;
const NOTES: usize = 0x9800;
const SNAPSHOTS: usize = 0xa000;
const MARKS: usize = 0xd000;
const DESTINATIONS: usize = 0xf000;
const LIST: usize = 0x1_1000;
const KEPT: usize = 0x1_1400;
const CHOSEN: usize = 0x1_1800;
const SPREAD: usize = 0x1_2000;
const LATER: usize = 0x1_3000;
const RECORDS: usize = 0x1_4000;
const WATCHED: usize = 0x1_5000;
const MEMBERS: usize = 0x1_6000;
const MESSAGE: usize = 0x1_8000;
const FRAME: usize = 0x2_0000;
const WHOLE: usize = 0x3_2000;
const PIECE: usize = 0x4_4000;
const SINKS: usize = 0x6_0000;
const PIECES: usize = 0x10_0000;
const USED: usize = 0x20_0000;
const QUEUES: usize = 0x28_0000;
const CALLS: usize = 0x30_0000;
const SOURCE_BOUNCE: usize = 0x40_0000;
const SINK_BOUNCE: usize = 0x4a_0000;
const BOUNCE_NOTES: usize = 0x4c_0000;
const DESCRIPTOR: usize = 0x4d_0000;
const TIMED: usize = 0x4e_0000;

/** Bound of rings that a worker polls: 1024 ports with 128 each. */
export const MAX_QUEUES: u32 = 0x2_0000;
/** Bound of rings whose guests it can want to interrupt after a round. */
export const MAX_CALLS: u32 = 0x4_0000;
/** Pieces that a burst may have; a packet has at most one a byte. */
export const MAX_PIECES: u32 = 0x2_0000;

/** A frame in the burst. */
@unmanaged
export class Packet {
  /** Head of its descriptor chain; of a packed ring, its buffer id. */
  head: u32;
  /** Bytes of the frame, without the virtio-net header. */
  length: u32;
  /** 1: header and frame lie in one piece, at `at`. 0: in several, listed at `pieces` (`Piece[]`). */
  single: u32;
  at: usize;
  pieces: usize;
  /** Index of the port it goes to, or from GROUPED on those of a group, or FLOOD, or NOWHERE. */
  destination: u32;
  /** Descriptors that it takes in a packed ring. */
  slots: u32;
  /** What a receiver must take undone, or have done for it; set if the ring it came from has OFFLOADS. */
  offload: u32;
}

/** What is known of a frame on a bridge with VLANs (vlan.ts). */
@unmanaged
export class Note {
  /** Its filtering identifier: bridge and VLAN. */
  fid: u32;
  /** What a tag of it holds: priority, and VLAN; above that whether it came with one. */
  tci: u32;
  /** Type of the tag that the snapshot has now, as it is loaded little-endian; 0: none. */
  form: u32;
  /** What all this was, and the frame's tag, before the frame was lent to a mirror's VLAN. */
  ownFid: u32;
  ownTci: u32;
  ownForm: u32;
  ownTag: u32;
}

/** A contiguous piece of a buffer. */
@unmanaged
export class Piece {
  at: usize;
  length: u32;
}

/** Captures that a switch may have at a time. */
export const MAX_CAPTURES: u32 = 8;

/** Those of a group (groups.ts): the numbers of two sets of ports, GROUP_BITS each. */
export const GROUPED: u32 = 0x8000_0000;
export const GROUP_BITS: u32 = 13;
export const FLOOD: u32 = 0xffff_fffe;
export const NOWHERE: u32 = 0xffff_ffff;

/** Does a frame go to several ports, maybe? */
@inline export function isForMany(destination: u32): bool { return destination >= GROUPED && destination != NOWHERE; }

/** Where the hash of a frame stands before it: value, report and padding, as in the header (5.1.6). */
export const HASH: usize = 24;

export const PACKET_STRIDE: usize = 32;
export const NOTE_STRIDE: usize = 32;
export const PIECE_STRIDE: usize = 8;
export const LATER_STRIDE: usize = 16;
// 16 bytes of room for the virtio-net header, so that the frame itself is aligned; before that 8 for its hash, behind
// the snapshot of the frame before.
export const SNAPSHOT_STRIDE: usize = 16 + SNAPSHOT + 16;

let base: usize = WORKERS;

/** Chooses the area that this instance works in. */
export function useWorker(index: u32): void {
  base = WORKERS + <usize>min(index, MAX_WORKERS - 1) * WORKER_STRIDE;
}

/** Works in the control plane's area until leaveControl(), which is given what this returns. */
export function enterControl(): usize {
  const before = base;
  base = WORKERS + <usize>MAX_WORKERS * WORKER_STRIDE;
  return before;
}
export function leaveControl(before: usize): void {
  base = before;
}

@inline export function worker(): Worker { return changetype<Worker>(base); }
@inline export function queueSlot(index: u32): usize { return base + QUEUES + ((<usize>index) << 2); }
@inline export function callSlot(index: u32): usize { return base + CALLS + ((<usize>index) << 2); }
@inline export function packetAt(index: u32): Packet { return changetype<Packet>(base + PACKETS + <usize>index * PACKET_STRIDE); }
@inline export function noteAt(index: u32): Note { return changetype<Note>(base + NOTES + <usize>index * NOTE_STRIDE); }
/** The snapshot of a frame; its virtio-net header stands right before it, and its hash HASH bytes before it. */
@inline export function frameAt(index: u32): usize { return base + SNAPSHOTS + <usize>index * SNAPSHOT_STRIDE + 16; }
@inline export function markSlot(port: u32): usize { return base + MARKS + ((<usize>port) << 2); }
@inline export function destinationSlot(index: u32): usize { return base + DESTINATIONS + ((<usize>index) << 2); }
@inline export function listSlot(index: u32): usize { return base + LIST + ((<usize>index) << 2); }
@inline export function keptSlot(index: u32): usize { return base + KEPT + ((<usize>index) << 2); }
@inline export function chosenSlot(index: u32): usize { return base + CHOSEN + ((<usize>index) << 2); }
/** Number of a packet, and the ring that it goes to: u32 each. */
@inline export function spreadSlot(index: u32): usize { return base + SPREAD + ((<usize>index) << 3); }
/** Number of a packet, and the port that it leaves a bond by: u32 each. */
@inline export function memberSlot(index: u32): usize { return base + MEMBERS + ((<usize>index) << 3); }
/** Where a capture's ring has the record of a frame that came (way 0) or goes out (way 1). */
@inline export function recordSlot(way: u32, capture: u32, index: u32): usize {
  return base + RECORDS + ((<usize>(way * MAX_CAPTURES + capture) * BURST + index) << 2);
}
@inline export function watchedSlot(index: u32): usize { return base + WATCHED + ((<usize>index) << 2); }
@inline export function messageScratch(): usize { return base + MESSAGE; }
@inline export function frameScratch(): usize { return base + FRAME; }
/** An answer that is being written, behind room for its virtio-net header: pieceFrame() has no other use then. */
@inline export function answerScratch(): usize { return base + PIECE + 64; }
@inline export function wholeFrame(): usize { return base + WHOLE + 16; }
/** The frame that was made, behind room for its virtio-net header, and what is known of it. */
@inline export function pieceFrame(): usize { return base + PIECE + 64; }
@inline export function piecePacket(): Packet { return changetype<Packet>(base + PIECE); }
@inline export function sinks(): usize { return base + SINKS; }
@inline export function usedHeads(): usize { return base + USED; }
/** Second words of descriptors, and where they go: u64 and u32 each, at most one for each packet of a burst. */
@inline export function laterWords(): usize { return base + LATER; }
@inline export function pieces(): usize { return base + PIECES; }
@inline export function sourceArea(): usize { return base + SOURCE_BOUNCE; }
@inline export function sinkArea(): usize { return base + SINK_BOUNCE; }
@inline export function bounceNote(index: u32): usize { return base + BOUNCE_NOTES + ((<usize>index) << 4); }
@inline export function descriptorScratch(): usize { return base + DESCRIPTOR; }
/** A port and which of its queues (timed.ts). */
@inline export function timedSlot(index: u32): usize { return base + TIMED + ((<usize>index) << 2); }
/** Offsets for the control plane. */
export const WORKER_CAME: usize = 0x4f_0000;
export const WORKER_SENDS: usize = 0x4f_c000;
export const QUEUES_OFFSET: usize = QUEUES;
export const CALLS_OFFSET: usize = CALLS;
