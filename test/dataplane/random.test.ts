/** Random split rings judged by the model (random-rings.ts). */
import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import { INDIRECT, MERGEABLE, Plane } from '../support/plane.ts';
import { Random } from '../support/random.ts';
import { randomSplitCase } from './random-rings.ts';

const plane = new Plane();
afterEach(() => plane.clear());

const CASES = 5000;

for (const which of ['tx', 'rx'] as const) {
  for (const seed of [1, 2, 3]) {
    test(`${CASES} random rings, ${which}, seed ${seed}`, () => {
      const outcomes = new Map<string, number>();
      const next = randomSplitCase(plane, which, [0, INDIRECT, MERGEABLE | INDIRECT][seed - 1]!);
      const random = new Random(seed * 7919);
      for (let i = 0; i < CASES; i++) {
        const name = next(random).fault?.fault ?? 'no fault';
        outcomes.set(name, (outcomes.get(name) ?? 0) + 1);
      }
      // The dice are not loaded: a good part passes, and there are many ways to fail.
      assert.ok(outcomes.get('no fault')! > CASES / 50, JSON.stringify([...outcomes]));
      assert.ok(outcomes.size >= 6, JSON.stringify([...outcomes]));
    });
  }
}
