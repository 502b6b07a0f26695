/**
 * A lock between workers, held for one burst at most: 0 free, 1 held. One worker alone never takes it.
 *
 * Whoever finds it held spins. A lock that sleeps (memory.atomic.wait32) was seen to stay held for ever by nobody
 * when two workers fought for it: code of V8's baseline compiler (Node 20) does that, that of the optimizing one
 * doesn't.
 */

export function acquire(at: usize): void {
  // Looks before it writes: the line stays shared while another holds the lock.
  while (atomic.load<i32>(at) != 0 || atomic.cmpxchg<i32>(at, 0, 1) != 0) {}
}

export function release(at: usize): void {
  atomic.store<i32>(at, 0);
}
