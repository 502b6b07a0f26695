/** The generator's threads (loop.ts), which run tasks while a run lasts and wait for the next one between. */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import type { Arena } from '../arena/index.ts';
import type { LoopMessage, LoopRun, LoopSetup } from './loop.ts';

export class Threads {
  readonly #threads: Worker[];
  readonly #ended: Promise<unknown>[];

  private constructor(threads: Worker[]) {
    this.#threads = threads;
    this.#ended = threads.map((thread) => new Promise((resolve) => thread.on('exit', resolve)));
  }

  /** A thread for each entry: the CPU that it is pinned to, or null. Rejects where there is no such CPU. */
  static async start(arena: Arena, cpus: readonly (number | null)[]): Promise<Threads> {
    const threads = new Threads(
      cpus.map((cpu, index) => {
        const workerData: LoopSetup = { index: index + 1, module: arena.module, memory: arena.memory, cpu };
        return new Worker(new URL('./loop.js', import.meta.url), { workerData });
      }),
    );
    try {
      await Promise.all(threads.#threads.map((thread) => threads.#next(thread)));
    } catch (error) {
      await threads.close();
      throw error;
    }
    return threads;
  }

  get count(): number {
    return this.#threads.length;
  }

  /** Resolves when the thread has left the run, which is when it was stopped in the arena. Rejects when it fails. */
  async run(index: number, run: LoopRun): Promise<void> {
    const thread = this.#threads[index]!;
    const ended = this.#next(thread);
    thread.postMessage(run);
    await ended;
  }

  async #next(thread: Worker): Promise<LoopMessage> {
    const [message] = (await once(thread, 'message')) as [LoopMessage];
    return message;
  }

  /** Ends the threads, which must be out of their runs. */
  async close(): Promise<void> {
    for (const thread of this.#threads) thread.postMessage(null);
    await Promise.all(this.#ended);
  }
}
