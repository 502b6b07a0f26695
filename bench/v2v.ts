/**
 * Virtual machine to virtual machine: the same DPDK front-ends, in turn, against Vireo, DPDK's own vhost and Open
 * vSwitch with DPDK. What is compared is the ratio within a turn: absolute figures of a shared machine move by a
 * third from one minute to the next.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { featureNames } from '../src/virtio/features.ts';
import { ovsVswitchd, skipWithout } from '../test/peers/available.ts';
import { Testpmd, vhost } from '../test/peers/dpdk.ts';
import { Ovs } from '../test/peers/ovs.ts';
import { scratch } from '../test/peers/process.ts';
import { GUEST_CPU, type Load, load, percent, RING, type Subject, SWITCH_CPU, UNDISTURBED } from './load.ts';
import { machine, type Spread, showSpread, spread, table, version, writeSection } from './report.ts';
import { program, Vireo } from './vireo.ts';

const SIZES = [64, 256, 1500];

/** A switch with two vhost-user ports on the sockets `a` and `b` in its directory. */
interface Running extends Subject {
  directory: string;
  close: () => Promise<void>;
}

const subjects = {
  vireo: async (): Promise<Running> => {
    const vireo = await Vireo.start({ ports: ['a', 'b'], poll: 'busy', cpu: SWITCH_CPU });
    return { name: 'vireo', directory: vireo.directory, pid: vireo.child.pid, close: () => vireo.close() };
  },
  testpmd: async (): Promise<Running> => {
    const { path, remove } = scratch('vhost');
    const pmd = await Testpmd.start({
      cpu: SWITCH_CPU,
      vdevs: ['a', 'b'].map((name, index) => vhost(index, { iface: join(path, name) })),
      args: ['--forward-mode=io', '--auto-start'],
    });
    return {
      name: 'testpmd',
      directory: path,
      pid: pmd.child.pid,
      cyclesPerPacket: (seconds) => pmd.cyclesPerPacket(seconds),
      close: async () => {
        await pmd.close();
        remove();
      },
    };
  },
  ovs: async (): Promise<Running> => {
    const ovs = await Ovs.start({ ports: ['a', 'b'], cpu: SWITCH_CPU });
    return {
      name: 'ovs',
      directory: ovs.directory,
      pid: ovs.pid,
      cyclesPerPacket: async (seconds) => (await ovs.performance(seconds)).cyclesPerPacket,
      close: () => ovs.close(),
    };
  },
};

export type SubjectName = keyof typeof subjects;
export const subjectNames = Object.keys(subjects) as SubjectName[];

const TITLES: Record<SubjectName, string> = {
  vireo: 'Vireo, learning',
  testpmd: 'DPDK testpmd, vhost io (no switching)',
  ovs: 'Open vSwitch with DPDK, learning',
};

export interface Options {
  turns: number;
  /** Measured seconds of each run. */
  seconds: number;
  /** Bursts of 32 packets that circulate in each direction. */
  bursts: number;
  subjects: SubjectName[];
}

interface Run extends Omit<Load, 'features'> {
  subject: SubjectName;
  turn: number;
  /** Bytes of a frame. */
  size: number;
  features: string[];
}

export interface Result {
  machine: string;
  versions: Record<string, string>;
  options: Options;
  ringSize: number;
  runs: Run[];
  /** Millions of packets a second, by subject and size. */
  rates: Partial<Record<SubjectName, Record<number, Spread>>>;
  /** Vireo's rate to the peer's, of each turn, by peer and size. */
  ratios: Partial<Record<SubjectName, Record<number, Spread>>>;
  features: Partial<Record<SubjectName, string[]>>;
}

export async function v2v(options: Options, say: (line: string) => void): Promise<Result> {
  const missing = skipWithout('dpdk', ...(options.subjects.includes('ovs') ? (['ovs'] as const) : []));
  if (missing !== false) throw new Error(missing);
  if (options.subjects.includes('vireo') && !existsSync(program)) {
    throw new Error(`${program} is not built: run "npm run build"`);
  }
  const runs: Run[] = [];
  for (let turn = 0; turn < options.turns; turn++) {
    for (const size of SIZES) {
      // Whoever comes first in one turn comes later in the next: warmth of the machine favours none.
      const first = turn % options.subjects.length;
      const order = [...options.subjects.slice(first), ...options.subjects.slice(0, first)];
      for (const subject of order) {
        const run = { subject, turn, size, ...(await measure(subject, size, options, say)) };
        runs.push(run);
        say(`turn ${turn + 1} of ${options.turns}: ${size} B ${subject} ${(run.rate / 1e6).toFixed(2)} Mpps`);
      }
    }
  }
  return summarize(options, runs);
}

