/**
 * One vhost-user connection over a non-blocking unix socket, either end.
 *
 * Reading: exactly the 12 bytes of a header first, then exactly its payload, so that the descriptors that a read
 * brings belong to the message that is being read. A header is judged before its payload is read. One message is
 * handled at a time: nothing is read while a handler works or while an answer waits to be sent, which bounds the
 * memory that a peer can make us use. A peer that never stops sending gets its turn, not the process.
 *
 * A message that has begun must be complete within `messageTimeout`, so that half a message holds neither memory
 * nor descriptors for ever. Whatever ends the connection, every descriptor that arrived and wasn't taken by the
 * handler is closed.
 */
import {
  closeFd,
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  EPOLLRDHUP,
  isSystemError,
  type Poller,
  receive,
  send,
} from '../sys/index.ts';
import {
  decodeHeader,
  encodeMessage,
  HEADER_SIZE,
  type Header,
  MAX_DESCRIPTORS,
  type Message,
  ProtocolError,
  requestName,
} from './messages.ts';

/** Messages handled in one turn of the event loop before others get theirs. */
const BURST = 32;
/** Bytes that may wait to be sent. */
const MAX_OUTPUT = 65536;

export interface ConnectionOptions {
  /** A connected socket; the connection closes it. */
  fd: number;
  poller: Poller;
  /** Milliseconds in which a message that has begun must be complete; default 30,000. */
  messageTimeout?: number;
  /** Judges a header before its payload is read; throws a ProtocolError. */
  checkHeader(header: Header): void;
  /** Judges a complete message; throws a ProtocolError. */
  checkMessage(message: Message): void;
  /**
   * Handles a message; the next one waits until the promise is settled. The handler takes the descriptors that
   * it wants out of `message.fds`. What it throws ends the connection.
   */
  onMessage(message: Message): void | Promise<void>;
  /** Once, when the connection has ended and no handler works any more. Undefined: the peer left in peace. */
  onClose(reason: Error | undefined): void;
}

interface Output {
  bytes: Uint8Array;
  fds: readonly number[];
  done: () => void;
}

export class Connection {
  readonly #options: ConnectionOptions;
  readonly #headerBytes = new Uint8Array(HEADER_SIZE);
  /** What is being read: the header until `#header` is known, then its payload. */
  #target: Uint8Array = this.#headerBytes;
  #filled = 0;
  #header: Header | undefined;
  #fds: number[] = [];
  #timer: NodeJS.Timeout | undefined;
  #output: Output[] = [];
  #outputBytes = 0;
  /** What the poller watches for; 0: the socket isn't with the poller. */
  #interest = 0;
  #working = false;
  /** The other end has gone, and onHangUp was told. */
  #hungUp = false;
  #open = true;
  #reason: Error | undefined;

  /**
   * Called when the other end goes while a handler works, for handlers that wait for what the other end does.
   * Without it nobody looks before the handler is done.
   */
  onHangUp: (() => void) | undefined;

  /** Throws a SystemError when the poller can't watch the socket, which then stays the caller's. */
  constructor(options: ConnectionOptions) {
    this.#options = options;
    this.#watch(EPOLLIN);
  }

  get open(): boolean {
    return this.#open;
  }

  /** Why the connection ended; undefined while it is open, and where the peer left in peace. */
  get reason(): Error | undefined {
    return this.#reason;
  }

