/** epoll, called synchronously: how a worker thread sleeps. The main thread uses a Poller (poller.ts). */
import { check, SystemError } from './errors.ts';
import { epollPwait2, errnoByName, lastErrno, libc, pinned } from './libc.ts';

export const EPOLLIN = 0x001;
export const EPOLLOUT = 0x004;
export const EPOLLERR = 0x008;
export const EPOLLHUP = 0x010;
export const EPOLLRDHUP = 0x2000;
export const EPOLLET = 1 << 31;

const EPOLL_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CTL_MOD = 3;

/** struct epoll_event is packed on x86-64 alone. */
const EVENT_BYTES = process.arch === 'x64' ? 12 : 16;
const DATA_OFFSET = EVENT_BYTES - 8;
const MAX_EVENTS = 64;

/** The events of one wait: up to 64, each with its descriptor and the tag that it was added with. */
export class EpollEvents {
  /** What epoll_wait fills. Never moves. */
  readonly bytes: Buffer = pinned(MAX_EVENTS * EVENT_BYTES);
  readonly capacity: number = MAX_EVENTS;

  /** The event bits of entry `i`. */
  events(i: number): number {
    return this.bytes.readInt32LE(i * EVENT_BYTES);
  }

  fd(i: number): number {
    return this.bytes.readInt32LE(i * EVENT_BYTES + DATA_OFFSET);
  }

  tag(i: number): number {
    return this.bytes.readUInt32LE(i * EVENT_BYTES + DATA_OFFSET + 4);
  }
}

const scratch = new EpollEvents();

/**
 * Sleeps until one of the descriptors of an epoll is ready, for at most `timeoutMs` milliseconds.
 * Returns how many are ready (0 also when a signal interrupted the sleep); what they are is in `into`.
 * Blocks the calling thread. Throws a SystemError.
 */
export function epollWait(epollFd: number, timeoutMs: number, into: EpollEvents = scratch): number {
  const ready = libc.epollWait(epollFd, into.bytes, into.capacity, timeoutMs);
  if (ready !== -1) return ready;
  const errno = lastErrno();
  if (errno === errnoByName.EINTR) return 0;
  throw new SystemError('epoll_wait', errno, String(epollFd));
}

/** `struct timespec` of the sleep. */
const timespec = pinned(16);
let hasNanoseconds = true;

/** The same for at most `timeoutNs` nanoseconds; without epoll_pwait2 (Linux 5.11) for whole milliseconds less. */
function epollWaitNs(epollFd: number, timeoutNs: number, into: EpollEvents): number {
  if (!hasNanoseconds || timeoutNs === 0) return epollWait(epollFd, Math.floor(timeoutNs / 1e6), into);
  timespec.writeBigInt64LE(BigInt(Math.floor(timeoutNs / 1e9)), 0);
  timespec.writeBigInt64LE(BigInt(Math.floor(timeoutNs % 1e9)), 8);
  const ready = epollPwait2(epollFd, into.bytes, into.capacity, timespec);
  if (ready !== -1) return ready;
  const errno = lastErrno();
  if (errno === errnoByName.EINTR) return 0;
  // What a container's seccomp filter doesn't know it forbids, too.
  if (errno !== errnoByName.ENOSYS && errno !== errnoByName.EPERM)
    throw new SystemError('epoll_pwait2', errno, String(epollFd));
  hasNanoseconds = false;
  return epollWaitNs(epollFd, timeoutNs, into);
}

/**
 * A set of descriptors to wait on. Level-triggered unless EPOLLET is given.
 * Remove a descriptor before closing it: as long as a peer holds the same file, closing alone leaves it here.
 */
export class Epoll {
  readonly fd: number;
  readonly #found = new EpollEvents();
  readonly #event = pinned(16);

  /** A new one, or that of another thread by its descriptor. */
  constructor(fd = check(libc.epollCreate(EPOLL_CLOEXEC), 'epoll_create1', '')) {
    this.fd = fd;
  }

  /** Waits for `events` on `fd`; `tag` (32 bits) comes back with them. EEXIST when it is here already. */
  add(fd: number, events: number, tag = 0): void {
    this.#control(EPOLL_CTL_ADD, fd, events, tag);
  }

  /** Waits for other events on `fd`, with this tag from now on. */
  modify(fd: number, events: number, tag = 0): void {
    this.#control(EPOLL_CTL_MOD, fd, events, tag);
  }

  /** Forgets `fd`; throws a SystemError (ENOENT, EBADF) when it isn't here. */
  remove(fd: number): void {
    this.#control(EPOLL_CTL_DEL, fd, 0, 0);
  }

  /** Sleeps for at most `timeoutMs` milliseconds; returns how many are ready, for `ready(i)`. See epollWait. */
  wait(timeoutMs: number): number {
    return epollWait(this.fd, timeoutMs, this.#found);
  }

  /** The same for at most `timeoutNs` nanoseconds. */
  waitNs(timeoutNs: number): number {
    return epollWaitNs(this.fd, timeoutNs, this.#found);
  }

  /** Entry `i` of the last wait. */
  ready(i: number): { fd: number; events: number; tag: number } {
    return { fd: this.#found.fd(i), events: this.#found.events(i), tag: this.#found.tag(i) };
  }

  close(): void {
    check(libc.close(this.fd), 'close', this.fd);
  }

  #control(operation: number, fd: number, events: number, tag: number): void {
    this.#event.writeInt32LE(events | 0, 0);
    this.#event.writeInt32LE(fd, DATA_OFFSET);
    this.#event.writeUInt32LE(tag, DATA_OFFSET + 4);
    check(libc.epollControl(this.fd, operation, fd, this.#event), 'epoll_ctl', `${this.fd}, ${fd}`);
  }
}
