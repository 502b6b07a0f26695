/** Messages that a guest may forge: ARP, neighbour discovery, DHCP and plain packets, in frames with any headers before. */
import { ipNumber } from '../../src/ports/addresses.ts';

const octets = (text: string) => Buffer.from(text.replaceAll(':', ''), 'hex');
const u16 = (value: number) => Buffer.from([value >> 8, value & 255]);

/** Bytes of an address. */
export function ip(text: string): Buffer {
  const { bits, value } = ipNumber(text)!;
  return Buffer.from(value.toString(16).padStart(bits / 4, '0'), 'hex');
}

/** What stands between the addresses and the network layer: tags by their type, or LLC. */
export type Layer = 'tag' | 's-tag' | 'snap';

/** A frame of an Ethernet type, behind layers. */
export function ethernet(
  from: string,
  type: number,
  payload: Buffer,
  layers: Layer[] = [],
  to = 'ff:ff:ff:ff:ff:ff',
) {
  const heads = layers.map((layer) => {
    if (layer === 'snap') return Buffer.from([0x05, 0x00, 0xaa, 0xaa, 0x03, 0, 0, 0]);
    return Buffer.concat([u16(layer === 'tag' ? 0x8100 : 0x88a8), u16(5)]);
  });
  return Buffer.concat([octets(to), octets(from), ...heads, u16(type), payload]);
}

export function arp(senderMac: string, senderIp: string, targetIp: string, operation = 1): Buffer {
  return Buffer.concat([
    Buffer.from([0, 1, 8, 0, 6, 4, 0, operation]),
    octets(senderMac),
    ip(senderIp),
    Buffer.alloc(6),
    ip(targetIp),
  ]);
}

export function ipv4(
  source: string,
  protocol: number,
  payload: Buffer,
  { offset = 0, options = 0 } = {},
): Buffer {
  const head = Buffer.alloc(20 + options);
  head[0] = 0x40 | (head.length / 4);
  head.writeUInt16BE(head.length + payload.length, 2);
  head.writeUInt16BE(offset / 8, 6);
  head[8] = 64;
  head[9] = protocol;
  ip(source).copy(head, 12);
  ip('255.255.255.255').copy(head, 16);
  head.fill(1, 20);
  return Buffer.concat([head, payload]);
}

export function udp(from: number, to: number, payload = Buffer.alloc(20)): Buffer {
  return Buffer.concat([u16(from), u16(to), u16(8 + payload.length), u16(0), payload]);
}

/** An extension header: its number, and its bytes without the first, which says what comes next. */
export interface Extension {
  number: number;
  rest: Buffer;
}
export const options = (number: number, units = 1): Extension => ({
  number,
  rest: Buffer.concat([
    Buffer.from([units - 1]),
    Buffer.from([1, units * 8 - 4]),
    Buffer.alloc(units * 8 - 4),
  ]),
});
export const fragment = (offset: number, more = true): Extension => ({
  number: 44,
  rest: Buffer.concat([Buffer.from([0]), u16(offset | (more ? 1 : 0)), Buffer.from([0, 0, 0, 9])]),
});

export function ipv6(source: string, next: number, payload: Buffer, extensions: Extension[] = []): Buffer {
  const chain = extensions.map(({ rest }, i) =>
    Buffer.concat([Buffer.from([extensions[i + 1]?.number ?? next]), rest]),
  );
  const body = Buffer.concat([...chain, payload]);
  return Buffer.concat([
    Buffer.from([0x60, 0, 0, 0]),
    u16(body.length),
    Buffer.from([extensions[0]?.number ?? next, 255]),
    ip(source),
    ip('ff02::1'),
    body,
  ]);
}

/** A message of neighbour discovery; its target, where the type has one, and link-layer addresses in options. */
export function nd(type: number, target?: string, ...macs: [number, string][]): Buffer {
  const before = type === 134 ? Buffer.alloc(8) : target === undefined ? Buffer.alloc(0) : ip(target);
  const list = macs.map(([option, mac]) => Buffer.concat([Buffer.from([option, 1]), octets(mac)]));
  return Buffer.concat([Buffer.from([type, 0, 0, 0, 0, 0, 0, 0]), before, ...list]);
}
