/**
 * A peer's process: started by us, read by us, ended by us.
 *
 * `setpriv --pdeathsig KILL` makes the kernel end it with the process that started it, however that one ends, so
 * that a test that crashes leaves no switch or guest behind. Children are only ever signalled by their own pid.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export interface ChildOptions {
  env?: Record<string, string>;
  /** Called with each piece of standard output. */
  onOutput?: (text: string) => void;
}

/** Characters of output that are kept. */
const KEPT = 4 * 1024 * 1024;

export class Child {
  /** Standard output and standard error, in the order of arrival. */
  output = '';
  /** The exit code, or null if a signal ended it. */
  readonly exited: Promise<number | null>;
  readonly program: string;
  readonly process: ChildProcess;
  #running = true;
  #waiters = new Set<() => void>();

  constructor(program: string, args: string[], options: ChildOptions = {}) {
    this.program = program;
    this.process = spawn('setpriv', ['--pdeathsig', 'KILL', '--', program, ...args], {
      env: { ...process.env, ...options.env },
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    const take = (text: string) => {
      this.output = (this.output + text).slice(-KEPT);
      this.#wake();
    };
    this.process.stdout?.setEncoding('utf8').on('data', (text: string) => {
      take(text);
      options.onOutput?.(text);
    });
    this.process.stderr?.setEncoding('utf8').on('data', take);
    // A peer that is gone is reported by whoever waits for its answer, not by the pipe.
    this.process.stdin?.on('error', () => {});
    this.exited = new Promise((resolve) => {
      const ended = (code: number | null) => {
        this.#running = false;
        this.#wake();
        resolve(code);
      };
      this.process.on('error', (error) => {
        take(`${error.message}\n`);
        ended(null);
      });
      this.process.on('close', ended);
    });
  }

  get pid(): number {
    return this.process.pid ?? 0;
  }

  get running(): boolean {
    return this.#running;
  }

  write(text: string): void {
    this.process.stdin?.write(text);
  }

  /**
   * Resolves with what `probe` returns as soon as that isn't undefined. It is called after each piece of output.
   * Rejects, with the last lines of output, when the process ends first or `timeout` milliseconds pass.
   */
  waitFor<T>(what: string, timeout: number, probe: () => T | undefined): Promise<T> {
    return new Promise((resolve, reject) => {
      const settle = (act: () => void) => {
        clearTimeout(timer);
        this.#waiters.delete(look);
        act();
      };
      const fail = (reason: string) =>
        settle(() => reject(new Error(`${this.program}: ${reason} (waited for ${what})\n${this.tail()}`)));
      const look = () => {
        const found = probe();
        if (found !== undefined) settle(() => resolve(found));
        else if (!this.#running) fail('the process ended');
      };
      const timer = setTimeout(() => fail(`nothing after ${timeout} ms`), timeout);
      this.#waiters.add(look);
      look();
    });
  }

  /** The last lines of output. */
  tail(lines = 30): string {
    return this.output.trimEnd().split('\n').slice(-lines).join('\n');
  }

  /** Sends `signal` and waits for the end; after `grace` milliseconds, SIGKILL. */
  async end(signal: NodeJS.Signals = 'SIGTERM', grace = 5000): Promise<void> {
    if (!this.#running) return;
    this.process.kill(signal);
    const timer = setTimeout(() => this.process.kill('SIGKILL'), grace);
    await this.exited;
    clearTimeout(timer);
  }

  #wake(): void {
    for (const look of [...this.#waiters]) look();
  }
}

/** Seconds of CPU that the process has used, all threads, in steps of 10 ms. */
export function cpuSeconds(pid: number): number {
  // proc_pid_stat(5): utime and stime are fields 14 and 15; field 2 is in parentheses and may hold blanks.
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
    .replace(/^.*\) /, '')
    .split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

/** What is to be removed when this process ends. */
const scratches = new Set<() => void>();
process.on('exit', () => {
  for (const remove of scratches) remove();
});

/** A new directory with a short path (a unix socket's has at most 107 bytes) and its removal. */
export function scratch(name: string): { path: string; remove: () => void; [Symbol.dispose](): void } {
  const path = mkdtempSync(join(tmpdir(), `vireo-${name}-`));
  const remove = () => {
    scratches.delete(remove);
    rmSync(path, { recursive: true, force: true });
  };
  scratches.add(remove);
  return { path, remove, [Symbol.dispose]: remove };
}

export const sleep = (milliseconds: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Calls `probe` every 50 ms until it is true; rejects after `timeout` milliseconds, naming `what`. */
export async function until<T>(
  what: string,
  timeout: number,
  probe: () => T | false | undefined | Promise<T | false | undefined>,
): Promise<T> {
  const end = Date.now() + timeout;
  for (;;) {
    const found = await probe();
    if (found) return found;
    if (Date.now() > end) throw new Error(`no ${what} after ${timeout} ms`);
    await sleep(50);
  }
}
