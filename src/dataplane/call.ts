/** Interrupts for guests: collected in a round, sent by the worker after it. */
import { Vring } from './layout';
import { callSlot, worker } from './scratch';

/** Notes that the guest is to be interrupted after this round: once, however many bursts the round had. */
export function call(vring: Vring): void {
  const self = worker();
  if (vring.callRound == self.round) return;
  vring.callRound = self.round;
  vring.notifications += 1;
  store<u32>(callSlot(self.callCount), <u32>changetype<usize>(vring));
  self.callCount += 1;
}

/** Has `event` been passed on the way from `old` to `now`? Indices modulo 65536 (virtio 1.3, 2.7.7.1). */
@inline
export function passed(event: u32, now: u32, old: u32): bool {
  return ((now - event - 1) & 0xffff) < ((now - old) & 0xffff);
}
