/**
 * The channel on which a back-end asks something of its front-end: the socket that SET_BACKEND_REQ_FD brought.
 *
 * A front-end that doesn't read, or doesn't answer, costs a bounded amount of memory and holds up nobody: more than
 * so many bytes unsent, or so many answers missing, and the channel ends. The session goes on without it.
 */
import type { Poller } from '../sys/index.ts';
import { Connection } from './connection.ts';
import {
  backendRequests,
  decodeU64,
  encodeIotlb,
  encodeVringState,
  FLAG_NEED_REPLY,
  FLAG_REPLY,
  type IotlbMessage,
  ProtocolError,
  VERSION,
} from './messages.ts';

/** Answers that may be missing. */
const MAX_UNANSWERED = 64;

const NOTHING = new Uint8Array(0);
const names = new Map(Object.entries(backendRequests).map(([name, number]) => [number as number, name]));

export interface BackendChannelOptions {
  /** A connected stream socket; the channel closes it. */
  fd: number;
  poller: Poller;
  /** VHOST_USER_PROTOCOL_F_REPLY_ACK was negotiated: a request may ask for an answer. */
  acknowledges: boolean;
  /** VHOST_USER_PROTOCOL_F_CONFIG was negotiated: the front-end knows of a configuration space. */
  hasConfig: boolean;
  /** Once, when it has ended: why, in one sentence; undefined where the front-end closed it or `close` was called. */
  onClose?(reason: string | undefined): void;
}

interface Unanswered {
  request: number;
  settle(accepted: boolean): void;
}

export class BackendChannel {
  readonly #options: BackendChannelOptions;
  readonly #connection: Connection;
  readonly #unanswered: Unanswered[] = [];

  /** Throws a SystemError when the poller can't watch the socket, which then stays the caller's. */
  constructor(options: BackendChannelOptions) {
    this.#options = options;
    this.#connection = new Connection({
      fd: options.fd,
      poller: options.poller,
      checkHeader: ({ request, flags, size }) => {
        const due = this.#unanswered[0];
        const name = names.get(request) ?? `message ${request}`;
        if (!due || due.request !== request || flags !== (FLAG_REPLY | VERSION) || size !== 8)
          throw new ProtocolError(`${name}: not an answer that was asked for`);
      },
      checkMessage: ({ fds }) => {
        if (fds.length > 0) throw new ProtocolError('an answer brought descriptors');
      },
      onMessage: ({ payload }) => this.#unanswered.shift()?.settle(decodeU64(payload) === 0n),
      onClose: (reason) => {
        for (const { settle } of this.#unanswered.splice(0)) settle(false);
        options.onClose?.(reason && `the back-end channel: ${reason.message}`);
      },
    });
  }

  get open(): boolean {
    return this.#connection.open;
  }

  /** The configuration space or the status has changed. Resolves with whether the front-end took it, as far as it says. */
  async configChanged(): Promise<boolean> {
    return this.#options.hasConfig && this.#ask(backendRequests.CONFIG_CHANGE_MSG, NOTHING);
  }

  /** There is something in the used ring of this queue: in place of its call eventfd (in-band notifications). */
  vringCall(index: number): void {
    this.#tell(backendRequests.VRING_CALL, encodeVringState({ index, num: 0 }));
  }

  /** The queue is broken: in place of its err eventfd (in-band notifications). */
  vringError(index: number): void {
    this.#tell(backendRequests.VRING_ERR, encodeVringState({ index, num: 0 }));
  }

  /** An I/O virtual address that isn't known is needed (MISS), or was refused (ACCESS_FAIL). */
  iotlb(message: IotlbMessage): void {
    this.#tell(backendRequests.IOTLB_MSG, encodeIotlb(message));
  }

  /** Ends it; requests without an answer count as refused. */
  close(): void {
    this.#connection.close();
  }

  #tell(request: number, payload: Uint8Array): void {
    void this.#connection.send(request, 0, payload);
  }

  async #ask(request: number, payload: Uint8Array): Promise<boolean> {
    if (!this.open) return false;
    if (!this.#options.acknowledges) {
      this.#tell(request, payload);
      return true;
    }
    if (this.#unanswered.length === MAX_UNANSWERED) {
      this.#connection.close(
        new ProtocolError(`the other end doesn't answer: ${MAX_UNANSWERED} answers are missing`),
      );
      return false;
    }
    const answer = new Promise<boolean>((settle) => {
      this.#unanswered.push({ request, settle });
    });
    void this.#connection.send(request, FLAG_NEED_REPLY, payload);
    return answer;
  }
}
