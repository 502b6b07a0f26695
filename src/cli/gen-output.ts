/** What `vireo gen` prints for people: the result of a run, and of a search for the highest rate without loss. */
import type { Rfc2544Result, Rfc2544Trial } from '../gen/rfc2544.ts';
import type { GenResult } from '../gen/types.ts';
import { nanoseconds, packets } from '../gen/units.ts';
import { count, pairs, table } from './table.ts';

/** What was measured, for people. */
export function renderRun(result: GenResult): string {
  const rows = result.ports.map((port) => [
    port.path,
    port.mode,
    count(port.sent),
    `${packets(port.sendRate)}pps`,
    count(port.received),
    `${packets(port.receiveRate)}pps`,
    count(port.corrupt),
    count(port.foreign),
  ]);
  const titles = ['PORT', 'MODE', 'SENT', '', 'RECEIVED', '', 'CORRUPT', 'FOREIGN'];
  const ports = table(
    titles.map((title, index) => ({ title, right: index > 1 })),
    rows,
  );
  const facts: [string, string][] = [['time', `${result.seconds.toFixed(3)} s`]];
  if (result.lost !== undefined) {
    const share = result.sent > 0 ? ` (${((100 * result.lost) / result.sent).toPrecision(3)} %)` : '';
    facts.push(['lost', `${count(result.lost)}${share}`]);
    facts.push(['reordered', count(result.reordered)], ['duplicates', count(result.duplicates)]);
    if (result.stale > 0) facts.push(['too late to tell', count(result.stale)]);
  }
  for (const port of result.ports) {
    if (port.rateError !== undefined)
      facts.push([`rate of ${port.path}`, `${(100 * port.rateError).toFixed(4)} % from what was asked`]);
    if (port.lateMost !== undefined)
      facts.push([
        `schedule of ${port.path}`,
        `${nanoseconds(port.lateMean ?? 0)} late on average, ${nanoseconds(port.lateMost)} at most`,
      ]);
    if (port.dropped > 0) facts.push([`dropped by ${port.path}`, count(port.dropped)]);
    if (port.answers)
      facts.push([
        `answers of ${port.path}`,
        `${count(port.answers.arp)} ARP, ${count(port.answers.echo)} ICMP`,
      ]);
    if (port.capture) {
      const { file, frames, lost } = port.capture;
      facts.push([
        `capture ${file}`,
        `${count(frames)} frames${lost > 0 ? `, ${count(lost)} left out` : ''}`,
      ]);
    }
  }
  const { latency } = result;
  if (latency)
    facts.push([
      'latency',
      (['least', 'mean', 'p50', 'p90', 'p99', 'p999', 'p9999', 'most'] as const)
        .map((name) => `${name.replace('p999', 'p99.9')} ${nanoseconds(latency[name])}`)
        .join(', '),
    ]);
  if (result.ended === 'interrupt') facts.push(['ended', 'by a signal']);
  return `${ports}\n${pairs(facts)}`;
}

/** A trial of a search, as it ends. */
export function sayTrial(size: number, { asked, rate, lost, sent, passed }: Rfc2544Trial): void {
  const what = asked === undefined ? 'full speed' : `${packets(asked)}pps`;
  const verdict = passed ? 'passed' : 'failed';
  process.stdout.write(
    `${size} B, ${what}: ${packets(rate)}pps sent, ${count(lost)} of ${count(sent)} lost, ${verdict}\n`,
  );
}

/** What a search has found. */
export function renderSearch({ sizes, ended }: Rfc2544Result): string {
  const titles = ['BYTES', 'RATE', '', 'LATENCY', 'P99', 'TRIALS'];
  const rows = sizes.map(({ size, packetsPerSecond, bitsPerSecond, latency, trials }) => [
    String(size),
    `${packets(packetsPerSecond)}pps`,
    `${packets(bitsPerSecond)}bit/s`,
    latency ? nanoseconds(latency.p50) : '',
    latency ? nanoseconds(latency.p99) : '',
    String(trials.length),
  ]);
  const early = ended === 'interrupt' ? '\nEnded by a signal: the last size is not finished.\n' : '';
  return `\n${table(
    titles.map((title) => ({ title, right: true })),
    rows,
  )}${early}`;
}
