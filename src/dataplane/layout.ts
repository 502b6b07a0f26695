/**
 * What lies where in the arena, and the structures that the data plane and the control plane share.
 *
 * This file is the single source of the layouts: index.ts exports the strides and offsets, TypeScript reads them.
 * The control plane writes a structure only while no worker can look at it (see quiescence in poll.ts).
 *
 *   0x0000_0000   never used: address 0 means "nothing"
 *   0x0001_0000   header
 *   0x0002_0000   bridges
 *   0x0010_0000   ports
 *   0x0020_0000   worker areas, 5 MiB each
 *   0x0a20_0000   an area like a worker's, for the control plane (control.ts)
 *   0x0a80_0000   forwarding database
 *   0x0ac0_0000   tables made at run time: vrings, memory regions, driver rings
 *   0x1000_0000   memory mapped from elsewhere: guests, the packet pool
 *   0xffe0_0000   never mapped, so that a wide load at the end of the last region stays inside
 */

export const HEADER: usize = 0x1_0000;
export const BRIDGES: usize = 0x2_0000;
export const PORTS: usize = 0x10_0000;
export const WORKERS: usize = 0x20_0000;
export const FDB: usize = 0xa80_0000;
export const TABLES: usize = 0xac0_0000;
export const MAPPED: usize = 0x1000_0000;
export const TOP: usize = 0xffe0_0000;

export const MAX_PORTS: u32 = 2048;
export const MAX_BRIDGES: u32 = 1024;
/** Port.bridge of the members of bonds, which are on none. */
export const NO_BRIDGE: u32 = MAX_BRIDGES;
export const MAX_WORKERS: u32 = 32;
export const MAX_REGIONS: u32 = 512;
export const WORKER_STRIDE: usize = 0x50_0000;

/** Packets taken from a ring in one go. */
export const BURST: u32 = 64;
/** Bytes of a frame that are copied before anything is decided on them. */
export const SNAPSHOT: u32 = 128;
/** Of these the bytes that a decision may rest on: a tag that is inserted moves the others out of the snapshot. */
export const DECIDED: u32 = SNAPSHOT - 4;
/** Entries of a port's table from flows to rings, a power of 2. */
export const FLOWS: u32 = 128;
/** Largest frame: 64 KiB of payload and an Ethernet header (virtio 1.3, 5.1.6.3.1: 65562 with the header). */
export const MAX_FRAME: u32 = 65550;

/** One in the arena, written by the control plane. */
@unmanaged
export class Header {
  /** Raised with each change that the workers must have seen before memory is reused. */
  generation: u32;
  /** Ports in use lie below this index. */
  portCount: u32;
  workerCount: u32;
  /** Seconds, monotonic. */
  now: u32;
  /** Seconds after which an address is forgotten, on bridges that have no number of their own (BRIDGES). */
  ageing: u32;
  /** Learned addresses, and their bound. */
  fdbEntries: u32;
  fdbLimit: u32;
  fdbLock: i32;
  /** Keys of the forwarding database's hash, drawn at start so that nobody can aim at one bucket. */
  fdbSeed: u64;
  /** Until when, in nanoseconds, ports may forward that do so only while the control plane lives (STAGE_LEASED). */
  lease: u64;
}

/** A worker's own area starts with this; the rest is scratch memory (see scratch.ts). */
@unmanaged
export class Worker {
  /** The generation that this worker has seen; SLEEPING while it touches nothing. */
  seen: u32;
  stop: u32;
  /** Rings that it polls: `queues[0 … queueCount)`, arena addresses. */
  queueCount: u32;
  /** Rings whose guest wants an interrupt after this round: `calls[0 … callCount)`. */
  callCount: u32;
  /** Raised when a ring was found broken. */
  brokenCount: u32;
  /** Number of the round in its low 24 bits, the worker above: no two workers share one. */
  round: u32;
  /** Where the next round starts in the list of rings. */
  cursor: u32;
  /** The burst in work; marks which destinations were seen. */
  burst: u32;
  /** Bytes of virtio-net header before the frames of the burst. */
  skip: u32;
  /** Frames for the control plane (control-frames.ts): such as it hasn't been told of, and in all, and those it took. */
  cameCount: u32;
  cameWritten: u32;
  cameTaken: u32;
  /** Frames that it wants sent, in all, and those that were. */
  sendsWritten: u32;
  sendsTaken: u32;
  /** When the next of the frames that wait for their time may go, in nanoseconds; 0: none waits. */
  deadline: u64;
  /** Queues of such frames that this worker looks after (timed.ts). */
  timedCount: u32;
  /** Rounds in which nothing came, rounds with packets. */
  idleRounds: u64;
  busyRounds: u64;
}

