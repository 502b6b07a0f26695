/** What a guest may send: bits and packets a second, and how much at once. The rest is dropped. */
import { expected } from '../switch/schema.ts';
import type { Rule } from './rule.ts';
import { byteCount, rate, readBytes, readRate } from './units.ts';

/** By default a burst is what comes in this part of a second, and at least so many bytes or packets. */
const PART = 0.05;
/** More doesn't fit into the counter of a bucket. */
const MOST = 2 ** 30;
const LEAST = { bytes: 65_536, packets: 64 };

export const rateIn: Rule = {
  fields: { rateIn: rate, burstIn: byteCount([1, MOST], '1 to 1024MiB') },
  contradictions({ rateIn, burstIn }) {
    if (burstIn === undefined || (rateIn !== undefined && readRate(rateIn)!.bits !== undefined)) return [];
    const { error } = expected('none without a rateIn of bits');
    return [{ field: 'burstIn', message: error({ input: burstIn }) }];
  },
  set({ rateIn, burstIn }, { structures, rules, room, stage }) {
    const on = rateIn !== undefined;
    if (on) {
      const stride = structures.constant('BUCKET_STRIDE');
      const at = room('rateIn', 2 * stride);
      const { bits = 0, packets = 0 } = readRate(rateIn)!;
      const bytes = readBytes(burstIn ?? 0) || Math.min(MOST, Math.max(LEAST.bytes, (bits / 8) * PART));
      structures.fillBucket(at, bits, 8 * bytes);
      structures.fillBucket(at + stride, packets, Math.max(LEAST.packets, packets * PART));
      rules.set('police', at);
    }
    stage('ingress', 'STAGE_POLICE', on);
    if (!on) room('rateIn', 0);
  },
};
