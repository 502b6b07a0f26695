/** Copies of bytes by 128-bit loads and stores. Never writes a byte beyond `length`. */

// Above this the engine's own memory.copy is faster (it uses the widest registers of the processor).
const LARGE: u32 = 512;

/** 64 bytes: all loads before the first store. */
@inline
export function copy64(to: usize, from: usize): void {
  const a = v128.load(from);
  const b = v128.load(from, 16);
  const c = v128.load(from, 32);
  const d = v128.load(from, 48);
  v128.store(to, a);
  v128.store(to, b, 16);
  v128.store(to, c, 32);
  v128.store(to, d, 48);
}

/** Up to 128 bytes. Pieces overlap in the middle: no loop, and no branch but for the length's magnitude. */
@inline
export function copyShort(to: usize, from: usize, length: u32): void {
  if (length >= 64) {
    copy64(to, from);
    if (length > 64) copy64(to + length - 64, from + length - 64);
  } else if (length >= 32) {
    const a = v128.load(from);
    const b = v128.load(from, 16);
    const c = v128.load(from + length - 32);
    const d = v128.load(from + length - 32, 16);
    v128.store(to, a);
    v128.store(to, b, 16);
    v128.store(to + length - 32, c);
    v128.store(to + length - 32, d, 16);
  } else if (length >= 16) {
    const a = v128.load(from);
    const b = v128.load(from + length - 16);
    v128.store(to, a);
    v128.store(to + length - 16, b);
  } else {
    copySmall(to, from, length);
  }
}

/** Any number of bytes. */
export function copy(to: usize, from: usize, length: u32): void {
  if (length <= 128) {
    copyShort(to, from, length);
    return;
  }
  if (length > LARGE) {
    memory.copy(to, from, length);
    return;
  }
  const last: u32 = length - 64;
  for (let i: u32 = 0; i < last; i += 64) copy64(to + i, from + i);
  copy64(to + last, from + last);
}

function copySmall(to: usize, from: usize, length: u32): void {
  if (length >= 8) {
    const head = load<u64>(from);
    const tail = load<u64>(from + length - 8);
    store<u64>(to, head);
    store<u64>(to + length - 8, tail);
  } else if (length >= 4) {
    const head = load<u32>(from);
    const tail = load<u32>(from + length - 4);
    store<u32>(to, head);
    store<u32>(to + length - 4, tail);
  } else {
    for (let i: u32 = 0; i < length; i++) store<u8>(to + i, load<u8>(from + i));
  }
}
