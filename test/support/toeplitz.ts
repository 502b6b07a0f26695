/** The hash of RSS (virtio 1.3, 5.1.6.4.3) bit by bit, and what of a frame is hashed: plain TypeScript, slow and obvious. */
import { hashTypes as T } from '../../src/virtio/toeplitz.ts';

/** For each bit that is set, the 32 bits of the key from its place on. */
export function toeplitz(key: Uint8Array, data: Uint8Array): number {
  const bitOf = (bytes: Uint8Array, at: number) => ((bytes[at >>> 3] ?? 0) >>> (7 - (at & 7))) & 1;
  let hash = 0;
  for (let at = 0; at < 8 * data.length; at++) {
    if (!bitOf(data, at)) continue;
    let window = 0;
    for (let i = 0; i < 32; i++) window = ((window << 1) | bitOf(key, at + i)) >>> 0;
    hash = (hash ^ window) >>> 0;
  }
  return hash;
}

/** What a test knows of a frame that it has made. */
export interface Headers {
  version?: 4 | 6;
  protocol?: 'tcp' | 'udp';
  source: Uint8Array;
  destination: Uint8Array;
  /** Of IPv6 with extension headers, and what those say. */
  extended?: boolean;
  home?: Uint8Array;
  final?: Uint8Array;
  /** Source and destination port, 4 bytes. */
  ports: Uint8Array;
}

/** The hash of a frame and its report type (VIRTIO_NET_HASH_REPORT_…); both 0: there is none. */
export function expectedHash(types: number, key: Uint8Array, h: Headers): { hash: number; report: number } {
  const candidates: [type: number, applies: boolean, parts: Uint8Array[]][] = [];
  const tcp = h.protocol === 'tcp';
  const udp = h.protocol === 'udp';
  const addresses = [h.source, h.destination];
  if (h.version === 4)
    candidates.push(
      [T.TCPv4, tcp, [...addresses, h.ports]],
      [T.UDPv4, udp, [...addresses, h.ports]],
      [T.IPv4, true, addresses],
    );
  if (h.version === 6) {
    const extended = [h.home ?? h.source, h.final ?? h.destination];
    if (h.extended)
      candidates.push(
        [T.TCP_EX, tcp, [...extended, h.ports]],
        [T.UDP_EX, udp, [...extended, h.ports]],
        [T.IP_EX, true, extended],
      );
    candidates.push(
      [T.TCPv6, tcp, [...addresses, h.ports]],
      [T.UDPv6, udp, [...addresses, h.ports]],
      [T.IPv6, true, addresses],
    );
  }
  const found = candidates.find(([type, applies]) => applies && types & type);
  if (!found) return { hash: 0, report: 0 };
  return { hash: toeplitz(key, Buffer.concat(found[2])), report: Math.log2(found[0]) + 1 };
}
