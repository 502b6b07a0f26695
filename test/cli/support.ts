/** What the tests of the command line share: running `vireo` to its end, and `vireo up` beside the test. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { type ControlClient, findSwitch } from '../../src/api/client.ts';
import { Child } from '../peers/process.ts';

export const MAIN = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));

/** Milliseconds that a busy machine may take for anything here. */
export const PATIENCE = 30_000;

export interface Run {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Runs `vireo` with these arguments until it ends. */
export function vireo(args: string[], options: { env?: NodeJS.ProcessEnv; uid?: number } = {}): Promise<Run> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [MAIN, ...args], { stdio: ['ignore', 'pipe', 'pipe'], ...options });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, stdout, stderr }));
  });
}

/** `vireo up`, ready: its lines so far, and a client of its control socket. */
export class Up {
  readonly control: string;
  readonly client: ControlClient;
  readonly child: Child;

  constructor(child: Child, control: string, client: ControlClient) {
    this.child = child;
    this.control = control;
    this.client = client;
  }

  static async start(control: string, ...args: string[]): Promise<Up> {
    const child = new Child(process.execPath, [MAIN, 'up', '--control', control, ...args]);
    await child.waitFor('a line', PATIENCE, () => (child.output.includes('\n') ? true : undefined));
    return new Up(child, control, await findSwitch({ control }));
  }

  get lines(): string[] {
    return this.child.output.split('\n').slice(0, -1);
  }

  /** Waits until a line matches. */
  line(pattern: RegExp): Promise<string> {
    return this.child.waitFor(String(pattern), PATIENCE, () => this.lines.find((line) => pattern.test(line)));
  }

  /** A command on this switch that must succeed: its output. */
  async run(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await vireo([...args, '--control', this.control]);
    assert.equal(code, 0, `vireo ${args.join(' ')}: ${stderr}`);
    return stdout;
  }

  /** As `run`, with --json. */
  // biome-ignore lint/suspicious/noExplicitAny: the tests look into JSON of all shapes.
  async json(...args: string[]): Promise<any> {
    return JSON.parse(await this.run(...args, '--json'));
  }

  /** Ends it by a signal: its exit code, null when the signal did it. */
  end(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | null> {
    this.child.process.kill(signal);
    return this.child.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.child.end('SIGTERM', PATIENCE);
  }
}
