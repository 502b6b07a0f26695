/** Conditions on a result: what `--expect-…` asks for, and what was found instead. */
import { parseDuration, parseRate } from './parse.ts';
import type { GenResult, Latency, PortResult } from './types.ts';
import { nanoseconds, packets } from './units.ts';

export interface Expectations {
  /** Most frames lost, or their share of those sent. */
  loss?: { frames: number } | { share: number };
  /** Least packets or bits a second: received, or sent where nobody receives. */
  rate?: { packets: number } | { bits: number };
  /** Longest latencies, in nanoseconds. */
  latency?: { field: keyof Latency; most: number }[];
}

const FIELDS: Record<string, keyof Latency> = {
  mean: 'mean',
  p50: 'p50',
  p90: 'p90',
  p99: 'p99',
  'p99.9': 'p999',
  'p99.99': 'p9999',
  max: 'most',
};

export function parseExpectedRate(text: string): { packets: number } | { bits: number } {
  const rate = parseRate(text);
  if (typeof rate === 'string')
    throw new RangeError(`expected a rate such as 1Mpps or 2Gbit, found "${text}"`);
  return rate;
}

/** `p99=50us` */
export function parseLatency(text: string): { field: keyof Latency; most: number } {
  const [name = '', duration] = text.split('=', 2);
  const field = Object.hasOwn(FIELDS, name) ? FIELDS[name] : undefined;
  if (field === undefined || duration === undefined) {
    const names = Object.keys(FIELDS).join(', ');
    throw new RangeError(
      `expected one of ${names} and a duration, such as p99=50us, found "${text.slice(0, 60)}"`,
    );
  }
  return { field, most: parseDuration(duration) };
}

/** A sentence for each condition that the result doesn't meet. */
export function unmet(expected: Expectations, result: GenResult): string[] {
  return [...unmetLoss(expected, result), ...unmetRate(expected, result), ...unmetLatency(expected, result)];
}

function unmetLoss({ loss }: Expectations, { lost, sent }: GenResult): string[] {
  if (!loss) return [];
  const asked = `expected a loss of at most ${'frames' in loss ? `${loss.frames} frames` : `${loss.share * 100} %`}`;
  if (lost === undefined) return [`${asked}: no port looks for lost frames`];
  const most = 'frames' in loss ? loss.frames : loss.share * sent;
  return lost > most ? [`${asked}, found ${lost} of ${sent} frames`] : [];
}

function unmetRate({ rate }: Expectations, { ports }: GenResult): string[] {
  if (!rate) return [];
  const receives = ports.some(({ mode }) => mode !== 'txonly');
  const rateOf = (port: PortResult) => {
    const { sendRate, sent, sentBytes, receiveRate, received, receivedBytes } = port;
    const [pps, count, bytes] = receives
      ? [receiveRate, received, receivedBytes]
      : [sendRate, sent, sentBytes];
    return 'packets' in rate || count === 0 ? pps : (pps * 8 * bytes) / count;
  };
  const total = ports.reduce((sum, port) => sum + rateOf(port), 0);
  const [least, unit] = 'packets' in rate ? [rate.packets, 'pps'] : [rate.bits, 'bit/s'];
  if (total >= least) return [];
  const what = receives ? 'received' : 'sent';
  return [`expected at least ${packets(least)}${unit} ${what}, found ${packets(total)}${unit}`];
}

function unmetLatency({ latency = [] }: Expectations, result: GenResult): string[] {
  return latency.flatMap(({ field, most }) => {
    const name = Object.keys(FIELDS).find((one) => FIELDS[one] === field);
    const asked = `expected a latency (${name}) of at most ${nanoseconds(most)}`;
    const value = result.latency?.[field];
    if (value === undefined) return [`${asked}: no frame with a time came`];
    return value > most ? [`${asked}, found ${nanoseconds(value)}`] : [];
  });
}
