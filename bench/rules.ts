/**
 * How near shaping comes to the rate asked, and link impairment to the delay. The guests of rates are DPDK's testpmd, which counts what it receives, those of the delay our own driver; and
 * Linux guests are those of both (rules-guests.ts).
 */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { setAffinity } from '../src/sys/index.ts';
import { VirtioUser } from '../src/virtio-user/device.ts';
import { skipWithout } from '../test/peers/available.ts';
import { Testpmd, virtioUser } from '../test/peers/dpdk.ts';
import { until } from '../test/peers/process.ts';
import { Vireo } from '../test/peers/vireo.ts';
import { BURSTS, GUEST_CPU, RING, SWITCH_CPU } from './load.ts';
import { machine, percentile, table, writeSection } from './report.ts';
import { type GuestResult, linuxGuests, PINGS, SECONDS as SHAPED_SECONDS } from './rules-guests.ts';

const RATES = ['10Mbit', '100Mbit', '1Gbit'];
const DELAYS = ['1ms', '10ms'];
const POLLS = ['adaptive', 'busy'] as const;
/** Bytes of the frames that are shaped. */
const LARGE = 1500;
const ROUNDS = 300;
/** Milliseconds that anything may take. */
const LIMIT = 5000;

export interface Result {
  machine: string;
  dpdk: string;
  /** By rate asked: what the guest received to it. */
  shaped: Record<string, number>;
  /** Microseconds that frames arrived after their delay. */
  late: { poll: string; delay: string; p50: number; p99: number; early: number }[];
  linux: GuestResult;
}

export async function rules(say: (line: string) => void): Promise<Result> {
  const missing = skipWithout('dpdk', 'qemu', 'guestKernel');
  if (missing !== false) throw new Error(missing);
  const linux = await linuxGuests(say);
  setAffinity([GUEST_CPU]);
  const late: Result['late'] = [];
  for (const poll of POLLS) for (const delay of DELAYS) late.push(await delayed(poll, delay));
  for (const { poll, delay, p50 } of late) say(`${delay}, ${poll}: ${p50.toFixed(1)} µs late`);
  const shaped: Record<string, number> = {};
  const dpdk = await circulate(LARGE, async (vireo, guests) => {
    for (const rate of RATES) {
      await vireo.control.setPort('b', { rateOut: rate });
      const [, received = 0] = await guests.rates(SHAPED_SECONDS);
      const asked = Number.parseFloat(rate) * (rate.endsWith('Gbit') ? 1e9 : 1e6);
      shaped[rate] = (received * LARGE * 8) / asked;
      say(`${rate}: ${(100 * shaped[rate]).toFixed(2)} %`);
    }
  });
  return {
    machine: machine(),
    dpdk,
    shaped,
    late,
    linux,
  };
}

/** Packets of `size` circulate between two ports of one testpmd while `during` runs; returns DPDK's version. */
export async function circulate(
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

export function renderRules({ shaped, late, linux }: Result): string {
  return [
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
  const method = `Method: where nothing else is said one testpmd is both guests, ${BURSTS * 32} packets circulate in each direction; the switch has CPU ${SWITCH_CPU}, the guests CPU ${GUEST_CPU}. \`npm run bench -- rules\` repeats it.`;
  writeSection('rules', ['## Shaping and delays', peers, method, renderRules(result)].join('\n\n'));
}
