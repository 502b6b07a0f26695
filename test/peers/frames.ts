/** Ethernet frames with contents that tell a frame, and a place in it, from every other. */

/** The address 02:00:00:00:00:`last`. */
export function mac(last: number): Uint8Array {
  return Uint8Array.of(2, 0, 0, 0, 0, last);
}

/** A frame of `length` bytes (at least 14) with an EtherType for experiments (IEEE 802, 88b5). */
export function frame(to: Uint8Array, from: Uint8Array, length: number, seed = 0): Uint8Array {
  const bytes = new Uint8Array(length);
  bytes.set(to, 0);
  bytes.set(from, 6);
  bytes.set([0x88, 0xb5], 12);
  let state = (seed * 2654435761 + length) >>> 0;
  for (let i = 14; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}
