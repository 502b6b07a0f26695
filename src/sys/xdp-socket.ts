/** AF_XDP sockets (Documentation/networking/af_xdp.rst of Linux): their rings, and memory for frames. */
import { check, SystemError } from './errors.ts';
import { closeFd } from './fd.ts';
import { lastErrno, libc, pinned } from './libc.ts';
import { mapFixed, systemPageSize } from './memory.ts';

const AF_XDP = 44;
const SOCK_RAW = 3;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_XDP = 283;
const XDP_MMAP_OFFSETS = 1;
const XDP_RX_RING = 2;
const XDP_TX_RING = 3;
const XDP_UMEM_REG = 4;
const XDP_UMEM_FILL_RING = 5;
const XDP_UMEM_COMPLETION_RING = 6;
const XDP_STATISTICS = 7;
const XDP_OPTIONS = 8;
const XDP_OPTIONS_ZEROCOPY = 1;
const XDP_USE_NEED_WAKEUP = 8;

/** The rings: how the kernel sizes them, where it maps them from, bytes of an entry. In the order of XDP_MMAP_OFFSETS. */
const RINGS = [
  { name: 'rx', option: XDP_RX_RING, offset: 0n, entry: 16 },
  { name: 'tx', option: XDP_TX_RING, offset: 0x8000_0000n, entry: 16 },
  { name: 'fill', option: XDP_UMEM_FILL_RING, offset: 0x1_0000_0000n, entry: 8 },
  { name: 'done', option: XDP_UMEM_COMPLETION_RING, offset: 0x1_8000_0000n, entry: 8 },
] as const;
export type XdpRingName = (typeof RINGS)[number]['name'];

/** Bytes of the room that the rings of `size` entries are mapped to take at most. */
export const xdpRingRoom = (size: number): number =>
  RINGS.reduce((sum, { entry }) => sum + pages(size * entry) + systemPageSize, 0);

const pages = (length: number): number => Math.ceil(length / systemPageSize) * systemPageSize;

/** Where the parts of a ring were mapped, from the start of the room. */
export interface XdpRing {
  producer: number;
  consumer: number;
  flags: number;
  entries: number;
}

/** Frames in memory of ours: `length` bytes at an address, in chunks. */
export interface Umem {
  address: bigint;
  length: number;
  chunk: number;
}

function set(fd: number, option: number, value: Buffer): void {
  check(libc.setsockopt(fd, SOL_XDP, option, value, value.length), 'setsockopt', `AF_XDP, option ${option}`);
}

function get(fd: number, option: number, length: number): Buffer {
  const [value, size] = [pinned(length), pinned(4)];
  size.writeUInt32LE(length);
  check(libc.getsockopt(fd, SOL_XDP, option, value, size), 'getsockopt', `AF_XDP, option ${option}`);
  return value;
}

/**
 * A socket with its rings of `size` entries mapped at `room`, which has xdpRingRoom() bytes. Throws a SystemError (EPERM without
 * CAP_NET_RAW, ENOBUFS where the memory may not be locked).
 */
export function openXdpSocket(
  umem: Umem,
  size: number,
  room: bigint,
): { fd: number; rings: Record<XdpRingName, XdpRing> } {
  const fd = check(libc.socket(AF_XDP, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), 'socket', 'AF_XDP');
  try {
    const memory = pinned(32);
    memory.writeBigUInt64LE(umem.address, 0);
    memory.writeBigUInt64LE(BigInt(umem.length), 8);
    memory.writeUInt32LE(umem.chunk, 16);
    set(fd, XDP_UMEM_REG, memory);
    const entries = pinned(4);
    entries.writeUInt32LE(size);
    for (const { option } of RINGS) set(fd, option, entries);
    const offsets = get(fd, XDP_MMAP_OFFSETS, RINGS.length * 32);
    let at = 0;
    const mapped = RINGS.map(({ name, offset, entry }, i): [XdpRingName, XdpRing] => {
      const [producer, consumer, first, flags] = [0, 8, 16, 24].map((field) =>
        Number(offsets.readBigUInt64LE(i * 32 + field)),
      );
      const length = pages(first! + size * entry);
      mapFixed(room + BigInt(at), length, { fd, offset });
      const ring = {
        producer: at + producer!,
        consumer: at + consumer!,
        flags: at + flags!,
        entries: at + first!,
      };
      at += length;
      return [name, ring];
    });
    return { fd, rings: Object.fromEntries(mapped) as Record<XdpRingName, XdpRing> };
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}

/** Binds to a queue of an interface; by zero-copy where the driver can. Throws a SystemError. */
export function bindXdpSocket(fd: number, index: number, queue: number): void {
  const address = pinned(16);
  address.writeUInt16LE(AF_XDP, 0);
  address.writeUInt16LE(XDP_USE_NEED_WAKEUP, 2);
  address.writeUInt32LE(index, 4);
  address.writeUInt32LE(queue, 8);
  if (libc.bind(fd, address, address.length) === -1)
    throw new SystemError('bind', lastErrno(), `queue ${queue} of interface ${index}`);
}

/** Does the card write into our memory itself? */
export const isZeroCopy = (fd: number): boolean =>
  (get(fd, XDP_OPTIONS, 4).readUInt32LE(0) & XDP_OPTIONS_ZEROCOPY) !== 0;

/** Frames that came and were dropped: the rings were full, or they were too long, since the socket was opened. */
export function xdpDrops(fd: number): { full: number; unfit: number } {
  // struct xdp_statistics: rx_dropped, rx_invalid_descs, tx_invalid_descs, rx_ring_full, rx_fill_ring_empty_descs, ...
  const statistics = get(fd, XDP_STATISTICS, 48);
  const field = (i: number) => Number(statistics.readBigUInt64LE(8 * i));
  return { full: field(3), unfit: field(0) };
}
