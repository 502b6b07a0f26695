/**
 * Runs the tests with Node's own runner, file by file: `--unit` leaves out those with real peers, further
 * arguments choose files whose path contains one of them.
 */
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';

const here = import.meta.dirname;
const withPeers = (file: string) => file.startsWith('peers/');
const words = process.argv.slice(2);
const unitOnly = words.includes('--unit');
const wanted = words.filter((word) => word !== '--unit');

const files = readdirSync(here, { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.test.js'))
  .filter((file) => !(unitOnly && withPeers(file)))
  .filter((file) => wanted.length === 0 || wanted.some((word) => file.includes(word)))
  .sort();
if (files.length === 0) {
  console.error(`no test file matches ${wanted.join(' ')}`);
  process.exit(1);
}
/** Milliseconds that a file may take, on a machine however busy: what a test leaves behind when it fails may run on. */
const LONGEST = 20 * 60_000;

const run = (files: string[], concurrency: number) => {
  if (files.length === 0) return 0;
  const options = [`--test-concurrency=${concurrency}`, `--test-timeout=${LONGEST}`, '--test-reporter=spec'];
  const paths = files.map((file) => join(here, file));
  return spawnSync(process.execPath, ['--test', ...options, ...paths], { stdio: 'inherit' }).status;
};
// Peers one at a time: those of two files would fight for the same cores and hugepages.
const statuses = [
  run(
    files.filter((file) => !withPeers(file)),
    Math.min(2, availableParallelism()),
  ),
  run(files.filter(withPeers), 1),
];
process.exit(statuses.every((status) => status === 0) ? 0 : 1);
