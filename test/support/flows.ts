/** Frames of connections, with the headers that tell flows apart. */
import { mac } from './ethernet.ts';

export interface Flow {
  to?: Buffer;
  from?: Buffer;
  vlan?: number;
  /** A tag of a provider (0x88a8) before that. */
  outer?: number;
  /** Addresses of IPv4, or of IPv6 as `fd00::1`. */
  source: string;
  destination: string;
  protocol: number;
  sourcePort: number;
  destinationPort: number;
  /** Flags and offset as IPv4 has them: 0x2000 more fragments, the offset in units of 8 bytes. */
  fragment?: number;
  /** Bytes of IPv4 options. */
  options?: number;
  /** Headers between that of IPv6 and the protocol: 0 hop by hop, 43 routing, 51 authentication, 60 options. */
  headers?: readonly number[];
  /** Bytes of the frame; default: what the headers take, and 20. */
  length?: number;
  /** Changes what is behind the headers. */
  salt?: number;
}

/** A frame of the flow. */
export function flowFrame(flow: Flow): Buffer {
  const v6 = flow.source.includes(':');
  const type = v6 ? 0x86dd : 0x0800;
  const headers = Buffer.concat([
    flow.to ?? mac(2),
    flow.from ?? mac(1),
    ...(flow.outer === undefined ? [] : [be16(0x88a8, flow.outer)]),
    ...(flow.vlan === undefined ? [] : [be16(0x8100, flow.vlan)]),
    be16(type),
    v6 ? ipv6(flow) : ipv4(flow),
    be16(flow.sourcePort, flow.destinationPort),
  ]);
  const bytes = Buffer.alloc(Math.max(flow.length ?? 0, headers.length + 20), flow.salt ?? 0);
  headers.copy(bytes);
  return bytes.subarray(0, flow.length ?? bytes.length);
}

function ipv4({ source, destination, protocol, fragment = 0, options = 0 }: Flow): Buffer {
  const header = Buffer.alloc(20 + options, 1);
  header[0] = 0x40 | ((20 + options) >>> 2);
  header.writeUInt16BE(fragment, 6);
  header[9] = protocol;
  Buffer.from(source.split('.').map(Number)).copy(header, 12);
  Buffer.from(destination.split('.').map(Number)).copy(header, 16);
  return header;
}

function ipv6({ source, destination, protocol, fragment, headers = [] }: Flow): Buffer {
  const header = Buffer.alloc(40, 1);
  header[0] = 0x60;
  address(source).copy(header, 8);
  address(destination).copy(header, 24);
  const kinds = fragment === undefined ? [...headers] : [...headers, 44];
  const chain = [...kinds, protocol];
  header[6] = chain[0]!;
  const between = kinds.map((kind, i) => {
    // 8 bytes, or 16; that of authentication counts in units of 4, less 2.
    const length = kind === 44 ? 8 : i % 2 === 0 ? 16 : kind === 51 ? 12 : 8;
    const extension = Buffer.alloc(length, 2);
    extension[0] = chain[i + 1]!;
    extension[1] = kind === 51 ? length / 4 - 2 : length / 8 - 1;
    if (kind === 44) {
      extension[1] = 0;
      extension.writeUInt16BE(((fragment! & 0x1fff) << 3) | (fragment! & 0x2000 ? 1 : 0), 2);
    }
    return extension;
  });
  return Buffer.concat([header, ...between]);
}

/** An address with one `::` in it. */
function address(text: string): Buffer {
  const [head = '', tail = ''] = text.split('::');
  const words = (part: string) =>
    part
      .split(':')
      .filter(Boolean)
      .map((word) => Number.parseInt(word, 16));
  const bytes = Buffer.alloc(16);
  words(head).forEach((word, i) => void bytes.writeUInt16BE(word, 2 * i));
  const last = words(tail);
  last.forEach((word, i) => void bytes.writeUInt16BE(word, 16 - 2 * (last.length - i)));
  return bytes;
}

function be16(...values: number[]): Buffer {
  const bytes = Buffer.alloc(2 * values.length);
  values.forEach((value, i) => void bytes.writeUInt16BE(value, 2 * i));
  return bytes;
}