export const SLEEPING: u32 = 0xffff_ffff;

/** A bridge, at its number's place in BRIDGES. */
@unmanaged
export class Bridge {
  /** Seconds after which an address is forgotten; 0: the header's. */
  ageing: u32;
  /** 1: frames to addresses that are reserved for bridges go no further (IEEE 802.1Q, 8.6.3). */
  filters: u32;
  /** Which groups its ports have joined (`Groups`, groups.ts); 0: nobody looks, frames for groups go to all. */
  groups: usize;
}

/** A port of the switch. */
@unmanaged
export class Port {
  /** 1 while in use. */
  used: u32;
  /** Rings that frames for the guest may go to now: those that run and are enabled. */
  pairs: u32;
  /** The first of them; without any, the one that counts what found no guest. */
  ring: usize;
  /** `FLOWS` rings by flow, u32 each, and the one for what has no hash (RSS); read while there are several. */
  table: usize;
  /** Guest memory: `regions[0 … regionCount)`, sorted by guest address. */
  regions: usize;
  regionCount: u32;
  /** What the driver asked for of the frames that it gets (`Reception`); 0: nothing. */
  reception: usize;
  /** With an IOMMU: translations, `Region[]` sorted by I/O address; the address below, how many above. */
  iotlb: u64;
  /** Learned addresses, and their bound. */
  addresses: u32;
  addressLimit: u32;
  /** Addresses not learned because a bound was reached. */
  notLearned: u32;
  /** The bridge that it belongs to, in the bits above a VLAN's (see fidOf in rules.ts). */
  bridge: u32;
  /** What an operator has set for its frames (`Rules`); 0: nothing. */
  rules: usize;
  /** GROUPS_… */
  groupFlags: u32;
  /** Frames that the driver's own filters kept from it. */
  filtered: u64;
  /** Groups that it has joined, and VLANs in which it leads to a router; their bound, and how often that was met. */
  groups: u32;
  groupLimit: u32;
  groupsRefused: u32;
}

/** Port.groupFlags: a group that is left is left at once; frames for groups all go there; no router is there. */
export const GROUPS_FAST_LEAVE: u32 = 1;
export const GROUPS_ROUTER: u32 = 2;
export const GROUPS_NO_ROUTER: u32 = 4;

/**
 * What an operator has set for the frames of a port (rules.ts). It is there as long as the port; what is set of a
 * kind has a structure of its own, which takes the other's place when that kind is set anew. 0: nothing of the kind.
 */
@unmanaged
export class Rules {
  /** Stages (STAGE_…) that a frame from the port goes through, and one for the port. */
  ingress: u32;
  egress: u32;
  /** Held by whoever changes what several workers count: buckets, queues. */
  lock: i32;
  /** 1: frames don't go to other ports that are isolated. */
  isolated: u32;
  /** Which VLANs the port is in (`Vlans`), with STAGE_VLAN. */
  vlans: usize;
  /** Who the port may send as (`Guard`), with STAGE_GUARD. */
  guard: usize;
  /** How much it may send to all (`Storm`), with STAGE_STORM. */
  storm: usize;
  /** Frames that the rules have turned away, by reason (RULE_…): `u64[RULE_REASONS]`. */
  drops: usize;
  /** What the guest may send (police.ts): a bucket of bits and one of packets, those of rate 0 unused; with STAGE_POLICE. */
  police: usize;
  /** Frames that wait for the port's rate (`Shaper`), with STAGE_SHAPE. */
  shaper: usize;
  /** Frames under way to the guest and from it (`Line`), with STAGE_LINE. */
  lineOut: usize;
  lineIn: usize;
  /** Captures that look at the port: how many (u32), 4 bytes of padding, and the address of each `Watch` (u32). */
  watches: usize;
  /** Bit n: frames to 01-80-C2-00-00-0n are for the control plane (control-frames.ts), with STAGE_PROTOCOLS. */
  protocols: u32;
  /** How many it got, in which second. */
  handed: u32;
  handedSecond: u32;
  /** Of a bond what it is made of (`Bond`), with STAGE_BOND; of a member whose it is (`BondMember`), with STAGE_MEMBER. */
  bond: usize;
  member: usize;
  /** Mirrors that copy its frames, with STAGE_MIRROR: how many (u32), and the address of each `Mirror` (u32). */
  mirrors: usize;
}

