/**
 * Frames from somebody who can be made to wait. Who writes to a stream (passt, QEMU's netdev) loses nothing on the
 * way by himself, and doesn't expect it: passt sends much at once and some of it never again. So frames stay in the
 * ring of such a port while the guest that they are for has no buffers, the stream fills up, and its writer waits.
 * From any other port they would be dropped there.
 *
 * A guest that takes nothing for PATIENCE seconds isn't waited for any more until it takes something. Frames to
 * several guests wait for nobody, those for a group of one neither.
 */
import { exitOf, faceOf } from './bond';
import { hasBuffers } from './device';
import { lookup, MAC_MASK, NO_PORT } from './fdb';
import { header, portAt, Rules, RUNNING, Vring } from './layout';
import { fidOf, reaches, rulesOf } from './rules';
import { frameAt, NOWHERE, packetAt } from './scratch';
import { ringOf } from './spread';
import { fidBefore } from './vlan';

const PATIENCE: u32 = 2;
const GROUP: u64 = 1;
/** Bytes of a guest's buffer, as most guests have them: so many buffers a long frame will take. */
const BUFFER: u32 = 1500;

/** How many frames of the burst from `source`, from the first one on, find buffers where they go. */
export function fitting(source: Vring, count: u32): u32 {
  const from = faceOf(source.port);
  const rules = rulesOf(from);
  const bridge = portAt(from).bridge;
  let last: u32 = 0;
  let wanted: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    const packet = packetAt(i);
    const fid = changetype<usize>(rules) == 0 ? fidOf(bridge) : fidBefore(rules, bridge, i);
    const ring = packet.destination == NOWHERE ? 0 : <u32>waitsAt(from, rules, fid, frameAt(i), packet.length);
    if (ring == 0) continue;
    // A burst for each guest: what it wants is one number then.
    if (last != 0 && ring != last) return i;
    last = ring;
    const size = changetype<Vring>(<usize>ring).size;
    const need = min(1 + packet.length / (BUFFER + 14), size);
    // More than one lap of the ring is for another burst.
    if (wanted + need > size) return i;
    wanted += need;
    if (waitsFor(changetype<Vring>(<usize>ring), wanted)) return i;
  }
  return count;
}

/** The ring that a frame for one guest goes to; 0: it is for several, or nobody. */
function waitsAt(from: u32, rules: Rules, fid: u32, frame: usize, length: u32): usize {
  const destination = load<u64>(frame) & MAC_MASK;
  const index = destination & GROUP ? NO_PORT : lookup(destination, fid);
  if (index == NO_PORT || index == from) return 0;
  if (changetype<usize>(rules) != 0 && !reaches(rules, index)) return 0;
  return ringOf(portAt(exitOf(index, frame, length)), frame, length);
}

/** Is a ring without so many buffers to be waited for? */
function waitsFor(ring: Vring, wanted: u32): bool {
  if (ring.state != RUNNING || !ring.enabled) return false;
  if (hasBuffers(ring, wanted)) {
    ring.fullSince = 0;
    return false;
  }
  // From 1 on: 0 is "not full".
  const now = header().now + 1;
  if (ring.fullSince == 0) ring.fullSince = now;
  return now - ring.fullSince <= PATIENCE;
}
