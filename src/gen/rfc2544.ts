/**
 * The throughput test of RFC 2544 (26.1): for each size the highest rate at which no more than a tolerated share of
 * the frames is lost, found by bisection.
 *
 * A first trial at full speed bounds the search: nothing is faster than what could be sent. A trial passes when its
 * loss is tolerated and the frames went out at the rate asked for; where the back-end takes them more slowly the
 * rings hold them back, and that isn't the rate any more.
 */
import type { Generator, RunOptions } from './generator.ts';
import type { Check, GenResult, Latency, Mode, Traffic } from './types.ts';

export interface Rfc2544Options {
  /** Bytes of the frames. */
  sizes: readonly number[];
  /** What else the frames are made of. */
  traffic?: Traffic;
  /** Both of two ports send; default: the first sends, the second receives. */
  both?: boolean;
  /** Share of frames that may be lost; default 0. */
  loss?: number;
  /** Seconds of a trial; default 2. */
  seconds?: number;
  /** The search ends when the rate is known to this share; default 0.01. */
  precision?: number;
  /** See Trial; default `payload`. */
  check?: Check;
}

export interface Rfc2544Trial {
  /** Packets a second of each sending port that were asked for; undefined: full speed. */
  asked?: number;
  /** Packets a second of the slowest sending port. */
  rate: number;
  sent: number;
  lost: number;
  passed: boolean;
}

export interface Rfc2544Size {
  /** Bytes of a frame. */
  size: number;
  /** Packets and bits a second, all sending ports summed; 0: every trial lost frames. */
  packetsPerSecond: number;
  bitsPerSecond: number;
  /** Of the fastest trial that passed. */
  latency?: Latency;
  trials: Rfc2544Trial[];
}

export interface Rfc2544Result {
  sizes: Rfc2544Size[];
  /** Why the search ended early. */
  ended?: 'interrupt' | 'fault';
  fault?: string;
}

/** RFC 2544, 9.1. */
export const RFC2544_SIZES = [64, 128, 256, 512, 1024, 1280, 1518];

/** Of the rate asked for, what a trial may fall short. */
const SHORT = 0.01;
/** Below this share of full speed nothing is looked for. */
const LEAST = 0.001;
/** Frames that let a switch learn where both ports are (RFC 2544, 23). */
const LEARNING = { mode: 'latency', seconds: 0.2, rate: { packets: 1000 } } as const;

export type Rfc2544Run = RunOptions & { onTrial?: (size: number, trial: Rfc2544Trial) => void };

/** On a generator with two ports. Ends early, with what was found, when the signal says so or a back-end fails. */
export async function rfc2544(
  generator: Generator,
  options: Rfc2544Options,
  run: Rfc2544Run = {},
): Promise<Rfc2544Result> {
  const { precision = 0.01, traffic = {} } = options;
  const result: Rfc2544Result = { sizes: [] };
  const learning = { ...LEARNING, traffic: { ...traffic, sizes: options.sizes.slice(0, 1) } };
  if (ended(await generator.run(learning, run), result)) return result;
  for (const size of options.sizes) {
    const found: Rfc2544Size = { size, packetsPerSecond: 0, bitsPerSecond: 0, trials: [] };
    result.sizes.push(found);
    const attempt = (asked?: number) => trial(generator, options, run, found, asked, result);
    const first = await attempt();
    if (!first) return result;
    if (first.passed || !(first.rate > 0)) continue;
    let low = 0;
    let high = first.rate;
    // What came through at full speed is a good guess.
    let next = high * Math.min(1 - precision, 1 - first.lost / first.sent);
    while (high - low > precision * high && next > LEAST * first.rate) {
      const one = await attempt(next);
      if (!one) return result;
      if (one.passed) low = next;
      else high = next;
      next = (low + high) / 2;
    }
  }
  return result;
}

/** One trial, noted among those of its size; undefined when it ended early. */
async function trial(
  generator: Generator,
  { traffic, both, check, loss = 0, seconds = 2 }: Rfc2544Options,
  run: Rfc2544Run,
  found: Rfc2544Size,
  asked: number | undefined,
  result: Rfc2544Result,
): Promise<Rfc2544Trial | undefined> {
  const { size } = found;
  const mode: Mode | Mode[] = both ? 'latency' : ['txonly', 'rxonly'];
  const rate = asked === undefined ? 'max' : { packets: asked };
  const sized = { ...traffic, sizes: [size] };
  const measured = await generator.run({ mode, seconds, rate, traffic: sized, ...(check && { check }) }, run);
  if (ended(measured, result)) return undefined;
  const { sent, lost = 0, ports, latency } = measured;
  const rates = ports.filter((port) => port.sent > 0).map((port) => port.sendRate);
  const slowest = rates.length > 0 ? Math.min(...rates) : 0;
  const held = asked === undefined || slowest >= asked * (1 - SHORT);
  const passed = sent > 0 && lost <= loss * sent && held;
  const one = { ...(asked === undefined ? {} : { asked }), rate: slowest, sent, lost, passed };
  found.trials.push(one);
  run.onTrial?.(size, one);
  const total = slowest * rates.length;
  if (passed && total > found.packetsPerSecond) {
    found.packetsPerSecond = total;
    found.bitsPerSecond = total * 8 * size;
    if (latency) found.latency = latency;
  }
  return one;
}

/** Did the run end before its time? */
function ended({ ended: how, fault }: GenResult, result: Rfc2544Result): boolean {
  if (how !== 'interrupt' && how !== 'fault') return false;
  result.ended = how;
  if (fault !== undefined) result.fault = fault;
  return true;
}
