/**
 * The field's comparison, by Vireo's own generator: the highest rate without loss from one guest to another, one way
 * and both ways, and the latency at parts of it. Generator and guests' drivers have one CPU, the switch the other;
 * all switches run at the same time and are frozen but for the one that is measured.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { Generator, type Latency, type Trial } from '../src/gen/index.ts';
import { IMIX } from '../src/gen/parse.ts';
import { ovsVswitchd, root, skipWithout } from '../test/peers/available.ts';
import { writeChart } from './chart.ts';
import { Distance, type Place } from './distance.ts';
import { GUEST_CPU, RING, SWITCH_CPU } from './load.ts';
import { machine, type Spread, showSpread, spread, table, version, writeSection } from './report.ts';
import { type Running, type SubjectName, start, subjectNames, TITLES } from './subjects.ts';

const SIZES: Record<string, number[]> = {
  '64 B': [64],
  '128 B': [128],
  '256 B': [256],
  '512 B': [512],
  '1024 B': [1024],
  '1518 B': [1518],
  IMIX,
};
const FORMATS = ['split', 'packed'] as const;
/** What is measured with packed rings: the format changes what a packet costs, not what a byte does. */
const PACKED_SIZES = ['64 B', '1518 B'];
const WAYS = ['one way', 'both ways'] as const;
/** Shares of the highest rate at which the latency is taken, and the frames for it. */
const SHARES = [0.1, 0.5, 0.99];
const LATENCY_SIZE = '64 B';
const PLACES: Place[] = ['near', 'far'];

/** Seconds of a trial, and how often one may fail: a host that takes the CPU away for a moment costs frames too. */
const TRIAL = 0.1;
const ATTEMPTS = 3;
/** How often something is measured anew because the CPUs were not near each other all the time. */
const TIMES = 6;
/** Milliseconds until the CPUs are looked at again after they were one core. */
const MOMENT = 500;
/** The search ends when the rate is known to this share. */
const PRECISION = 0.03;
/** Of the rate that was asked for, what a trial may fall short of it. */
const SHORT = 0.01;

type Format = (typeof FORMATS)[number];
const sizesOf = (format: Format) => (format === 'packed' ? PACKED_SIZES : Object.keys(SIZES));
type Way = (typeof WAYS)[number];

interface Point {
  turn: number;
  subject: SubjectName;
  format: Format;
  place: Place;
}
interface Rate extends Point {
  size: string;
  way: Way;
  /** Packets a second without loss, both directions summed. */
  rate: number;
}
interface Delay extends Point {
  share: number;
  latency: Latency;
}

export interface Result {
  machine: string;
  versions: Record<string, string>;
  turns: number;
  rates: Rate[];
  delays: Delay[];
}

export async function field(turns: number, seconds: number, say: (line: string) => void): Promise<Result> {
  const missing = skipWithout('dpdk', 'ovs');
  if (missing !== false) throw new Error(missing);
  const distance = new Distance([SWITCH_CPU, GUEST_CPU]);
  const versions = { dpdk: 'unknown', ovs: version(ovsVswitchd) };
  const result: Result = { machine: machine(), versions, turns, rates: [], delays: [] };
  try {
    for (let turn = 0; turn < turns; turn++)
      for (const format of FORMATS) await measure({ turn, format, seconds, distance, say }, result);
  } finally {
    await distance.close();
  }
  return result;
}

interface Turn {
  turn: number;
  format: Format;
  /** Of a measurement of latency. */
  seconds: number;
  distance: Distance;
  say: (line: string) => void;
}

async function measure({ turn, format, seconds, distance, say }: Turn, result: Result): Promise<void> {
  await using subjects = new Subjects();
  // Whoever comes first in one turn comes later in the next.
  for (const index of subjectNames.keys())
    await subjects.add(subjectNames[(index + turn) % subjectNames.length]!, format);
  result.versions.dpdk = subjects.dpdk;
  for (const [size, sizes] of Object.entries(SIZES)) {
    if (!sizesOf(format).includes(size)) continue;
    for (const way of WAYS) {
      for (const { name: subject, alone } of subjects.list) {
        const title = `turn ${turn + 1}, ${format}, ${size} ${way}, ${TITLES[subject]}`;
        const found = await nearIfPossible(distance, () =>
          alone((generator) => highest(generator, sizes, way)),
        );
        if (found === undefined) {
          say(`${title}: left out, the distance changed each time`);
          continue;
        }
        const { value: rate, place } = found;
        say(`${title}: ${(rate / 1e6).toFixed(2)} Mpps, ${place}`);
        const point = { turn, subject, format };
        result.rates.push({ ...point, place, size, way, rate });
        if (size !== LATENCY_SIZE || way !== 'one way') continue;
        for (const share of SHARES) {
          const trial = { ...trialOf(sizes, way), rate: { packets: rate * share }, seconds };
          const measured = await nearIfPossible(distance, () => alone((generator) => generator.run(trial)));
          if (measured?.value.latency && measured.place === place)
            result.delays.push({ ...point, place, share, latency: measured.value.latency });
        }
      }
    }
  }
}

