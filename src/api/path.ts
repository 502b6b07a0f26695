/**
 * Where the control sockets of switches lie, and whether somebody listens on one.
 *
 * One directory a user (sys/runtime-directory.ts), `NAME.sock` a switch.
 */
import { readdirSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { runtimeDirectory } from '../sys/runtime-directory.ts';

/** The directory of the control sockets of a user's switches. */
export const controlDirectory = runtimeDirectory;

/** The control socket of the switch `name`. */
export function controlPath(name: string, directory = controlDirectory()): string {
  return join(directory, `${name}.sock`);
}

/**
 * Who is behind a path: `live`, a process that listens; `stale`, a socket without one; `absent`, nothing. What
 * else it may be (another kind of file, no permission) is thrown as the error of connect(2).
 */
export function probe(path: string): Promise<'live' | 'stale' | 'absent'> {
  return new Promise((resolve, reject) => {
    const socket = connect({ path });
    socket.once('connect', () => {
      socket.destroy();
      resolve('live');
    });
    socket.once('error', (error: NodeJS.ErrnoException) => {
      // EAGAIN: its queue of connections is full, which takes a listener.
      if (error.code === 'EAGAIN') resolve('live');
      else if (error.code === 'ECONNREFUSED') resolve('stale');
      else if (error.code === 'ENOENT') resolve('absent');
      else reject(error);
    });
  });
}

/** Names of the switches in `directory` that run, sorted. */
export async function runningSwitches(directory = controlDirectory()): Promise<string[]> {
  let files: string[];
  try {
    files = readdirSync(directory);
  } catch {
    return [];
  }
  const sockets = files.filter((file) => file.endsWith('.sock')).sort();
  const states = await Promise.all(sockets.map((file) => probe(join(directory, file)).catch(() => 'absent')));
  return sockets.filter((_, index) => states[index] === 'live').map((file) => file.slice(0, -'.sock'.length));
}
