/**
 * How far apart the switch's CPU and the guests' are: the time that a cache line takes from one to the other.
 *
 * A virtual machine's two processors lie now under one cache, now on two sockets, as its host sees fit, and a switch
 * that writes what another CPU reads is the first to feel it. So that runs are compared that were made at the same
 * distance, it is taken while both CPUs are free, before and after what is measured.
 */
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { setAffinity } from '../src/sys/index.ts';

/** Words of the shared memory, a cache line apart: the ball, the order to begin, nanoseconds of the last probe. */
const BALL = 0;
const BEGIN = 32;
const FOUND = 64;
/** Exchanges of a round, and rounds of a probe: the least of the rounds has no interruption in it. */
const EXCHANGES = 2000;
const ROUNDS = 8;

interface Side {
  cpu: number;
  words: Int32Array;
  side: 0 | 1;
}

/**
 * Nanoseconds below which the two CPUs are threads of one core, and below which they share a cache: a line takes some
 * 28 ns between the threads of a core of an AMD EPYC, 50 to 60 between cores of one cache, 220 between two sockets.
 */
const ONE_CORE = 40;
const ONE_CACHE = 110;

/** Threads of one core take each other's time: what is measured there is compared with nothing. */
export type Place = 'near' | 'far';

export class Distance {
  readonly #words = new Int32Array(new SharedArrayBuffer(512));
  readonly #sides: Worker[];
  #probes = 0;

  /** Of two CPUs, which have to be free whenever it is taken. */
  constructor(cpus: readonly [number, number]) {
    this.#sides = cpus.map((cpu, side) => {
      const workerData: Side = { cpu, words: this.#words, side: side === 0 ? 0 : 1 };
      return new Worker(new URL(import.meta.url), { workerData });
    });
  }

  /** Nanoseconds that a cache line takes from one CPU to the other; both must be free. */
  async probe(): Promise<number> {
    const words = this.#words;
    Atomics.store(words, FOUND, 0);
    Atomics.store(words, BALL, 0);
    Atomics.store(words, BEGIN, ++this.#probes);
    Atomics.notify(words, BEGIN);
    while (Atomics.load(words, FOUND) === 0) await new Promise((resolve) => setTimeout(resolve, 2));
    return Atomics.load(words, FOUND);
  }

  /** Where the two CPUs are now; undefined while they are one core. */
  async place(): Promise<Place | undefined> {
    const found = await this.probe();
    if (found < ONE_CORE) return undefined;
    return found < ONE_CACHE ? 'near' : 'far';
  }

  async close(): Promise<void> {
    await Promise.all(this.#sides.map((worker) => worker.terminate()));
  }
}

function play({ cpu, words, side }: Side): void {
  setAffinity([cpu]);
  for (let probe = 0; ; probe++) {
    Atomics.wait(words, BEGIN, probe);
    let least = Number.POSITIVE_INFINITY;
    for (let round = 0; round < ROUNDS; round++) {
      const begin = process.hrtime.bigint();
      exchange(words, side, round * EXCHANGES * 2);
      least = Math.min(least, Number(process.hrtime.bigint() - begin) / (EXCHANGES * 2));
    }
    // Side 1 is the last to play: nobody waits for the ball when the next probe lays it down anew.
    if (side === 1) Atomics.store(words, FOUND, Math.max(1, Math.round(least)));
  }
}

/** The ball's value says whose turn it is: even values are side 0's. */
function exchange(words: Int32Array, side: number, from: number): void {
  for (let turn = from + side; turn < from + EXCHANGES * 2; turn += 2) {
    while (Atomics.load(words, BALL) !== turn);
    Atomics.store(words, BALL, turn + 1);
  }
}

if (!isMainThread) play(workerData as Side);
