/**
 * From a port to its rings. A guest with one queue gets the burst as it is; with several, each frame goes to the
 * ring that the port's table has for its flow, so that frames of one flow keep their order. The hash is the
 * driver's own where it has asked for that (RSS), else flow.ts's.
 *
 * The control plane rewrites the table when queues are enabled or disabled: an entry always names a ring of this
 * port, whatever moment a worker reads it at.
 */
import { leave } from './bond';
import { transmit } from './device';
import { flowHash } from './flow';
import { FLOWS, Port, Reception, Rules, STAGE_BOND, STAGE_CAPTURE, STAGE_MIRROR, Vring } from './layout';
import { copying, keepList, mirrorOut, recallList } from './mirror';
import { passes } from './receive-filter';
import { depart } from './rules';
import { frameAt, HASH, listSlot, packetAt, spreadSlot } from './scratch';
import { hashFrame } from './toeplitz';
import { endWatch, watchOut } from './watch';

/** Sends frames of the burst to the guest of a port: all of them (`every`), or those named by the worker's list. */
export function deliver(port: Port, count: u32, every: bool): void {
  if (port.rules != 0) {
    const rules = changetype<Rules>(port.rules);
    if (rules.egress != 0) {
      count = depart(port, rules, count, every);
      if (count == 0) return;
      every = false;
    }
  }
  hand(port, count, every);
}

/** The same for frames that have been through the port's rules. */
export function hand(port: Port, count: u32, every: bool): void {
  if (port.rules != 0 && changetype<Rules>(port.rules).egress & (STAGE_CAPTURE | STAGE_BOND | STAGE_MIRROR)) handRuled(port, count, every);
  else handOver(port, count, every);
}

function handRuled(port: Port, count: u32, every: bool): void {
  const rules = changetype<Rules>(port.rules);
  const mirrored = rules.egress & STAGE_MIRROR && !copying;
  if (rules.egress & STAGE_CAPTURE) watchOut(rules, count, every);
  if (mirrored) keepList(count, every);
  if (rules.egress & STAGE_BOND && port.pairs != 0) {
    // What becomes of the frames from here on those who look at the members see.
    if (!copying) endWatch();
    if (mirrored) {
      // Before the members have the frames: theirs may be mirrored, too.
      mirrorOut(port, rules, count);
      recallList(count);
      every = false;
    }
    leave(rules, count, every);
    return;
  }
  handOver(port, count, every);
  if (!copying) endWatch();
  if (mirrored) mirrorOut(port, rules, count);
}

@inline
function handOver(port: Port, count: u32, every: bool): void {
  const reception = port.reception;
  if (reception != 0) deliverWanted(port, changetype<Reception>(reception), count, every);
  else if (port.pairs < 2) transmit(changetype<Vring>(port.ring), count, every);
  else spread(port, count, every, false);
}

/** The same for a driver that has said by commands what it wants. */
function deliverWanted(port: Port, reception: Reception, count: u32, every: bool): void {
  if (reception.filter != 0) {
    let left: u32 = 0;
    for (let i: u32 = 0; i < count; i++) {
      const which = every ? i : load<u32>(listSlot(i));
      if (passes(reception, frameAt(which))) store<u32>(listSlot(left++), which);
    }
    if (left < count) {
      atomic.add<u64>(changetype<usize>(port) + offsetof<Port>('filtered'), count - left);
      if (left == 0) return;
      every = false;
      count = left;
    }
  }
  const rss = reception.rss != 0;
  if (reception.hashed) {
    for (let i: u32 = 0; i < count; i++) {
      const which = every ? i : load<u32>(listSlot(i));
      hashFrame(reception, frameAt(which), packetAt(which).length);
    }
  }
  if (port.pairs < 2) transmit(changetype<Vring>(port.ring), count, every);
  else spread(port, count, every, rss);
}

/** The entry of the port's table for a frame whose hash was taken: the one behind all where there was none. */
@inline
function entryOf(frame: usize): u32 {
  return load<u16>(frame - HASH, 4) == 0 ? FLOWS : load<u32>(frame - HASH) & (FLOWS - 1);
}

/** The ring, of several, that a frame goes to; `rss`: its hash was taken. */
@inline
function ringFor(port: Port, frame: usize, length: u32, rss: bool): u32 {
  const entry = rss ? entryOf(frame) : flowHash(frame, length) & (FLOWS - 1);
  return load<u32>(port.table + ((<usize>entry) << 2));
}

/** The ring that a frame for a port will go to; 0: nobody is there. */
export function ringOf(port: Port, frame: usize, length: u32): usize {
  if (port.pairs == 0) return 0;
  if (port.pairs == 1) return port.ring;
  const reception = changetype<Reception>(port.reception);
  const rss = changetype<usize>(reception) != 0 && reception.rss != 0;
  if (rss) hashFrame(reception, frame, length);
  return <usize>ringFor(port, frame, length, rss);
}

function spread(port: Port, count: u32, every: bool, rss: bool): void {
  for (let i: u32 = 0; i < count; i++) {
    const which = every ? i : load<u32>(listSlot(i));
    store<u32>(spreadSlot(i), which);
    store<u32>(spreadSlot(i), ringFor(port, frameAt(which), packetAt(which).length, rss), 4);
  }
  // A burst for each ring that occurs, in the order of the frames.
  for (let i: u32 = 0; i < count; i++) {
    const ring = load<u32>(spreadSlot(i), 4);
    if (ring == 0) continue;
    let n: u32 = 0;
    for (let j = i; j < count; j++) {
      if (load<u32>(spreadSlot(j), 4) != ring) continue;
      store<u32>(spreadSlot(j), 0, 4);
      store<u32>(listSlot(n++), load<u32>(spreadSlot(j)));
    }
    transmit(changetype<Vring>(<usize>ring), n, false);
  }
}
