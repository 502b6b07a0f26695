/** What rules whose frames wait have in common: the memory of such a queue, and its end. */
import type { RuleTable } from './rule.ts';

/** Behind a queue's memory: what is read of a frame is read in steps of 64 bytes. */
const SLACK = 128;
export const roomOf = (sizes: readonly number[]): number =>
  sizes.reduce((sum, size) => sum + size, 0) + SLACK;

/** Gives queues, one behind the other from `first`, their memory from `room`. */
export function layOut(
  { structures }: RuleTable,
  first: number,
  room: number,
  sizes: readonly number[],
): void {
  const stride = structures.constant('FIFO_STRIDE');
  let at = room;
  for (const [i, size] of sizes.entries()) {
    const fifo = structures.fifo(first + i * stride);
    fifo.set('at', at);
    fifo.set('size', size);
    at += size;
  }
}

/** Have queues these sizes? Then what waits in them stays. */
export function haveSizes({ structures }: RuleTable, first: number, sizes: readonly number[]): boolean {
  const stride = structures.constant('FIFO_STRIDE');
  return sizes.every((size, i) => structures.fifo(first + i * stride).get('size') === size);
}

/** Counts what waits in `count` queues that go as dropped, for `reason` (a place in REASONS). */
export function countLost(
  { arena, structures, rules }: RuleTable,
  first: number,
  count: number,
  reason: number,
): void {
  const stride = structures.constant('FIFO_STRIDE');
  for (let i = 0; i < count; i++) {
    const waiting = structures.fifo(first + i * stride).get('count');
    Atomics.add(arena.u64, (rules.get('drops') >>> 3) + reason, BigInt(waiting));
  }
}
