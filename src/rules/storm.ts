/** Storm control: most that a port may send to everybody, to groups, and to addresses that aren't known. */
import { expected } from '../switch/schema.ts';
import type { Rule } from './rule.ts';
import { rate, readRate } from './units.ts';

/** A burst is what comes in this part of a second. */
const PART = 0.1;
/** In the order of STORM_… in the data plane. */
const KINDS = ['stormBroadcast', 'stormMulticast', 'stormUnknown'] as const;

export const storm: Rule = {
  fields: Object.fromEntries(KINDS.map((kind) => [kind, rate])),
  contradictions(port) {
    const { error } = expected('packets or bits a second, not both');
    return KINDS.filter((kind) => port[kind]?.includes('+')).map((field) => ({
      field,
      message: error({ input: port[field] }),
    }));
  },
  set(port, { structures, rules, room, stage }) {
    const on = KINDS.some((kind) => port[kind] !== undefined);
    if (on) {
      const at = room('storm', structures.constant('STORM_STRIDE'));
      const of = structures.storm(at);
      for (const [i, kind] of KINDS.entries()) {
        const { bits, packets } = readRate(port[kind] ?? '') ?? {};
        const most = bits ?? packets;
        if (most === undefined) continue;
        structures.fillBucket(
          at + structures.constant('BUCKET_STRIDE') * (1 + i),
          most,
          Math.max(1, most * PART),
        );
        of.set('kinds', of.get('kinds') | (1 << i));
        if (bits !== undefined) of.set('bits', of.get('bits') | (1 << i));
      }
      rules.set('storm', at);
    }
    stage('ingress', 'STAGE_STORM', on);
    if (!on) room('storm', 0);
  },
};
