/**
 * The Toeplitz hash of receive-side scaling (virtio 1.3, 5.1.6.4.3 and 5.1.6.5.7): for each bit that is set in what
 * is hashed, the 32 bits of the key from the same place on, added without carry.
 */

/** Bytes of the longest key: 36 bytes of two IPv6 addresses and two ports, and 32 bits from the last one's on. */
export const RSS_KEY_LENGTH = 40;
/** Bytes that are hashed at most. */
const INPUT_LENGTH = 36;

/** VIRTIO_NET_HASH_TYPE_…; the report of a type is the number of its bit, counted from 1. */
export const hashTypes = {
  IPv4: 1,
  TCPv4: 2,
  UDPv4: 4,
  IPv6: 8,
  TCPv6: 16,
  UDPv6: 32,
  IP_EX: 64,
  TCP_EX: 128,
  UDP_EX: 256,
} as const;

export const ALL_HASH_TYPES = 0x1ff;

/**
 * The hash of every half byte at every place, 16 words for each of the 72 places (src/dataplane/toeplitz.ts). A key
 * shorter than 40 bytes is followed by zeros.
 */
export function toeplitzTable(key: Uint8Array): Uint32Array {
  const bits = (at: number) => {
    let window = 0;
    for (let i = 0; i < 5; i++) window = window * 256 + (key[(at >>> 3) + i] ?? 0);
    return Math.floor(window / 2 ** (8 - (at & 7))) >>> 0;
  };
  const table = new Uint32Array(2 * INPUT_LENGTH * 16);
  for (let place = 0; place < 2 * INPUT_LENGTH; place++) {
    for (let bit = 0; bit < 4; bit++) {
      const window = bits(4 * place + bit);
      for (let value = 0; value < 16; value++) if (value & (8 >>> bit)) table[place * 16 + value]! ^= window;
    }
  }
  return table;
}
