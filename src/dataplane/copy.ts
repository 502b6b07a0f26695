/** Copies of bytes by 128-bit loads and stores. Never writes a byte beyond `length`. */

// Above this the engine's own memory.copy is faster (it uses the widest registers of the processor).
const LARGE: u32 = 1024;

@inline
export function copy16(to: usize, from: usize): void {
  v128.store(to, v128.load(from));
}

export function copy(to: usize, from: usize, length: u32): void {
  if (length < 16) {
    copySmall(to, from, length);
    return;
  }
  if (length > LARGE) {
    memory.copy(to, from, length);
    return;
  }
  const last: u32 = length - 16;
  let i: u32 = 0;
  for (; i + 64 <= length; i += 64) {
    const a = v128.load(from + i);
    const b = v128.load(from + i, 16);
    const c = v128.load(from + i, 32);
    const d = v128.load(from + i, 48);
    v128.store(to + i, a);
    v128.store(to + i, b, 16);
    v128.store(to + i, c, 32);
    v128.store(to + i, d, 48);
  }
  for (; i < last; i += 16) copy16(to + i, from + i);
  // The last 16 bytes overlap what was copied before: no loop over single bytes.
  copy16(to + last, from + last);
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
