/**
 * Frames between rings, whatever the rings' format: the snapshots that decisions rest on, and the writing of a
 * frame to the buffers of another guest.
 */
import { gather } from './chain';
import { copy, copy64, copyShort } from './copy';
import { drop, DROP_BAD_OFFLOAD, OFFLOADS, SNAPSHOT, Vring } from './layout';
import { inspect } from './offload';
import { recordReceived } from './statistics';
import { frameAt, HASH, NOWHERE, Packet, PACKET_STRIDE, packetAt, Piece, PIECE_STRIDE, SNAPSHOT_STRIDE, worker } from './scratch';

/** Shortest frame that has a source and a destination. */
export const ETHERNET_HEADER: u32 = 14;

/** The second pass over the burst of `vring`: copies what will be decided on, so that the misses overlap. */
export function snapshots(vring: Vring, count: u32): void {
  const headerLength = vring.headerLength;
  worker().skip = headerLength;
  let bytes: u64 = 0;
  let frames: u32 = 0;
  let at = changetype<usize>(packetAt(0));
  let to = frameAt(0);
  for (let i: u32 = 0; i < count; i++, at += PACKET_STRIDE, to += SNAPSHOT_STRIDE) {
    const packet = changetype<Packet>(at);
    if (packet.destination == NOWHERE) continue;
    const length = packet.length;
    if (packet.single) {
      const from = packet.at + headerLength;
      // Whole steps: what is read beyond the frame stays in this worker's memory and is never sent.
      copy64(to, from);
      if (length > 64) copy64(to + 64, from + 64);
    } else {
      gather(to, packet.pieces, headerLength, min(length, SNAPSHOT));
    }
    // Without offloads the header says nothing but "one buffer" (5.1.6.1: num_buffers is its last field).
    store<u64>(to - 16, 0);
    store<u64>(to - 8, 0x0001_0000_0000_0000);
    bytes += length;
    frames++;
  }
  vring.packets += frames;
  vring.bytes += bytes;
  undone = vring.flags & OFFLOADS ? inspectAll(vring, count) : 0;
  recordReceived(vring, count);
}

/** What the frames of the burst have left undone, all together; Packet.offload has it of each, unless it is 0. */
export let undone: u32 = 0;

/** For a burst that came from no ring. */
export function nothingUndone(): void {
  undone = 0;
}
export function leftUndone(offloads: u32): void {
  undone = offloads;
}

function inspectAll(vring: Vring, count: u32): u32 {
  const may = vring.offloads;
  let all: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    const packet = packetAt(i);
    if (packet.destination == NOWHERE) continue;
    const frame = frameAt(i);
    if (packet.single) memory.copy(frame - 12, packet.at, 10);
    else gather(frame - 12, packet.pieces, 0, 10);
    if (inspect(packet, frame, may)) {
      all |= packet.offload;
    } else {
      drop(vring, DROP_BAD_OFFLOAD);
      vring.packets -= 1;
      vring.bytes -= packet.length;
      packet.length = 0;
      packet.destination = NOWHERE;
    }
  }
  return all;
}

/**
 * Writes the virtio-net header, unless it is there already: in a buffer that goes round, the header of the frame
 * before it. Where the frame begins a cache line the header is all that would be written to the line before it, and
 * that line then stays in the guest's cache.
 */
@inline
function writeHeader(to: usize, frame: usize, headerLength: u32): void {
  const first = load<u64>(frame - 12);
  // A header of 10 bytes is one of 12 without num_buffers, one of 20 has a hash behind that (5.1.6).
  if (headerLength == 12) {
    const last = load<u32>(frame - 4);
    if ((to & 63) == 52 && load<u64>(to) == first && load<u32>(to, 8) == last) return;
    store<u64>(to, first);
    store<u32>(to, last, 8);
  } else {
    store<u64>(to, first);
    store<u16>(to, load<u16>(frame - 4), 8);
    if (headerLength > 12) {
      store<u16>(to, load<u16>(frame - 2), 10);
      store<u64>(to, load<u64>(frame - HASH), 12);
    }
  }
}

/** Writes header and frame to one contiguous buffer, which has room for them. */
@inline
export function writeFrame(to: usize, packet: Packet, frame: usize, headerLength: u32, skip: u32): void {
  const length = packet.length;
  writeHeader(to, frame, headerLength);
  to += headerLength;
  if (length <= SNAPSHOT) {
    copyShort(to, frame, length);
    return;
  }
  copy64(to, frame);
  copy64(to + 64, frame + 64);
  if (packet.single) copy(to + SNAPSHOT, packet.at + skip + SNAPSHOT, length - SNAPSHOT);
  else gather(to + SNAPSHOT, packet.pieces, skip + SNAPSHOT, length - SNAPSHOT);
}

/** Writes header and frame to the pieces of `buffers` buffers, which have room for them. */
export function spreadFrame(list: usize, packet: Packet, frame: usize, headerLength: u32, buffers: u32): void {
  // num_buffers of this copy of the header; the next destination sets its own.
  store<u16>(frame - 2, <u16>buffers);
  spread(list, frame - 12, 0, min(headerLength, 12));
  store<u16>(frame - 2, 1);
  if (headerLength > 12) spread(list, frame - HASH, 12, headerLength - 12);
  spread(list, frame, headerLength, min(packet.length, SNAPSHOT));
  if (packet.length <= SNAPSHOT) return;
  let skip = worker().skip + SNAPSHOT;
  let at = headerLength + SNAPSHOT;
  let left = packet.length - SNAPSHOT;
  if (packet.single) {
    spread(list, packet.at + skip, at, left);
    return;
  }
  let source = packet.pieces;
  while (left > 0) {
    const piece = changetype<Piece>(source);
    if (skip >= piece.length) {
      skip -= piece.length;
    } else {
      const part = min(piece.length - skip, left);
      spread(list, piece.at + skip, at, part);
      at += part;
      left -= part;
      skip = 0;
    }
    source += PIECE_STRIDE;
  }
}

let spreadPiece: usize = 0;
let spreadStart: u32 = 0;

/** Writes `length` contiguous bytes into pieces, `skip` bytes into them. Calls go forward, so the place is kept. */
function spread(list: usize, from: usize, skip: u32, length: u32): void {
  if (skip == 0) {
    spreadPiece = list;
    spreadStart = 0;
  }
  let piece = changetype<Piece>(spreadPiece);
  let offset = skip - spreadStart;
  while (length > 0) {
    if (offset >= piece.length) {
      offset -= piece.length;
      spreadStart += piece.length;
      spreadPiece += PIECE_STRIDE;
      piece = changetype<Piece>(spreadPiece);
      continue;
    }
    const part = min(piece.length - offset, length);
    copy(piece.at + offset, from, part);
    from += part;
    offset += part;
    length -= part;
  }
}

/** Copies `length` bytes of a frame from byte `from` on: what the snapshot has from there, the rest from the guest. */
export function bytesOf(to: usize, packet: Packet, frame: usize, from: u32, length: u32): void {
  if (from < SNAPSHOT) {
    const part = min(length, SNAPSHOT - from);
    copy(to, frame + from, part);
    to += part;
    from += part;
    length -= part;
  }
  if (length == 0) return;
  const skip = worker().skip + from;
  if (packet.single) copy(to, packet.at + skip, length);
  else gather(to, packet.pieces, skip, length);
}