/** Where copies of some ports' frames go (mirror.ts). */
@unmanaged
export class Mirror {
  /** 0: so many captures watch a port that gets copies and has none (watch.ts). */
  watches: u32;
  /** WAY_IN, WAY_OUT: frames from the ports, to them. */
  ways: u32;
  /** A bit for each VLAN whose frames are copied; 0: whatever VLAN a frame is in. */
  vlans: usize;
  /** The VLAN that the copies are in (RSPAN); 0: they are as on the port. */
  vlan: u32;
  /** The ports that they go to: how many (u32), and their indices (u32). */
  ports: usize;
  pad: u32;
  /** Copies that were written, and such as found no room. */
  copied: u64;
  lost: u64;
}

/** How a bond sends (bond.ts). Behind it stands the member for each of FLOWS hashes, the index of a port, u32. */
@unmanaged
export class Bond {
  /** By what a frame's member is chosen: 0: all entries are the same, 1: addresses, 2: the flow. */
  hash: u32;
  pad: u32;
}

export const BOND_STRIDE: usize = offsetof<Bond>() + <usize>FLOWS * 4;

/** A member of a bond. */
@unmanaged
export class BondMember {
  /** Index of the bond's port. */
  bond: u32;
  /** 1: what comes from it counts. */
  open: u32;
}

export const BOND_MEMBER_STRIDE: usize = offsetof<BondMember>();

/** What a capture wants of a port's frames (watch.ts). */
@unmanaged
export class Watch {
  /** The capture's rings, one a worker: `Capture[]`. */
  rings: usize;
  /** Program that chooses frames (packet-filter.ts); 0: all. */
  filter: usize;
  /** Bytes of a frame that are kept. */
  snaplen: u32;
  /** The capture's number for the port. */
  number: u32;
  /** WAY_IN, WAY_OUT. */
  ways: u32;
  /** A bit for each VLAN whose frames are wanted; 0: whatever VLAN a frame is in. */
  vlans: usize;
  /** Frames that found no room. */
  lost: u64;
}

/** Rules.ingress, Rules.egress: in the order in which a frame goes through them. */
export const STAGE_ISOLATION: u32 = 1;
export const STAGE_VLAN: u32 = 2;
export const STAGE_POLICE: u32 = 256;
export const STAGE_SHAPE: u32 = 512;
export const STAGE_LINE: u32 = 1024;
/** Of frames from the port the first stage, of frames to it the last. */
export const STAGE_CAPTURE: u32 = 0x8000_0000;
/** The same for mirrors; and the port gets their copies, and nothing else (mirror.ts). */
export const STAGE_MIRROR: u32 = 0x0800_0000;
export const STAGE_MONITOR: u32 = 0x0400_0000;
export const STAGE_GUARD: u32 = 4;
export const STAGE_STORM: u32 = 8;
export const STAGE_LOCKED: u32 = 16;
/** The last of frames to a bond; of frames from a member the last before those of its bond. */
export const STAGE_BOND: u32 = 0x2000_0000;
export const STAGE_MEMBER: u32 = 0x1000_0000;
/** Behind STAGE_CAPTURE. */
export const STAGE_PROTOCOLS: u32 = 0x4000_0000;
/** Not a stage: what comes teaches nothing. */
export const STAGE_NO_LEARNING: u32 = 32;
/** RSTP (span.ts): nothing goes on, in either direction; but what comes teaches its source. */
export const STAGE_BLOCKED: u32 = 0x2000;
export const STAGE_LEARNS: u32 = 0x4000;
/** Blocked when the control plane shows no sign of life. */
export const STAGE_LEASED: u32 = 0x8000;

/** The link is down (unplugged.ts): nothing comes, and nothing goes. */
export const STAGE_UNPLUGGED: u32 = 0x0100_0000;

/** Reasons for which rules turn a frame away; src/rules/reasons.ts names them. */
export const RULE_REASONS: u32 = 48;

/** A token bucket (bucket.ts). A new one is full. */
@unmanaged
export class Bucket {
  /** Units (bits, packets) a second; in billionths of a unit: what it holds at most, and what it holds now. */
  rate: u64;
  burst: u64;
  tokens: i64;
  /** When it was filled last, in nanoseconds. */
  time: u64;
  lock: i32;
}

