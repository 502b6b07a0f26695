/**
 * The back-end's end of a vhost-user connection: it answers the front-end and drives a device (device.ts).
 *
 * Theory of operation. Messages are handled one after the other; each is checked at full width before anything
 * changes. A queue is stopped until SET_VRING_KICK, runs until GET_VRING_BASE, and is enabled or disabled
 * independently of that; without VHOST_USER_F_PROTOCOL_FEATURES it is enabled as it starts.
 *
 * When a request fails, `lastError` says why, and then:
 * - one that this back-end doesn't implement is answered with non-zero where an acknowledgement was asked for,
 *   and the session goes on;
 * - one that was refused before it changed anything is treated the same where an acknowledgement was asked for;
 *   without one the front-end would not learn of it, so the connection ends;
 * - SET_MEM_TABLE, and anything that failed inside the device, is acknowledged with non-zero, and then the
 *   connection ends: the front-end's memory has changed and nobody here can follow;
 * - one that has an answer of its own ends the connection, since there is no way to answer "no".
 *
 * Where real front-ends need it, the rules are wider than the document's: SET_OWNER isn't required (DPDK's
 * virtio-user doesn't send it again after a reconnect), SET_VRING_ENABLE may come before SET_FEATURES (QEMU), and
 * what is set again to the value that it has, on a running ring, is no error (QEMU with several queue pairs).
 */
import { closeFd, fileInfo, type Poller } from '../sys/index.ts';
import { features, vhostProtocolFeatures } from '../virtio/features.ts';
import { deviceStatus, statusNames } from '../virtio/status.ts';
import { BackendChannel } from './backend-channel.ts';
import { Connection } from './connection.ts';
import type { VhostUserDevice } from './device.ts';
import {
  getConfig,
  getStatus,
  resetDevice,
  sendRarp,
  setConfig,
  setMtu,
  setStatus,
} from './device-messages.ts';
import { setFeatures, setProtocolFeatures } from './feature-messages.ts';
import {
  addRegion,
  getInflight,
  removeRegion,
  setInflight,
  setIotlb,
  setLogBase,
  setLogFd,
  setMemoryTable,
} from './memory-messages.ts';
import {
  acknowledgesRegions,
  checkRequest,
  checkRequestHeader,
  decodeU64,
  encodeU64,
  FLAG_NEED_REPLY,
  FLAG_REPLY,
  hasAnswer,
  MAX_SLOTS,
  type Message,
  ProtocolError,
  type RegionLayout,
  requestName,
  requests,
} from './messages.ts';
import {
  closeNotifiers,
  getBase,
  kick,
  resetOwner,
  setAddress,
  setBase,
  setEnable,
  setKick,
  setNotifier,
  setNum,
} from './ring-messages.ts';
import { type Answer, named, type QueueState, type Session } from './session.ts';
import {
  advisePostcopy,
  answersWithRegions,
  checkState,
  endPostcopy,
  listenPostcopy,
  regionsKnown,
  setStateFd,
} from './transfer-messages.ts';

const { VHOST_USER_F_PROTOCOL_FEATURES, VHOST_F_LOG_ALL, VIRTIO_F_ACCESS_PLATFORM } = features;
const {
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_RARP,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_PAGEFAULT,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_STATUS,
} = vhostProtocolFeatures;

/** Milliseconds, where the options say nothing: see Session. */
const PATIENCE = 30_000;

/** Requests that a network device never has, and why. */
const MEANINGLESS = new Map<number, string>([
  [requests.SET_VRING_ENDIAN, ': rings are little-endian here'],
  [requests.CREATE_CRYPTO_SESSION, ': a network device has no crypto sessions'],
  [requests.CLOSE_CRYPTO_SESSION, ': a network device has no crypto sessions'],
  [requests.GPU_SET_SOCKET, ': a network device has no display'],
  [requests.GET_SHARED_OBJECT, ': a network device exports no dma-buf'],
  [requests.GET_SHMEM_CONFIG, ': a network device has no shared memory regions'],
]);

