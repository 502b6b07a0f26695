/**
 * Every way through DPDK's driver beside DPDK's own vhost: which formats and features of rings cost what. All ways of
 * one size run at the same time, frozen but for one, so that they are compared with each other too.
 */
import { skipWithout } from '../test/peers/available.ts';
import { paths as allPaths, lacking, type RingPath } from '../test/peers/paths.ts';
import { Distance, type Place } from './distance.ts';
import { GUEST_CPU, type Load, RING, SWITCH_CPU } from './load.ts';
import { machine, type Spread, showSpread, spread, table, writeSection } from './report.ts';
import { type Pairing, type SubjectName, together } from './subjects.ts';

const SIZES = [64, 256, 1518];
const SUBJECTS = ['vireo', 'testpmd'] as const satisfies SubjectName[];
/** Twenty processes of DPDK at a time have to share the hugepages. */
const MEMORY = { size: 96, packets: 16_384 };

/** A way that negotiates more than another one, and what. */
const MORE: readonly (readonly [more: string, less: string])[] = ['split', 'packed']
  .flatMap((format) => [
    [`${format} mergeable`, `${format} non-mergeable`],
    [`${format} in-order non-mergeable`, `${format} non-mergeable`],
    [`${format} in-order mergeable`, `${format} mergeable`],
    [`${format} in-order mergeable`, `${format} in-order non-mergeable`],
  ])
  .concat(
    ['mergeable', 'non-mergeable', 'in-order mergeable', 'in-order non-mergeable'].map((rest) => [
      `packed ${rest}`,
      `split ${rest}`,
    ]),
  ) as [string, string][];

export interface Options {
  turns: number;
  /** Measured seconds of each run, with near CPUs. */
  seconds: number;
  /** Bursts of 32 packets that circulate in each direction. */
  bursts: number;
}

interface Run {
  turn: number;
  size: number;
  path: string;
  subject: (typeof SUBJECTS)[number];
  /** Packets a second; absent where no window counted. */
  near?: number;
  far?: number;
  windows: Load['windows'];
}

export interface Result {
  machine: string;
  dpdk: string;
  options: Options;
  /** Ways that this machine can't go, and why. */
  skipped: string[];
  paths: string[];
  runs: Run[];
}

export async function paths(options: Options, say: (line: string) => void): Promise<Result> {
  const missing = skipWithout('dpdk');
  if (missing !== false) throw new Error(missing);
  const possible = allPaths.filter((path) => !lacking(path));
  const distance = new Distance([SWITCH_CPU, GUEST_CPU]);
  const runs: Run[] = [];
  let dpdk = 'unknown';
  try {
    for (let turn = 0; turn < options.turns; turn++) {
      for (const size of SIZES) {
        const pairings = order(possible, turn).map(({ path, subject }) => {
          return { subject, path, size, bursts: options.bursts, distance, memory: MEMORY };
        });
        const loads = await together(pairings as Pairing[], options.seconds, say);
        for (const [index, { path, subject }] of pairings.entries()) {
          const { near, far, windows, dpdk: version } = loads[index]!;
          dpdk = version;
          runs.push({
            ...{ turn, size, path: path.name, subject, windows },
            ...(near === undefined ? {} : { near }),
            ...(far === undefined ? {} : { far }),
          });
          say(
            `turn ${turn + 1} of ${options.turns}: ${size} B, ${path.name}, ${subject}: ${mpps(near)} near, ${mpps(far)} far`,
          );
        }
      }
    }
  } finally {
    await distance.close();
  }
  const skipped = allPaths.flatMap((path) => lacking(path) || []);
  return { machine: machine(), dpdk, options, skipped, paths: possible.map(({ name }) => name), runs };
}

/** Each way with each switch; who comes first in one turn comes later in the next. */
function order(possible: RingPath[], turn: number): { path: RingPath; subject: (typeof SUBJECTS)[number] }[] {
  const all = possible.flatMap((path) => SUBJECTS.map((subject) => ({ path, subject })));
  const first = (turn * (SUBJECTS.length + 1)) % all.length;
  return [...all.slice(first), ...all.slice(0, first)];
}

const mpps = (rate: number | undefined) => (rate === undefined ? 'none' : `${(rate / 1e6).toFixed(2)} Mpps`);

type Measured = { path: string; subject: Run['subject'] };

