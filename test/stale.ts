/** Removes from dist/ what was compiled of sources that are gone, or have another name: such tests would still be run. */
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';

const dist = join(import.meta.dirname, '..');
for (const file of readdirSync(dist, { recursive: true, encoding: 'utf8' })) {
  const source = /^(.+?)\.(?:d\.ts|js|js\.map)$/.exec(file)?.[1];
  if (source !== undefined && !existsSync(join(dist, '..', `${source}.ts`))) rmSync(join(dist, file));
}
