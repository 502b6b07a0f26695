/**
 * Packet sockets (packet(7)): all frames that an interface receives, and a way to send some by it. Frames have a
 * virtio-net header of 10 bytes before them, and a VLAN tag that the kernel took out of a frame comes in a control
 * message (PACKET_AUXDATA). What the host itself sends by the interface doesn't come.
 */
import { check, isSystemError } from './errors.ts';
import { closeFd } from './fd.ts';
import { libc, pinned } from './libc.ts';
import { mapFixed } from './memory.ts';

const AF_PACKET = 17;
const SOCK_RAW = 3;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const ETH_P_ALL = 3;
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const SO_RCVBUF = 8;
const SOL_PACKET = 263;
const PACKET_ADD_MEMBERSHIP = 1;
const PACKET_RX_RING = 5;
const PACKET_STATISTICS = 6;
const PACKET_COPY_THRESH = 7;
const PACKET_AUXDATA = 8;
const PACKET_VERSION = 10;
const PACKET_TX_RING = 13;
const PACKET_LOSS = 14;
const PACKET_VNET_HDR = 15;
const PACKET_FANOUT = 18;
const PACKET_IGNORE_OUTGOING = 23;
const PACKET_MR_PROMISC = 1;
const TPACKET_V2 = 1;
const PACKET_FANOUT_HASH = 0;
const PACKET_FANOUT_FLAG_UNIQUEID = 0x2000;

/** Bytes of frames that may wait each way; the kernel has bounds of its own (net.core.rmem_max). */
const BUFFER = 4 << 20;

function setInt(fd: number, level: number, name: number, value: number, what: string): void {
  const bytes = pinned(4);
  bytes.writeInt32LE(value | 0);
  check(libc.setsockopt(fd, level, name, bytes, 4), 'setsockopt', what);
}

/** Slots of the ring to receive into and as many of that to send from, of `slot` bytes each. */
export interface PacketRings {
  slots: number;
  slot: number;
}

/** Bytes of a block, which holds whole slots. */
const BLOCK = 1 << 16;

export const packetRingRoom = ({ slots, slot }: PacketRings): number => 2 * slots * slot;

/**
 * `count` packet sockets on the interface with this number, among which its flows are spread by their hash, each
 * with rings that mapPacketRings() maps, if they are asked for. The interface is promiscuous as long as they are open.
 * Throws a SystemError (EPERM without CAP_NET_RAW).
 */
export function openPacketSockets(index: number, count: number, rings?: PacketRings): number[] {
  const fds: number[] = [];
  try {
    let group: number | undefined;
    for (let i = 0; i < count; i++) {
      const type = SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC;
      // Without a protocol nothing comes before it is bound.
      const fd = check(libc.socket(AF_PACKET, type, 0), 'socket', 'AF_PACKET');
      fds.push(fd);
      prepare(fd, index);
      if (rings) addRings(fd, rings);
      bind(fd, index, ETH_P_ALL);
      if (count > 1) group = joinFanout(fd, group);
    }
    return fds;
  } catch (error) {
    fds.forEach(closeFd);
    throw error;
  }
}

/**
 * A packet socket that no frame comes by, to send messages by the interface: one with rings sends from them alone. As
 * openPacketSockets().
 */
export function openPacketSender(index: number): number {
  const fd = check(libc.socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), 'socket', 'AF_PACKET');
  try {
    setInt(fd, SOL_PACKET, PACKET_VNET_HDR, 1, 'PACKET_VNET_HDR');
    setInt(fd, SOL_SOCKET, SO_SNDBUF, BUFFER, 'SO_SNDBUF');
    bind(fd, index, 0);
    return fd;
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}

