/**
 * Signals for eventfds that a peer shares with us: kicks, calls and errs.
 *
 * Such a peer can fill the eventfd's counter and clear O_NONBLOCK, at any moment, also between our look and our
 * write: write() would then block this thread until the peer is so kind as to read. The kernel's own signals never
 * block, so this asks the kernel for one: an asynchronous operation that is done at once (can this eventfd be read or
 * written? one of them always) and whose completion signals the eventfd (IOCB_FLAG_RESFD of linux/aio_abi.h).
 * Where the kernel has no asynchronous operations for us, write() has to do.
 */
import { signal } from './eventfd.ts';
import { ioctlNumber } from './ioctl.ts';
import { aio, errnoByName, lastErrno, libc, pinned } from './libc.ts';

/** Operations between two looks at the ring of those that are done. */
const BATCH = 64;
const EVENT_SIZE = 32;
const IOCB_CMD_POLL = 5;
const IOCB_FLAG_RESFD = 1;
const POLLIN_OR_OUT = 1 | 4;

/** linux/vduse.h: takes the queue's number, 32 bits. */
const VDUSE_VQ_INJECT_IRQ = ioctlNumber('write', 0x81, 0x17, 4);

// struct iocb: 64 bytes.
const IOCB_OPCODE = 16;
const IOCB_FD = 20;
const IOCB_BUF = 24;
const IOCB_FLAGS = 56;
const IOCB_RESFD = 60;

/** Signals eventfds that a peer shares. For one thread; close() gives the kernel's part back, which takes it a while. */
export class Notifier {
  readonly #operation = pinned(64);
  readonly #polledFd = new Int32Array(this.#operation.buffer, IOCB_FD, 1);
  readonly #resultFd = new Int32Array(this.#operation.buffer, IOCB_RESFD, 1);
  readonly #list = pinned(8);
  readonly #done = pinned(BATCH * EVENT_SIZE);
  readonly #queue = pinned(4);
  readonly #listAt: number;
  readonly #doneAt: number;
  /** The kernel's handle; 0: asynchronous operations can't be had. */
  #context: number;
  #submitted = 0;

  constructor() {
    const context = pinned(8);
    this.#context = aio?.setup(2 * BATCH, context) === 0 ? Number(context.readBigUInt64LE(0)) : 0;
    this.#operation.writeUInt16LE(IOCB_CMD_POLL, IOCB_OPCODE);
    this.#operation.writeUInt32LE(POLLIN_OR_OUT, IOCB_BUF);
    this.#operation.writeUInt32LE(IOCB_FLAG_RESFD, IOCB_FLAGS);
    this.#list.writeBigUInt64LE(libc.memmove(this.#operation, this.#operation, 0), 0);
    this.#listAt = Number(libc.memmove(this.#list, this.#list, 0));
    this.#doneAt = Number(libc.memmove(this.#done, this.#done, 0));
  }

  /** False: a peer can block this thread in signal(). */
  get neverBlocks(): boolean {
    return this.#context !== 0;
  }

  /** Adds 1, or leaves a full counter full; false when the descriptor is no eventfd. One system call. */
  signal(fd: number): boolean {
    if (this.#context === 0) return signal(fd);
    this.#polledFd[0] = fd;
    this.#resultFd[0] = fd;
    // What is done stays in the kernel's ring, which has room for twice as many, until it is collected.
    if (++this.#submitted % BATCH === 0) aio!.collect(this.#context, BATCH, this.#doneAt);
    if (aio!.submit(this.#context, 1, this.#listAt) === 1) return true;
    return lastErrno() === errnoByName.EAGAIN && signal(fd);
  }

  /** Interrupts the driver of a queue of a VDUSE device; false where there is no driver now. One system call. */
  interrupt(fd: number, queue: number): boolean {
    this.#queue.writeUInt32LE(queue, 0);
    return libc.ioctlPointer(fd, VDUSE_VQ_INJECT_IRQ, this.#queue) === 0;
  }

  close(): void {
    if (this.#context !== 0) aio!.destroy(this.#context);
    this.#context = 0;
  }
}

let shared: Notifier | undefined;

/** This thread's one Notifier, for as long as the process lasts: not for threads that end before it. */
export function sharedNotifier(): Notifier {
  shared ??= new Notifier();
  return shared;
}
