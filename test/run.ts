/**
 * Runs the tests with Node's own runner, file by file: `--unit` leaves out those with real peers, further
 * arguments choose files whose path contains one of them.
 */
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';

const here = import.meta.dirname;
const words = process.argv.slice(2);
const unitOnly = words.includes('--unit');
const wanted = words.filter((word) => word !== '--unit');

const files = readdirSync(here, { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.test.js'))
  .filter((file) => !(unitOnly && file.startsWith('peers/')))
  .filter((file) => wanted.length === 0 || wanted.some((word) => file.includes(word)))
  .sort();
if (files.length === 0) {
  console.error(`no test file matches ${wanted.join(' ')}`);
  process.exit(1);
}
// One at a time: peers and benchmarks of two files would fight for the same cores and hugepages.
const options = ['--test', '--test-concurrency=1', '--test-reporter=spec'];
const { status } = spawnSync(process.execPath, [...options, ...files.map((file) => join(here, file))], {
  stdio: 'inherit',
});
process.exit(status ?? 1);
