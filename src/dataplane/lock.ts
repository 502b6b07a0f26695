/**
 * A lock between workers, held for one burst at most: 0 free, 1 held, 2 held and somebody sleeps.
 * (Drepper, "Futexes Are Tricky", mutex 2.) One worker alone never takes it.
 */
const SPINS: u32 = 128;

export function acquire(at: usize): void {
  for (let i: u32 = 0; i < SPINS; i++) {
    if (atomic.load<i32>(at) == 0 && atomic.cmpxchg<i32>(at, 0, 1) == 0) return;
  }
  while (atomic.xchg<i32>(at, 2) != 0) atomic.wait<i32>(at, 2, 1_000_000);
}

export function release(at: usize): void {
  if (atomic.xchg<i32>(at, 0) == 2) atomic.notify(at, 1);
}
