import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bytes, count, duration, pairs, table } from '../../src/cli/table.ts';

test('columns line up under their titles, numbers to the right', () => {
  const rows = [
    ['vm1', '7', 'up'],
    ['a-long-name', '12,345', ''],
  ];
  assert.equal(
    table([{ title: 'PORT' }, { title: 'PACKETS', right: true }, { title: 'STATE' }], rows, '  '),
    '  PORT         PACKETS  STATE\n  vm1                7  up\n  a-long-name   12,345\n',
  );
  assert.equal(table([{ title: 'PORT' }], []), 'PORT\n');
});

test('values stand in one column after their names', () => {
  assert.equal(
    pairs([
      ['role', 'server'],
      ['last error', 'none'],
    ]),
    'role        server\nlast error  none\n',
  );
});

test('a value cannot write to the terminal', () => {
  assert.equal(pairs([['path', '/tmp/\u001b[2J\n\u009b1m\x7f']]), 'path  /tmp/\\x1b[2J\\x0a\\x9b1m\\x7f\n');
  assert.equal(table([{ title: 'A' }], [['\r']]), 'A\n\\x0d\n');
});

test('numbers are in units that people read', () => {
  const amounts: [value: number, text: string][] = [
    [0, '0 B'],
    [1023, '1023 B'],
    [1024, '1 KiB'],
    [1536, '1.5 KiB'],
    [1024 * 1024 - 1, '1.0 MiB'],
    [512 * 1024 * 1024, '512 MiB'],
    [2 ** 40 * 1.26, '1.3 TiB'],
    [Number.MAX_SAFE_INTEGER, '8.0 PiB'],
  ];
  for (const [value, text] of amounts) assert.equal(bytes(value), text);
  assert.equal(count(1_234_567), '1,234,567');
  const times: [seconds: number, text: string][] = [
    [0.9, '0 s'],
    [59.9, '59 s'],
    [60, '1 min 0 s'],
    [7325, '2 h 2 min'],
    [9 * 86_400 + 4 * 3600 + 59, '9 d 4 h'],
  ];
  for (const [seconds, text] of times) assert.equal(duration(seconds), text);
});
