/** Debian's packages, downloaded and unpacked into a folder, not installed: it takes no root. */
import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';

/** Throws with apt's own words when it can't have one of them. */
export function unpack(names: string[], folder: string): void {
  execFileSync('apt-get', ['download', '-q', '-o', 'APT::Sandbox::User=root', ...names], {
    cwd: folder,
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  for (const file of readdirSync(folder).filter((entry) => entry.endsWith('.deb'))) {
    execFileSync('dpkg-deb', ['-x', file, '.'], { cwd: folder });
  }
}
