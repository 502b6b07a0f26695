/**
 * Rules as a Linux guest in QEMU has them: how late frames are behind a delay, by the switch's own nanoseconds, what
 * the delay does to the guest's round trips, and what a guest receives of a rate in ten seconds, by its own counters.
 */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { PortChange } from '../src/switch/types.ts';
import { LinuxGuest } from '../test/peers/qemu.ts';
import { Vireo } from '../test/peers/vireo.ts';
import { take } from '../test/support/taken.ts';
import { percentile } from './report.ts';

const ADDRESSES = ['10.0.0.1', '10.0.0.2'] as const;
const DELAYS = ['1ms', '10ms'];
export const PINGS = 300;
/** Seconds between two of them. */
const EVERY = 0.01;
/** Where the sequence number of an echo request stands, and what says that it is one. */
const [TYPE, NUMBER, REQUEST] = [34, 40, 8];

const RATES: { what: string; port: 'a' | 'b'; change: PortChange; rate: number; sender: string }[] = [
  { what: 'rate-out=2Mbit, TCP', port: 'b', change: { rateOut: '2Mbit' }, rate: 2e6, sender: '' },
  { what: 'rate-out=10Mbit, TCP', port: 'b', change: { rateOut: '10Mbit' }, rate: 10e6, sender: '' },
  {
    what: 'rate-out=10Mbit, UDP',
    port: 'b',
    change: { rateOut: '10Mbit' },
    rate: 10e6,
    sender: '-u -l1400 -R15m',
  },
  {
    what: 'rate-in=10Mbit, UDP',
    port: 'a',
    change: { rateIn: '10Mbit' },
    rate: 10e6,
    sender: '-u -l1400 -R15m',
  },
];
/** Of a run at a rate. */
export const SECONDS = 10;

export interface GuestResult {
  /** Microseconds that requests came to the guest after their delay, and milliseconds of the guest's round trips. */
  delays: { delay: string; p50: number; p99: number; early: number; without: number; with: number }[];
  /** What the guest received of a rate. */
  rates: { what: string; share: number }[];
}

export async function linuxGuests(say: (line: string) => void): Promise<GuestResult> {
  await using vireo = await Vireo.start({ ports: ['a', 'b'] });
  const guests: LinuxGuest[] = [];
  try {
    for (const [i, name] of ['a', 'b'].entries()) {
      const guest = await LinuxGuest.start({
        path: join(vireo.directory, name),
        mac: `52:54:00:00:00:0${i + 1}`,
      });
      guests.push(guest);
      await guest.configure(`${ADDRESSES[i]}/24`);
    }
    const [a, b] = guests as [LinuxGuest, LinuxGuest];
    await a.ok(`ping -c 1 -w 20 ${ADDRESSES[1]}`);
    const delays: GuestResult['delays'] = [];
    for (const delay of DELAYS) {
      delays.push(await delayed(vireo, a, delay));
      const { p50, without, with: behind } = delays.at(-1)!;
      say(`${delay}, Linux guest: ${p50.toFixed(1)} µs late, round trip ${without} -> ${behind} ms`);
    }
    await b.ok('nuttcp -S');
    const rates: GuestResult['rates'] = [];
    for (const { what, ...settings } of RATES) {
      rates.push({ what, share: await received(vireo, a, b, settings) });
      say(`${what}, Linux guest: ${(100 * rates.at(-1)!.share).toFixed(2)} %`);
    }
    return { delays, rates };
  } finally {
    for (const guest of guests) await guest.close();
  }
}

async function roundTrip(guest: LinuxGuest): Promise<number> {
  const text = await guest.ok(`ping -c ${PINGS} -i ${EVERY} ${ADDRESSES[1]}`, 120_000);
  return percentile(
    [...text.matchAll(/time=([\d.]+) ms/g)].map(([, time]) => Number(time)),
    50,
  );
}

async function delayed(
  vireo: Vireo,
  guest: LinuxGuest,
  delay: string,
): Promise<GuestResult['delays'][number]> {
  const without = await roundTrip(guest);
  await vireo.control.setPort('b', { delayOut: delay });
  const capture = await vireo.control.capture({ port: 'any', filter: 'icmp', snaplen: 64 });
  const taken = take(capture.stream);
  const behind = await roundTrip(guest);
  await capture.stop();
  await vireo.control.setPort('b', { delayOut: null });
  const came = new Map<number, bigint>();
  const late: number[] = [];
  for (const { way, bytes, time } of (await taken).packets) {
    if (bytes[TYPE] !== REQUEST) continue;
    const number = Buffer.from(bytes).readUInt16BE(NUMBER);
    if (way === 'in') came.set(number, time);
    else late.push(Number(time - came.get(number)!) / 1000 - 1000 * Number.parseFloat(delay));
  }
  const early = late.filter((time) => time < 0).length;
  return { delay, p50: percentile(late, 50), p99: percentile(late, 99), early, without, with: behind };
}

async function received(
  vireo: Vireo,
  from: LinuxGuest,
  to: LinuxGuest,
  { port, change, rate, sender }: Omit<(typeof RATES)[number], 'what'>,
): Promise<number> {
  const read = async () => {
    const asked = performance.now();
    const bytes = Number(await to.ok('cat /sys/class/net/eth0/statistics/rx_bytes'));
    return { bytes, time: (asked + performance.now()) / 2 };
  };
  await vireo.control.setPort(port, change);
  const sending = from.ok(`nuttcp -T${SECONDS + 4} ${sender} ${ADDRESSES[1]}`, 120_000);
  // Until it is under way, and the first burst is over.
  await sleep(2000);
  const begin = await read();
  await sleep(1000 * SECONDS);
  const end = await read();
  await sending;
  await vireo.control.setPort(port, Object.fromEntries(Object.keys(change).map((field) => [field, null])));
  return (8000 * (end.bytes - begin.bytes)) / (end.time - begin.time) / rate;
}
