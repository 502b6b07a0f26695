/** The captures of a switch: which of them look at which port, as both come and go (a capture itself is in src/capture). */
import type { Arena, Structures } from '../arena/index.ts';
import { Capture, type Choice } from '../capture/capture.ts';
import { FilterError } from '../capture/filter.ts';
import type { Workers } from '../workers/workers.ts';
import { closingError, SwitchError } from './errors.ts';
import type { Entry, PortTable } from './port-table.ts';
import type { CaptureOptions } from './types.ts';

interface Options {
  arena: Arena;
  structures: Structures;
  workers: Workers;
  ports: PortTable;
  /** A port is not looked at as a capture wants, for lack of room. */
  onError(port: string, error: string): void;
}

export class Captures {
  readonly #options: Options;
  readonly #captures = new Set<Capture>();
  #last = 0;
  #closed = false;

  constructor(options: Options) {
    this.#options = options;
  }

  /** Begins one; `choice` is what a mirror wants. Rejects with a SwitchError, BAD_SPEC or LIMIT. */
  async start(options: CaptureOptions, choice?: Choice): Promise<Capture> {
    const { arena, structures, workers, ports } = this.#options;
    const most = structures.constant('MAX_CAPTURES');
    if (this.#closed) throw closingError();
    if (this.#captures.size >= most)
      throw new SwitchError('LIMIT', `${most} captures run, which is the limit: end one of them`);
    const leave = (capture: Capture) => this.#leave(capture);
    let capture: Capture;
    try {
      capture = new Capture(arena, structures, workers.count, ++this.#last, options, leave, choice);
    } catch (error) {
      if (error instanceof FilterError)
        throw new SwitchError('BAD_SPEC', `filter: ${error.message}`, 'filter');
      throw new SwitchError('LIMIT', `the capture: ${(error as Error).message}`);
    }
    this.#captures.add(capture);
    for (const { spec } of ports.list()) await this.#look(capture, spec.name);
    return capture;
  }

  async #leave(capture: Capture): Promise<void> {
    this.#captures.delete(capture);
    for (const { rules, spec } of this.#options.ports.all()) await rules.watch(this.#watchesOf(spec.name));
  }

  /** Lets a capture's stream end with what has come by now. Throws a SwitchError, NO_SUCH_CAPTURE. */
  stop(id: number): void {
    const capture = [...this.#captures].find((one) => one.id === id);
    if (capture === undefined) throw new SwitchError('NO_SUCH_CAPTURE', `no capture has the number ${id}`);
    capture.stop();
  }

  /** A port has come. */
  async look(port: string): Promise<void> {
    for (const capture of this.#captures) await this.#look(capture, port);
  }

  /** Lets a capture look at a port that it wants. Without room for that it goes without. */
  async #look(capture: Capture, name: string): Promise<void> {
    const entry = this.#options.ports.get(name);
    if (entry === undefined || !capture.wants(name) || capture.watchOf(name) !== undefined) return;
    try {
      capture.add(name);
      await entry.rules.watch(this.#watchesOf(name));
    } catch (error) {
      this.#options.onError(name, `not captured: ${(error as Error).message}`);
    }
  }

  /** Begins and ends looks at ports as captures want them now: a monitor is one that they don't. */
  async review(): Promise<void> {
    const entries = this.#options.ports.list();
    for (const capture of this.#captures) for (const entry of entries) await this.#review(capture, entry);
  }

  async #review(capture: Capture, { rules, spec }: Entry): Promise<void> {
    const watch = capture.watchOf(spec.name);
    if (watch === undefined || capture.wants(spec.name)) return this.#look(capture, spec.name);
    await rules.watch(this.#watchesOf(spec.name).filter((at) => at !== watch));
    capture.remove(spec.name);
  }

  #watchesOf(name: string): number[] {
    return [...this.#captures].flatMap((capture) => capture.watchOf(name) ?? []);
  }

  /** A port is gone, and no worker looks at it any more. */
  forget(port: string): void {
    for (const capture of this.#captures) capture.remove(port);
  }

  /** Ends all, and begins none any more. */
  async close(): Promise<void> {
    this.#closed = true;
    await Promise.all([...this.#captures].map((capture) => capture.close()));
  }
}
