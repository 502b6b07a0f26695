/** Which rings frames may go to now, and the table by which the workers find one for each flow (flow-table.ts). */
import { nextFlowTable } from './flow-table.ts';
import { isReceiver, type NetState } from './net-state.ts';
import { isOpen, type Queue } from './queue.ts';

/** Queues that frames may go to: they run, are enabled, and the driver uses them. */
function openReceivers(s: NetState): Queue[] {
  return s.queues.filter((q) => isReceiver(s, q.index) && isOpen(q) && s.control.uses(q.index >>> 1));
}

/** Queue pairs of which both directions run and are enabled. */
export function enabledPairs(s: NetState): number {
  return openReceivers(s).filter((q) => isOpen(s.queues[q.index + 1]!)).length;
}

/**
 * Lets the workers send to the rings that take frames now, but for some. True when those others had been sent to
 * and there still are rings: then a worker may be about to send to them until it has passed by.
 */
export function spread(s: NetState, without: readonly Queue[] = []): boolean {
  const open = openReceivers(s);
  const rings = open.filter((q) => !without.includes(q)).map((q) => q.vring.at);
  const { u32 } = s.arena;
  const at = s.flows.start >>> 2;
  const before = Array.from(u32.subarray(at, at + s.flowCount));
  const first = s.queues[0]!.vring.at;
  const { rss } = s.control;
  const ringOf = (pair: number) => {
    const ring = s.queues[2 * pair]?.vring.at;
    return ring !== undefined && rings.includes(ring) ? ring : (rings[0] ?? first);
  };
  const table = rss
    ? before.map((_, hash) => ringOf(rss.table[hash % rss.table.length]!))
    : nextFlowTable(before, rings.length > 0 ? rings : [first], s.flowCount);
  table.push(ringOf(rss?.unclassified ?? 0));
  for (const [flow, ring] of table.entries()) Atomics.store(u32, at + flow, ring);
  s.port.set('ring', rings[0] ?? first);
  s.port.set('pairs', rings.length);
  return rings.length > 0 && rings.length < open.length;
}

/** A ring takes frames now, or does no more. */
export function ringsChanged(s: NetState): void {
  spread(s);
  s.events.onRings();
}
