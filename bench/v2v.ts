/**
 * Virtual machine to virtual machine: the same DPDK front-ends, in turn, against Vireo, DPDK's own vhost and Open
 * vSwitch with DPDK. What is compared is the ratio within a turn: absolute figures of a shared machine move by a
 * third from one minute to the next.
 */
import { existsSync } from 'node:fs';
import { featureNames } from '../src/virtio/features.ts';
import { ovsVswitchd, skipWithout } from '../test/peers/available.ts';
import { program } from '../test/peers/vireo.ts';
import { Distance, type Place } from './distance.ts';
import { GUEST_CPU, type Load, RING, SWITCH_CPU } from './load.ts';
import { machine, type Spread, showSpread, spread, table, version, writeSection } from './report.ts';
import { type SubjectName, TITLES, together } from './subjects.ts';

const SIZES = [64, 256, 1500];

const PLACES: Place[] = ['near', 'far'];
const PLACE: Record<Place, string> = {
  near: 'The two CPUs near each other',
  far: 'The two CPUs far from each other',
};

export interface Options {
  turns: number;
  /** Measured seconds of each run, with near CPUs. */
  seconds: number;
  /** Bursts of 32 packets that circulate in each direction. */
  bursts: number;
  subjects: SubjectName[];
}

/** By subject and size. */
type Figures = Partial<Record<SubjectName, Record<number, Spread>>>;

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
  /** Millions of packets a second. */
  rates: Record<Place, Figures>;
  /** Vireo's rate to the peer's, of each turn. */
  ratios: Record<Place, Figures>;
  features: Partial<Record<SubjectName, string[]>>;
}

export async function v2v(options: Options, say: (line: string) => void): Promise<Result> {
  const missing = skipWithout('dpdk', ...(options.subjects.includes('ovs') ? (['ovs'] as const) : []));
  if (missing !== false) throw new Error(missing);
  if (options.subjects.includes('vireo') && !existsSync(program)) {
    throw new Error(`${program} is not built: run "npm run build"`);
  }
  const distance = new Distance([SWITCH_CPU, GUEST_CPU]);
  try {
    return summarize(options, await turns(options, distance, say));
  } finally {
    await distance.close();
  }
}

async function turns(options: Options, distance: Distance, say: (line: string) => void): Promise<Run[]> {
  const runs: Run[] = [];
  for (let turn = 0; turn < options.turns; turn++) {
    for (const size of SIZES) {
      // Whoever comes first in one turn comes later in the next: warmth of the machine favours none.
      const first = turn % options.subjects.length;
      const order = [...options.subjects.slice(first), ...options.subjects.slice(0, first)];
      const found = await together(
        order.map((subject) => ({ subject, size, bursts: options.bursts, distance })),
        options.seconds,
        say,
      );
      for (const [index, { features, ...load }] of found.entries()) {
        const names = featureNames(features).map((name) => name.replace(/^VIRTIO_(NET_)?F_/, ''));
        const run = { subject: order[index] as SubjectName, turn, size, ...load, features: names };
        runs.push(run);
        say(`turn ${turn + 1} of ${options.turns}: ${size} B ${run.subject} ${line(run)}`);
      }
    }
  }
  return runs;
}

function line({ near, far, windows }: Run): string {
  const figure = (rate: number | undefined, count: number) =>
    rate === undefined ? 'none' : `${(rate / 1e6).toFixed(2)} Mpps (${count})`;
  return `near ${figure(near, windows.near)}, far ${figure(far, windows.far)}`;
}

function summarize(options: Options, runs: Run[]): Result {
  const of = (subject: SubjectName, size: number) =>
    runs.filter((run) => run.subject === subject && run.size === size);
  /** Of the sizes of which there is a figure. */
  const bySize = (values: (size: number) => number[]) =>
    Object.fromEntries(
      SIZES.map((size) => [size, values(size).filter((value) => !Number.isNaN(value))] as const)
        .filter(([, found]) => found.length > 0)
        .map(([size, found]) => [size, spread(found)]),
    );
  const rate = (subject: SubjectName, size: number, place: Place) =>
    of(subject, size).map((run) => run[place] ?? Number.NaN);
  const result: Result = {
    machine: machine(),
    versions: { dpdk: runs[0]?.dpdk ?? 'unknown' },
    options,
    ringSize: RING,
    runs,
    rates: { near: {}, far: {} },
    ratios: { near: {}, far: {} },
    features: {},
  };
  if (options.subjects.includes('ovs')) result.versions.ovs = version(ovsVswitchd);
  for (const subject of options.subjects) {
    const features = runs.find((run) => run.subject === subject)?.features;
    if (features !== undefined) result.features[subject] = features;
    for (const place of PLACES) {
      result.rates[place][subject] = bySize((size) => rate(subject, size, place).map((value) => value / 1e6));
      if (subject === 'vireo' || !options.subjects.includes('vireo')) continue;
      result.ratios[place][subject] = bySize((size) => {
        const peer = rate(subject, size, place);
        return rate('vireo', size, place).map((value, turn) => value / (peer[turn] ?? Number.NaN));
      });
    }
  }
  return result;
}

/** The tables as Markdown. */
export function render(result: Result): string {
  const { options } = result;
  const header = ['', ...SIZES.map((size) => `${size} B`)];
  const rows = (figures: Figures, title: (subject: SubjectName) => string) =>
    options.subjects
      .filter((subject) => Object.keys(figures[subject] ?? {}).length > 0)
      .map((subject) => [
        title(subject),
        ...SIZES.map((size) => {
          const found = figures[subject]?.[size];
          return found === undefined ? '' : showSpread(found);
        }),
      ]);
  const cycles = options.subjects.flatMap((subject) => {
    const cells = SIZES.map((size) => {
      const values = result.runs
        .filter((run) => run.subject === subject && run.size === size && run.cyclesPerPacket !== undefined)
        .map((run) => run.cyclesPerPacket as number);
      return values.length === 0 ? '' : spread(values).median.toFixed(0);
    });
    return cells.some((cell) => cell !== '') ? [[TITLES[subject], ...cells]] : [];
  });
  const parts: string[] = [];
  for (const place of PLACES) {
    const rates = rows(result.rates[place], (subject) => TITLES[subject]);
    if (rates.length === 0) continue;
    parts.push(
      `${PLACE[place]}. Millions of packets a second through the switch, both directions summed: median (least to most) of ${options.turns} turns.`,
      table(header, rates),
    );
    const ratios = rows(result.ratios[place], (subject) => `Vireo / ${TITLES[subject]}`);
    if (ratios.length > 0) parts.push('Ratios within a turn:', table(header, ratios));
  }
  const counted = (place: Place | 'left') => result.runs.reduce((sum, run) => sum + run.windows[place], 0);
  parts.push(
    `${counted('near')} windows near, ${counted('far')} far; ${counted('left')} left out, in which the distance changed, both CPUs were one core, or something else took part of a CPU.`,
  );
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
      `Method: one testpmd with two virtio-user ports (split rings of ${result.ringSize}) is both guests, on CPU ${GUEST_CPU}; the switch has CPU ${SWITCH_CPU}. ${result.options.bursts * 32} packets circulate in each direction. Each turn runs every switch at every size with fresh processes: all are started, and then run in turn, the others frozen. \`npm run bench -- v2v\` repeats it.`,
      render(result),
      `Negotiated:\n\n${negotiated.join('\n')}`,
    ].join('\n\n'),
  );
}