/** The rate of one to that of another, in each turn in which both have one. */
function ratios({ runs }: Result, place: Place, size: number, one: Measured, other: Measured): number[] {
  const rate = (turn: number, { path, subject }: Measured) =>
    runs.find(
      (run) => run.turn === turn && run.size === size && run.path === path && run.subject === subject,
    )?.[place];
  const turns = [...new Set(runs.map((run) => run.turn))];
  return turns
    .map((turn) => (rate(turn, one) ?? Number.NaN) / (rate(turn, other) ?? Number.NaN))
    .filter((ratio) => !Number.isNaN(ratio));
}

const PLACES: Record<Place, string> = {
  near: 'The two CPUs near each other',
  far: 'The two CPUs far from each other',
};

/** The tables as Markdown. */
export function renderPaths(result: Result): string {
  const parts: string[] = [];
  const header = ['', ...SIZES.map((size) => `${size} B`)];
  const cells = (found: (size: number) => number[]) =>
    SIZES.map((size) => {
      const values = found(size);
      return values.length === 0 ? '' : showSpread(spread(values));
    });
  const filled = (row: string[]) => row.slice(1).some((cell) => cell !== '');
  for (const place of Object.keys(PLACES) as Place[]) {
    const rows = result.paths
      .map((path) => [
        path,
        ...cells((size) =>
          ratios(result, place, size, { path, subject: 'vireo' }, { path, subject: 'testpmd' }),
        ),
      ])
      .filter(filled);
    if (rows.length === 0) continue;
    parts.push(
      `${PLACES[place]}. Vireo's rate to that of DPDK's testpmd with vhost, which doesn't switch: median (least to most) of ${result.options.turns} turns.`,
      table(header, rows),
    );
    const rates = result.paths
      .map((path) => [
        path,
        ...cells((size) =>
          result.runs
            .filter((run) => run.path === path && run.size === size && run.subject === 'vireo')
            .flatMap((run) => (run[place] === undefined ? [] : run[place] / 1e6)),
        ),
      ])
      .filter(filled);
    parts.push('Millions of packets a second through Vireo, both directions summed:', table(header, rates));
    const pairs = MORE.filter((pair) => pair.every((path) => result.paths.includes(path)));
    const more = pairs.flatMap(([a, b]) =>
      SUBJECTS.map((subject) => [
        `${a} / ${b}, ${subject}`,
        ...cells((size) => ratios(result, place, size, { path: a, subject }, { path: b, subject })),
      ]),
    );
    parts.push(
      'A guest that negotiates more beside one that negotiates less; what the guest’s own driver makes of it shows in the same ratio with testpmd as the switch:',
      table(header, more.filter(filled)),
      slower(result, place, pairs),
    );
  }
  const counted = (place: Place | 'left') => result.runs.reduce((sum, run) => sum + run.windows[place], 0);
  parts.push(
    `${counted('near')} windows near, ${counted('far')} far; ${counted('left')} left out, in which the distance changed, both CPUs were one core, or something else took part of a CPU.`,
  );
  return parts.join('\n\n');
}

/** Names the pairs in which more costs: by the median with Vireo, and by more than it costs with testpmd. */
function slower(result: Result, place: Place, pairs: typeof MORE): string {
  const found: string[] = [];
  for (const [a, b] of pairs) {
    for (const size of SIZES) {
      const [vireo, testpmd] = SUBJECTS.map((subject): Spread => {
        return spread(ratios(result, place, size, { path: a, subject }, { path: b, subject }));
      });
      if (!vireo || !testpmd || !(vireo.median < 1) || !(vireo.median < testpmd.median)) continue;
      found.push(
        `${a} than ${b} at ${size} B (${vireo.median.toFixed(2)}; testpmd ${testpmd.median.toFixed(2)})`,
      );
    }
  }
  if (found.length === 0) return 'In no pair is more slower than less by more than it is with testpmd.';
  return `Slower, and by more than with testpmd:\n\n${found.map((pair) => `- ${pair}`).join('\n')}`;
}

/** Writes the section of docs/performance.md. */
export function documentPaths(result: Result): void {
  writeSection(
    'paths',
    [
      '## Guest to guest, by format and features of the rings',
      `Machine: ${result.machine}. Peer: DPDK ${result.dpdk}.`,
      `Method: as above, rings of ${RING}, for each way through DPDK's driver: what is negotiated, and so the functions that it receives and sends with. All ways of one size are started, with a switch for each, and run in turn, the others frozen. \`npm run bench -- paths\` repeats it.${result.skipped.map((reason) => ` Left out: ${reason}.`).join('')}`,
      renderPaths(result),
    ].join('\n\n'),
  );
}