async function measure(
  subject: SubjectName,
  size: number,
  { seconds, bursts }: Options,
  say: (line: string) => void,
): Promise<Omit<Run, 'subject' | 'turn' | 'size'>> {
  const running = await subjects[subject]();
  try {
    const sockets = [join(running.directory, 'a'), join(running.directory, 'b')] as const;
    const { features, ...found } = await load(running, sockets, { size, seconds, bursts }, say);
    const names = featureNames(features).map((name) => name.replace(/^VIRTIO_(NET_)?F_/, ''));
    return { ...found, features: names };
  } finally {
    await running.close();
  }
}

function summarize(options: Options, runs: Run[]): Result {
  const of = (subject: SubjectName, size: number) =>
    runs.filter((run) => run.subject === subject && run.size === size);
  const bySize = (values: (size: number) => number[]) =>
    Object.fromEntries(SIZES.map((size) => [size, spread(values(size))]));
  const result: Result = {
    machine: machine(),
    versions: { dpdk: runs[0]?.dpdk ?? 'unknown' },
    options,
    ringSize: RING,
    runs,
    rates: {},
    ratios: {},
    features: {},
  };
  if (options.subjects.includes('ovs')) result.versions.ovs = version(ovsVswitchd);
  for (const subject of options.subjects) {
    result.rates[subject] = bySize((size) => of(subject, size).map((run) => run.rate / 1e6));
    const features = runs.find((run) => run.subject === subject)?.features;
    if (features !== undefined) result.features[subject] = features;
    if (subject === 'vireo' || !options.subjects.includes('vireo')) continue;
    result.ratios[subject] = bySize((size) =>
      of('vireo', size).map((run, turn) => run.rate / (of(subject, size)[turn]?.rate ?? Number.NaN)),
    );
  }
  return result;
}

/** The tables as Markdown. */
export function render(result: Result): string {
  const { options } = result;
  const header = ['', ...SIZES.map((size) => `${size} B`)];
  const rows = (part: Result['rates']) =>
    options.subjects.flatMap((subject) => {
      const found = part[subject];
      if (found === undefined) return [];
      const title = part === result.ratios ? `Vireo / ${TITLES[subject]}` : TITLES[subject];
      return [[title, ...SIZES.map((size) => showSpread(found[size] as Spread))]];
    });
  const cycles = options.subjects.flatMap((subject) => {
    const cells = SIZES.map((size) => {
      const values = result.runs
        .filter((run) => run.subject === subject && run.size === size && run.cyclesPerPacket !== undefined)
        .map((run) => run.cyclesPerPacket as number);
      return values.length === 0 ? '' : spread(values).median.toFixed(0);
    });
    return cells.some((cell) => cell !== '') ? [[TITLES[subject], ...cells]] : [];
  });
  const parts = [
    `Millions of packets a second through the switch, both directions summed: median (least to most) of ${options.turns} turns of ${options.seconds} s.`,
    table(header, rows(result.rates)),
  ];
  const ratios = rows(result.ratios);
  if (ratios.length > 0) parts.push('Ratios within a turn:', table(header, ratios));
  const disturbed = result.runs.filter((run) => run.cpuShare < UNDISTURBED).length;
  if (disturbed > 0) {
    parts.push(
      `Others took more than ${percent(1 - UNDISTURBED)} of a CPU in ${disturbed} of ${result.runs.length} runs.`,
    );
  }
  if (cycles.length > 0) {
    parts.push(
      'Cycles a packet on the switch’s core, as the peer itself counts them:',
      table(header, cycles),
    );
  }
  return parts.join('\n\n');
}

/** Writes the section of docs/performance.md. */
export function document(result: Result): void {
  const { dpdk, ovs } = result.versions;
  const negotiated = result.options.subjects.map(
    (subject) => `- ${TITLES[subject]}: ${result.features[subject]?.join(', ')}`,
  );
  writeSection(
    'v2v',
    [
      '## Guest to guest',
      `Machine: ${result.machine}. Peers: DPDK ${dpdk}${ovs === undefined ? '' : `, Open vSwitch ${ovs}`}.`,
      `Method: one testpmd with two virtio-user ports (split rings of ${result.ringSize}) is both guests, on CPU ${GUEST_CPU}; the switch has CPU ${SWITCH_CPU}. ${result.options.bursts * 32} packets circulate in each direction. Each turn runs every switch once at every size, each with fresh processes, one after the other. \`npm run bench -- v2v\` repeats it.`,
      render(result),
      `Negotiated:\n\n${negotiated.join('\n')}`,
    ].join('\n\n'),
  );
}
