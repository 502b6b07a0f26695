/**
 * `npm test` runs this first: installs the peers that are missing where it may, then names what is still missing and
 * the test files that will skip for it. With `CI` set a missing peer is a failure.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Peer, peers, root } from './available.ts';
import { install } from './install.ts';

const all = Object.keys(peers()) as Peer[];
install(all, (line) => console.log(`peers: ${line}`));

const missing = Object.entries(peers()).filter(([, state]) => state !== true);
for (const [peer, reason] of missing) {
  const files = testsThatNeed(peer);
  console.log(`peers: ${reason}${files.length === 0 ? '' : `; skipped: ${files.join(', ')}`}`);
}
if (missing.length === 0) console.log(`peers: ${all.join(', ')} are there`);
else if (process.env.CI) {
  console.log(`peers: CI is set, and ${missing.map(([peer]) => peer).join(', ')} can't be had here`);
  process.exitCode = 1;
}

/** Test files that name the peer in a call of skipWithout. */
function testsThatNeed(peer: string): string[] {
  const folder = join(root, 'test');
  return (readdirSync(folder, { recursive: true }) as string[])
    .filter((file) => file.endsWith('.test.ts'))
    .filter((file) => {
      const calls = readFileSync(join(folder, file), 'utf8').matchAll(/skipWithout\(([^)]*)\)/g);
      return [...calls].some((call) => call[1]?.includes(`'${peer}'`));
    })
    .map((file) => `test/${file}`);
}
