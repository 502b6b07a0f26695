/** Vireo as the program of the package, in a process of its own: to be measured, frozen or killed. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ControlClient } from '../../src/api/client.ts';
import type { Role } from '../../src/switch/types.ts';
import { root } from './available.ts';
import { Child, scratch } from './process.ts';

export const program = join(root, 'dist/src/cli/main.js');

export interface VireoOptions {
  ports: string[];
  /** Of every port; default `server`. */
  role?: Role;
  /** Where the ports' sockets are; default: a directory of its own. */
  directory?: string;
  poll?: 'adaptive' | 'busy';
  /** Pins the worker. */
  cpu?: number;
  /** Ports of other kinds, as `vireo up --port` takes them. */
  more?: string[];
}

let started = 0;

export class Vireo {
  /** Where the ports' sockets are, each by its port's name. */
  readonly directory: string;
  readonly child: Child;
  /** Asks the running switch. */
  readonly control: ControlClient;
  /** Milliseconds from the start of the process to its ready line. */
  readonly startup: number;
  readonly #remove: () => void;

  private constructor(directory: string, child: Child, control: string, startup: number, remove: () => void) {
    this.directory = directory;
    this.child = child;
    this.control = new ControlClient(control, 'the switch is gone');
    this.startup = startup;
    this.#remove = remove;
  }

  static async start({
    ports,
    poll,
    cpu,
    more = [],
    role = 'server',
    ...options
  }: VireoOptions): Promise<Vireo> {
    const { path, remove } = scratch('switch');
    const directory = options.directory ?? path;
    const control = join(path, 'control.sock');
    const begin = performance.now();
    const child = new Child(process.execPath, [
      ...[program, 'up', '--name', `peers-${process.pid}-${started++}`, '--control', control],
      ...['--poll', poll ?? 'adaptive'],
      ...(cpu === undefined ? [] : ['--cpus', String(cpu)]),
      ...ports.flatMap((port) => ['--port', `${port}=vhost-user:${join(directory, port)},role=${role}`]),
      ...more.flatMap((port) => ['--port', port]),
    ]);
    try {
      const startup = await child.waitFor('its ready line', 20_000, () =>
        child.output.includes('\n') &&
        (role === 'client' || ports.every((port) => existsSync(join(directory, port))))
          ? performance.now() - begin
          : undefined,
      );
      return new Vireo(directory, child, control, startup, remove);
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

  /** Stops it where it is, as one that was not started yet, until `thaw`. */
  freeze(): void {
    this.child.process.kill('SIGSTOP');
  }

  thaw(): void {
    this.child.process.kill('SIGCONT');
  }

  /** SIGKILL, as a crash would. */
  async kill(): Promise<void> {
    await this.child.end('SIGKILL');
    this.#remove();
  }

  /** SIGTERM, as a person would end it. */
  async close(): Promise<void> {
    this.thaw();
    await this.child.end('SIGTERM');
    this.#remove();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
