/**
 * Rules: what each costs a packet when it is on, how near shaping comes to the rate asked, and link impairment to the
 * delay. The guests of rates are DPDK's testpmd, which counts what it receives, those of the delay our own driver; and
 * Linux guests are those of both (rules-guests.ts).
 */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { PortChange } from '../src/switch/types.ts';
import { setAffinity } from '../src/sys/index.ts';
import { VirtioUser } from '../src/virtio-user/device.ts';
import { skipWithout } from '../test/peers/available.ts';
import { Testpmd, virtioUser } from '../test/peers/dpdk.ts';
import { until } from '../test/peers/process.ts';
import { Vireo } from '../test/peers/vireo.ts';
import { BURSTS, GUEST_CPU, RING, SWITCH_CPU } from './load.ts';
import { machine, percentile, type Spread, showSpread, spread, table, writeSection } from './report.ts';
import { type GuestResult, linuxGuests, PINGS, SECONDS as SHAPED_SECONDS } from './rules-guests.ts';

/** Rules of both ports that let everything through; each is taken away again. */
const RULES: Record<string, PortChange> = {
  'no rules': {},
  'isolated, of one port': {},
  'rate-in': { rateIn: '1000Gbit' },
  'rate-out, below the rate': { rateOut: '1000Gbit' },
  'delay-out of 1 ns': { delayOut: '1ns', limitOut: 8192 },
};
/** RSTP on the bridge, by whether other bridges may be behind the ports. */
const TREES = { 'rstp, edges': true, 'rstp, between bridges': false };
const RATES = ['10Mbit', '100Mbit', '1Gbit'];
const DELAYS = ['1ms', '10ms'];
const POLLS = ['adaptive', 'busy'] as const;
/** Bytes of the frames whose cost is taken, and of those that are shaped. */
const SMALL = 64;
const LARGE = 1500;
/** Seconds of a window in which the cost is taken. */
const WINDOW = 0.4;
const ROUNDS = 300;
/** Milliseconds that anything may take. */
const LIMIT = 5000;

export interface Result {
  machine: string;
  dpdk: string;
  turns: number;
  /** By rule: nanoseconds a packet. */
  cost: Record<string, Spread>;
  /** By rate asked: what the guest received to it. */
  shaped: Record<string, number>;
  /** Microseconds that frames arrived after their delay. */
  late: { poll: string; delay: string; p50: number; p99: number; early: number }[];
  linux: GuestResult;
}

export async function rules(turns: number, say: (line: string) => void): Promise<Result> {
  const missing = skipWithout('dpdk', 'qemu', 'guestKernel');
  if (missing !== false) throw new Error(missing);
  const linux = await linuxGuests(say);
  setAffinity([GUEST_CPU]);
  const late: Result['late'] = [];
  for (const poll of POLLS) for (const delay of DELAYS) late.push(await delayed(poll, delay));
  for (const { poll, delay, p50 } of late) say(`${delay}, ${poll}: ${p50.toFixed(1)} µs late`);
  const shaped: Record<string, number> = {};
  await circulate(LARGE, async (vireo, guests) => {
    for (const rate of RATES) {
      await vireo.control.setPort('b', { rateOut: rate });
      const [, received = 0] = await guests.rates(SHAPED_SECONDS);
      const asked = Number.parseFloat(rate) * (rate.endsWith('Gbit') ? 1e9 : 1e6);
      shaped[rate] = (received * LARGE * 8) / asked;
      say(`${rate}: ${(100 * shaped[rate]).toFixed(2)} %`);
    }
  });
  const costs: Record<string, number[]> = {};
  const dpdk = await circulate(SMALL, async (vireo, guests) => {
    for (let turn = 0; turn < turns; turn++) {
      for (const [name, change] of Object.entries(RULES)) {
        const none = Object.fromEntries(Object.keys(change).map((field) => [field, null]));
        for (const port of ['a', 'b']) await vireo.control.setPort(port, change);
        if (name.startsWith('isolated')) await vireo.control.setPort('a', { isolated: true });
        const rates = await guests.rates(WINDOW);
        costs[name] = [...(costs[name] ?? []), 1e9 / rates.reduce((sum, rate) => sum + rate, 0)];
        for (const port of ['a', 'b']) await vireo.control.setPort(port, { ...none, isolated: null });
      }
      for (const [name, edge] of Object.entries(TREES)) {
        await inTree(vireo, guests, edge);
        const rates = await guests.rates(WINDOW);
        costs[name] = [...(costs[name] ?? []), 1e9 / rates.reduce((sum, rate) => sum + rate, 0)];
        await vireo.control.setBridge('default', { rstp: null, maxAge: null, forwardDelay: null });
      }
    }
  });
  return {
    machine: machine(),
    dpdk,
    turns,
    cost: Object.fromEntries(Object.entries(costs).map(([name, values]) => [name, spread(values)])),
    shaped,
    late,
    linux,
  };
}

