/**
 * A relay between a vhost-user front-end and a back-end that lets the front-end find itself at another back-end while
 * it has stopped its queues: what it said when it connected is said again there. QEMU's generic device can neither be
 * migrated nor dial again; so its guest moves all the same.
 */
import { acceptUnix, closeFd, connectUnix, EPOLLIN, listenUnix, sharedPoller } from '../../src/sys/index.ts';
import { Connection } from '../../src/vhost/connection.ts';
import { FLAG_NEED_REPLY, type Message, requests } from '../../src/vhost/messages.ts';

/** Requests that have an answer of their own. */
const ANSWERED: readonly number[] = [
  requests.GET_FEATURES,
  requests.GET_PROTOCOL_FEATURES,
  requests.GET_QUEUE_NUM,
  requests.GET_VRING_BASE,
  requests.GET_CONFIG,
  requests.GET_INFLIGHT_FD,
  requests.GET_MAX_MEM_SLOTS,
  requests.GET_STATUS,
];
/** From this one on a front-end says again what it needs, each time that it starts its queues. */
const FIRST_OF_A_START = requests.SET_FEATURES;

export class Relay {
  readonly #lease = sharedPoller();
  readonly #listener: number;
  #front: Connection | undefined;
  #back: Connection;
  /** Who waits for the next answers of the back-end. */
  readonly #waiting: ((answer: Message) => void | Promise<void>)[] = [];
  /** What the front-end said before it started its queues for the first time; with descriptors of ours. */
  readonly #greeting: Message[] = [];
  #started = false;

  /** Listens at `path` for the front-end, whose back-end is at `target`. */
  constructor(path: string, target: string) {
    this.#back = this.#dial(target);
    this.#listener = listenUnix(path);
    this.#lease.poller.add(this.#listener, EPOLLIN, () => {
      const fd = acceptUnix(this.#listener);
      if (fd === undefined) return;
      this.#front = this.#connect(fd, (message) => this.#forward(message));
    });
  }

  #connect(fd: number, onMessage: (message: Message) => void | Promise<void>): Connection {
    const nothing = () => {};
    return new Connection({
      ...{ fd, poller: this.#lease.poller, onMessage, onClose: nothing },
      ...{ checkHeader: nothing, checkMessage: nothing },
    });
  }

  #dial(target: string): Connection {
    return this.#connect(connectUnix(target), async (answer) => {
      await this.#waiting.shift()?.(answer);
    });
  }

  async #forward(message: Message): Promise<void> {
    this.#started ||= message.request === FIRST_OF_A_START;
    const fds = message.fds.splice(0);
    if (isAnswered(message))
      this.#waiting.push((answer) =>
        this.#front?.send(answer.request, answer.flags, answer.payload, answer.fds),
      );
    await this.#back.send(message.request, message.flags, message.payload, fds);
    if (this.#started) for (const fd of fds) closeFd(fd);
    else this.#greeting.push({ ...message, fds });
  }

  /** Asks the back-end for something that the front-end doesn't hear of. */
  ask({ request, flags, payload, fds }: Message): Promise<Buffer> {
    return new Promise((resolve) => {
      this.#waiting.push((answer) => resolve(Buffer.from(answer.payload)));
      void this.#back.send(request, flags, payload, fds);
    });
  }

  /** Goes on with another back-end. Only while the front-end's queues are stopped. */
  async move(target: string): Promise<void> {
    this.#back.close();
    this.#back = this.#dial(target);
    for (const message of this.#greeting) {
      if (isAnswered(message)) await this.ask(message);
      else await this.#back.send(message.request, message.flags, message.payload, message.fds);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#lease.poller.remove(this.#listener);
    closeFd(this.#listener);
    this.#front?.close();
    this.#back.close();
    for (const { fds } of this.#greeting) for (const fd of fds) closeFd(fd);
    await this.#lease.release();
  }
}

function isAnswered({ request, flags }: Message): boolean {
  return ANSWERED.includes(request) || (flags & FLAG_NEED_REPLY) !== 0;
}
