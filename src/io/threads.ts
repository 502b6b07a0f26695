/**
 * The I/O threads seen from the control plane: made when a port first needs one, as many as the switch has workers
 * at most, and there until the switch closes.
 */
import { Worker } from 'node:worker_threads';
import type { Arena, Range } from '../arena/index.ts';
import { closeFd, eventfd, signal } from '../sys/index.ts';
import type { EndSetup, QueueSetup } from './channel.ts';
import type { Command, Report, ThreadSetup } from './thread.ts';

interface Thread {
  readonly worker: Worker;
  readonly wakeFd: number;
  readonly exit: Promise<void>;
  /** Where its channels put what doesn't fit into a buffer. */
  readonly overflow: Range;
  readonly channels: Map<number, Events & { closed: () => void }>;
  /** Queue pairs that have chosen it. */
  users: number;
}

interface Events {
  /** The channel can't go on: it is over, but for its close(). */
  onEnd(reason: string): void;
}

/** A place on an I/O thread, for the queues of a pair. */
export interface Seat {
  /** Arena offset of `messages` times OVERFLOW bytes, for the length of a call. */
  readonly overflow: number;
  /** Moves frames between a queue pair and a descriptor from now on. */
  open(queue: QueueSetup, end: EndSetup, events: Events): OpenChannel;
  leave(): void;
}

export interface OpenChannel {
  /** Resolves when the thread doesn't touch rings and descriptor any more; then they may be closed. */
  close(): Promise<void>;
}

/** Messages of a system call at most: what there is overflow for. */
export const MESSAGES = 32;

export class IoThreads {
  readonly #arena: Arena;
  readonly #most: number;
  readonly #onFailure: (error: Error) => void;
  readonly #threads: Thread[] = [];
  #nextId = 0;
  #closing = false;

  constructor(arena: Arena, most: number, onFailure: (error: Error) => void) {
    this.#arena = arena;
    this.#most = most;
    this.#onFailure = onFailure;
  }

  /** A place on the thread that has the fewest. Throws an ArenaFullError or a SystemError. */
  seat(): Seat {
    const least = [...this.#threads].sort((a, b) => a.users - b.users)[0];
    const thread = least && (least.users === 0 || this.#threads.length >= this.#most) ? least : this.#start();
    thread.users++;
    return {
      overflow: thread.overflow.start,
      open: (queue, end, events) => this.#open(thread, queue, end, events),
      leave: () => {
        thread.users--;
      },
    };
  }

  #open(thread: Thread, queue: QueueSetup, end: EndSetup, events: Events): OpenChannel {
    this.#nextId = (this.#nextId + 1) % 2 ** 29;
    const id = this.#nextId;
    const closed = new Promise<void>((resolve) => {
      thread.channels.set(id, { ...events, closed: resolve });
    });
    tell(thread, { kind: 'open', id, queue, end });
    let closing = false;
    return {
      close: () => {
        if (!closing) tell(thread, { kind: 'close', id });
        closing = true;
        return closed;
      },
    };
  }

  #start(): Thread {
    const { layout } = this.#arena.dataplane;
    const overflow = this.#arena.takeTable(MESSAGES * layout.OVERFLOW!);
    const wakeFd = eventfd();
    const { module, memory } = this.#arena;
    const setup: ThreadSetup = { module, memory, wakeFd };
    const worker = new Worker(new URL('./thread.js', import.meta.url), { workerData: setup });
    const channels: Thread['channels'] = new Map();
    const exit = new Promise<void>((resolve) => {
      worker.on('exit', () => {
        if (!this.#closing) this.#onFailure(new Error('an I/O thread ended unexpectedly'));
        // Nobody is to wait for it any more.
        for (const { closed } of channels.values()) closed();
        resolve();
      });
    });
    worker.on('error', (error) => this.#onFailure(error as Error));
    worker.on('message', (report: Report) => {
      const channel = channels.get(report.id);
      if (report.kind === 'ended') return channel?.onEnd(report.reason);
      channels.delete(report.id);
      channel?.closed();
    });
    if (this.#threads.length === 0) process.on('exit', this.#stop);
    const thread: Thread = { worker, wakeFd, exit, overflow, channels, users: 0 };
    this.#threads.push(thread);
    return thread;
  }

  /** A thread that sleeps in the kernel can't be ended: it has to be told. */
  #stop = (): void => {
    for (const thread of this.#threads) tell(thread, { kind: 'stop' });
  };

  /** Ends the threads; once all channels are closed. */
  async close(): Promise<void> {
    this.#closing = true;
    process.off('exit', this.#stop);
    this.#stop();
    for (const { exit, wakeFd, overflow } of this.#threads) {
      await exit;
      closeFd(wakeFd);
      this.#arena.freeTable(overflow);
    }
    this.#threads.length = 0;
  }
}

function tell({ worker, wakeFd }: Thread, command: Command): void {
  worker.postMessage(command);
  signal(wakeFd);
}