/**
 * Measures until the two CPUs were near before and after it, a few times at most; else what was found with far ones,
 * or nothing.
 */
async function nearIfPossible<T>(
  distance: Distance,
  act: () => Promise<T>,
): Promise<{ value: T; place: Place } | undefined> {
  let found: { value: T; place: Place } | undefined;
  for (let time = 0; time < TIMES && found?.place !== 'near'; time++) {
    const place = await distance.place();
    if (place === undefined) {
      await setTimeout(MOMENT);
      continue;
    }
    const value = await act();
    if ((await distance.place()) === place) found = { value, place };
  }
  return found;
}

function trialOf(sizes: number[], way: Way): Trial {
  return { mode: way === 'one way' ? ['txonly', 'rxonly'] : 'latency', traffic: { sizes }, check: 'stamp' };
}

/** Bisects for the highest rate without a lost frame; packets a second, all senders summed. */
async function highest(generator: Generator, sizes: number[], way: Way): Promise<number> {
  const senders = way === 'one way' ? 1 : 2;
  const once = async (packets?: number) => {
    const trial = { ...trialOf(sizes, way), seconds: TRIAL, rate: packets ? { packets } : ('max' as const) };
    const { sent, lost = 0, ports, fault } = await generator.run(trial);
    if (fault) throw new Error(fault);
    const rate = Math.min(...ports.filter((port) => port.sent > 0).map((port) => port.sendRate));
    return { rate, lost, share: lost / sent };
  };
  const passes = async (packets: number) => {
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const { rate, lost } = await once(packets);
      if (lost === 0 && rate >= packets * (1 - SHORT)) return true;
    }
    return false;
  };
  const first = await once();
  let low = 0;
  let high = first.rate;
  // What came through at full speed is a good guess.
  let next = high * (first.lost === 0 ? 1 - PRECISION : 1 - first.share);
  while (high - low > PRECISION * high) {
    if (await passes(next)) low = next;
    else high = next;
    next = (low + high) / 2;
  }
  return low * senders;
}

/** Switches with a generator each, all frozen but for the one that is asked. */
class Subjects {
  readonly list: {
    name: SubjectName;
    alone: <T>(act: (generator: Generator) => Promise<T>) => Promise<T>;
  }[] = [];
  /** DPDK's version. */
  dpdk = 'unknown';
  readonly #closers: (() => Promise<void>)[] = [];

  async add(name: SubjectName, format: Format): Promise<void> {
    const running: Running = await start(name, ['a', 'b']);
    this.dpdk = running.version ?? this.dpdk;
    this.#closers.push(() => {
      process.kill(running.pid, 'SIGCONT');
      return running.close();
    });
    const generator = await Generator.open({
      ports: ['a', 'b'].map((port) => ({
        path: join(running.directory, port),
        queueSize: RING,
        packed: format === 'packed',
      })),
      cpus: [GUEST_CPU],
    });
    this.#closers.push(() => {
      process.kill(running.pid, 'SIGCONT');
      return generator.close();
    });
    // A switch learns where both are.
    await generator.run({ mode: 'latency', seconds: 0.2, rate: { packets: 1000 } });
    process.kill(running.pid, 'SIGSTOP');
    const alone = async <T>(act: (generator: Generator) => Promise<T>) => {
      process.kill(running.pid, 'SIGCONT');
      try {
        return await act(generator);
      } finally {
        process.kill(running.pid, 'SIGSTOP');
      }
    };
    this.list.push({ name, alone });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const close of this.#closers.reverse()) await close();
  }
}

type Choice = Pick<Rate, 'format' | 'place' | 'size' | 'way'>;

const chosen = (rates: Rate[], choice: Choice, subject: SubjectName) =>
  rates.filter(
    (rate) =>
      rate.subject === subject &&
      (Object.keys(choice) as (keyof Choice)[]).every((key) => rate[key] === choice[key]),
  );

const spreadOf = (values: number[]) => (values.length === 0 ? undefined : spread(values));
const show = (cell: Spread | undefined) => (cell === undefined ? '' : showSpread(cell));

/** Vireo's rate to a peer's, of each turn that has both. */
function ratios({ rates }: Result, choice: Choice, peer: SubjectName): Spread | undefined {
  const others = chosen(rates, choice, peer);
  return spreadOf(
    chosen(rates, choice, 'vireo').flatMap(({ turn, rate }) => {
      const other = others.find((one) => one.turn === turn);
      return other ? [rate / other.rate] : [];
    }),
  );
}

const filled = (rows: string[][]) => rows.filter((cells) => cells.slice(1).some((cell) => cell !== ''));

