/**
 * Descriptors watched from Node's event loop.
 *
 * One asynchronous epoll_wait is in flight at a time; it occupies one thread of libuv's pool. When it returns,
 * up to 64 callbacks run on the main thread, then the next wait starts. A wait lasts one second at most, and an
 * eventfd ends it early: process exit waits for a foreign call that is in flight.
 *
 * Every registration has a generation, which the kernel hands back with the event. An event whose generation
 * isn't the current one of its descriptor is dropped: the descriptor was removed, or its number reused, by a
 * callback that ran earlier in the same round.
 */
import { EPOLLIN, Epoll, EpollEvents, epollWait } from './epoll.ts';
import { isSystemError } from './errors.ts';
import { drain, eventfd, signal } from './eventfd.ts';
import { closeFd } from './fd.ts';
import { libc } from './libc.ts';

const LONGEST_WAIT_MS = 1000;

interface Registration {
  generation: number;
  callback: (events: number) => void;
}

export interface PollerOptions {
  /** Gets what a callback threw. Without it that becomes an uncaught exception. */
  onError?: (error: unknown) => void;
}

/** Watches descriptors for the main thread. Keeps the process alive until it is closed. */
export class Poller {
  readonly #epoll = new Epoll();
  readonly #wake = eventfd();
  readonly #found = new EpollEvents();
  readonly #registrations = new Map<number, Registration>();
  readonly #onError: (error: unknown) => void;
  readonly #wakeUp = () => void signal(this.#wake);
  #generation = 0;
  #closing: Promise<void> | undefined;
  #closed: () => void = () => {};

  constructor(options: PollerOptions = {}) {
    this.#onError = options.onError ?? throwLater;
    this.#epoll.add(this.#wake, EPOLLIN);
    process.on('exit', this.#wakeUp);
    this.#wait();
  }

  /**
   * Calls `callback` with the event bits whenever `fd` is ready for `events` (EPOLLIN, EPOLLOUT, ...).
   * Level-triggered unless EPOLLET is given. Throws a SystemError (EEXIST, EPERM, EBADF).
   */
  add(fd: number, events: number, callback: (events: number) => void): void {
    const generation = this.#nextGeneration();
    this.#epoll.add(fd, events, generation);
    this.#registrations.set(fd, { generation, callback });
  }

  /** Watches for other events; the callback stays. Throws a SystemError (ENOENT, EBADF). */
  modify(fd: number, events: number): void {
    this.#epoll.modify(fd, events, this.#registrations.get(fd)?.generation ?? 0);
  }

  /**
   * Stops watching: the callback isn't called again, not even for an event that has already arrived.
   * Comes before closing the descriptor. One that isn't watched is ignored.
   */
  remove(fd: number): void {
    if (!this.#registrations.delete(fd)) return;
    try {
      this.#epoll.remove(fd);
    } catch (error) {
      // Closed too early, and the kernel has forgotten it by itself.
      if (!isSystemError(error, 'EBADF', 'ENOENT')) throw error;
    }
  }

  /** Ends the wait in flight and releases everything. Descriptors that were watched stay open. */
  close(): Promise<void> {
    this.#closing ??= new Promise((resolve) => {
      this.#closed = resolve;
      this.#registrations.clear();
      // Either a wait is in flight or a round of callbacks runs: the end of it releases.
      this.#wakeUp();
    });
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #wait(): void {
    libc.epollWait.async(
      this.#epoll.fd,
      this.#found.bytes,
      this.#found.capacity,
      LONGEST_WAIT_MS,
      (_error: unknown, ready: number) => this.#waited(ready),
    );
  }

  #waited(ready: number): void {
    try {
      // The errno belongs to another thread: on failure, ask again from this one.
      const count = ready === -1 ? epollWait(this.#epoll.fd, 0, this.#found) : ready;
      for (let i = 0; i < count && this.#closing === undefined; i++) this.#dispatch(i);
    } catch (error) {
      this.#onError(error);
      void this.close();
    }
    if (this.#closing === undefined) this.#wait();
    else this.#release();
  }

  #dispatch(i: number): void {
    const fd = this.#found.fd(i);
    if (fd === this.#wake) {
      drain(fd);
      return;
    }
    const registration = this.#registrations.get(fd);
    if (registration?.generation !== this.#found.tag(i)) return;
    try {
      registration.callback(this.#found.events(i));
    } catch (error) {
      this.#onError(error);
    }
  }

  #nextGeneration(): number {
    this.#generation = (this.#generation + 1) >>> 0;
    return this.#generation;
  }

  #release(): void {
    process.off('exit', this.#wakeUp);
    this.#epoll.close();
    closeFd(this.#wake);
    this.#closed();
  }
}

function throwLater(error: unknown): void {
  queueMicrotask(() => {
    throw error;
  });
}

let shared: { poller: Poller; users: number } | undefined;

/** A share in the process's one Poller. */
export interface PollerLease {
  readonly poller: Poller;
  /** Gives the share back; the last one closes the Poller. Later calls change nothing. */
  release(): Promise<void>;
}

/**
 * The process's one Poller, opened by its first user and closed by its last: each user removes its own
 * descriptors and releases its lease. What callbacks throw becomes an uncaught exception.
 */
export function sharedPoller(): PollerLease {
  shared ??= { poller: new Poller(), users: 0 };
  const mine = shared;
  mine.users++;
  let released: Promise<void> | undefined;
  const release = async () => {
    if (--mine.users > 0) return;
    shared = undefined;
    await mine.poller.close();
  };
  return {
    poller: mine.poller,
    release: () => {
      released ??= release();
      return released;
    },
  };
}
