/**
 * An uplink without root: starts passt beside the switch and connects to it. passt answers the guests' DHCP and DNS
 * itself and turns their connections into sockets of this user, so that guests reach what this user reaches.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Framing } from '../io/index.ts';
import type { PortSpec, PortState } from '../switch/types.ts';
import type { End, Link } from './kernel-port.ts';
import type { PortContext } from './port.ts';
import { StreamEnd } from './stream.ts';

/** Milliseconds before passt is started again after it has ended. */
const AGAIN = 1000;
/** Characters of its messages that are kept. */
const KEPT = 4096;

export class UserEnd implements End {
  readonly queues = 1;
  readonly framing: Framing;
  readonly role = null;
  readonly #options: string[];
  readonly #directory: string;
  readonly #stream: StreamEnd;
  #link: Link | undefined;
  #passt: ChildProcess | undefined;
  #exited: Promise<void> = Promise.resolve();
  #retry: NodeJS.Timeout | null = null;
  #closed = false;
  #failed = false;

  constructor(spec: PortSpec, context: PortContext) {
    this.#options = spec.options?.split(' ').filter((word) => word !== '') ?? [];
    this.#directory = mkdtempSync(join(tmpdir(), 'vireo-passt-'));
    try {
      this.#stream = new StreamEnd({ target: join(this.#directory, 'socket'), role: 'client' }, context);
    } catch (error) {
      rmSync(this.#directory, { recursive: true });
      throw error;
    }
    this.framing = this.#stream.framing;
  }

  get state(): PortState {
    return this.#failed ? 'failed' : this.#stream.state;
  }

  get connections(): number {
    return this.#stream.connections;
  }

  start(link: Link): void {
    this.#link = link;
    this.#spawn();
    // Until it is there, nobody answers the dial: that is no error yet.
    const quiet = (message: string | null) => {
      if (message === null && !this.#failed) link.error(null);
      else if (message !== null && !/^connect/.test(message)) link.error(message);
    };
    this.#stream.start({ ...link, error: quiet });
  }

  #spawn(): void {
    this.#retry = null;
    const socket = join(this.#directory, 'socket');
    rmSync(socket, { force: true });
    const passt = spawn('passt', ['--foreground', '--socket', socket, ...this.#options], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#passt = passt;
    let said = '';
    passt.stderr.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-KEPT);
    });
    this.#exited = new Promise((resolve) => {
      passt.once('error', (error) => {
        const missing = (error as NodeJS.ErrnoException).code === 'ENOENT';
        this.#ended(missing ? 'passt is not installed: package passt' : `passt: ${error.message}`);
        resolve();
      });
      passt.once('close', (code, signal) => {
        this.#ended(`passt has ended (${signal ?? code}): ${said.trim().split('\n').at(-1) ?? ''}`);
        resolve();
      });
    });
    passt.once('spawn', () => {
      this.#failed = false;
    });
  }

  #ended(reason: string): void {
    if (this.#closed || this.#retry) return;
    this.#failed = true;
    this.#link!.error(reason);
    this.#retry = setTimeout(() => this.#spawn(), AGAIN);
  }

  async close(): Promise<void> {
    this.#closed = true;
    if (this.#retry) clearTimeout(this.#retry);
    await this.#stream.close();
    this.#passt?.kill();
    await this.#exited;
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
