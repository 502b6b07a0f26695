/** Runs targets for a number of executions or a time, with coverage of the data plane. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { Arena } from '../../src/arena/index.ts';
import { Plane } from '../support/plane.ts';
import { Random } from '../support/random.ts';
import { blocksHit, instrument } from './coverage.ts';
import { TARGETS } from './targets.ts';

export interface FuzzOptions {
  target: string;
  /** The first execution's number; the next ones follow. */
  seed: number;
  /** Ends with whichever comes first. */
  executions?: number;
  seconds?: number;
  /** Where an execution that failed is described; none: nowhere. */
  failures?: string;
}

export interface FuzzResult {
  executions: number;
  seconds: number;
  /** Basic blocks of the data plane that ran on this thread, by number, and how many there are. */
  hit: ReadonlySet<number>;
  blocks: number;
  /** The first execution that failed. */
  failure: { seed: number; error: Error } | undefined;
}

/** How to run one execution again. */
export const replay = (target: string, seed: number): string =>
  `npm run fuzz -- --seed ${seed} --executions 1 ${target}`;

export async function fuzz(options: FuzzOptions): Promise<FuzzResult> {
  const {
    target: name,
    executions: most = Number.POSITIVE_INFINITY,
    seconds = Number.POSITIVE_INFINITY,
  } = options;
  const { module, blocks } = await instrument();
  const arenas: Arena[] = [];
  const target = await TARGETS[name]!(() => {
    const arena = new Arena(module);
    arenas.push(arena);
    return new Plane(arena);
  });
  const started = performance.now();
  const elapsed = () => (performance.now() - started) / 1000;
  let executions = 0;
  let failure: FuzzResult['failure'];
  try {
    for (; !failure && executions < most && elapsed() < seconds; executions++) {
      const seed = (options.seed + executions) >>> 0;
      try {
        await target.one(new Random(Math.imul(seed, 0x9e37_79b1) ^ 0x5bd1_e995));
      } catch (error) {
        failure = { seed, error: error as Error };
        if (options.failures !== undefined) save(options.failures, name, seed, error as Error);
      }
      if (executions % 256 === 255) await turn();
    }
  } finally {
    await target.close?.();
  }
  return { executions, seconds: elapsed(), hit: blocksHit(arenas), blocks, failure };
}

function save(directory: string, target: string, seed: number, error: Error): void {
  mkdirSync(directory, { recursive: true });
  const text = `${error.stack}\n\nRun it again:\n\n    ${replay(target, seed)}\n`;
  writeFileSync(join(directory, `${target}-${seed}.txt`), text);
}
