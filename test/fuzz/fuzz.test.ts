/** A short run of each fuzzing target; `npm run fuzz` goes on for as long as is wanted. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fuzz, replay } from './fuzz.ts';

/** Executions, and the basic blocks of the data plane that they reach at least. */
const RUNS: Record<string, [executions: number, hit: number]> = {
  'split-device': [3000, 330],
  'packed-device': [3000, 430],
  'split-driver': [3000, 120],
  'packed-driver': [3000, 130],
  frames: [1000, 550],
  control: [1000, 100],
  messages: [200, 0],
  captures: [4000, 0],
  streams: [500, 0],
  pdus: [4000, 0],
  configurations: [100, 0],
};

for (const [target, [executions, least]] of Object.entries(RUNS)) {
  test(`${target}: ${executions} executions`, async () => {
    for (const seed of [1, 1_000_003]) {
      const { failure, hit } = await fuzz({ target, seed, executions: executions / 2 });
      assert.equal(failure, undefined, failure && `${failure.error.stack}\n${replay(target, failure.seed)}`);
      assert.ok(hit.size >= least, `${hit.size} blocks were reached, ${least} before`);
    }
  });
}
