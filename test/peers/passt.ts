/**
 * passt as a vhost-user back-end: the machine's own network for one guest, without a device or rights. The version
 * that can is Debian's from trixie on; it runs here on its own C library, so that an older machine does.
 */
import { cpSync, existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { cache, passtFolder, root } from './available.ts';
import { openSuites, unpack } from './packages.ts';
import { Child } from './process.ts';

const LIBRARIES = 'usr/lib/x86_64-linux-gnu';

/** Downloads 3 MB and keeps the program and its C library. Throws with apt's own words when it can't. */
export function fetchPasst(): void {
  mkdirSync(cache, { recursive: true });
  const work = mkdtempSync(join(cache, 'passt-'));
  try {
    unpack(['passt', 'libc6'], work, openSuites(['trixie'], work));
    const kept = join(work, 'kept');
    mkdirSync(kept);
    for (const name of ['ld-linux-x86-64.so.2', 'libc.so.6'])
      cpSync(join(work, LIBRARIES, name), join(kept, name), { dereference: true });
    cpSync(join(work, 'usr/bin/passt'), join(kept, 'passt'), { dereference: true });
    if (!existsSync(passtFolder)) renameSync(kept, passtFolder);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** The network of the namespace that passt runs in. Its gateway is, to passt's guest, that namespace's loopback. */
export const NETWORK = { host: '192.0.2.1', gateway: '192.0.2.254', prefix: 24, echoPort: 7007 };

/** The command line of passt on a socket. */
export function passtCommand(socket: string): [string, ...string[]] {
  const loader = join(passtFolder, 'ld-linux-x86-64.so.2');
  const options = ['--foreground', '--vhost-user', '--ipv4-only', '--interface', 'veth0', '--socket', socket];
  // As root it would become "nobody", who may not reach the socket's directory.
  const user = process.getuid?.() === 0 ? ['--runas', '0'] : [];
  return [loader, '--library-path', passtFolder, join(passtFolder, 'passt'), ...options, ...user];
}

/** A namespace with a network, an echo server for UDP on its loopback, and passt on `socket`; resolves when it listens. */
export async function startPasst(socket: string): Promise<Child> {
  const rights = process.getuid?.() === 0 ? [] : ['--map-root-user'];
  const host = join(root, 'dist/test/peers/passt-host.js');
  const child = new Child('unshare', [...rights, '--net', process.execPath, host, socket]);
  await child.waitFor(
    'passt to listen',
    30_000,
    () => child.output.includes('You can start qemu') || undefined,
  );
  return child;
}