/** How a Shaper and a Line begin (timed.ts). */
@unmanaged
export class Timed {
  lock: i32;
  /** The worker that sends on what waits, counted from 1; 0: nothing waits. */
  owner: u32;
}

/** Frames that wait (fifo.ts), in `size` bytes at `at`. */
@unmanaged
export class Fifo {
  at: usize;
  size: u32;
  /** Bytes from the room's begin. */
  head: u32;
  tail: u32;
  /** Frames. */
  count: u32;
}

export const FIFO_STRIDE: usize = 32;

/** Shaping (shape.ts): a Bucket of bits and a Fifo for each class follow, the one that goes last first. */
@unmanaged
export class Shaper {
  lock: i32;
  owner: u32;
  /** Frames in all queues. */
  waiting: u32;
}

export const CLASSES: u32 = 8;
export const SHAPER_BUCKET: usize = 64;
export const SHAPER_FIFOS: usize = SHAPER_BUCKET + 64;
export const SHAPER_STRIDE: usize = SHAPER_FIFOS + <usize>CLASSES * FIFO_STRIDE;

/**
 * Link impairment in one direction (line.ts). Two Fifos follow, of frames that are delayed and of those that are not,
 * and a Vring that they come from.
 */
@unmanaged
export class Line {
  lock: i32;
  owner: u32;
  /** Most frames under way. */
  limit: u32;
  /** Nanoseconds. */
  delay: u64;
  jitter: u64;
  /** When the newest frame arrives. */
  last: u64;
  /** State of the generator of numbers. */
  random: u64;
  /** Shares of the frames, in 2^-32. */
  loss: u64;
  duplicate: u64;
  reorder: u64;
  corrupt: u64;
}

export const LINE_FIFOS: usize = 128;
export const LINE_VRING: usize = LINE_FIFOS + 2 * FIFO_STRIDE;

export const BUCKET_STRIDE: usize = (offsetof<Bucket>() + 63) & ~63;

/** Who a port may send as (guard.ts), with lists behind it. */
@unmanaged
export class Guard {
  /** GUARD_… */
  flags: u32;
  /** Entries of each list. */
  macs: u32;
  ipv4s: u32;
  ipv6s: u32;
}

/** Guard.flags: the list of MACs, and that of addresses, hold; no router, and no DHCP server. */
export const GUARD_MAC: u32 = 1;
export const GUARD_IP: u32 = 2;
export const GUARD_RA: u32 = 4;
export const GUARD_DHCP: u32 = 8;
/** Entries in each list of a Guard. */
export const GUARD_ENTRIES: u32 = 64;
/** Behind a Guard: MACs, u64 each; IPv4 addresses with their masks, u32 each; those of IPv6, 16 bytes each. */
export const GUARD_MACS: usize = 64;
export const GUARD_IPV4S: usize = GUARD_MACS + <usize>GUARD_ENTRIES * 8;
export const GUARD_IPV6S: usize = GUARD_IPV4S + <usize>GUARD_ENTRIES * 8;
export const GUARD_STRIDE: usize = GUARD_IPV6S + <usize>GUARD_ENTRIES * 32;

/** How much a port may send to all (storm.ts): a `Bucket` for each kind stands behind it, BUCKET_STRIDE apart. */
@unmanaged
export class Storm {
  /** A bit for each kind that has a bound, and for each whose bound is in bits, not packets. */
  kinds: u32;
  bits: u32;
}

export const STORM_BROADCAST: u32 = 0;
export const STORM_MULTICAST: u32 = 1;
export const STORM_UNKNOWN: u32 = 2;
export const STORM_STRIDE: usize = BUCKET_STRIDE * 4;

/** Which VLANs a port is in, and how (vlan.ts). */
@unmanaged
export class Vlans {
  /** Frames of this VLAN have no tag on the port; NO_VLAN: there are none without. */
  pvid: u32;
  /** Type of the port's tags, as it is loaded little-endian; NO_TAGS: whatever a frame has is the customer's own. */
  type: u32;
  /** 1: frames with a tag are admitted, 0: only such as have a priority alone in it. */
  tagged: u32;
}

/** The VLAN that none may be in. */
export const NO_VLAN: u32 = 4095;
export const NO_TAGS: u32 = 0xffff_ffff;
/** Behind a Vlans: a bit for each VLAN that the port is in. */
export const MEMBERS_OFFSET: usize = 64;
export const VLANS_STRIDE: usize = MEMBERS_OFFSET + 512;

