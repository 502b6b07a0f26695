/** Shaping: the rate of what goes to a guest, and how much may wait for it in each of the queues by priority. */
import { expected } from '../switch/schema.ts';
import type { PortSpec } from '../switch/types.ts';
import { REASONS } from './reasons.ts';
import type { Rule } from './rule.ts';
import { bitRate, byteCount, readBytes, readRate } from './units.ts';
import { countLost, haveSizes, layOut, roomOf } from './waiting.ts';

/** By default a burst is what the rate brings in this part of a second, and at least so many bytes. */
const PART = 0.01;
const LEAST = 16_384;
/** More doesn't fit into the counter of a bucket. */
const MOST = 2 ** 30;
const QUEUE = 256 * 1024;
const FULL = REASONS.findIndex(({ name }) => name === 'queueOut');

export const rateOut: Rule = {
  fields: {
    rateOut: bitRate,
    burstOut: byteCount([1, MOST], '1 to 1024MiB'),
    // The longest frame fits twice, whatever of the memory is lost at its end.
    queueOut: byteCount([2 ** 17, 2 ** 22], '128KiB to 4MiB'),
  },
  contradictions(port) {
    if (port.rateOut !== undefined) return [];
    const found: { field: keyof PortSpec; message: string }[] = [];
    for (const field of ['burstOut', 'queueOut'] as const) {
      if (port[field] === undefined) continue;
      found.push({ field, message: expected('none without a rateOut').error({ input: port[field] }) });
    }
    return found;
  },
  set(port, table) {
    const { structures, rules, room, stage } = table;
    const classes = structures.constant('CLASSES');
    const fifos = structures.constant('SHAPER_FIFOS');
    const before = rules.get('shaper');
    const on = port.rateOut !== undefined;
    const size = Math.ceil(readBytes(port.queueOut ?? QUEUE)! / 64) * 64;
    const sizes = Array<number>(classes).fill(size);
    let at = before;
    if (on) {
      if (before === 0 || !haveSizes(table, before + fifos, sizes)) {
        const stride = structures.constant('SHAPER_STRIDE');
        at = room('shaper', stride + roomOf(sizes));
        layOut(table, at + fifos, at + stride, sizes);
      }
      const bits = readRate(port.rateOut!)!.bits!;
      const burst = readBytes(port.burstOut ?? 0) || Math.min(MOST, Math.max(LEAST, (bits / 8) * PART));
      structures.fillBucket(at + structures.constant('SHAPER_BUCKET'), bits, 8 * burst);
      rules.set('shaper', at);
    }
    stage('egress', 'STAGE_SHAPE', on);
    if (!on) {
      rules.set('shaper', 0);
      room('shaper', 0);
    }
    if (before !== 0 && (!on || at !== before)) countLost(table, before + fifos, classes, FULL);
  },
};
