/** What a program gets of the published package: its entries, and types that stand on their own. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { test } from 'node:test';
import { root } from '../peers/available.ts';

const description = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
const entries = Object.values<{ types?: string; default?: string } | string>(description.exports).flatMap(
  (entry) => (typeof entry === 'string' ? [] : [entry]),
);

test('every entry is there, and the command', () => {
  assert.ok(entries.length >= 2);
  const files = [...entries.flatMap((entry) => Object.values(entry)), ...Object.values(description.bin)];
  for (const file of files) assert.ok(existsSync(join(root, file as string)), `${file}`);
});

test('the types reach nothing of the arena, which needs types of WebAssembly that Node has not', () => {
  const seen = new Set<string>();
  const look = (file: string) => {
    if (seen.has(file)) return;
    seen.add(file);
    for (const [, path = ''] of readFileSync(file, 'utf8').matchAll(
      /(?:from|import) ?\(?['"](\.[^'"]+)['"]/g,
    ))
      look(resolve(dirname(file), path.replace(/\.ts$/, '.d.ts')));
  };
  for (const { types } of entries) look(join(root, types!));
  assert.ok(seen.size > 5);
  const inside = [...seen].map((file) => relative(join(root, 'dist/src'), file));
  assert.deepEqual(
    inside.filter((file) => file.startsWith('arena/')),
    [],
  );
});