/**
 * What a driver asked for by its control queue of the frames that it gets (virtio 1.3, 5.1.6.5): filters
 * (receive-filter.ts) and hashes (toeplitz.ts). Another one takes its place when something changes.
 */
@unmanaged
export class Reception {
  /** FILTER_…; 0: every frame passes. */
  filter: u32;
  /** 1: hashes are asked for, to report or to spread by them. */
  hashed: u32;
  /** Bits of VIRTIO_NET_HASH_TYPE_… that are enabled. */
  hashTypes: u32;
  /** 1: Port.table is the driver's own, by hash (RSS). */
  rss: u32;
  /** The driver's address; addresses in the lists behind. */
  mac: u64;
  unicasts: u32;
  multicasts: u32;
}

/** Reception.filter */
export const FILTER_ADDRESSES: u32 = 1;
export const FILTER_VLANS: u32 = 2;
export const ALL_MULTICAST: u32 = 4;
export const ALL_UNICAST: u32 = 8;
export const NO_MULTICAST: u32 = 16;
export const NO_UNICAST: u32 = 32;
export const NO_BROADCAST: u32 = 64;

/** Addresses in each list of a Reception. */
export const FILTER_ENTRIES: u32 = 64;
/** Behind a Reception: its lists of addresses, u64 each, a bit for each VLAN, and the hash of each half byte. */
export const UNICASTS_OFFSET: usize = 64;
export const MULTICASTS_OFFSET: usize = UNICASTS_OFFSET + <usize>FILTER_ENTRIES * 8;
export const VLANS_OFFSET: usize = MULTICASTS_OFFSET + <usize>FILTER_ENTRIES * 8;
export const TOEPLITZ_OFFSET: usize = VLANS_OFFSET + 512;
/** 16 words for each half of the 36 bytes that a hash is taken of at most. */
export const RECEPTION_STRIDE: usize = TOEPLITZ_OFFSET + 72 * 16 * 4;

/** A piece of guest memory: one that lies in the arena, or one that is too large for that (see windows.ts). */
@unmanaged
export class Region {
  /** Guest physical address, inclusive. */
  base: u64;
  /** Bytes. */
  size: u64;
  /** Where it lies in the arena; 0: it doesn't, and the rest of this says how it is reached. */
  arena: usize;
  /** Its file. */
  fd: i32;
  /** Where it begins in the file; where what may be mapped of the file ends. */
  offset: u64;
  end: u64;
  /** Where it lies in the process. */
  outside: u64;
  /** Tells its windows from those of other regions: from 1 on; 0: its pages are too large for windows. */
  id: u32;
  /** Of a translation: what the device may do there (ACCESS_READ, ACCESS_WRITE). */
  access: u32;
}

export const ACCESS_READ: u32 = 1;
export const ACCESS_WRITE: u32 = 2;

/** Bytes of frames that may wait for a ring (held.ts), behind their Fifo: eight of the largest. */
export const HELD_ROOM: u32 = 0x8_8000;

/** The dirty log of a guest in migration (vhost-user, "Migration"); see log.ts. */
@unmanaged
export class Log {
  /** The bitmap, shared with the front-end, and its bytes. */
  bits: usize;
  size: u32;
  /** Guest memory by place in the arena: `regions[0 … regionCount)`, sorted by it. */
  regions: usize;
  regionCount: u32;
  /** Writes noted, and writes to pages that the bitmap doesn't reach. */
  writes: u64;
  missed: u64;
}

/** A window: a chunk of a large guest's memory that lies in the arena for the time being. */
@unmanaged
export class Window {
  /** Which chunk of which region; 0: none. */
  key: u64;
  /** Where in the arena. */
  arena: usize;
  /** The burst (Vring.windowClock) that used it last. */
  stamp: u32;
}

/** Bytes of a window. */
export const CHUNK: u64 = 0x20_0000;
export const CHUNK_SHIFT: u64 = 21;
/** Windows among which the least recently used goes. */
export const WAYS: u32 = 8;

export const STOPPED: u32 = 0;
export const RUNNING: u32 = 1;
export const BROKEN: u32 = 2;
/** Until a translation comes (IOMMU). */
export const WAITING: u32 = 3;

