/** A run under way: on a terminal one line that is drawn over, elsewhere a line each time. */
import type { Progress } from './types.ts';
import { nanoseconds, packets } from './units.ts';

const BAR = 20;

/** The line's text: rates since the last look (`before`), counts of the whole run. */
export function progressLine(before: Progress | undefined, now: Progress): string {
  const span = now.seconds - (before?.seconds ?? 0);
  const since = (field: 'sent' | 'sentBytes' | 'received' | 'receivedBytes') =>
    span > 0 ? (now[field] - (before?.[field] ?? 0)) / span : 0;
  const parts = [
    `out ${packets(since('sent'))}pps ${packets(8 * since('sentBytes'))}bit/s`,
    `in ${packets(since('received'))}pps ${packets(8 * since('receivedBytes'))}bit/s`,
  ];
  if (now.lost !== undefined) parts.push(`lost ${now.lost}`);
  if (now.corrupt > 0) parts.push(`corrupt ${now.corrupt}`);
  if (now.p50 !== undefined && now.p99 !== undefined)
    parts.push(`latency ${nanoseconds(now.p50)}, p99 ${nanoseconds(now.p99)}`);
  return `${now.share === undefined ? '' : `${bar(now.share)} `}${now.seconds.toFixed(1)} s: ${parts.join(', ')}`;
}

function bar(share: number): string {
  const full = Math.round(share * BAR);
  return `[${'#'.repeat(full)}${'.'.repeat(BAR - full)}] ${(100 * share).toFixed(0).padStart(3)} %`;
}

/** Shows what it is given on a stream, until clear(). */
export class Display {
  readonly #out: NodeJS.WriteStream;
  #before: Progress | undefined;
  #drawn = false;

  constructor(out: NodeJS.WriteStream) {
    this.#out = out;
  }

  readonly show = (now: Progress): void => {
    // Another run began.
    if (this.#before && now.seconds < this.#before.seconds) this.#before = undefined;
    const line = progressLine(this.#before, now);
    this.#before = now;
    if (!this.#out.isTTY) {
      this.#out.write(`${line}\n`);
      return;
    }
    // A line that the terminal wraps would be two.
    this.#out.write(`\r\x1b[K${line.slice(0, (this.#out.columns || 80) - 1)}`);
    this.#drawn = true;
  };

  /** Leaves an empty line to go on with. */
  clear(): void {
    if (this.#drawn) this.#out.write('\r\x1b[K');
    this.#drawn = false;
  }
}
