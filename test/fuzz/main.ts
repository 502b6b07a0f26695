/** `npm run fuzz -- [--seconds N] [--executions N] [--seed S] [TARGET…]`: all targets in turn, each for as long. */
import { parseArgs } from 'node:util';
import { fuzz, replay } from './fuzz.ts';
import { TARGETS } from './targets.ts';

const FAILURES = 'fuzz-failures';
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { seconds: { type: 'string' }, executions: { type: 'string' }, seed: { type: 'string' } },
});
const number = (name: keyof typeof values, fallback?: number): number | undefined => {
  const text = values[name];
  if (text === undefined) return fallback;
  if (/^\d+$/.test(text)) return Number(text);
  console.error(`--${name} ${text}: a whole number expected`);
  process.exit(2);
};
const unknown = positionals.filter((name) => !(name in TARGETS));
if (unknown.length > 0) {
  console.error(`no target ${unknown.join(', ')}; there are: ${Object.keys(TARGETS).join(', ')}`);
  process.exit(2);
}

const executions = number('executions');
const seconds = number('seconds', executions === undefined ? 60 : undefined);
const seed = number('seed', Date.now() % 2 ** 31)!;
let failed = false;
const reached = new Set<number>();
let blocks = 0;
for (const target of positionals.length > 0 ? positionals : Object.keys(TARGETS)) {
  const result = await fuzz({ target, seed, executions, seconds, failures: FAILURES });
  const rate = Math.round(result.executions / result.seconds);
  for (const block of result.hit) reached.add(block);
  blocks = result.blocks;
  const covered =
    result.hit.size > 0 ? `, ${result.hit.size} of ${result.blocks} basic blocks of the data plane` : '';
  console.log(`${target}: ${result.executions} executions from seed ${seed}, ${rate} a second${covered}`);
  if (!result.failure) continue;
  failed = true;
  console.error(`${target}: execution ${result.failure.seed} failed: ${result.failure.error.stack}`);
  console.error(`It is described in ${FAILURES}/. Again: ${replay(target, result.failure.seed)}`);
}
console.log(`in all ${reached.size} of ${blocks} basic blocks of the data plane`);
process.exit(failed ? 1 : 0);
