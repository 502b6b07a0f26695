/** Debian's packages, downloaded and unpacked into a folder, not installed: it takes no root. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** Where Debian's mirrors are, and with which keys it signs, unless the machine's own configuration says. */
const DEBIAN = 'http://deb.debian.org/debian';
const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';

/**
 * Downloads packages and unpacks them into `folder`; `options` are those of openSuites(), or none for the machine's
 * own release. Throws with apt's own words when it can't have one of them.
 */
export function unpack(names: string[], folder: string, options: string[] = []): void {
  execFileSync('apt-get', [...options, 'download', '-q', '-o', 'APT::Sandbox::User=root', ...names], {
    cwd: folder,
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  for (const file of readdirSync(folder).filter((entry) => entry.endsWith('.deb'))) {
    execFileSync('dpkg-deb', ['-x', file, '.'], { cwd: folder });
  }
}

/**
 * Fetches the lists of packages of other releases of Debian into `folder`, from the mirror that this machine uses,
 * and returns the options that make apt's programs look there: the machine's own configuration stays as it is.
 */
export function openSuites(suites: string[], folder: string): string[] {
  const state = join(folder, 'apt');
  mkdirSync(join(state, 'lists/partial'), { recursive: true });
  mkdirSync(join(state, 'cache/archives/partial'), { recursive: true });
  writeFileSync(join(state, 'status'), '');
  const lines = suites.map((suite) => `deb [signed-by=${KEYRING}] ${mirror()} ${suite} main\n`);
  writeFileSync(join(state, 'sources.list'), lines.join(''));
  const options = [
    `Dir::Etc::sourcelist=${join(state, 'sources.list')}`,
    'Dir::Etc::sourceparts=/dev/null',
    `Dir::State=${state}`,
    `Dir::State::status=${join(state, 'status')}`,
    `Dir::Cache=${join(state, 'cache')}`,
    'APT::Sandbox::User=root',
    'Acquire::Languages=none',
  ].flatMap((option) => ['-o', option]);
  execFileSync('apt-get', [...options, 'update', '-q'], { stdio: ['ignore', 'ignore', 'pipe'] });
  return options;
}

function mirror(): string {
  const filters = ['Created-By: Packages', 'Origin: Debian', 'Label: Debian'];
  const found = execFileSync('apt-get', ['indextargets', '--format', '$(REPO_URI)', ...filters]).toString();
  return found.split('\n')[0]?.trim() || DEBIAN;
}
