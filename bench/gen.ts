/**
 * The generator beside DPDK's: `vireo gen` and testpmd's txonly on virtio-user, in turn, on the same CPU, against the
 * same back-end (testpmd's vhost ports in rxonly mode) on the other one. What is compared is the ratio within a turn.
 */
import { join } from 'node:path';
import { Generator } from '../src/gen/index.ts';
import { skipWithout } from '../test/peers/available.ts';
import { Testpmd, vhost, virtioUser } from '../test/peers/dpdk.ts';
import { cpuSeconds, scratch, sleep } from '../test/peers/process.ts';
import { GUEST_CPU, RING, SWITCH_CPU } from './load.ts';
import { machine, showSpread, spread, table, writeSection } from './report.ts';

const SIZES = [64, 256, 1518];
/** Share of its CPU that each side must have had: below that, something else ran there. */
const UNDISTURBED = 0.97;
/** A turn is tried again so often where it was disturbed. */
const ATTEMPTS = 5;

interface Turn {
  packed: boolean;
  size: number;
  /** Packets a second. */
  vireo: number;
  testpmd: number;
}

export interface Result {
  machine: string;
  dpdk: string;
  seconds: number;
  turns: Turn[];
  /** Turns that something else disturbed each time. */
  left: number;
}

export async function gen(
  options: { turns: number; seconds: number },
  say: (line: string) => void,
): Promise<Result> {
  const missing = skipWithout('dpdk');
  if (missing !== false) throw new Error(missing);
  const result: Result = { machine: machine(), dpdk: '', seconds: options.seconds, turns: [], left: 0 };
  for (const packed of [false, true]) {
    using directory = scratch('gen');
    const at = (name: string) => join(directory.path, name);
    await using backend = await Testpmd.start({
      cpu: SWITCH_CPU,
      vdevs: ['a', 'b'].map((name, index) => vhost(index, { iface: at(name) })),
      args: ['--forward-mode=rxonly', '--auto-start'],
    });
    result.dpdk = backend.version;
    await using generator = await Generator.open({
      ports: [{ path: at('a'), packed, queueSize: RING }],
      cpus: [GUEST_CPU],
    });
    for (const size of SIZES) {
      await using sender = await Testpmd.start({
        cpu: GUEST_CPU,
        vdevs: [virtioUser(0, { path: at('b'), queueSize: RING, packed })],
        args: ['--forward-mode=txonly', `--txpkts=${size}`],
      });
      await sender.waitForLinks();
      const ways = {
        vireo: () => undisturbed(backend, process.pid, () => ours(generator, size, options.seconds)),
        testpmd: () => undisturbed(backend, sender.child.pid, () => theirs(sender, options.seconds)),
      };
      for (let turn = 0; turn < options.turns; turn++) {
        const order = turn % 2 === 0 ? (['vireo', 'testpmd'] as const) : (['testpmd', 'vireo'] as const);
        const rates = { vireo: 0, testpmd: 0 };
        for (const way of order) rates[way] = (await ways[way]()) ?? 0;
        if (rates.vireo > 0 && rates.testpmd > 0) result.turns.push({ packed, size, ...rates });
        else result.left++;
        say(
          `${packed ? 'packed' : 'split'}, ${size} B: ${mpps(rates.vireo)}, testpmd ${mpps(rates.testpmd)}`,
        );
      }
    }
  }
  return result;
}

const mpps = (rate: number) => (rate === 0 ? 'disturbed' : `${(rate / 1e6).toFixed(2)} Mpps`);

async function ours(generator: Generator, size: number, seconds: number): Promise<number> {
  const result = await generator.run({ mode: 'txonly', seconds, traffic: { sizes: [size] } });
  return result.ports[0]!.sendRate;
}

async function theirs(sender: Testpmd, seconds: number): Promise<number> {
  await sender.command('start');
  await sender.stats();
  await sleep(1000 * seconds);
  const [port] = await sender.stats();
  await sender.command('stop');
  return port!.txRate;
}

/** What `measure` finds while both sides had their CPUs to themselves; undefined: that was never so. */
async function undisturbed(
  backend: Testpmd,
  pid: number,
  measure: () => Promise<number>,
): Promise<number | undefined> {
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const pids = [backend.child.pid, pid];
    const before = pids.map(cpuSeconds);
    const start = performance.now();
    const rate = await measure();
    const wall = (performance.now() - start) / 1000;
    if (pids.every((one, index) => cpuSeconds(one) - before[index]! >= UNDISTURBED * wall)) return rate;
  }
  return undefined;
}

/** The tables as Markdown. */
export function renderGen({ turns, left }: Result): string {
  const formats = [...new Set(turns.map(({ packed }) => packed))];
  const rows = formats.flatMap((packed) => {
    const cells = (value: (turn: Turn) => number) =>
      SIZES.map((size) => {
        const values = turns.filter((turn) => turn.packed === packed && turn.size === size).map(value);
        return values.length > 0 ? showSpread(spread(values)) : '';
      });
    const format = packed ? 'packed' : 'split';
    return [
      [`${format}: vireo gen, Mpps`, ...cells(({ vireo }) => vireo / 1e6)],
      [`${format}: testpmd txonly, Mpps`, ...cells(({ testpmd }) => testpmd / 1e6)],
      [`${format}: ratio`, ...cells(({ vireo, testpmd }) => vireo / testpmd)],
    ];
  });
  return [
    table(['', ...SIZES.map((size) => `${size} B`)], rows),
    `${left} turns left out, in which something else took part of a CPU.`,
  ].join('\n\n');
}

/** Writes the section of docs/performance.md. */
export function documentGen(result: Result): void {
  writeSection(
    'gen',
    [
      '## The generator beside testpmd’s txonly',
      `Machine: ${result.machine}. DPDK ${result.dpdk}. Method: \`vireo gen\` and testpmd's txonly with virtio-user (rings of ${RING}) in turn for ${result.seconds} s each on CPU ${GUEST_CPU}, against testpmd's rxonly with vhost on CPU ${SWITCH_CPU}. Median (least to most). \`npm run bench -- gen\` repeats it.`,
      renderGen(result),
    ].join('\n\n'),
  );
}