/** Rings of slots with a header of TPACKET_V2 (Documentation/networking/packet_mmap.rst of Linux). */
function addRings(fd: number, { slots, slot }: PacketRings): void {
  setInt(fd, SOL_PACKET, PACKET_VERSION, TPACKET_V2, 'PACKET_VERSION');
  // A frame that the kernel doesn't like isn't to hold up those behind it.
  setInt(fd, SOL_PACKET, PACKET_LOSS, 1, 'PACKET_LOSS');
  // What is too long for a slot comes as a message.
  setInt(fd, SOL_PACKET, PACKET_COPY_THRESH, 1, 'PACKET_COPY_THRESH');
  // struct tpacket_req
  const request = pinned(16);
  request.writeUInt32LE(BLOCK, 0);
  request.writeUInt32LE((slots * slot) / BLOCK, 4);
  request.writeUInt32LE(slot, 8);
  request.writeUInt32LE(slots, 12);
  for (const ring of [PACKET_RX_RING, PACKET_TX_RING])
    check(libc.setsockopt(fd, SOL_PACKET, ring, request, 16), 'setsockopt', `packet ring ${ring}`);
}

/** Maps both rings, that to receive into first, at `room`, which has packetRingRoom() bytes. Throws a SystemError. */
export function mapPacketRings(fd: number, rings: PacketRings, room: bigint): void {
  mapFixed(room, packetRingRoom(rings), { fd, offset: 0n });
}

/** Frames that came and found no room since the last call. */
export function packetDrops(fd: number): number {
  // struct tpacket_stats: tp_packets, tp_drops
  const [statistics, length] = [pinned(8), pinned(4)];
  length.writeUInt32LE(8);
  check(
    libc.getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, statistics, length),
    'getsockopt',
    'PACKET_STATISTICS',
  );
  return statistics.readUInt32LE(4);
}

function prepare(fd: number, index: number): void {
  setInt(fd, SOL_PACKET, PACKET_VNET_HDR, 1, 'PACKET_VNET_HDR');
  setInt(fd, SOL_PACKET, PACKET_AUXDATA, 1, 'PACKET_AUXDATA');
  setInt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1, 'PACKET_IGNORE_OUTGOING');
  setInt(fd, SOL_SOCKET, SO_RCVBUF, BUFFER, 'SO_RCVBUF');
  setInt(fd, SOL_SOCKET, SO_SNDBUF, BUFFER, 'SO_SNDBUF');
  joinPromiscuous(fd, index);
}

function bind(fd: number, index: number, protocol: number): void {
  // struct sockaddr_ll
  const address = pinned(20);
  address.writeUInt16LE(AF_PACKET, 0);
  address.writeUInt16BE(protocol, 2);
  address.writeInt32LE(index, 4);
  check(libc.bind(fd, address, address.length), 'bind', `interface ${index}`);
}

/** A socket that no frame comes by, and as long as it is open the interface is promiscuous. As openPacketSockets(). */
export function holdPromiscuous(index: number): number {
  const fd = check(libc.socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0), 'socket', 'AF_PACKET');
  try {
    joinPromiscuous(fd, index);
    return fd;
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}

function joinPromiscuous(fd: number, index: number): void {
  // struct packet_mreq
  const membership = pinned(16);
  membership.writeInt32LE(index, 0);
  membership.writeUInt16LE(PACKET_MR_PROMISC, 4);
  check(
    libc.setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership, 16),
    'setsockopt',
    'PACKET_MR_PROMISC',
  );
}

/** Makes a group that nobody else has, or joins it; returns its number. */
function joinFanout(fd: number, group: number | undefined): number {
  const flags = group === undefined ? PACKET_FANOUT_FLAG_UNIQUEID : 0;
  setInt(fd, SOL_PACKET, PACKET_FANOUT, (group ?? 0) | ((PACKET_FANOUT_HASH | flags) << 16), 'PACKET_FANOUT');
  if (group !== undefined) return group;
  const [value, length] = [pinned(4), pinned(4)];
  length.writeUInt32LE(4);
  check(libc.getsockopt(fd, SOL_PACKET, PACKET_FANOUT, value, length), 'getsockopt', 'PACKET_FANOUT');
  return value.readUInt16LE(0);
}

/** Is a packet socket what this user may not have? */
export const lacksPacketRight = (error: unknown): boolean => isSystemError(error, 'EPERM', 'EACCES');
