/** Stages are bits of one word, given out in several places: two of the same would switch each other on. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { root } from '../peers/available.ts';

test('each stage has a bit of its own, and each reason a number', () => {
  for (const [file, name, isBits] of [
    ['layout', 'STAGE', true],
    ['rules', 'RULE', false],
  ] as const) {
    const text = readFileSync(join(root, `src/dataplane/${file}.ts`), 'utf8');
    const found = [...text.matchAll(new RegExp(`^export const (${name}_\\w+): u32 = (\\w+);`, 'gm'))];
    assert.ok(found.length > 10, `${found.length} of ${name}`);
    const owners = new Map<number, string>();
    for (const [, constant = '', digits] of found) {
      const value = Number(digits!.replaceAll('_', ''));
      if (isBits) assert.equal(Math.log2(value) % 1, 0, constant);
      assert.equal(owners.get(value), undefined, constant);
      owners.set(value, constant);
    }
  }
});
