/** Vireo as the subject of a benchmark: the program of the package, in a process of its own. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { root } from '../test/peers/available.ts';
import { Child, scratch } from '../test/peers/process.ts';

export const program = join(root, 'dist/src/cli/main.js');

export interface VireoOptions {
  ports: string[];
  poll: 'adaptive' | 'busy';
  /** Pins the worker. */
  cpu?: number;
}

let started = 0;

export class Vireo {
  /** Where the ports' sockets are, each by its port's name. */
  readonly directory: string;
  readonly child: Child;
  /** Milliseconds from the start of the process to its ready line. */
  readonly startup: number;
  readonly #remove: () => void;

  private constructor(directory: string, child: Child, startup: number, remove: () => void) {
    this.directory = directory;
    this.child = child;
    this.startup = startup;
    this.#remove = remove;
  }

  static async start({ ports, poll, cpu }: VireoOptions): Promise<Vireo> {
    const { path, remove } = scratch('bench');
    const begin = performance.now();
    const child = new Child(process.execPath, [
      ...[program, 'up', '--name', `bench-${process.pid}-${started++}`],
      ...['--control', join(path, 'control.sock'), '--poll', poll],
      ...(cpu === undefined ? [] : ['--cpus', String(cpu)]),
      ...ports.flatMap((port) => ['--port', `${port}=vhost-user:${join(path, port)}`]),
    ]);
    try {
      const startup = await child.waitFor('its ready line', 10_000, () =>
        child.output.includes('\n') && ports.every((port) => existsSync(join(path, port)))
          ? performance.now() - begin
          : undefined,
      );
      return new Vireo(path, child, startup, remove);
    } catch (error) {
      await child.end('SIGKILL');
      remove();
      throw error;
    }
  }

  /** Resident memory in bytes: its own (`own`) and what it shares with guests (`shared`). */
  memory(): { own: number; shared: number } {
    const status = readFileSync(`/proc/${this.child.pid}/status`, 'utf8');
    const bytes = (name: string) => Number(new RegExp(`${name}:\\s+(\\d+) kB`).exec(status)?.[1]) * 1024;
    return { own: bytes('RssAnon') + bytes('RssFile'), shared: bytes('RssShmem') };
  }

  /** SIGTERM, as a person would end it. */
  async close(): Promise<void> {
    await this.child.end('SIGTERM');
    this.#remove();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
