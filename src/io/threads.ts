/**
 * The I/O threads seen from the control plane: made when a file first needs one, as many as the switch has workers
 * at most, and there until the switch closes. One that ends by itself, for want of memory or by a fault, takes its
 * channels with it, and is started again for the next one.
 */
import { Worker } from 'node:worker_threads';
import type { Arena } from '../arena/index.ts';
import { closeFd, Epoll, eventfd, signal } from '../sys/index.ts';
import type { ChannelReport } from './channels.ts';
import { type Seat, Seats } from './seats.ts';
import type { ThreadCommand, ThreadSetup } from './thread.ts';

interface Thread {
  readonly index: number;
  readonly wakeFd: number;
  readonly seats: Seats;
  /** Undefined: nobody has needed it yet, or it has ended. */
  worker: Worker | undefined;
  exit: Promise<void>;
}

export class IoThreads {
  readonly #arena: Arena;
  readonly #most: number;
  readonly #threads: Thread[] = [];

  constructor(arena: Arena, most: number) {
    this.#arena = arena;
    this.#most = most;
  }

  /** A place on the thread that has the fewest. Throws an ArenaFullError or a SystemError. */
  seat(): Seat {
    const least = [...this.#threads].sort((a, b) => a.seats.taken - b.seats.taken)[0];
    const free = least && (least.seats.taken === 0 || this.#threads.length >= this.#most);
    return (free ? least : this.#add()).seats.take();
  }

  #add(): Thread {
    const wakeFd = eventfd();
    const seats = new Seats(this.#arena, (command) => {
      if (!thread.worker) this.#start(thread);
      tell(thread, command);
    });
    const index = this.#threads.length;
    const thread: Thread = { index, wakeFd, seats, worker: undefined, exit: Promise.resolve() };
    if (index === 0) process.on('exit', this.#stop);
    this.#threads.push(thread);
    return thread;
  }

  #start(thread: Thread): void {
    const { module, memory } = this.#arena;
    const epoll = new Epoll();
    const setup: ThreadSetup = { module, memory, epollFd: epoll.fd, wakeFd: thread.wakeFd };
    let worker: Worker;
    try {
      worker = new Worker(new URL('./thread.js', import.meta.url), { workerData: setup });
    } catch (error) {
      epoll.close();
      throw error;
    }
    thread.worker = worker;
    let why = 'without a word';
    worker.on('error', (error: Error) => {
      why = error.message;
    });
    worker.on('message', (report: ChannelReport) => thread.seats.heard(report));
    thread.exit = new Promise((resolve) => {
      worker.on('exit', () => {
        thread.worker = undefined;
        epoll.close();
        thread.seats.ended(`I/O thread ${thread.index} has ended: ${why}`);
        resolve();
      });
    });
  }

  /** A thread that sleeps in the kernel can't be ended: it has to be told. */
  #stop = (): void => {
    for (const thread of this.#threads) tell(thread, { kind: 'stop' });
  };

  /** Ends the threads; once all channels are closed. */
  async close(): Promise<void> {
    process.off('exit', this.#stop);
    this.#stop();
    for (const thread of this.#threads) {
      await thread.exit;
      closeFd(thread.wakeFd);
      thread.seats.free();
    }
    this.#threads.length = 0;
  }
}

function tell({ worker, wakeFd }: Thread, command: ThreadCommand): void {
  worker?.postMessage(command);
  signal(wakeFd);
}