/** Vring.flags */
export const EVENT_IDX: u32 = 1;
export const INDIRECT: u32 = 2;
export const MERGEABLE: u32 = 4;
export const IN_ORDER: u32 = 8;
export const PACKED: u32 = 16;
/** Frames from this ring may have work left to be done. */
export const OFFLOADS: u32 = 32;
/** Frames stay in this ring while the guest that they are for has no buffers (patience.ts). */
export const PATIENT: u32 = 64;

/** Vring.offloads, Packet.offload: what a sender may leave undone, and a receiver takes undone (5.1.3.1). */
export const OFFLOAD_CSUM: u32 = 1;
export const OFFLOAD_TSO4: u32 = 2;
export const OFFLOAD_TSO6: u32 = 4;
export const OFFLOAD_ECN: u32 = 8;
export const OFFLOAD_UFO: u32 = 16;
export const OFFLOAD_USO4: u32 = 32;
export const OFFLOAD_USO6: u32 = 64;
/** Addresses are I/O addresses, translated by Port.iotlb (VIRTIO_F_ACCESS_PLATFORM). */
export const IOMMU: u32 = 0x2_0000;
/** Either: an address that was found must be looked up again in each burst. */
export const LOOKED_UP: u32 = 0x3_0000;
/** Not all of the guest's memory lies in the arena (windows.ts). */
export const LARGE: u32 = 0x1_0000;

/** Reasons for a drop, in the order of Vring.drops. */
export const DROP_RING_FULL: u32 = 0;
export const DROP_TOO_BIG: u32 = 1;
export const DROP_SHORT: u32 = 2;
export const DROP_OVERSIZE: u32 = 3;
export const DROP_SAME_PORT: u32 = 4;
export const DROP_NO_GUEST: u32 = 5;
export const DROP_BROKEN: u32 = 6;
export const DROP_DISABLED: u32 = 7;
export const DROP_BAD_OFFLOAD: u32 = 8;
export const DROP_RESERVED: u32 = 9;
export const DROP_BAD_GROUP_MESSAGE: u32 = 10;
export const DROP_REASONS: u32 = 11;

/** A virtqueue seen from the device (vhost). */
@unmanaged
export class Vring {
  state: u32;
  /** Packets move only while this is 1 (VHOST_USER_SET_VRING_ENABLE). */
  enabled: u32;
  size: u32;
  flags: u32;
  /**
   * The three parts in the arena (virtio 1.3, 2.7). Of a packed ring (2.8): the descriptors, the driver's and the
   * device's event suppression structure.
   */
  desc: usize;
  avail: usize;
  used: usize;
  /** Index of the port. */
  port: u32;
  /**
   * Next entry of the avail ring, next entry of the used ring: 16 bits each. Of a packed ring: the next descriptor
   * in the low 15 bits, the wrap counter in the highest.
   */
  lastAvail: u32;
  usedIdx: u32;
  /** Used index when the guest was last interrupted; only meaningful while signalledValid. */
  signalled: u32;
  signalledValid: u32;
  /** Bytes of the virtio-net header: 12, or 10 without MRG_RXBUF and VERSION_1 (5.1.6). */
  headerLength: u32;
  lock: i32;
  /** Why it is BROKEN (errors.ts), and the value that was wrong. */
  error: u32;
  /** Of a ring that the guest transmits on, what it may leave undone; of the other, what it takes undone. */
  offloads: u32;
  errorValue: u64;
  /** Eventfd that interrupts the guest; -1: none. */
  callFd: i32;
  /** The round (Worker.round) whose list of calls it is in; 0xffff_ffff: none, the list was worked off. */
  callRound: u32;
  /** Of a VDUSE device, which callFd then is: the queue to interrupt there; -1: callFd is an eventfd. */
  callQueue: i32;
  /** The region hit last. */
  cacheArena: usize;
  /** Where writes to guest memory are noted for live migration (`Log`); 0: nowhere. */
  log: usize;
  /** 1: writes to the used ring too, as if it began at this guest address (VHOST_VRING_F_LOG). */
  logUsed: u32;
  logUsedAddress: u64;
  /**
   * Notes of the buffers in work (inflight.ts): the queue's region in shared memory, 0: none; the number of the next
   * note, and of a packed ring the entries taken in the burst.
   */
  inflight: usize;
  inflightTaken: u32;
  inflightCounter: u64;
  cacheBase: u64;
  cacheSize: u64;
  /**
   * Of a large guest: the windows of this ring alone, `Window[(windowMask + 1) * WAYS]`, so that only who works on
   * the ring moves them. 0: the guest lies in the arena as a whole.
   */
  windows: usize;
  windowMask: u32;
  /** Counts bursts: a window that the burst in work has used stays. */
  windowClock: u32;
  /** 1: buffers of this ring are written to, 0: read from. */
  writes: u32;
  /** Why it is WAITING: the address without a translation, and what for. */
  missAccess: u32;
  missAddress: u64;
  /** With an IOMMU: frames that wait for a translation (a Fifo and HELD_ROOM), of a ring that is written to; 0: none may. */
  held: usize;
  /** 1: the control plane was told that translations of the next buffers are missing, and hasn't looked yet. */
  asking: u32;
  /** Second, counted from 1, since which it has had no buffers for a sender that waits; 0: it has. */
  fullSince: u32;
  packets: u64;
  bytes: u64;
  notifications: u64;
  /** By reason. */
  drops: u64;
  drop1: u64;
  drop2: u64;
  drop3: u64;
  drop4: u64;
  drop5: u64;
  drop6: u64;
  drop7: u64;
  drop8: u64;
  drop9: u64;
  drop10: u64;
  /** Frames by size: below 64 B, 64, to 127, to 255, to 511, to 1023, to 1518, longer (statistics.ts). */
  sizes: u64;
  size1: u64;
  size2: u64;
  size3: u64;
  size4: u64;
  size5: u64;
  size6: u64;
  size7: u64;
  /** Frames to a group, and to everybody: no frame is in both. */
  multicasts: u64;
  broadcasts: u64;
}

