/**
 * The back-end's own state on its way to another back-end (SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE): a few bytes
 * through a pipe that the front-end has made, in a format with a version.
 *
 * The bytes: `VIREO`, a zero, the version as u16 little-endian, and JSON in UTF-8. Rings aren't in it: the
 * front-end carries their positions itself. A transfer goes on beside the messages; whoever never ends it loses
 * the transfer after a while, and nobody else notices.
 */
import {
  closeFd,
  EPOLLIN,
  EPOLLOUT,
  fileInfo,
  ownPipe,
  type Poller,
  readNow,
  setNonBlocking,
  writeNow,
} from '../sys/index.ts';
import { MAX_MTU, MIN_MTU } from '../virtio/net-config.ts';
import { ProtocolError } from './messages.ts';

/** Direction of SET_DEVICE_STATE_FD: to the front-end, and from it. */
export const SAVE = 0;
export const LOAD = 1;

/** More is no state of a network device. */
const MAX_STATE = 4096;
const MAGIC = Buffer.from('VIREO\0');
const VERSION = 1;

export interface DeviceState {
  /** What the guest was told to keep to; null: nothing. */
  mtu: number | null;
  /** The MAC address of the configuration space. */
  mac: string;
}

export function encodeState(state: DeviceState): Uint8Array {
  return Buffer.concat([MAGIC, Uint8Array.of(VERSION, VERSION >> 8), Buffer.from(JSON.stringify(state))]);
}

/** Throws an Error that says why the bytes are no state of a network device that is known here. */
export function decodeState(bytes: Uint8Array): DeviceState {
  const whole = Buffer.from(bytes);
  if (whole.length < MAGIC.length + 2 || !whole.subarray(0, MAGIC.length).equals(MAGIC))
    throw new Error(`${bytes.length} bytes that are no state of this back-end`);
  const version = whole.readUInt16LE(MAGIC.length);
  if (version !== VERSION) throw new Error(`a state of version ${version}, ${VERSION} is known here`);
  let state: unknown;
  try {
    state = JSON.parse(whole.subarray(MAGIC.length + 2).toString());
  } catch {
    throw new Error('a state that is cut off or damaged');
  }
  const { mtu, mac } = (state ?? {}) as Record<string, unknown>;
  const goodMtu = mtu === null || (Number.isInteger(mtu) && Number(mtu) >= MIN_MTU && Number(mtu) <= MAX_MTU);
  if (!goodMtu) throw new Error(`a state with an MTU of ${JSON.stringify(mtu)?.slice(0, 40)}`);
  if (typeof mac !== 'string' || !/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/.test(mac))
    throw new Error(`a state with a MAC address of ${JSON.stringify(mac)?.slice(0, 40)}`);
  return { mtu: mtu as number | null, mac };
}

/** One way through the pipe, begun when it is made. */
export class StateTransfer {
  /** Resolves when it is over: with undefined, or with why it failed. Never rejects. */
  readonly done: Promise<string | undefined>;
  readonly #poller: Poller;
  readonly #fd: number;
  readonly #timer: NodeJS.Timeout;
  #settle: (failure: string | undefined) => void = () => {};
  #open = true;

  /**
   * Sends `bytes`, or receives until the end and hands on what came; `fd` belongs to the transfer from then on.
   * Throws a ProtocolError for what is no pipe or socket, which then stays the caller's.
   */
  constructor(poller: Poller, fd: number, timeout: number, what: Uint8Array | ((bytes: Uint8Array) => void)) {
    const { kind } = fileInfo(fd);
    if (kind !== 'pipe' && kind !== 'socket')
      throw new ProtocolError('the descriptor is neither a pipe nor a socket');
    setNonBlocking(fd);
    this.#poller = poller;
    // Whoever holds the other descriptor of it can make it blocking.
    this.#fd = kind === 'pipe' ? ownPipe(fd, typeof what !== 'function') : fd;
    this.done = new Promise((resolve) => {
      this.#settle = resolve;
    });
    this.#timer = setTimeout(() => this.end(`no end of it within ${timeout / 1000} s`), timeout);
    this.#timer.unref();
    const step = typeof what === 'function' ? this.#receiver(what) : this.#sender(what);
    const events = typeof what === 'function' ? EPOLLIN : EPOLLOUT;
    poller.add(this.#fd, events, () => {
      if (!this.#open) return;
      try {
        if (step()) this.end();
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') this.end((error as Error).message);
      }
    });
  }

  #receiver(take: (bytes: Uint8Array) => void): () => boolean {
    const buffer = new Uint8Array(MAX_STATE + 1);
    let filled = 0;
    return () => {
      const length = readNow(this.#fd, buffer.subarray(filled));
      filled += length;
      if (filled > MAX_STATE) throw new Error(`more than ${MAX_STATE} bytes`);
      if (length === 0) take(buffer.slice(0, filled));
      return length === 0;
    };
  }

  #sender(bytes: Uint8Array): () => boolean {
    let sent = 0;
    return () => {
      sent += writeNow(this.#fd, bytes.subarray(sent));
      return sent === bytes.length;
    };
  }

  /** Ends it, whatever is missing. May be called again. */
  end(failure?: string): void {
    if (!this.#open) return;
    this.#open = false;
    clearTimeout(this.#timer);
    this.#poller.remove(this.#fd);
    closeFd(this.#fd);
    this.#settle(failure);
  }
}