/** The tables as Markdown. */
export function renderField(result: Result): string {
  const peers = subjectNames.filter((name) => name !== 'vireo');
  const parts: string[] = [];
  for (const place of PLACES) {
    for (const format of FORMATS) {
      for (const way of WAYS) {
        const sizes = sizesOf(format);
        const choice = (size: string) => ({ place, format, way, size });
        const rates = filled(
          subjectNames.map((name) => [
            TITLES[name],
            ...sizes.map((size) =>
              show(spreadOf(chosen(result.rates, choice(size), name).map(({ rate }) => rate / 1e6))),
            ),
          ]),
        );
        if (rates.length === 0) continue;
        const compared = filled(
          peers.map((name) => [
            `Vireo / ${TITLES[name]}`,
            ...sizes.map((size) => show(ratios(result, choice(size), name))),
          ]),
        );
        parts.push(
          `${format[0]!.toUpperCase()}${format.slice(1)} rings, ${way}, the two CPUs ${place}. Millions of packets a second without loss: median (least to most) of ${result.turns} turns, then the ratios within a turn.`,
          table(['', ...sizes], [...rates, ...compared]),
        );
      }
    }
  }
  parts.push(...PLACES.flatMap((place) => renderDelays(result, place)));
  return parts.join('\n\n');
}

const PERCENTILES = { p50: 'p50', p90: 'p90', p99: 'p99', p999: 'p99.9', p9999: 'p99.99' } as const;

function renderDelays({ delays }: Result, place: Place): string[] {
  const rows = filled(
    SHARES.flatMap((share) =>
      FORMATS.flatMap((format) =>
        subjectNames.map((name) => {
          const found = delays.filter(
            (one) =>
              one.place === place && one.share === share && one.format === format && one.subject === name,
          );
          return [
            `${share * 100} %, ${format}, ${TITLES[name]}`,
            ...(Object.keys(PERCENTILES) as (keyof typeof PERCENTILES)[]).map((key) => {
              const values = found.map(({ latency }) => latency[key] / 1000);
              return values.length === 0 ? '' : showSpread(spread(values), 1);
            }),
          ];
        }),
      ),
    ),
  );
  if (rows.length === 0) return [];
  return [
    `Latency of frames of ${LATENCY_SIZE}, one way, at shares of each switch’s own highest rate, the two CPUs ${place}; microseconds, median (least to most) of the turns.`,
    table(['', ...Object.values(PERCENTILES)], rows),
  ];
}

/** Writes the section of docs/performance.md, its charts, and the figures as JSON. */
export function documentField(result: Result): void {
  const { dpdk, ovs } = result.versions;
  const json = 'benchmarks/field.json';
  const file = join(root, 'docs', json);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, `${JSON.stringify(result)}\n`);
  const place: Place = result.rates.some((rate) => rate.place === 'near') ? 'near' : 'far';
  const median = (choice: Omit<Choice, 'place'>, name: SubjectName) =>
    spreadOf(chosen(result.rates, { ...choice, place }, name).map(({ rate }) => rate / 1e6))?.median;
  const charts = FORMATS.map((format) =>
    writeChart(`rates-${format}`, `Highest rate without loss by size of frame, ${format} rings`, {
      title: `Highest rate without loss, ${format} rings, both ways`,
      unit: 'Mpps',
      groups: sizesOf(format),
      series: subjectNames.map((name) => ({
        name: TITLES[name],
        values: sizesOf(format).map((size) => median({ format, way: 'both ways', size }, name)),
      })),
    }),
  );
  const delay = (name: SubjectName, key: keyof typeof PERCENTILES) =>
    spreadOf(
      result.delays
        .filter(
          (one) => one.place === place && one.share === 0.5 && one.format === 'split' && one.subject === name,
        )
        .map(({ latency }) => latency[key] / 1000),
    )?.median;
  const keys = Object.keys(PERCENTILES) as (keyof typeof PERCENTILES)[];
  charts.push(
    writeChart('latency', 'Latency at half of the highest rate, by percentile', {
      title: 'Latency at half of the highest rate, split rings, 64 B',
      unit: 'µs',
      log: true,
      groups: keys.map((key) => PERCENTILES[key]),
      series: subjectNames.map((name) => ({
        name: TITLES[name],
        values: keys.map((key) => delay(name, key)),
      })),
    }),
  );
  writeSection(
    'field',
    [
      '## By our own generator',
      `Machine: ${result.machine}. Peers: DPDK ${dpdk}, Open vSwitch ${ovs}.`,
      `Method: \`vireo gen\` on CPU ${GUEST_CPU} sends from one virtio-user port to another through the switch on CPU ${SWITCH_CPU}, rings of ${RING}. The rate is found by bisection to ${PRECISION * 100} %, with trials of ${TRIAL} s, the best of ${ATTEMPTS}, in which no frame was lost; of frames that come the stamps are checked, not the payloads. IMIX: seven frames of 64 B, four of 594 B, one of 1518 B. The two CPUs are near or far from each other as in the section before. \`npm run bench -- field\` repeats it; the figures are in [field.json](${json}).`,
      ...charts,
      renderField(result),
    ].join('\n\n'),
  );
}
