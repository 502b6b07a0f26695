/**
 * What announces a station that has moved (vhost-user, VHOST_USER_SEND_RARP): a RARP request (RFC 903) in its name.
 * Whoever passes it on learns the new place.
 */

/** The frame, of the shortest length, in the name of an address of 6 bytes; with a tag for a VLAN. */
export function rarp(address: Uint8Array, tag?: { type: number; vlan: number }): Buffer {
  const frame = Buffer.alloc(60);
  frame.fill(0xff, 0, 6);
  frame.set(address, 6);
  // EtherType 0x8035; Ethernet and IPv4 addresses of 6 and 4 bytes; operation 3, request reverse.
  frame.set([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3], 12);
  frame.set(address, 22);
  frame.set(address, 32);
  if (!tag) return frame;
  const [type, vlan] = [tag.type, tag.vlan].map((word) => [word >>> 8, word & 0xff]);
  return Buffer.concat([frame.subarray(0, 12), Buffer.from([...type!, ...vlan!]), frame.subarray(12)]);
}
