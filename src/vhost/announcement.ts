/**
 * What announces a station that has moved (vhost-user, VHOST_USER_SEND_RARP): a RARP request (RFC 903) in its name.
 * Whoever passes it on learns the new place.
 */

/** The frame, of the shortest length; `mac` is the address as it stands in a frame, loaded little-endian. */
export function rarp(mac: bigint): Buffer {
  const frame = Buffer.alloc(60);
  const station = Buffer.alloc(8);
  station.writeBigUInt64LE(mac);
  const address = station.subarray(0, 6);
  frame.fill(0xff, 0, 6);
  frame.set(address, 6);
  // EtherType 0x8035; Ethernet and IPv4 addresses of 6 and 4 bytes; operation 3, request reverse.
  frame.set([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3], 12);
  frame.set(address, 22);
  frame.set(address, 32);
  return frame;
}
