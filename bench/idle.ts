/** What a switch with two connected guests costs while they are quiet: CPU over some seconds, resident memory. */
import { join } from 'node:path';
import { skipWithout } from '../test/peers/available.ts';
import { Testpmd, virtioUser } from '../test/peers/dpdk.ts';
import { cpuSeconds, sleep } from '../test/peers/process.ts';
import { Vireo } from '../test/peers/vireo.ts';
import { machine, writeSection } from './report.ts';

export interface Result {
  machine: string;
  seconds: number;
  /** Share of one core, all threads, 0 to 100 a core. */
  cpuPercent: number;
  /** Resident bytes, memory shared with guests aside. */
  residentBytes: number;
}

/** Seconds between the guests' connection and the first look: the workers have gone to sleep by then. */
const SETTLE = 2;

export async function idle(seconds: number): Promise<Result> {
  const missing = skipWithout('dpdk');
  if (missing !== false) throw new Error(missing);
  await using vireo = await Vireo.start({ ports: ['a', 'b'], poll: 'adaptive' });
  await using guests = await Testpmd.start({
    vdevs: ['a', 'b'].map((name, index) => virtioUser(index, { path: join(vireo.directory, name) })),
  });
  await guests.waitForLinks();
  await sleep(SETTLE * 1000);
  const before = cpuSeconds(vireo.child.pid);
  const start = performance.now();
  await sleep(seconds * 1000);
  const busy = cpuSeconds(vireo.child.pid) - before;
  return {
    machine: machine(),
    seconds,
    cpuPercent: (100 * busy) / ((performance.now() - start) / 1000),
    residentBytes: vireo.memory().own,
  };
}

export function renderIdle({ cpuPercent, residentBytes, seconds }: Result): string {
  const memory = (residentBytes / 2 ** 20).toFixed(0);
  return `Two connected, quiet guests, adaptive polling: ${cpuPercent.toFixed(2)} % of a core over ${seconds} s, ${memory} MiB resident (guest memory aside).`;
}

export function documentIdle(result: Result): void {
  writeSection('idle', ['## Idle', `Machine: ${result.machine}.`, renderIdle(result)].join('\n\n'));
}
