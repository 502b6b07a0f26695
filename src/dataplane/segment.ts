/**
 * Does for a receiver what the sender left to the device: completes checksums, cuts TCP and UDP segments
 * (virtio 1.3, 5.1.6.2), fragments datagrams.
 *
 * cut() says how many frames there will be, and piece() makes one after the other in this worker's memory: the
 * headers from the snapshot, the payload read once from the guest's buffer, so that the checksum is that of what
 * is sent. The frame that was made looks like one of the burst: `piecePacket()` and `pieceFrame()`.
 */
import { add, addWord, finish } from './checksum';
import { copy } from './copy';
import { bytesOf } from './frames';
import { OFFLOAD_CSUM, OFFLOAD_UFO, SNAPSHOT } from './layout';
import { headersLength, NEEDS_CSUM, network, parse, protocol, TCP, transport, UDP, version, writeHeader } from './offload';
import { HASH, Packet, pieceFrame, piecePacket, wholeFrame, worker } from './scratch';

/** TCP flags. */
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

const IPV6_FRAGMENT: u32 = 44;
const FRAGMENT_HEADER: u32 = 8;
const MORE_FRAGMENTS: u32 = 0x2000;

let source: Packet = changetype<Packet>(0);
let sourceFrame: usize = 0;
/** Bytes in front of each piece's payload, payload bytes of all but the last piece, and of all together. */
let headers: u32 = 0;
let size: u32 = 0;
let payload: u32 = 0;
let pieces: u32 = 0;
/** The receiver completes checksums itself. */
let partial = false;
/** Of the datagrams that this worker fragments (RFC 8200, 4.5). */
let identification: u32 = 0;

/** Prepares the pieces of a frame for a receiver with the offloads `accepts`; returns how many there will be. */
export function cut(packet: Packet, frame: usize, accepts: u32): u32 {
  source = packet;
  sourceFrame = frame;
  partial = (accepts & OFFLOAD_CSUM) != 0;
  // All pieces are of one flow.
  store<u64>(pieceFrame() - HASH, load<u64>(frame - HASH));
  size = <u32>load<u16>(frame - 8);
  pieces = 1;
  if (size == 0) return 1;
  // What is parsed is what inspect() has parsed, a tag more or less.
  const end = min(packet.length, SNAPSHOT);
  parse(frame, end);
  if (packet.offload & OFFLOAD_UFO) {
    headers = transport;
    size &= ~7;
    completeWhole();
    identification++;
  } else {
    headers = headersLength(frame, end);
  }
  payload = packet.length - headers;
  pieces = (payload + size - 1) / size;
  return pieces;
}

/** Makes piece `index`. */
export function piece(index: u32): void {
  if (source.offload & OFFLOAD_UFO) fragment(index);
  else if (source.offload == OFFLOAD_CSUM) complete();
  else segment(index);
  const packet = piecePacket();
  packet.single = 1;
  // As if it had the header of the source in front.
  packet.at = pieceFrame() - worker().skip;
}

/** Copies bytes of the source's frame. */
@inline
function take(to: usize, from: u32, length: u32): void {
  bytesOf(to, source, sourceFrame, from, length);
}

/** A frame of its own whose checksum is complete. */
function complete(): void {
  const frame = pieceFrame();
  const length = source.length;
  take(frame, 0, length);
  completeAt(frame, length);
  piecePacket().length = length;
  writeHeader(frame, 0, 0, 0, 0, 0, 0);
}

function completeAt(frame: usize, length: u32): void {
  const start = <u32>load<u16>(sourceFrame - 6);
  const offset = <u32>load<u16>(sourceFrame - 4);
  store<u16>(frame + start + offset, finish(add(0, frame + start, length - start)));
}

/**
 * Completes the checksum in a whole copy of a frame that has left it undone. Of a frame to be cut the field has the
 * sum for its pieces: the copy gets that of the frame as it is.
 */
