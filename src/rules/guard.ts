/**
 * Who a port may send as: its MACs and its addresses, and neither router nor DHCP server. As clean-traffic of
 * libvirt, port security of OpenStack, and RA guard and DHCP snooping of switches have it.
 */
import { z } from 'zod';
import { ipNumber } from '../ports/addresses.ts';
import { expected, stationAddress } from '../switch/schema.ts';
import type { Rule } from './rule.ts';

/** Entries of each list, as GUARD_ENTRIES of the data plane. */
const MOST = 64;

interface Prefix {
  bits: 32 | 128;
  value: bigint;
  mask: bigint;
}

/** `10.0.0.5`, `2001:db8::/64`; undefined where it is no address or prefix. */
function readPrefix(text: string): Prefix | undefined {
  const [, start, length] = /^([^/]+)(?:\/(\d{1,3}))?$/.exec(text) ?? [];
  const address = ipNumber(start ?? '');
  if (!address) return undefined;
  const { bits } = address;
  const free = bits - Number(length ?? bits);
  if (free < 0) return undefined;
  const mask = ((1n << BigInt(bits)) - 1n) & ~((1n << BigInt(free)) - 1n);
  return { bits, mask, value: address.value & mask };
}

const list = (read: (part: string) => boolean, what: string) => {
  const told = expected(what);
  return z.string(told).refine((text) => {
    const parts = text.split('+');
    return parts.length <= MOST && parts.every(read);
  }, told);
};

/** As the data plane loads them: bytes of the wire, little-endian. */
function store(bytes: Uint8Array, at: number, value: bigint, length: number): void {
  for (let i = length - 1, left = value; i >= 0; i--, left >>= 8n) bytes[at + i] = Number(left & 0xffn);
}

export const guard: Rule = {
  fields: {
    allowMac: list(
      (part) => stationAddress.safeParse(part).success,
      `MACs, at most ${MOST}, such as "52:54:00:12:34:56+52:54:00:12:34:57"`,
    ),
    allowIp: list(
      (part) => readPrefix(part) !== undefined,
      `addresses and prefixes, at most ${MOST}, such as "10.0.0.5+2001:db8::/64"`,
    ),
    raGuard: z.boolean(expected('true or false')),
    dhcpGuard: z.boolean(expected('true or false')),
  },
  set({ allowMac, allowIp, raGuard, dhcpGuard }, { arena, structures, rules, room, stage }) {
    const flags =
      (allowMac === undefined ? 0 : structures.constant('GUARD_MAC')) |
      (allowIp === undefined ? 0 : structures.constant('GUARD_IP')) |
      (raGuard ? structures.constant('GUARD_RA') : 0) |
      (dhcpGuard ? structures.constant('GUARD_DHCP') : 0);
    if (flags !== 0) {
      const at = room('guard', structures.constant('GUARD_STRIDE'));
      const of = structures.guard(at);
      const macs = allowMac?.split('+') ?? [];
      const prefixes = allowIp?.split('+').map((part) => readPrefix(part)!) ?? [];
      const write = (offset: string, entries: Prefix[]) => {
        for (const [i, { bits, value, mask }] of entries.entries()) {
          const entry = at + structures.constant(offset) + (i * bits) / 4;
          store(arena.u8, entry, value, bits / 8);
          store(arena.u8, entry + bits / 8, mask, bits / 8);
        }
        return entries.length;
      };
      for (const [i, mac] of macs.entries())
        arena.u8.set(
          Buffer.from(mac.replaceAll(':', ''), 'hex'),
          at + structures.constant('GUARD_MACS') + i * 8,
        );
      of.set('macs', macs.length);
      of.set(
        'ipv4s',
        write(
          'GUARD_IPV4S',
          prefixes.filter(({ bits }) => bits === 32),
        ),
      );
      of.set(
        'ipv6s',
        write(
          'GUARD_IPV6S',
          prefixes.filter(({ bits }) => bits === 128),
        ),
      );
      of.set('flags', flags);
      rules.set('guard', at);
    }
    stage('ingress', 'STAGE_GUARD', flags !== 0);
    if (flags === 0) room('guard', 0);
  },
};
