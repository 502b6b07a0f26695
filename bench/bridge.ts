/**
 * Vireo beside what it replaces on a host of virtual machines: a bridge of the Linux kernel, to which each guest is
 * connected by vhost-net and a TAP. Few machines let a test load those modules, so both run within one guest in QEMU
 * that has them (test/peers/devices-guest.ts), with the generator as their guests (bridge-guest.ts). Where that guest is
 * emulated, its figures say nothing but how the two compare.
 */
import { qemuProgram, skipWithout } from '../test/peers/available.ts';
import { node, startDevicesGuest } from '../test/peers/devices-guest.ts';
import { accelerator } from '../test/peers/qemu.ts';
import { machine, type Spread, showSpread, spread, table, version, writeSection } from './report.ts';

export type Subject = 'bridge' | 'vireo';

/** A run: what arrived, in packets a second, and what didn't. */
export interface Measured {
  turn: number;
  subject: Subject;
  /** Bytes of a frame, without the frame check sequence. */
  size: number;
  /** At PACE packets a second, else as fast as it goes. */
  paced: boolean;
  rate: number;
  sent: number;
  lost: number;
}

interface Row {
  size: number;
  paced: boolean;
  /** Packets a second that arrived. */
  rate: Record<Subject, Spread>;
  /** Vireo's rate to the bridge's within a turn. */
  ratio: Spread;
  /** Percent of the frames that were sent. */
  lost: Record<Subject, Spread>;
}

export interface Result {
  machine: string;
  qemu: string;
  /** Of the guest. */
  kernel: string;
  emulated: boolean;
  turns: number;
  seconds: number;
  rows: Row[];
}

const SIZES = [64, 1518];
/** Packets a second that both carry, on an emulated guest too. */
const PACE = 5000;
/**
 * Where it is emulated. A kernel that finds fast `rep movsb` copies frames with it, and QEMU emulates that byte by byte;
 * without it copies in the kernel cost what copies of programs do.
 */
const EMULATED_CPU = 'max,erms=off,fsrm=off';
/** Milliseconds that a guest on a busy machine may take beyond the measured time. */
const PATIENCE = 300_000;

export async function bridge(turns: number, seconds: number, say: (line: string) => void): Promise<Result> {
  const missing = skipWithout('qemu', 'kernelDevices');
  if (missing !== false) throw new Error(missing);
  say('starting the guest');
  await using guest = await startDevicesGuest({ cpus: 2, cpu: EMULATED_CPU });
  const kernel = (await guest.ok('uname -r')).trim();
  const runs = turns * SIZES.length * 2 * 2;
  say(`${runs} runs of ${seconds} s in it`);
  const program = `dist/bench/bridge-guest.js ${turns} ${seconds} ${PACE} ${SIZES}`;
  const output = await guest.ok(node(program), 2000 * runs * seconds + PATIENCE);
  const measured = output
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as Measured);
  if (measured.length !== runs)
    throw new Error(`${measured.length} of ${runs} runs in the guest:\n${output}`);
  const rows = SIZES.flatMap((size) => [false, true].map((paced) => row(measured, size, paced)));
  const emulated = accelerator() === 'tcg';
  return { machine: machine(), qemu: version(qemuProgram), kernel, emulated, turns, seconds, rows };
}

function row(measured: Measured[], size: number, paced: boolean): Row {
  const of = (subject: Subject) =>
    measured.filter((one) => one.subject === subject && one.size === size && one.paced === paced);
  const both = (value: (one: Measured) => number): Record<Subject, Spread> => ({
    bridge: spread(of('bridge').map(value)),
    vireo: spread(of('vireo').map(value)),
  });
  const ratios = of('vireo').map(
    (one) => one.rate / of('bridge').find(({ turn }) => turn === one.turn)!.rate,
  );
  return {
    size,
    paced,
    rate: both((one) => one.rate),
    ratio: spread(ratios),
    lost: both((one) => (100 * one.lost) / one.sent),
  };
}

export function renderBridge({ rows, turns }: Result): string {
  const header = ['', 'Linux bridge', 'Vireo', 'Vireo / bridge', 'bridge: lost, %', 'Vireo: lost, %'];
  const cells = rows.map(({ size, paced, rate, ratio, lost }) => [
    `${size} B, ${paced ? `${PACE} a second` : 'full speed'}`,
    ...[rate.bridge, rate.vireo].map((one) => showSpread(thousands(one), 1)),
    showSpread(ratio),
    ...[lost.bridge, lost.vireo].map((one) => showSpread(one)),
  ]);
  return [
    `Thousands of packets a second that arrived, one way, and the share that was lost: median (least to most) of ${turns} turns; the ratio within a turn.`,
    table(header, cells),
  ].join('\n\n');
}

const thousands = ({ median, min, max }: Spread): Spread => ({
  median: median / 1000,
  min: min / 1000,
  max: max / 1000,
});

export function documentBridge(result: Result): void {
  const { qemu, kernel, emulated, seconds } = result;
  writeSection(
    'bridge',
    [
      '## Beside the Linux bridge',
      `Machine: ${result.machine}. Within it a guest of QEMU ${qemu} with Linux ${kernel} and two CPUs, ${emulated ? 'emulated (TCG) as a processor without fast `rep movsb`, which the kernel would copy with and QEMU emulates byte by byte: only the ratios mean something' : 'with KVM'}.`,
      `Method: in the guest the [generator](gen.md) is two guests by virtio-user (split rings of 1024), over \`/dev/vhost-net\` with two TAPs in one bridge, or over vhost-user with a Vireo switch that polls adaptively. Its thread has CPU 1, the switch's worker CPU 0, vhost's kernel threads both. Runs of ${seconds} s in turn, as fast as the rings take frames, and at a rate that both carry. \`npm run bench -- bridge\` repeats it.`,
      renderBridge(result),
    ].join('\n\n'),
  );
}