export function completeCopy(copied: usize, packet: Packet, frame: usize): void {
  const start = <u32>load<u16>(frame - 6);
  const field = copied + start + <u32>load<u16>(frame - 4);
  const length = packet.length - start;
  if (packet.offload != OFFLOAD_CSUM) {
    parse(frame, packet.length);
    store<u16>(field, <u16>pseudoHeader(copied, length));
  }
  store<u16>(field, finish(add(0, copied + start, length)));
}

/** The datagram that is fragmented: its checksum spans all fragments. */
function completeWhole(): void {
  take(wholeFrame(), 0, source.length);
  completeAt(wholeFrame(), source.length);
}

function segment(index: u32): void {
  const frame = pieceFrame();
  const from = index * size;
  const length = min(size, payload - from);
  const last = index + 1 == pieces;
  copy(frame, sourceFrame, headers);
  take(frame + headers, headers + from, length);
  const total = headers + length;
  lengthen(frame, total, index);
  const header = frame + transport;
  const tcp = protocol == TCP;
  if (tcp) {
    store<u32>(header + 4, bswap(bswap(load<u32>(header, 4)) + from));
    let flags = load<u8>(header, 13);
    if (!last) flags &= ~FIN_PSH;
    // The receiver of the first one has been told (RFC 3168, 6.1.2).
    if (index > 0) flags &= ~CWR;
    store<u8>(header, flags, 13);
  } else {
    store<u16>(header, bswap(<u16>(total - transport)), 4);
  }
  const field: u32 = tcp ? 16 : 6;
  const pseudo = pseudoHeader(frame, total - transport);
  store<u16>(header + field, <u16>pseudo);
  if (partial) {
    writeHeader(frame, NEEDS_CSUM, 0, 0, 0, transport, field);
  } else {
    store<u16>(header + field, finish(add(0, header, total - transport)));
    writeHeader(frame, 0, 0, 0, 0, 0, 0);
  }
  piecePacket().length = total;
}

/** Sets the length in the IP header of a frame of `total` bytes; an IPv4 header counts its pieces (RFC 791). */
function lengthen(frame: usize, total: u32, index: u32): void {
  const ip = frame + network;
  if (version == 6) {
    store<u16>(ip, bswap(<u16>(total - network - 40)), 4);
    return;
  }
  store<u16>(ip, bswap(<u16>(total - network)), 2);
  store<u16>(ip, bswap(<u16>(<u32>bswap(load<u16>(ip, 4)) + index)), 4);
  checksumHeader(ip);
}

function checksumHeader(ip: usize): void {
  store<u16>(ip, 0, 10);
  store<u16>(ip, <u16>~add(0, ip, transport - network), 10);
}

/** The sum of addresses, protocol and length (RFC 9293, 3.1; RFC 8200, 8.1). */
function pseudoHeader(frame: usize, length: u32): u32 {
  const addresses = version == 6 ? add(0, frame + network + 8, 32) : add(0, frame + network + 12, 8);
  return addWord(addWord(addresses, <u32>bswap(<u16>protocol)), <u32>bswap(<u16>length));
}

/** A fragment of the datagram in wholeFrame(): RFC 791, 3.2; RFC 8200, 4.5. */
function fragment(index: u32): void {
  const frame = pieceFrame();
  const from = index * size;
  const length = min(size, payload - from);
  const more: u32 = index + 1 < pieces ? 1 : 0;
  const ip = frame + network;
  copy(frame, sourceFrame, headers);
  let at = headers;
  if (version == 6) {
    store<u8>(ip, <u8>IPV6_FRAGMENT, 6);
    store<u16>(frame + at, <u16>UDP);
    store<u16>(frame + at, bswap(<u16>(from | more)), 2);
    store<u32>(frame + at, bswap(identification), 4);
    at += FRAGMENT_HEADER;
    store<u16>(ip, bswap(<u16>(at + length - network - 40)), 4);
  } else {
    store<u16>(ip, bswap(<u16>(at + length - network)), 2);
    store<u16>(ip, bswap(<u16>((from >> 3) | (more ? MORE_FRAGMENTS : 0))), 6);
    checksumHeader(ip);
  }
  copy(frame + at, wholeFrame() + headers + from, length);
  piecePacket().length = at + length;
  writeHeader(frame, 0, 0, 0, 0, 0, 0);
}