export interface BackendSessionOptions {
  /** A connected socket; the session closes it. */
  fd: number;
  poller: Poller;
  device: VhostUserDevice;
  /** Who is at the other end, for display. */
  peer?: string;
  /** Milliseconds in which a message that has begun must be complete; default 30,000. */
  messageTimeout?: number;
  /** A request failed; one sentence that names it and the reason. */
  onError?(message: string): void;
  /** Features, memory or a queue's state have changed. */
  onState?(): void;
  /** Once: the session has ended and the device is reset. */
  onClose?(reason: string): void;
}

type Handler = (message: Message) => Answer | Promise<Answer>;

/** The request isn't one that this back-end implements, or not with what was negotiated. */
class Unsupported extends ProtocolError {}

/** Serves one front-end until it leaves, breaks the protocol, or `close` is called. */
export class BackendSession {
  readonly peer: string;
  /** Resolves when the session has ended and the device is reset. */
  readonly closed: Promise<void>;
  readonly #options: BackendSessionOptions;
  /** What the front-end has set up so far. */
  readonly #s: Session;
  readonly #connection: Connection;
  readonly #handlers: ReadonlyMap<number, Handler>;
  #ended: () => void = () => {};
  #lastError: string | undefined;
  #closedHere = false;

  /** Throws a SystemError when the poller can't watch the socket, which then stays the caller's. */
  constructor(options: BackendSessionOptions) {
    this.#options = options;
    this.peer = options.peer ?? '';
    this.#s = {
      device: options.device,
      poller: options.poller,
      patience: options.messageTimeout ?? PATIENCE,
      vrings: [],
      features: undefined,
      settled: false,
      protocolFeatures: 0n,
      status: 0,
      state: undefined,
      postcopy: undefined,
      inBand: new Map(),
      memory: [],
      logSize: undefined,
      channel: undefined,
      report: (message) => this.#report(message),
      changed: () => this.#changed(),
      close: (reason) => this.#connection.close(reason),
      onHangUp: (act) => {
        this.#connection.onHangUp = act;
      },
    };
    this.#handlers = this.#implemented();
    this.closed = new Promise((resolve) => {
      this.#ended = resolve;
    });
    this.#connection = new Connection({
      fd: options.fd,
      poller: options.poller,
      messageTimeout: options.messageTimeout,
      checkHeader: (header) => checkRequestHeader(header, { postcopy: this.#s.postcopy?.active }),
      checkMessage: (message) => checkRequest(message, { postcopy: this.#s.postcopy?.active }),
      onMessage: (message) => this.#handle(message),
      onClose: (reason) => void this.#finish(reason),
    });
  }

  /** Virtio features that the front-end acknowledged; 0n before that. */
  get features(): bigint {
    return this.#s.features ?? 0n;
  }

  /** vhost-user protocol features that the front-end acknowledged; 0n before that. */
  get protocolFeatures(): bigint {
    return this.#s.protocolFeatures;
  }

  /** The device status that the driver has set, as `ACKNOWLEDGE DRIVER`; empty where the front-end doesn't tell. */
  get driverStatus(): string {
    return statusNames(this.#s.status);
  }

  /** By number, up to the last one that the front-end has spoken of. */
  get queues(): readonly QueueState[] {
    return this.#s.vrings;
  }

  get memory(): readonly RegionLayout[] {
    return this.#s.memory;
  }

  /** The last thing that went wrong, in one sentence; null if nothing did. */
  get lastError(): string | null {
    return this.#lastError ?? null;
  }

  /** Ends the connection and resets the device. */
  close(reason = 'closed here'): Promise<void> {
    this.#closedHere ||= this.#connection.open;
    this.#s.state?.end('the connection ended');
    this.#s.postcopy?.abandon();
    this.#connection.close(new Error(reason));
    return this.closed;
  }

  /**
   * A queue broke: a driver that has its device live is told to look at it again (virtio 1.3, 2.1.2), and finds
   * DEVICE_NEEDS_RESET.
   */
  queueBroken(): void {
    if (this.#s.status & deviceStatus.DRIVER_OK) void this.#s.channel?.configChanged();
  }

  #implemented(): Map<number, Handler> {
    const s = this.#s;
    const handlers = new Map<number, Handler>([
      [requests.GET_FEATURES, () => encodeU64(s.device.features)],
      [requests.SET_FEATURES, (m) => setFeatures(s, decodeU64(m.payload))],
      [requests.SET_OWNER, () => undefined],
      [requests.RESET_OWNER, () => resetOwner(s)],
      [requests.SET_MEM_TABLE, (m) => setMemoryTable(s, m)],
      [requests.SET_VRING_NUM, (m) => setNum(s, m)],
      [requests.SET_VRING_ADDR, (m) => setAddress(s, m)],
      [requests.SET_VRING_BASE, (m) => setBase(s, m)],
      [requests.GET_VRING_BASE, (m) => getBase(s, m)],
      [requests.SET_VRING_KICK, (m) => setKick(s, m)],
      [requests.SET_VRING_CALL, (m) => setNotifier(s, m, 'callFd')],
      [requests.SET_VRING_ERR, (m) => setNotifier(s, m, 'errFd')],
    ]);
    if (s.device.features & VHOST_F_LOG_ALL) handlers.set(requests.SET_LOG_FD, (m) => setLogFd(s, m));
    if (s.device.features & VHOST_USER_F_PROTOCOL_FEATURES) {
      const offered = s.device.protocolFeatures;
      handlers.set(requests.GET_PROTOCOL_FEATURES, () => encodeU64(offered));
      handlers.set(requests.SET_PROTOCOL_FEATURES, (m) => setProtocolFeatures(s, decodeU64(m.payload)));
      handlers.set(requests.SET_VRING_ENABLE, (m) => setEnable(s, m));
      if (s.device.features & VIRTIO_F_ACCESS_PLATFORM)
        handlers.set(requests.IOTLB_MSG, (m) => setIotlb(s, m));
      if (offered & VHOST_USER_PROTOCOL_F_BACKEND_REQ)
        handlers.set(requests.SET_BACKEND_REQ_FD, (m) => this.#setChannel(m));
      if (offered & VHOST_USER_PROTOCOL_F_LOG_SHMFD)
        handlers.set(requests.SET_LOG_BASE, (m) => setLogBase(s, m));
      if (offered & VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) {
        handlers.set(requests.GET_INFLIGHT_FD, (m) => getInflight(s, m));
        handlers.set(requests.SET_INFLIGHT_FD, (m) => setInflight(s, m));
      }
      if (offered & VHOST_USER_PROTOCOL_F_RARP) handlers.set(requests.SEND_RARP, (m) => sendRarp(s, m));
      if (offered & VHOST_USER_PROTOCOL_F_MQ)
        handlers.set(requests.GET_QUEUE_NUM, () => encodeU64(BigInt(s.device.queuePairs)));
      if (offered & VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS) {
        handlers.set(requests.GET_MAX_MEM_SLOTS, () => encodeU64(BigInt(MAX_SLOTS)));
        handlers.set(requests.ADD_MEM_REG, (m) => addRegion(s, m));
        handlers.set(requests.REM_MEM_REG, (m) => removeRegion(s, m));
      }
      if (offered & VHOST_USER_PROTOCOL_F_MTU)
        handlers.set(requests.NET_SET_MTU, (m) => setMtu(s, decodeU64(m.payload)));
      if (offered & VHOST_USER_PROTOCOL_F_CONFIG) {
        handlers.set(requests.GET_CONFIG, (m) => getConfig(s, m));
        handlers.set(requests.SET_CONFIG, (m) => setConfig(s, m));
      }
      if (offered & VHOST_USER_PROTOCOL_F_STATUS) {
        handlers.set(requests.SET_STATUS, (m) => setStatus(s, decodeU64(m.payload)));
        handlers.set(requests.GET_STATUS, () => getStatus(s));
      }
      if (offered & VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS)
        handlers.set(requests.VRING_KICK, (m) => kick(s, m));
      if (offered & VHOST_USER_PROTOCOL_F_DEVICE_STATE) {
        handlers.set(requests.SET_DEVICE_STATE_FD, (m) => setStateFd(s, m));
        handlers.set(requests.CHECK_DEVICE_STATE, () => checkState(s));
      }
      if (offered & VHOST_USER_PROTOCOL_F_PAGEFAULT) {
        handlers.set(requests.POSTCOPY_ADVISE, (m) => advisePostcopy(s, m));
        handlers.set(requests.POSTCOPY_LISTEN, () => listenPostcopy(s));
        handlers.set(requests.POSTCOPY_END, () => endPostcopy(s));
      }
      if (offered & VHOST_USER_PROTOCOL_F_RESET_DEVICE)
        handlers.set(requests.RESET_DEVICE, () => resetDevice(s));
    }
    return handlers;
  }

  async #handle(message: Message): Promise<void> {
    const { request, flags } = message;
    const acknowledge =
      (flags & FLAG_NEED_REPLY) !== 0 && (this.#s.protocolFeatures & VHOST_USER_PROTOCOL_F_REPLY_ACK) !== 0n;
    const late = this.#s.postcopy?.active === true;
    const answers = hasAnswer(request, this.#s.protocolFeatures) || (late && answersWithRegions(request));
    try {
      const known = late && acknowledgesRegions({ request, size: message.payload.length });
      const handler = known ? (m: Message) => regionsKnown(this.#s, m) : this.#handlers.get(request);
      if (!handler) throw new Unsupported(`${requestName(request)}: ${this.#whyUnsupported(request)}`);
      const answer = (await handler(message)) ?? (acknowledge ? encodeU64(0n) : undefined);
      if (answer instanceof Uint8Array) void this.#connection.send(request, FLAG_REPLY, answer);
      else if (answer) {
        const { payload, fd } = answer;
        void this.#connection.send(request, FLAG_REPLY, payload, [fd]).then(() => closeFd(fd));
      }
    } catch (error) {
      if (!this.#connection.open) return;
      const failure = named(request, error);
      if (acknowledge && !answers) void this.#connection.send(request, FLAG_REPLY, encodeU64(1n));
      const refused = error instanceof ProtocolError && request !== requests.SET_MEM_TABLE;
      const goesOn = !answers && (error instanceof Unsupported || (refused && acknowledge));
      if (!goesOn) throw failure;
      this.#report(failure.message);
    }
  }

  #whyUnsupported(request: number): string {
    if (request === requests.SET_LOG_BASE || request === requests.SET_LOG_FD)
      return 'logging was not negotiated';
    return requestName(request) === `message ${request}`
      ? 'no such request is known here'
      : `not offered by this back-end${MEANINGLESS.get(request) ?? ''}`;
  }

  #report(message: string): void {
    this.#lastError = message;
    this.#options.onError?.(message);
  }

  async #finish(reason: Error | undefined): Promise<void> {
    if (reason && !this.#closedHere) this.#report(reason.message);
    const channel = this.#s.channel;
    this.#s.postcopy?.abandon();
    this.#useChannel(undefined);
    channel?.close();
    for (const vring of this.#s.vrings) closeNotifiers(vring);
    this.#s.state?.end('the connection ended');
    try {
      await this.#s.device.reset();
    } catch (error) {
      this.#report(`reset: ${(error as Error).message}`);
    }
    for (const queue of this.#s.inBand.values()) queue.close();
    this.#s.inBand.clear();
    for (const vring of this.#s.vrings) vring.running = false;
    this.#s.memory = [];
    this.#options.onState?.();
    this.#options.onClose?.(reason?.message ?? 'the front-end closed the connection');
    this.#ended();
  }

  #changed(): undefined {
    this.#options.onState?.();
    return undefined;
  }

  /** The socket for requests of ours, in place of the one before. */
  #setChannel(message: Message): undefined {
    const fd = message.fds[0]!;
    if (fileInfo(fd).kind !== 'socket') throw new ProtocolError('the descriptor is not a socket');
    const channel = new BackendChannel({
      fd,
      poller: this.#options.poller,
      acknowledges: (this.#s.protocolFeatures & VHOST_USER_PROTOCOL_F_REPLY_ACK) !== 0n,
      hasConfig: (this.#s.protocolFeatures & VHOST_USER_PROTOCOL_F_CONFIG) !== 0n,
      onClose: (reason) => {
        if (this.#s.channel === channel) this.#useChannel(undefined);
        if (reason !== undefined) this.#report(reason);
      },
    });
    message.fds.length = 0;
    const old = this.#s.channel;
    this.#useChannel(channel);
    old?.close();
    return undefined;
  }

  #useChannel(channel: BackendChannel | undefined): void {
    this.#s.channel = channel;
    this.#s.device.setChannel?.(channel);
  }
}
