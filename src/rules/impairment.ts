/** Link impairment: what the cable between a port and its guest does to frames, for each direction by itself. */
import { randomInt } from 'node:crypto';
import { expected, wholeNumber } from '../switch/schema.ts';
import type { PortSpec } from '../switch/types.ts';
import { REASONS } from './reasons.ts';
import type { Rule, RuledPort, RuleTable } from './rule.ts';
import { duration, readDuration, readShare, share } from './units.ts';
import { countLost, haveSizes, layOut, roomOf } from './waiting.ts';

const LIMIT = 1000;
/** Bytes of memory for each frame of the limit, and at least in all; those for frames that are reordered. */
const BYTES = 2048;
const LEAST = 2 ** 18;
const EARLY = 2 ** 18;
/** A minute: 2^42 nanoseconds are more. */
const LONGEST = 60e9;
/** Shares are in 2^-32. */
const WHOLE = 2 ** 32;

const time = duration([0, LONGEST], '0ns to 60s');

function settingsOf(port: PortSpec, way: 'In' | 'Out') {
  const longer = (name: 'delay' | 'jitter') => readDuration(port[`${name}${way}`] ?? '0s')!;
  const shareOf = (name: 'loss' | 'duplicate' | 'reorder' | 'corrupt') =>
    Math.round(readShare(port[`${name}${way}`] ?? '0%')! * WHOLE);
  return {
    delay: longer('delay'),
    jitter: longer('jitter'),
    loss: shareOf('loss'),
    duplicate: shareOf('duplicate'),
    reorder: shareOf('reorder'),
    corrupt: shareOf('corrupt'),
  };
}

function contradictionsOf(port: PortSpec, way: 'In' | 'Out') {
  const found: { field: keyof PortSpec; message: string }[] = [];
  const { delay, jitter, ...shares } = settingsOf(port, way);
  const refuse = (field: keyof PortSpec, what: string) =>
    found.push({ field, message: expected(what).error({ input: port[field] }) });
  if (jitter > delay) refuse(`jitter${way}`, `no more than delay${way}`);
  if (shares.reorder > 0 && delay === 0) refuse(`reorder${way}`, `none without a delay${way}`);
  if (port[`limit${way}`] !== undefined && !isOn(port, way))
    refuse(`limit${way}`, `none without something that the link does, such as delay${way}`);
  return found;
}

const isOn = (port: PortSpec, way: 'In' | 'Out') =>
  Object.values(settingsOf(port, way)).some((value) => value > 0);

function set(port: RuledPort, table: RuleTable, way: 'In' | 'Out'): void {
  const { structures, rules, slot, room, stage } = table;
  const pointer = `line${way}` as const;
  const fifos = structures.constant('LINE_FIFOS');
  const before = rules.get(pointer);
  const on = isOn(port, way);
  const limit = port[`limit${way}`] ?? LIMIT;
  const sizes = [Math.max(LEAST, limit * BYTES), EARLY];
  let at = before;
  if (on) {
    if (before === 0 || !haveSizes(table, before + fifos, sizes)) {
      const stride = structures.constant('LINE_STRIDE');
      at = room(pointer, stride + roomOf(sizes));
      layOut(table, at + fifos, at + stride, sizes);
      structures.vring(at + structures.constant('LINE_VRING')).set('port', slot);
    }
    const line = structures.line(at);
    line.set('limit', limit);
    for (const [name, value] of Object.entries(settingsOf(port, way)))
      line.set64(name as 'delay', BigInt(value));
    // The two directions of a port differ.
    line.set64('random', BigInt(port.seed ?? randomInt(WHOLE)) + (way === 'In' ? 1n << 32n : 0n));
    rules.set(pointer, at);
  }
  stage(way === 'In' ? 'ingress' : 'egress', 'STAGE_LINE', on);
  if (!on) {
    rules.set(pointer, 0);
    room(pointer, 0);
  }
  const reason = REASONS.findIndex(({ name }) => name === `limit${way}`);
  if (before !== 0 && (!on || at !== before)) countLost(table, before + fifos, sizes.length, reason);
}

const limit = wholeNumber(1, 8192);

export const lineIn: Rule = {
  fields: {
    delayIn: time,
    jitterIn: time,
    lossIn: share,
    duplicateIn: share,
    reorderIn: share,
    corruptIn: share,
    limitIn: limit,
    seed: wholeNumber(0, WHOLE - 1),
  },
  contradictions(port) {
    const found = contradictionsOf(port, 'In');
    if (port.seed !== undefined && !isOn(port, 'In') && !isOn(port, 'Out')) {
      const { error } = expected('none without something that the link does by chance, such as lossOut');
      found.push({ field: 'seed', message: error({ input: port.seed }) });
    }
    return found;
  },
  set: (port, table) => set(port, table, 'In'),
};

export const lineOut: Rule = {
  fields: {
    delayOut: time,
    jitterOut: time,
    lossOut: share,
    duplicateOut: share,
    reorderOut: share,
    corruptOut: share,
    limitOut: limit,
  },
  derived: ['seed'],
  contradictions: (port) => contradictionsOf(port, 'Out'),
  set: (port, table) => set(port, table, 'Out'),
};