/** A virtqueue seen from the driver (virtio-user). Descriptor i always points to buffer i, or into it. */
@unmanaged
export class DriverRing {
  size: u32;
  flags: u32;
  desc: usize;
  avail: usize;
  used: usize;
  /** What to add to an arena address to make it the device's. */
  bias: u64;
  headerLength: u32;
  /** `size` buffers of `bufferLength` bytes, one behind the other. */
  buffers: usize;
  bufferLength: u32;
  /** Most bytes that one descriptor of a frame to send takes; at most bufferLength. */
  segmentLength: u32;
  /** 1: the header of a frame to send has a descriptor of its own. */
  headerAlone: u32;
  /** Per descriptor, ours alone: what a lying device can't change. `Shadow[size]`. */
  shadow: usize;
  /** Per descriptor an indirect table of `tableEntries`; 0: none. */
  tables: usize;
  tableEntries: u32;
  /** Next free descriptor, and how many are free. */
  freeHead: u32;
  freeCount: u32;
  /** Oldest chain that the device has; followed with IN_ORDER. */
  oldest: u32;
  /** Chains that the device has. */
  lent: u32;
  /**
   * Next entries of the avail and the used ring; the avail index that the device was told of. Of a packed ring:
   * positions, with the wrap counter in bit 15.
   */
  availIdx: u32;
  lastUsed: u32;
  published: u32;
  /** Packed: the first descriptor not shown to the device yet is complete but for this second word. */
  hidden: u64;
  /** Packed, with IN_ORDER: the used descriptor that stands for the next buffers up to its own (packed-driver.ts). */
  batch: u64;
  /** Why the device isn't trusted any more (errors.ts); 0: it is. */
  error: u32;
  errorValue: u64;
  packets: u64;
  bytes: u64;
  /** Frames whose sequence number was not the one expected next, and that number (drainFrames). */
  gaps: u64;
  expected: u64;
  /** Received frames that are too short for Ethernet: passed over. */
  errors: u64;
  /** As in Vring. */
  sizes: u64;
  size1: u64;
  size2: u64;
  size3: u64;
  size4: u64;
  size5: u64;
  size6: u64;
  size7: u64;
  multicasts: u64;
  broadcasts: u64;
}

/** What the driver remembers of a descriptor. */
@unmanaged
export class Shadow {
  /** Next descriptor of the chain, or of the free ones. */
  next: u32;
  /** Descriptors of the chain that starts here and is lent to the device; 0: none is. */
  length: u32;
  /** Places that the chain takes in a packed ring. */
  slots: u32;
  pad: u32;
}

