/**
 * Round trips through the switch between two guests, each with our own driver: a frame of 60 bytes goes to the
 * other guest and comes back. Polling: nobody ever sleeps. Sleeping: guests and switch sleep in the kernel between
 * two round trips, so each takes four wake-ups.
 */
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { setAffinity } from '../src/sys/index.ts';
import { VirtioUser } from '../src/virtio-user/device.ts';
import { Vireo } from '../test/peers/vireo.ts';
import { machine, percentile, table, writeSection } from './report.ts';

type Way = 'polling' | 'sleeping';

interface Distribution {
  rounds: number;
  /** Microseconds. */
  p50: number;
  p99: number;
  p999: number;
}

export interface Result {
  machine: string;
  polling: Distribution;
  sleeping: Distribution;
}

const ROUNDS = { polling: 50_000, sleeping: 2000 };
/** Milliseconds between two round trips of guests that sleep: enough for the worker to fall asleep. */
const PAUSE = 2;
/** Milliseconds that a frame may take. */
const LIMIT = 1000;

export async function latency(say: (line: string) => void): Promise<Result> {
  // The worker has CPU 0 for itself.
  setAffinity([1]);
  say('polling');
  const polling = await measure('polling');
  say('sleeping');
  return { machine: machine(), polling, sleeping: await measure('sleeping') };
}

async function measure(way: Way): Promise<Distribution> {
  const rounds = ROUNDS[way];
  await using vireo = await Vireo.start({
    ports: ['a', 'b'],
    poll: way === 'polling' ? 'busy' : 'adaptive',
    cpu: 0,
  });
  await using a = await VirtioUser.open({ path: join(vireo.directory, 'a') });
  await using b = await VirtioUser.open({ path: join(vireo.directory, 'b') });
  const there = frame(2, 1);
  const back = frame(1, 2);
  const times: number[] = [];
  // The first tenth finds the addresses not learned and the code not compiled.
  for (let round = -rounds / 10; round < rounds; round++) {
    if (way === 'sleeping') await pause(PAUSE);
    const start = performance.now();
    a.send(there);
    receive(b, way);
    b.send(back);
    receive(a, way);
    if (round >= 0) times.push(1000 * (performance.now() - start));
  }
  const [p50, p99, p999] = [50, 99, 99.9].map((percent) => percentile(times, percent));
  return { rounds, p50: p50!, p99: p99!, p999: p999! };
}

function receive(guest: VirtioUser, way: Way): void {
  const end = performance.now() + LIMIT;
  while (guest.receive() === undefined) {
    if (performance.now() > end) throw new Error(`a frame didn't arrive within ${LIMIT} ms`);
    if (way === 'sleeping') guest.sleep(LIMIT);
  }
}

function frame(to: number, from: number): Uint8Array {
  const bytes = new Uint8Array(60);
  bytes.set([2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5]);
  return bytes;
}

export function renderLatency(result: Result): string {
  const rows = (['polling', 'sleeping'] as const).map((way) => {
    const { p50, p99, p999, rounds } = result[way];
    return [`two ${way} guests`, ...[p50, p99, p999].map((time) => time.toFixed(1)), String(rounds)];
  });
  const head = ['', 'p50', 'p99', 'p99.9', 'round trips'];
  return `Round trip of 60 bytes through the switch, in microseconds:\n\n${table(head, rows)}`;
}

export function documentLatency(result: Result): void {
  writeSection('latency', ['## Latency', `Machine: ${result.machine}.`, renderLatency(result)].join('\n\n'));
}
