/**
 * In-band notifications of one queue: for a front-end that speaks of kicks, calls and errors in messages, which the
 * data plane knows as eventfds only. So each queue gets eventfds of its own here: the message signals the one, and
 * what the workers signal becomes a message.
 */
import { closeFd, drain, duplicateFd, EPOLLIN, eventfd, type Poller, signal } from '../sys/index.ts';

export class InBandQueue {
  readonly #poller: Poller;
  readonly #kick = eventfd();
  readonly #call = eventfd();
  readonly #err = eventfd();

  /** `call` and `error` run when the data plane has signalled. */
  constructor(poller: Poller, tell: { call(): void; error(): void }) {
    this.#poller = poller;
    for (const [fd, act] of [
      [this.#call, tell.call],
      [this.#err, tell.error],
    ] as const)
      poller.add(fd, EPOLLIN, () => {
        drain(fd);
        act();
      });
  }

  /** Copies for a ring, which then belong to it. */
  kickFd(): number {
    return duplicateFd(this.#kick);
  }

  callFd(): number {
    return duplicateFd(this.#call);
  }

  errFd(): number {
    return duplicateFd(this.#err);
  }

  /** The guest has made buffers available. */
  kick(): void {
    signal(this.#kick);
  }

  close(): void {
    for (const fd of [this.#call, this.#err]) this.#poller.remove(fd);
    for (const fd of [this.#kick, this.#call, this.#err]) closeFd(fd);
  }
}
