/** TCP and UDP in Ethernet frames, for tests of checksums and segmentation: plain TypeScript, slow and obvious. */

export interface Segment {
  version: 4 | 6;
  protocol: 'tcp' | 'udp';
  vlan?: number;
  payload: Buffer;
  /** TCP sequence number. */
  sequence?: number;
  /** TCP flags. */
  flags?: number;
  /** Bytes of TCP options, a multiple of 4. */
  options?: number;
  /** IPv4 identification. */
  identification?: number;
}

/** Where things are in a frame. */
export interface Layout {
  network: number;
  transport: number;
  /** Bytes of all headers. */
  headers: number;
  /** Offset of the checksum in the transport header. */
  field: number;
}

export function layout({ version, protocol, vlan, options = 0 }: Segment): Layout {
  const network = vlan === undefined ? 14 : 18;
  const transport = network + (version === 4 ? 20 : 40);
  const headers = transport + (protocol === 'tcp' ? 20 + options : 8);
  return { network, transport, headers, field: protocol === 'tcp' ? 16 : 6 };
}

/**
 * The frame; its transport checksum is complete, or the pseudo-header's sum alone when it is `partial`, as a driver
 * leaves it to the device (virtio 1.3, 5.1.6.2).
 */
export function frameOf(to: Buffer, from: Buffer, segment: Segment, partial: boolean): Buffer {
  const { version, protocol, vlan, payload, sequence = 1000, flags = 0x10, options = 0 } = segment;
  const { network, transport, headers, field } = layout(segment);
  const bytes = Buffer.alloc(headers + payload.length);
  to.copy(bytes, 0);
  from.copy(bytes, 6);
  const type = version === 4 ? 0x0800 : 0x86dd;
  if (vlan === undefined) bytes.writeUInt16BE(type, 12);
  else {
    bytes.writeUInt16BE(0x8100, 12);
    bytes.writeUInt16BE(vlan, 14);
    bytes.writeUInt16BE(type, 16);
  }
  const number = protocol === 'tcp' ? 6 : 17;
  if (version === 4) {
    bytes[network] = 0x45;
    bytes.writeUInt16BE((bytes.length - network) & 0xffff, network + 2);
    bytes.writeUInt16BE(segment.identification ?? 7, network + 4);
    bytes[network + 8] = 64;
    bytes[network + 9] = number;
    bytes.set([10, 1, 2, 3, 10, 4, 5, 6], network + 12);
    bytes.writeUInt16BE(checksum(bytes.subarray(network, transport)), network + 10);
  } else {
    bytes[network] = 0x60;
    bytes.writeUInt16BE((bytes.length - transport) & 0xffff, network + 4);
    bytes[network + 6] = number;
    bytes[network + 7] = 64;
    for (let i = 0; i < 32; i++) bytes[network + 8 + i] = i * 13 + 1;
  }
  bytes.writeUInt16BE(1234, transport);
  bytes.writeUInt16BE(80, transport + 2);
  if (protocol === 'tcp') {
    bytes.writeUInt32BE(sequence, transport + 4);
    bytes[transport + 12] = ((20 + options) / 4) << 4;
    bytes[transport + 13] = flags;
    bytes.writeUInt16BE(5000, transport + 14);
    bytes.fill(1, transport + 20, transport + 20 + options);
  } else {
    bytes.writeUInt16BE((bytes.length - transport) & 0xffff, transport + 4);
  }
  payload.copy(bytes, headers);
  const pseudo = pseudoSum(bytes, segment);
  if (partial) bytes.writeUInt16BE(pseudo, transport + field);
  else bytes.writeUInt16BE(checksum(bytes.subarray(transport), pseudo) || 0xffff, transport + field);
  return bytes;
}

/** One's complement sum of the big-endian words of `bytes` (RFC 1071), folded. */
export function sum(bytes: Uint8Array, start = 0): number {
  let total = start;
  for (const [i, byte] of bytes.entries()) total += i % 2 === 0 ? byte << 8 : byte;
  while (total > 0xffff) total = (total & 0xffff) + Math.floor(total / 0x1_0000);
  return total;
}

export function checksum(bytes: Uint8Array, start = 0): number {
  return ~sum(bytes, start) & 0xffff;
}

export function pseudoSum(frame: Buffer, segment: Segment): number {
  const { network, transport } = layout(segment);
  const addresses = segment.version === 4 ? [network + 12, network + 20] : [network + 8, network + 40];
  const number = segment.protocol === 'tcp' ? 6 : 17;
  return sum(frame.subarray(...addresses), number + frame.length - transport);
}

/** Whether IP header and transport checksum of a frame of this kind are right, and its lengths those of the frame. */
export function faults(frame: Buffer, segment: Segment): string[] {
  const { network, transport, field } = layout(segment);
  const found: string[] = [];
  if (segment.version === 4) {
    if (sum(frame.subarray(network, transport)) !== 0xffff) found.push('IPv4 header checksum');
    if (frame.readUInt16BE(network + 2) !== frame.length - network) found.push('IPv4 total length');
  } else if (frame.readUInt16BE(network + 4) !== frame.length - transport) found.push('IPv6 payload length');
  if (segment.protocol === 'udp' && frame.readUInt16BE(transport + 4) !== frame.length - transport) {
    found.push('UDP length');
  }
  if (sum(frame.subarray(transport), pseudoSum(frame, segment)) !== 0xffff) found.push('transport checksum');
  if (frame.readUInt16BE(transport + field) === 0) found.push('a checksum of 0');
  return found;
}