  /**
   * Queues a message. Resolves when it has left or the connection has ended, and never rejects; descriptors stay
   * the caller's and must be open until then.
   */
  send(request: number, flags: number, payload: Uint8Array, fds: readonly number[] = []): Promise<void> {
    return new Promise((done) => {
      if (!this.#open) return done();
      const bytes = encodeMessage(request, flags, payload);
      this.#output.push({ bytes, fds, done });
      this.#outputBytes += bytes.length;
      if (this.#outputBytes > MAX_OUTPUT) {
        this.close(new ProtocolError(`the other end doesn't read: ${this.#outputBytes} bytes wait for it`));
        return;
      }
      this.#guarded(() => this.#flush());
      this.#rearm();
    });
  }

  /** Ends the connection at once. Only the first call's reason counts. */
  close(reason?: Error): void {
    if (!this.#open) return;
    this.#open = false;
    this.#reason = reason;
    clearTimeout(this.#timer);
    this.#watch(0);
    closeFd(this.#options.fd);
    closeAll(this.#fds);
    const waiting = this.#output;
    this.#output = [];
    for (const { done } of waiting) done();
    if (!this.#working) this.#ended();
  }

  #ended(): void {
    queueMicrotask(() => this.#options.onClose(this.#reason));
  }

  #watch(interest: number): void {
    if (interest === this.#interest) return;
    const { fd, poller } = this.#options;
    if (this.#interest === 0) poller.add(fd, interest, (events) => this.#ready(events));
    else if (interest === 0) poller.remove(fd);
    else poller.modify(fd, interest);
    this.#interest = interest;
  }

  #rearm(): void {
    if (!this.#open) return;
    // A hang-up is reported whatever is asked for, so a socket that must wait leaves the poller altogether.
    let reading = this.#working || this.#output.length > 0 ? 0 : EPOLLIN;
    if (this.#working && this.onHangUp && !this.#hungUp) reading = EPOLLRDHUP;
    this.#guarded(() => this.#watch(reading | (this.#output.length > 0 ? EPOLLOUT : 0)));
  }

  #ready(events: number): void {
    if (this.#working && this.onHangUp && events & (EPOLLHUP | EPOLLRDHUP)) {
      this.#hungUp = true;
      this.onHangUp();
    }
    this.#guarded(() => this.#flush());
    if (!this.#working) void this.#work();
    this.#rearm();
  }

  /** Runs something that ends the connection when it throws. */
  #guarded(action: () => void): void {
    try {
      if (this.#open) action();
    } catch (error) {
      this.close(error as Error);
    }
  }

  #flush(): void {
    for (let first = this.#output[0]; first; first = this.#output[0]) {
      const sent = this.#sendSome(first);
      if (sent === 'closed') {
        this.close();
        return;
      }
      if (sent === 'again') return;
      this.#outputBytes -= sent;
      if (sent < first.bytes.length) {
        // The descriptors have left with the first byte.
        first.bytes = first.bytes.subarray(sent);
        first.fds = [];
        return;
      }
      this.#output.shift();
      first.done();
    }
  }

  #sendSome({ bytes, fds }: Output): number | 'again' | 'closed' {
    try {
      return send(this.#options.fd, bytes, fds);
    } catch (error) {
      if (isSystemError(error, 'EPIPE', 'ECONNRESET')) return 'closed';
      throw error;
    }
  }

  async #work(): Promise<void> {
    this.#working = true;
    try {
      for (let i = 0; i < BURST && this.#open && this.#output.length === 0; i++) {
        const message = this.#read();
        if (!message) break;
        try {
          this.#options.checkMessage(message);
          await this.#options.onMessage(message);
        } finally {
          closeAll(message.fds);
        }
      }
    } catch (error) {
      this.close(error as Error);
    }
    this.#working = false;
    if (this.#open) this.#rearm();
    else this.#ended();
  }

  /** The next message if it is complete; else what there is of it is kept. */
  #read(): Message | undefined {
    for (;;) {
      if (this.#filled === this.#target.length) {
        if (this.#header) return this.#take(this.#header);
        const header = decodeHeader(this.#headerBytes);
        this.#options.checkHeader(header);
        this.#header = header;
        this.#target = new Uint8Array(header.size);
        this.#filled = 0;
        continue;
      }
      const received = receive(this.#options.fd, this.#target.subarray(this.#filled));
      if (received === 'again') {
        this.#startTimer();
        return undefined;
      }
      if (received === 'closed') {
        if (this.#begun())
          throw new ProtocolError(`${this.#what()}: the connection closed in the middle of it`);
        this.close();
        return undefined;
      }
      this.#fds.push(...received.fds);
      if (received.truncated)
        throw new ProtocolError(
          `${this.#what()}: descriptors were lost, this process is out of them (ulimit -n)`,
        );
      if (this.#fds.length > MAX_DESCRIPTORS)
        throw new ProtocolError(`${this.#what()}: more than ${MAX_DESCRIPTORS} descriptors`);
      if (this.#header && received.fds.length > 0)
        throw new ProtocolError(`${this.#what()}: descriptors came with the payload, not with the header`);
      this.#filled += received.bytes;
    }
  }

  #take({ request, flags }: Header): Message {
    const message = { request, flags, payload: this.#target, fds: this.#fds };
    this.#header = undefined;
    this.#target = this.#headerBytes;
    this.#filled = 0;
    this.#fds = [];
    clearTimeout(this.#timer);
    this.#timer = undefined;
    return message;
  }

  #begun(): boolean {
    return this.#header !== undefined || this.#filled > 0;
  }

  #what(): string {
    return this.#header ? requestName(this.#header.request) : 'message header';
  }

  #startTimer(): void {
    if (this.#timer !== undefined || !this.#begun()) return;
    const timeout = this.#options.messageTimeout ?? 30_000;
    this.#timer = setTimeout(() => {
      const words = `only a part of it came within ${timeout / 1000} s`;
      this.close(new ProtocolError(`${this.#what()}: ${words}`));
    }, timeout);
    this.#timer.unref();
  }
}

function closeAll(fds: number[]): void {
  for (const fd of fds.splice(0)) closeFd(fd);
}
