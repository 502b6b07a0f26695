/** Ethernet frames for tests of the switch. */

/** `02:00:00:00:00:07` for 7: a unicast address of nobody's. */
export function mac(n: number): Buffer {
  return Buffer.from([2, 0, (n >>> 24) & 255, (n >>> 16) & 255, (n >>> 8) & 255, n & 255]);
}

export const BROADCAST = Buffer.alloc(6, 0xff);

/** The address as the data plane takes it: as a frame's bytes are loaded, little-endian. */
export function macKey(address: Buffer): bigint {
  return BigInt(address.readUIntLE(0, 6));
}

/** `02:00:00:00:00:07` */
export function macText(address: Buffer): string {
  return address.toString('hex').replace(/..(?=.)/g, '$&:');
}

/** A frame of `length` bytes, at least 14; the payload tells place and `salt`, so that no shifted copy passes. */
export function frame(to: Buffer, from: Buffer, length = 60, salt = 0): Buffer {
  const bytes = Buffer.allocUnsafe(length);
  for (let i = 14; i < length; i++) bytes[i] = i * 31 + (i >>> 8) * 7 + salt * 101;
  to.copy(bytes, 0);
  from.copy(bytes, 6);
  bytes.writeUInt16BE(0x88b5, 12);
  return bytes;
}
