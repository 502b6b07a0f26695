/**
 * A chain of network functions: 1 to 5 guests, each of which hands on what it gets, and between every two of them
 * the switch. The guests stand in a ring, so that packets circulate through all of them in both directions.
 */
import { skipWithout } from '../test/peers/available.ts';
import { Distance, type Place } from './distance.ts';
import { GUEST_CPU, RING, SWITCH_CPU } from './load.ts';
import { machine, type Spread, showSpread, spread, table, writeSection } from './report.ts';
import { subjectNames, TITLES, together } from './subjects.ts';

const LENGTHS = [1, 2, 3, 4, 5];
/** Bytes of a frame. */
const SIZE = 64;
const PLACES: Place[] = ['near', 'far'];

export interface Result {
  machine: string;
  dpdk: string;
  turns: number;
  /** Packets a second that leave the chain's end, both directions summed: by place, switch and length of the chain. */
  runs: { turn: number; length: number; subject: string; near?: number; far?: number }[];
}

export async function chain(turns: number, seconds: number, say: (line: string) => void): Promise<Result> {
  const missing = skipWithout('dpdk', 'ovs');
  if (missing !== false) throw new Error(missing);
  const distance = new Distance([SWITCH_CPU, GUEST_CPU]);
  const result: Result = { machine: machine(), dpdk: 'unknown', turns, runs: [] };
  try {
    for (let turn = 0; turn < turns; turn++) {
      for (const length of LENGTHS) {
        const order = subjectNames.map((_, index) => subjectNames[(index + turn) % subjectNames.length]!);
        const loads = await together(
          order.map((subject) => ({ subject, guests: length, size: SIZE, bursts: 4, distance })),
          seconds,
          say,
        );
        for (const [index, subject] of order.entries()) {
          const { near, far, dpdk } = loads[index]!;
          result.dpdk = dpdk;
          // A packet is counted at each guest that it reaches.
          const run = {
            ...{ turn, length, subject },
            ...(near === undefined ? {} : { near: near / length }),
            ...(far === undefined ? {} : { far: far / length }),
          };
          result.runs.push(run);
          say(
            `turn ${turn + 1} of ${turns}: ${length} guests, ${subject}: ${PLACES.map((place) => `${place} ${run[place] === undefined ? 'none' : (run[place] / 1e6).toFixed(2)}`).join(', ')} Mpps`,
          );
        }
      }
    }
  } finally {
    await distance.close();
  }
  return result;
}

/** By length: the spread over the turns that have a figure; undefined without any. */
function figures(values: (length: number) => (number | undefined)[]): (Spread | undefined)[] {
  return LENGTHS.map((length) => {
    const found = values(length).filter((value) => value !== undefined);
    return found.length === 0 ? undefined : spread(found);
  });
}

export function ratesOf({ runs }: Result, subject: string, place: Place): (Spread | undefined)[] {
  return figures((length) =>
    runs
      .filter((run) => run.subject === subject && run.length === length)
      .map((run) => (run[place] === undefined ? undefined : run[place] / 1e6)),
  );
}

export function ratiosTo({ runs }: Result, peer: string, place: Place): (Spread | undefined)[] {
  return figures((length) =>
    runs
      .filter((run) => run.subject === 'vireo' && run.length === length)
      .map((run) => {
        const other = runs.find((o) => o.subject === peer && o.length === length && o.turn === run.turn);
        return run[place] === undefined || other?.[place] === undefined
          ? undefined
          : run[place] / other[place];
      }),
  );
}

/** The tables as Markdown. */
export function renderChain(result: Result): string {
  const header = ['', ...LENGTHS.map((length) => `${length} guest${length > 1 ? 's' : ''}`)];
  const row = (title: string, cells: (Spread | undefined)[]) => [
    title,
    ...cells.map((cell) => (cell === undefined ? '' : showSpread(cell))),
  ];
  const filled = (rows: string[][]) => rows.filter((cells) => cells.slice(1).some((cell) => cell !== ''));
  return PLACES.flatMap((place) => {
    const rates = filled(subjectNames.map((name) => row(TITLES[name], ratesOf(result, name, place))));
    if (rates.length === 0) return [];
    const peers = subjectNames.filter((name) => name !== 'vireo');
    const ratios = peers.map((name) => row(`Vireo / ${TITLES[name]}`, ratiosTo(result, name, place)));
    return [
      `The two CPUs ${place === 'near' ? 'near each other' : 'far from each other'}. Millions of packets a second through the whole chain, both directions summed: median (least to most) of ${result.turns} turns.`,
      table(header, rates),
      'Ratios within a turn:',
      table(header, filled(ratios)),
    ];
  }).join('\n\n');
}

/** Writes the section of docs/performance.md. */
export function documentChain(result: Result): void {
  writeSection(
    'chain',
    [
      '## A chain of guests',
      `Machine: ${result.machine}. Peers: DPDK ${result.dpdk}, Open vSwitch with DPDK.`,
      `Method: one testpmd is all guests, on CPU ${GUEST_CPU}, and the switch has CPU ${SWITCH_CPU}; frames of ${SIZE} B, split rings of ${RING}, 128 packets for each guest and direction. \`npm run bench -- chain\` repeats it.`,
      renderChain(result),
    ].join('\n\n'),
  );
}
