/**
 * VLANs: which ones a port is in, and with or without tags. The switch tells when the port's bridge has VLANs: then
 * a port without any such field is in all of them, and its frames without a tag are in VLAN 0.
 */
import { z } from 'zod';
import { expected, wholeNumber } from '../switch/schema.ts';
import type { PortSpec } from '../switch/types.ts';
import type { Rule } from './rule.ts';

/** IEEE 802.1Q, 9.6: 4095 is reserved. */
const LAST_VLAN = 4094;
/** Types of tags as the data plane loads them, little-endian. */
const TAG_TYPES = { '802.1q': 0x0081, '802.1ad': 0xa888 } as const;

/** VLANs in a list such as `10+20-30`, or `all`; undefined where it is none. 0 stands for frames without a tag. */
export function readVlans(list: string): Set<number> | undefined {
  const vlans = new Set<number>();
  for (const part of (list === 'all' ? `0-${LAST_VLAN}` : list).split('+')) {
    const [, first, last = first] = /^(\d{1,4})(?:-(\d{1,4}))?$/.exec(part) ?? [];
    const [from, to] = [Number(first), Number(last)];
    if (!(from <= to && to <= LAST_VLAN)) return undefined;
    for (let vlan = from; vlan <= to; vlan++) vlans.add(vlan);
  }
  return vlans;
}

export const vlanList = (() => {
  const told = expected(`VLANs from 0 to ${LAST_VLAN}, such as "10+20-30", or "all"`);
  const list = z.string(told).refine((text) => readVlans(text) !== undefined, told);
  // What looks like a number is one in YAML, and in the one-line form.
  return z.preprocess((value) => (typeof value === 'number' ? String(value) : value), list);
})();

const fields = {
  vlan: wholeNumber(1, LAST_VLAN),
  trunk: vlanList,
  native: wholeNumber(1, LAST_VLAN),
  qinq: wholeNumber(1, LAST_VLAN),
  tags: z.enum(['802.1q', '802.1ad'], expected('"802.1q" or "802.1ad"')),
};

/** Has the port settings of VLANs, so that its bridge has VLANs? */
export const hasVlans = (port: PortSpec): boolean =>
  Object.keys(fields).some((field) => port[field as keyof PortSpec] !== undefined);

/** The VLANs that a port is in, that of its frames without a tag (undefined: there are none), and its tags. */
export function vlansOf(port: PortSpec) {
  const own = port.vlan ?? port.qinq;
  if (own !== undefined) return { members: new Set([own]), pvid: own, tagged: false };
  const members = readVlans(port.trunk ?? 'all')!;
  if (port.native !== undefined) {
    members.add(port.native);
    // Those without a tag have a VLAN.
    members.delete(0);
  }
  return { members, pvid: port.native ?? (members.has(0) ? 0 : undefined), tagged: true };
}

/** The VLANs that the port's settings name, and with which tag it has frames of one; undefined: it has none of it. */
export function askedIn(port: PortSpec): { names: number[]; tag(vlan: number): Uint8Array | undefined } {
  const { members, pvid } = vlansOf(port);
  const [high, low] = port.tags === '802.1ad' ? [0x88, 0xa8] : [0x81, 0x00];
  // Those of a trunk that has all are named by others.
  const all = port.vlan === undefined && port.qinq === undefined && (port.trunk ?? 'all') === 'all';
  return {
    names: all ? [pvid ?? 0] : [...members],
    tag(vlan) {
      if (!members.has(vlan)) return undefined;
      return vlan === pvid ? new Uint8Array() : Uint8Array.from([high, low, vlan >>> 8, vlan & 0xff]);
    },
  };
}

export const vlan: Rule = {
  fields,
  derived: ['vlanAware'],
  contradictions(port) {
    const found: { field: keyof PortSpec; message: string }[] = [];
    for (const whole of ['vlan', 'qinq'] as const) {
      if (port[whole] === undefined) continue;
      for (const field of ['qinq', 'trunk', 'native', 'tags'] as const) {
        if (field === whole || port[field] === undefined) continue;
        const message = `expected none beside ${whole}=${port[whole]}, the one VLAN of the port, found ${port[field]}`;
        found.push({ field, message });
      }
    }
    return found;
  },
  set(port, { arena, structures, rules, room, stage }) {
    const on = port.vlanAware === true;
    if (on) {
      const { members, pvid, tagged } = vlansOf(port);
      const at = room('vlans', structures.constant('VLANS_STRIDE'));
      const vlans = structures.vlans(at);
      vlans.set('pvid', pvid ?? structures.constant('NO_VLAN'));
      vlans.set(
        'type',
        port.qinq === undefined ? TAG_TYPES[port.tags ?? '802.1q'] : structures.constant('NO_TAGS'),
      );
      vlans.set('tagged', tagged ? 1 : 0);
      const bits = (at + structures.constant('MEMBERS_OFFSET')) >>> 2;
      for (const member of members) arena.u32[bits + (member >>> 5)]! |= 1 << (member & 31);
      rules.set('vlans', at);
    }
    stage('egress', 'STAGE_VLAN', on);
    stage('ingress', 'STAGE_VLAN', on);
    // What a worker may be looking at now is freed when none can any more.
    if (!on) room('vlans', 0);
  },
};