/** One direction between a driver's ring and a descriptor of the kernel (transfer.ts). */
@unmanaged
export class Transfer {
  /** The `DriverRing`. */
  ring: usize;
  /** Bytes that the kernel has before each frame: 12 or 10 of virtio-net header, 8 of VXLAN's, or none. */
  prefix: u32;
  /** Most messages at a time, and what recvmmsg(2) and sendmmsg(2) take: `struct mmsghdr[slots]`. */
  slots: u32;
  messages: usize;
  /** `struct iovec[vectorCount]`. */
  vectors: usize;
  vectorCount: u32;
  /** From the kernel: the number of each buffer that a message may fill, u32, and of `MOST_VECTORS` more. */
  ids: usize;
  /** From the kernel: buffers of the ring that a message may fill. */
  perMessage: u32;
  /** From the kernel: where the rest of a message lies that doesn't fit, `OVERFLOW` bytes each; 0: nowhere. */
  overflow: usize;
  /** From the kernel: room for control messages, `CONTROL` bytes each; 0: none is asked for. */
  control: usize;
  /** To the kernel: messages that were collected, and the first of them that isn't sent. */
  count: u32;
  next: u32;
  /** VXLAN's network identifier as it stands in the header's last four bytes. */
  vni: u32;
  /** Messages that were no frame, or found no buffers. */
  dropped: u64;
}

/** A queue of an AF_XDP socket (xdp.ts). Its rings are the kernel's, mapped here; all have `size` entries. */
@unmanaged
export class XdpQueue {
  /** UMEM: `2 * size` chunks of `chunk` bytes, the first half to receive into. */
  umem: usize;
  chunk: u32;
  size: u32;
  /** Of each ring the counters of who writes and who reads, and the entries. */
  rxProducer: usize;
  rxConsumer: usize;
  rxEntries: usize;
  txProducer: usize;
  txConsumer: usize;
  txEntries: usize;
  txFlags: usize;
  fillProducer: usize;
  fillConsumer: usize;
  fillEntries: usize;
  fillFlags: usize;
  doneProducer: usize;
  doneConsumer: usize;
  doneEntries: usize;
  /** Numbers of the chunks that are free to send from, u32, and how many. */
  free: usize;
  freeCount: u32;
  /** Room for a frame that came in several buffers. */
  scratch: usize;
}

/** A packet socket with its rings (packet-ring.ts), which are the kernel's, mapped here: slots of `slot` bytes. */
@unmanaged
export class PacketQueue {
  rx: usize;
  tx: usize;
  /** Slots of each ring. */
  slots: u32;
  /** Bytes of a slot. */
  slot: u32;
  /** The slots that the kernel fills next, and that we do. */
  rxNext: u32;
  txNext: u32;
  /** Bytes of the longest frame that the interface sends, without a VLAN tag. */
  longest: u32;
}

/** Strides are whole cache lines, so that two workers never write to one line. */
export const VRING_STRIDE: usize = (offsetof<Vring>() + 63) & ~63;
export const LINE_STRIDE: usize = LINE_VRING + VRING_STRIDE;
export const PORT_STRIDE: usize = (offsetof<Port>() + 63) & ~63;
export const RULES_STRIDE: usize = (offsetof<Rules>() + 63) & ~63;
export const LOG_STRIDE: usize = (offsetof<Log>() + 63) & ~63;
export const WATCH_STRIDE: usize = (offsetof<Watch>() + 63) & ~63;
export const MIRROR_STRIDE: usize = (offsetof<Mirror>() + 63) & ~63;
export const REGION_STRIDE: usize = offsetof<Region>();
export const WINDOW_STRIDE: usize = 16;
export const DRIVER_RING_STRIDE: usize = (offsetof<DriverRing>() + 63) & ~63;
export const SHADOW_STRIDE: usize = 16;
export const XDP_QUEUE_STRIDE: usize = (offsetof<XdpQueue>() + 63) & ~63;
export const PACKET_QUEUE_STRIDE: usize = (offsetof<PacketQueue>() + 63) & ~63;
export const TRANSFER_STRIDE: usize = (offsetof<Transfer>() + 63) & ~63;

@inline export function header(): Header { return changetype<Header>(HEADER); }
export const BRIDGE_STRIDE: usize = offsetof<Bridge>();

@inline export function bridgeAt(index: u32): Bridge { return changetype<Bridge>(BRIDGES + <usize>index * BRIDGE_STRIDE); }
@inline export function portAt(index: u32): Port { return changetype<Port>(PORTS + <usize>index * PORT_STRIDE); }
@inline export function drop(vring: Vring, reason: u32, count: u64 = 1): void {
  const at = changetype<usize>(vring) + offsetof<Vring>("drops") + (<usize>reason << 3);
  store<u64>(at, load<u64>(at) + count);
}
