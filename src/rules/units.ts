/** Amounts as an operator writes them, with a unit: rates, bytes, durations and shares. Each as a schema and a reader. */
import { z } from 'zod';
import { expected } from '../switch/schema.ts';

const SCALES: Readonly<Record<string, number>> = { '': 1, k: 1e3, m: 1e6, g: 1e9 };
const BYTES: Readonly<Record<string, number>> = {
  '': 1, b: 1, kb: 1e3, mb: 1e6, kib: 2 ** 10, mib: 2 ** 20,
}; // biome-ignore format: a table
/** In nanoseconds. */
const DURATIONS: Readonly<Record<string, number>> = { ns: 1, us: 1e3, µs: 1e3, ms: 1e6, s: 1e9 };

/** A number and the word behind it, in small letters. */
function amount(text: string): [number, string] | undefined {
  const [, number, unit] = /^(\d{1,12}(?:\.\d{1,9})?)([a-zµ%]*)$/.exec(text.toLowerCase()) ?? [];
  return number === undefined ? undefined : [Number(number), unit!];
}

/** Bits and packets a second; what isn't limited is undefined. */
export interface Rate {
  bits?: number;
  packets?: number;
}

/** `100Mbit`, `10kpps`, or both as `100Mbit+10kpps`; undefined where it is no rate. */
export function readRate(text: string): Rate | undefined {
  const rate: Rate = {};
  for (const part of text.split('+')) {
    const [number, unit] = amount(part) ?? [];
    const [, scale, word] = /^([kmg]?)(bit|pps)$/.exec(unit ?? '') ?? [];
    if (number === undefined || scale === undefined) return undefined;
    const value = Math.round(number * SCALES[scale]!);
    const kind = word === 'bit' ? 'bits' : 'packets';
    const most = word === 'bit' ? 1e12 : 1e9;
    if (rate[kind] !== undefined || value < (word === 'bit' ? 1000 : 1) || value > most) return undefined;
    rate[kind] = value;
  }
  return rate;
}

/** `64KiB`, `1500`, `2MB`: bytes. */
export function readBytes(text: string | number): number | undefined {
  const [number, unit] = amount(String(text)) ?? [];
  const scale = BYTES[unit ?? 'none'];
  return number === undefined || scale === undefined ? undefined : Math.round(number * scale);
}

/** `10ms`: nanoseconds. */
export function readDuration(text: string): number | undefined {
  const [number, unit] = amount(text) ?? [];
  const scale = DURATIONS[unit ?? ''];
  return number === undefined || scale === undefined ? undefined : Math.round(number * scale);
}

/** `1%`: a part of 1. */
export function readShare(text: string): number | undefined {
  const [number, unit] = amount(text) ?? [];
  return number === undefined || unit !== '%' ? undefined : number / 100;
}

/** A string that a reader makes a number from `min` to `max` of; `what` says it with an example. */
function readable<T extends string | number>(
  type: z.ZodType<T>,
  read: (text: T) => number | undefined,
  [min, max]: readonly [number, number],
  what: string,
) {
  return type.refine((text) => {
    const value = read(text);
    return value !== undefined && value >= min && value <= max;
  }, expected(what));
}

export const rate = (() => {
  const told = expected(
    'a rate such as "100Mbit" or "10kpps", 1kbit to 1000Gbit or 1pps to 1Gpps, or both as "100Mbit+10kpps"',
  );
  return z.string(told).refine((text) => readRate(text) !== undefined, told);
})();

export const bitRate = (() => {
  const told = expected('a rate of bits such as "100Mbit", 1kbit to 1000Gbit');
  const isBits = (text: string) => {
    const { bits, packets } = readRate(text) ?? {};
    return bits !== undefined && packets === undefined;
  };
  return z.string(told).refine(isBits, told);
})();

export const byteCount = (range: readonly [number, number], text: string) => {
  const what = `bytes such as "64KiB", ${text}`;
  return readable(z.union([z.string(), z.number()], expected(what)), readBytes, range, what);
};

export const duration = (range: readonly [number, number], text: string) => {
  const what = `a duration such as "10ms", ${text}`;
  return readable(z.string(expected(what)), readDuration, range, what);
};

export const share = (() => {
  const what = 'a share such as "1%", 0% to 100%';
  return readable(z.string(expected(what)), readShare, [0, 1], what);
})();
