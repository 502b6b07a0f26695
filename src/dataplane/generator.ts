/**
 * The generator's structures, shared with its control side (src/gen) as layout.ts's are with the switch's.
 *
 * A thread has a Generator with a list of tasks. A task sends on one ring, receives from one, or does both. Times are
 * nanoseconds of the machine's monotonic clock.
 */

/** What a task does. */
export const IDLE: u32 = 0;
/** Sends its frames on their schedule. */
export const SEND: u32 = 1;
/** Counts and checks what comes. */
export const RECEIVE: u32 = 2;
/** Sends on what comes: as it is, with the addresses of `source` and `peer`, or with its own two swapped. */
export const FORWARD: u32 = 3;
export const FORWARD_MAC: u32 = 4;
export const FORWARD_SWAP: u32 = 5;
/** Answers ARP requests and ICMP echo requests. */
export const ANSWER: u32 = 6;

@unmanaged
export class Generator {
  /** 1: the thread ends its loop after this round. */
  stop: u32;
  taskCount: u32;
  /** `Task[taskCount]`. */
  tasks: usize;
  /** The payload behind a stamp begins like this: MAX_FRAME bytes, for all frames the same. */
  pattern: usize;
  /** Payloads of frames that came are compared with it; 0: only their stamps are looked at. */
  compare: u32;
  /** Of the run; frames with another one's number aren't counted as ours. 0 to 255. */
  run: u32;
  /** When the run began, and when it ends by itself. */
  begin: u64;
  end: u64;
}

@unmanaged
export class Task {
  kind: u32;
  /** `DriverRing` to receive from, and to send on; 0: none. */
  receive: usize;
  send: usize;
  /** The device wants a kick. */
  kickReceive: u32;
  kickSend: u32;
  /** The device lied, or the ring was broken before: the ring tells. */
  broken: u32;

  /** `Frame[frameCount]`, sent in turn. */
  frames: usize;
  frameCount: u32;
  /** The next one. */
  position: u32;
  /** `Note[ring.size]`: what the buffers hold. */
  notes: usize;
  /** Frames that go out together. */
  train: u32;
  /** Number of the sender in the stamps. */
  stream: u32;
  /** Fraction of a nanosecond of `due`. */
  dueFraction: u32;
  /** When the next train is due, after Generator.begin. */
  due: u64;
  /** Frames sent, which is the sequence number of the next one; how many there shall be. */
  sequence: u64;
  limit: u64;
  sentBytes: u64;
  /** Times that the ring had no room for what was due. */
  full: u64;
  /** The latest that a frame went out after it was due, and of all frames the sum. */
  lateMost: u64;
  lateSum: u64;
  /** When the first and the last frame went out. */
  first: u64;
  last: u64;

  received: u64;
  receivedBytes: u64;
  /** Received frames without a stamp of this run, and with one that doesn't fit the frame. */
  foreign: u64;
  corrupt: u64;
  /** When the first and the last frame came. */
  receivedFirst: u64;
  receivedLast: u64;
  /** `Track[streams]`. */
  tracks: usize;
  streams: u32;
  /** A Histogram of the latency; 0: none. */
  histogram: usize;
  /** A Capture; 0: none. */
  capture: usize;
  /** Forwarded frames that found no room. */
  dropped: u64;
  /** Addresses as they stand in a frame, loaded little-endian. */
  source: u64;
  peer: u64;
  /** Of ANSWER. */
  arps: u64;
  echoes: u64;
}

/** A frame to be sent, prepared by the control side. */
@unmanaged
export class Frame {
  /** All its bytes, or those before its stamp. */
  at: usize;
  length: u32;
  /** Where the stamp is written, 128 at most; 0: none. The bytes behind it are the pattern. */
  stamp: u32;
  /** Where the checksum over the stamp is written; 0: none. `sum`: of all that it covers without the stamp. */
  checksum: u32;
  sum: u32;
  /** The next frame is due so long after this one: nanoseconds, and their fraction in 2^-32. */
  gapFraction: u32;
  gap: u64;
}

/** What a buffer of a ring to send holds. */
@unmanaged
export class Note {
  /** Number of the frame, counted from 1; 0: none. */
  frame: u32;
  /** Behind a stamp at `stamp` the pattern goes on to `filled`, both counted from the frame's start. */
  stamp: u32;
  filled: u32;
}

export const FRAME_STRIDE: usize = 40;
export const NOTE_STRIDE: usize = 12;
export const TASK_STRIDE: usize = (offsetof<Task>() + 63) & ~63;
