/**
 * What a worker does over and over: a round takes one burst from each of its rings and switches it.
 *
 * Quiescence: a worker notes the generation that it has seen before each round, and SLEEPING before it sleeps.
 * The control plane changes a table, raises the generation and waits until no worker is older; then nothing can
 * hold what the table said before.
 */
import { bridge } from './bridge';
import { hasSends, sendAll } from './control-frames';
import { BURST, drop, DROP_DISABLED, header, MAX_PORTS, PATIENT, RUNNING, SLEEPING, Vring, Worker } from './layout';
import { MAX_CALLS, queueSlot, useWorker, worker } from './scratch';
import { releaseDue } from './timed';
import { showWatched } from './watch';
import { arm, complete, disarm, putBack, receive } from './device';
import { fitting } from './patience';

/** Binds this instance to a worker's area, once, before anything else. */
export function start(index: u32): void {
  useWorker(index);
  const self = worker();
  self.round = index << 24;
  atomic.store<u32>(selfSeen(), SLEEPING);
}

@inline function selfSeen(): usize { return changetype<usize>(worker()); }

/**
 * Up to `rounds` rounds; ends early when guests are to be interrupted, when a ring broke, when a frame came for the
 * control plane or when asked to stop.
 * Returns the packets that came.
 */
export function poll(rounds: u32): u32 {
  const self = worker();
  let packets: u32 = 0;
  for (let r: u32 = 0; r < rounds; r++) {
    atomic.store<u32>(selfSeen(), atomic.load<u32>(changetype<usize>(header())));
    const came = round();
    packets += came;
    if (came > 0) self.busyRounds += 1;
    else self.idleRounds += 1;
    if ((self.callCount | self.brokenCount | self.cameCount) != 0 || atomic.load<u32>(selfSeen(), 4) != 0) break;
  }
  return packets;
}

function round(): u32 {
  const self = worker();
  const count = self.queueCount;
  self.round = (self.round & 0xff00_0000) | ((self.round + 1) & 0x00ff_ffff);
  let packets: u32 = hasSends(self) ? sendAll() : 0;
  if (self.timedCount != 0) {
    packets += releaseDue();
    showWatched();
  }
  let at = self.cursor < count ? self.cursor : 0;
  for (let i: u32 = 0; i < count; i++) {
    const vring = changetype<Vring>(load<u32>(queueSlot(at)));
    if (++at == count) at = 0;
    if (vring.state == RUNNING) {
      const came = receive(vring);
      let burst = came;
      if (came > 0 && vring.flags & PATIENT) {
        burst = fitting(vring, came);
        if (burst < came) putBack(vring, burst, came);
      }
      if (burst > 0) {
        // A ring that isn't enabled is emptied without any effect (vhost-user, "Ring states").
        if (vring.enabled) bridge(vring, burst);
        else drop(vring, DROP_DISABLED, burst);
        complete(vring, burst);
        packets += burst;
        // A frame adds at most one call a port, the burst one of its own; the next round goes on behind this ring.
        if (self.callCount > MAX_CALLS - BURST * MAX_PORTS - 2) break;
      }
    }
  }
  self.cursor = at;
  return packets;
}

/** Asks the guests for kicks; true when there is work already, and then nobody may sleep. */
export function armAll(): bool {
  const self = worker();
  let work = false;
  for (let i: u32 = 0; i < self.queueCount; i++) {
    const vring = changetype<Vring>(load<u32>(queueSlot(i)));
    if (vring.state == RUNNING && arm(vring)) work = true;
  }
  return work;
}

export function disarmAll(): void {
  const self = worker();
  for (let i: u32 = 0; i < self.queueCount; i++) {
    const vring = changetype<Vring>(load<u32>(queueSlot(i)));
    if (vring.state == RUNNING) disarm(vring);
  }
}

/** From here to wake() this worker reads no table. */
export function sleep(): void {
  atomic.store<u32>(selfSeen(), SLEEPING);
}

/** Before the first look at a table: the store comes before the looks (sequentially consistent). */
export function wake(): void {
  atomic.store<u32>(selfSeen(), atomic.load<u32>(changetype<usize>(header())));
}