/** Packets of `size` circulate between two ports of one testpmd while `during` runs; returns DPDK's version. */
async function circulate(
  size: number,
  during: (vireo: Vireo, guests: Testpmd) => Promise<void>,
): Promise<string> {
  await using vireo = await Vireo.start({ ports: ['a', 'b'], poll: 'busy', cpu: SWITCH_CPU });
  const mac = (port: number) => `52:54:00:00:00:0${port + 1}`;
  await using guests = await Testpmd.start({
    cpu: GUEST_CPU,
    vdevs: ['a', 'b'].map((name, port) =>
      virtioUser(port, { path: join(vireo.directory, name), mac: mac(port), queueSize: RING }),
    ),
    args: [
      '--forward-mode=mac',
      ...[0, 1].map((port) => `--eth-peer=${port},${mac(1 - port)}`),
      `--txpkts=${size}`,
    ],
  });
  await guests.waitForLinks();
  await guests.command(`start tx_first ${BURSTS}`);
  await during(vireo, guests);
  return guests.version;
}

/** The ports come into a tree, and forward when nobody has answered; what was under way is lost meanwhile. */
async function inTree(vireo: Vireo, guests: Testpmd, edge: boolean): Promise<void> {
  for (const port of ['a', 'b']) await vireo.control.setPort(port, { edge });
  await vireo.control.setBridge('default', { rstp: true, maxAge: 6, forwardDelay: 4 });
  await until('the ports forward', 60_000, async () => {
    const { spanningTree } = await vireo.control.bridge('default');
    return spanningTree!.ports.every(({ state }) => state === 'forwarding') || undefined;
  });
  await guests.command('stop');
  await guests.command(`start tx_first ${BURSTS}`);
}

async function delayed(poll: 'adaptive' | 'busy', delay: string): Promise<Result['late'][number]> {
  await using vireo = await Vireo.start({ ports: ['a', 'b'], poll, cpu: SWITCH_CPU });
  await using a = await VirtioUser.open({ path: join(vireo.directory, 'a') });
  await using b = await VirtioUser.open({ path: join(vireo.directory, 'b') });
  await until('both guests are up', LIMIT, async () =>
    (await vireo.control.ports()).every(({ state }) => state === 'up'),
  );
  await vireo.control.setPort('b', { delayOut: delay });
  const bytes = new Uint8Array(60);
  bytes.set([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
  const times: number[] = [];
  for (let round = -ROUNDS / 10; round < ROUNDS; round++) {
    await sleep(1);
    const start = performance.now();
    a.send(bytes);
    while (b.receive() === undefined)
      if (performance.now() - start > LIMIT) throw new Error(`a frame didn't arrive within ${LIMIT} ms`);
    if (round >= 0) times.push(1000 * (performance.now() - start - Number.parseFloat(delay)));
  }
  const early = times.filter((time) => time < 0).length;
  return { poll, delay, p50: percentile(times, 50), p99: percentile(times, 99), early };
}

export function renderRules({ cost, shaped, late, turns, linux }: Result): string {
  const least = cost['no rules']!.median;
  return [
    `Nanoseconds a packet of ${SMALL} B, both directions summed, with a rule on both ports that lets everything through: median (least to most) of ${turns} turns.`,
    table(
      ['', 'ns', 'more than without'],
      Object.entries(cost).map(([name, found]) => [
        name,
        showSpread(found, 1),
        name === 'no rules' ? '' : (found.median - least).toFixed(1),
      ]),
    ),
    `What a guest received of a rate asked with \`rate-out\`, frames of ${LARGE} B, over ${SHAPED_SECONDS} s:`,
    table(
      ['rate', 'received'],
      Object.entries(shaped).map(([rate, share]) => [rate, `${(100 * share).toFixed(2)} %`]),
    ),
    `How long after \`delay-out\` a frame was there, from the sender's call to the receiver's, in microseconds, over ${ROUNDS} frames; none may be early:`,
    table(
      ['', 'p50', 'p99', 'early'],
      late.map(({ poll, delay, p50, p99, early }) => [
        `${delay}, ${poll} polling`,
        p50.toFixed(1),
        p99.toFixed(1),
        String(early),
      ]),
    ),
    ...renderLinux(linux),
  ].join('\n\n');
}

function renderLinux({ delays, rates }: GuestResult): string[] {
  return [
    `The same with two Linux guests in QEMU, of which one pings the other ${PINGS} times, from the moment when the switch takes a frame to the one when it hands it over, by the nanoseconds of a capture on both ports, in microseconds; and the median of the guest's round trips in milliseconds, without the delay and with it:`,
    table(
      ['', 'p50', 'p99', 'early', 'round trip', 'behind the delay'],
      delays.map(({ delay, p50, p99, early, without, with: behind }) => [
        `${delay}, adaptive polling`,
        ...[p50, p99].map((time) => time.toFixed(1)),
        String(early),
        ...[without, behind].map((time) => time.toFixed(2)),
      ]),
    ),
    `What such a guest received of a rate over ${SHAPED_SECONDS} s, by its kernel's counter:`,
    table(
      ['rate', 'received'],
      rates.map(({ what, share }) => [what, `${(100 * share).toFixed(2)} %`]),
    ),
  ];
}

export function documentRules(result: Result): void {
  const peers = `Machine: ${result.machine}. Peer: DPDK ${result.dpdk}.`;
  const method = `Method: one testpmd is both guests, ${BURSTS * 32} packets circulate in each direction; the switch has CPU ${SWITCH_CPU}, the guests CPU ${GUEST_CPU}. Rules are set and taken away while packets go. \`npm run bench -- rules\` repeats it.`;
  writeSection('rules', ['## Rules', peers, method, renderRules(result)].join('\n\n'));
}
