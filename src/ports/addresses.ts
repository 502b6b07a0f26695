/** Addresses in the targets of ports. */
import { isIPv4, isIPv6 } from 'node:net';

export interface UdpTarget {
  address: string;
  port: number | undefined;
}

/** `192.0.2.1`, `192.0.2.1:4789`, `2001:db8::1`, `[2001:db8::1]:4789`; undefined: it is none of these. */
export function udpTarget(text: string): UdpTarget | undefined {
  const [, bracketed, plain, digits] = /^(?:\[([^\]]*)\]|([^:]*))(?::(\d{1,5}))?$/.exec(text) ?? [];
  const address = isIPv6(text) ? text : (bracketed ?? plain ?? '');
  const port = isIPv6(text) || digits === undefined ? undefined : Number(digits);
  const isAddress = bracketed === undefined ? isIPv4(address) || isIPv6(text) : isIPv6(address);
  // An address of IPv6 with one of IPv4 in it, or with a zone, has no use here.
  if (!isAddress || /[.%].*:|:.*[.%]/.test(address) || port === 0 || (port ?? 1) > 65_535) return undefined;
  return { address, port };
}

/** Where a datagram socket is: an address with its port, or else a path; undefined: an address without its port. */
export function dgramTarget(
  text: string,
): { udp?: { address: string; port: number }; path?: string } | undefined {
  const udp = udpTarget(text);
  if (udp === undefined) return { path: text };
  const { address, port } = udp;
  return port === undefined ? undefined : { udp: { address, port } };
}

/** The number of an IPv4 or IPv6 address, and its bits; undefined: it is none. */
export function ipNumber(text: string): { bits: 32 | 128; value: bigint } | undefined {
  if (isIPv4(text)) return { bits: 32, value: joined(text.split('.'), 8n, 10) };
  if (!isIPv6(text) || /[%.]/.test(text)) return undefined;
  const [head = '', tail] = text.split('::');
  const groups = (part: string) => part.split(':').filter((group) => group !== '');
  const front = groups(head);
  const back = tail === undefined ? [] : groups(tail);
  const middle = Array.from({ length: 8 - front.length - back.length }, () => '0');
  return { bits: 128, value: joined([...front, ...middle, ...back], 16n, 16) };
}

const joined = (parts: string[], bits: bigint, base: number) =>
  parts.reduce((sum, part) => (sum << bits) | BigInt(Number.parseInt(part, base)), 0n);
