/** The virtio-net header before a frame (virtio 1.3, 5.1.6): what a driver says of work that is left to be done. */

/** Bytes of the fields that both lengths of the header have; all fields are little-endian. */
export const HEADER_FIELDS = 10;

const NEEDS_CSUM = 1;
const ECN = 0x80;
const GSO_TYPES = { tcp4: 1, udp: 3, tcp6: 4, udpL4: 5 } as const;

/** What is left undone in a frame (5.1.6.2). */
export interface Offload {
  /** Bytes from the frame's start to where the checksum starts, and from there to where it is stored. */
  csumStart: number;
  csumOffset: number;
  /** The frame is larger than the wire takes, and is to be cut. */
  gso?: {
    /** TCP over IPv4 or IPv6, UDP in fragments (`udp`) or in datagrams (`udpL4`). */
    type: keyof typeof GSO_TYPES;
    /** Payload bytes of a piece. */
    size: number;
    /** Bytes of all headers; a hint. */
    headerLength?: number;
    /** TCP with congestion notification. */
    ecn?: boolean;
  };
}

/** Writes the header's fields; without an offload it says that nothing is left to be done. */
export function writeNetHeader(to: Uint8Array, offload?: Offload): void {
  const view = new DataView(to.buffer, to.byteOffset, HEADER_FIELDS);
  const gso = offload?.gso;
  view.setUint8(0, offload ? NEEDS_CSUM : 0);
  view.setUint8(1, gso ? GSO_TYPES[gso.type] | (gso.ecn ? ECN : 0) : 0);
  view.setUint16(2, gso?.headerLength ?? 0, true);
  view.setUint16(4, gso?.size ?? 0, true);
  view.setUint16(6, offload?.csumStart ?? 0, true);
  view.setUint16(8, offload?.csumOffset ?? 0, true);
}

/** Reads the header's fields; undefined when nothing is left to be done, or it says what it can't. */
export function readNetHeader(from: Uint8Array): Offload | undefined {
  const view = new DataView(from.buffer, from.byteOffset, HEADER_FIELDS);
  if (!(view.getUint8(0) & NEEDS_CSUM)) return undefined;
  const kind = view.getUint8(1);
  const checksum = { csumStart: view.getUint16(6, true), csumOffset: view.getUint16(8, true) };
  const type = Object.entries(GSO_TYPES).find(([, value]) => value === (kind & ~ECN))?.[0];
  if (type === undefined) return checksum;
  const gso = {
    type: type as keyof typeof GSO_TYPES,
    size: view.getUint16(4, true),
    headerLength: view.getUint16(2, true),
    ecn: (kind & ECN) !== 0,
  };
  return { ...checksum, gso };
}
