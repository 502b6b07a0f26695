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
import { closeFd, duplicateFd, fileInfo, isEventFd, type Poller, setNonBlocking } from '../sys/index.ts';
import {
  featureNames,
  features,
  vhostProtocolFeatureNames,
  vhostProtocolFeatures,
} from '../virtio/features.ts';
import { changedFields, MAX_MTU, MIN_MTU } from '../virtio/net-config.ts';
import { deviceStatus, foreignStatus, nextStatus, statusNames } from '../virtio/status.ts';
import { BackendChannel } from './backend-channel.ts';

import { Connection } from './connection.ts';
import type { VhostUserDevice, VringChange } from './device.ts';
import { decodeState, encodeState, LOAD, SAVE, StateTransfer } from './device-state.ts';
import { logReach } from './dirty-log.ts';
import { InBandQueue } from './in-band.ts';
import { checkInflight, createInflight } from './inflight.ts';
import { wholeRange } from './iotlb.ts';
import {
  acknowledgesRegions,
  checkRequest,
  checkRequestHeader,
  decodeConfig,
  decodeInflight,
  decodeIotlb,
  decodeLog,
  decodeMemoryTable,
  decodeRegion,
  decodeU64,
  decodeVringAddress,
  decodeVringIndex,
  decodeVringState,
  encodeConfig,
  encodeInflight,
  encodeMemoryTable,
  encodeRegion,
  encodeU64,
  encodeVringState,
  FLAG_NEED_REPLY,
  FLAG_REPLY,
  hasAnswer,
  type IotlbMessage,
  iotlb,
  MAX_SLOTS,
  type Message,
  ProtocolError,
  type RegionLayout,
  requestName,
  requests,
  VRING_LOG,
  VRING_NO_FD,
} from './messages.ts';
import type { Postcopy } from './postcopy.ts';
import { checkFile, checkLog, checkRegion, checkRegions, regionsOverlap, sameRegion } from './regions.ts';

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

/** Milliseconds in which the device's state must be through, and in which a page must come that a thread waits for. */
const PATIENCE = 30_000;
const MAX_VRING_SIZE = 32768;
const MAX_BASE = 0xffff;
const END_OF_ADDRESSES = 1n << 64n;
/** Bytes of SET_LOG_BASE's payload: size and offset. */
const LOG_PAYLOAD = 16;
/** No used ring has more bytes. */
const USED_BOUND = 1n << 20n;

/** What the main thread reads and writes of guest memory with these must be there. */
const POSTCOPY_REFUSES = [
  [features.VIRTIO_F_ACCESS_PLATFORM, 'a guest behind an IOMMU can not migrate by postcopy'],
  [features.VIRTIO_NET_F_CTRL_VQ, 'a guest whose control queue is served here can not migrate by postcopy'],
] as const;

/** Requests that a network device never has, and why. */
const MEANINGLESS = new Map<number, string>([
  [requests.SET_VRING_ENDIAN, ': rings are little-endian here'],
  [requests.CREATE_CRYPTO_SESSION, ': a network device has no crypto sessions'],
  [requests.CLOSE_CRYPTO_SESSION, ': a network device has no crypto sessions'],
  [requests.GPU_SET_SOCKET, ': a network device has no display'],
  [requests.GET_SHARED_OBJECT, ': a network device exports no dma-buf'],
  [requests.GET_SHMEM_CONFIG, ': a network device has no shared memory regions'],
]);

/** A queue as the front-end has set it up. */
export interface QueueState {
  /** Entries; 0: not set. */
  readonly size: number;
  /** Next entry of the available ring, as of the last start or stop. */
  readonly base: number;
  readonly running: boolean;
  readonly enabled: boolean;
}

interface Vring extends QueueState {
  size: number;
  base: number;
  running: boolean;
  enabled: boolean;
  address: { descUser: bigint; usedUser: bigint; availUser: bigint } | undefined;
  /** Guest address for the log of writes to the used ring. */
  logUsed: bigint | null;
  /** SET_VRING_CALL has come, with an eventfd or to say that the guest polls. */
  callGiven: boolean;
  /** Came before the ring started, -1 for none; a running ring's belongs to the device. */
  callFd: number;
  /** Stays here, the device gets a copy: QEMU sends it once a connection, and rings start again and again. */
  errFd: number;
}

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

/** An answer with a descriptor, which is closed when it has left. */
interface FileAnswer {
  payload: Uint8Array;
  fd: number;
}

type Answer = Uint8Array | FileAnswer | undefined;
type Handler = (message: Message) => Answer | Promise<Answer>;

/** The request isn't one that this back-end implements, or not with what was negotiated. */
class Unsupported extends ProtocolError {}

/** Serves one front-end until it leaves, breaks the protocol, or `close` is called. */
export class BackendSession {
  readonly peer: string;
  /** Resolves when the session has ended and the device is reset. */
  readonly closed: Promise<void>;
  readonly #options: BackendSessionOptions;
  readonly #device: VhostUserDevice;
  readonly #connection: Connection;
  /** Those that the front-end has spoken of. */
  readonly #vrings: Vring[] = [];
  readonly #handlers: ReadonlyMap<number, Handler>;
  #ended: () => void = () => {};
  #features: bigint | undefined;
  #protocolFeatures = 0n;
  #status = 0;
  #state: StateTransfer | undefined;
  #postcopy: Postcopy | undefined;
  readonly #inBand = new Map<number, InBandQueue>();
  #memory: RegionLayout[] = [];
  /** Bytes of the dirty log; undefined: there is none. */
  #logSize: bigint | undefined;
  #channel: BackendChannel | undefined;
  #lastError: string | undefined;
  #closedHere = false;

  /** Throws a SystemError when the poller can't watch the socket, which then stays the caller's. */
  constructor(options: BackendSessionOptions) {
    this.#options = options;
    this.#device = options.device;
    this.peer = options.peer ?? '';
    this.#handlers = this.#implemented();
    this.closed = new Promise((resolve) => {
      this.#ended = resolve;
    });
    this.#connection = new Connection({
      fd: options.fd,
      poller: options.poller,
      messageTimeout: options.messageTimeout,
      checkHeader: (header) => checkRequestHeader(header, { postcopy: this.#postcopy?.active }),
      checkMessage: (message) => checkRequest(message, { postcopy: this.#postcopy?.active }),
      onMessage: (message) => this.#handle(message),
      onClose: (reason) => void this.#finish(reason),
    });
  }

  /** Virtio features that the front-end acknowledged; 0n before that. */
  get features(): bigint {
    return this.#features ?? 0n;
  }

  /** vhost-user protocol features that the front-end acknowledged; 0n before that. */
  get protocolFeatures(): bigint {
    return this.#protocolFeatures;
  }

  /** The device status that the driver has set, as `ACKNOWLEDGE DRIVER`; empty where the front-end doesn't tell. */
  get driverStatus(): string {
    return statusNames(this.#status);
  }

  /** By number, up to the last one that the front-end has spoken of. */
  get queues(): readonly QueueState[] {
    return this.#vrings;
  }

  get memory(): readonly RegionLayout[] {
    return this.#memory;
  }

  /** The last thing that went wrong, in one sentence; null if nothing did. */
  get lastError(): string | null {
    return this.#lastError ?? null;
  }

  /** Ends the connection and resets the device. */
  close(reason = 'closed here'): Promise<void> {
    this.#closedHere ||= this.#connection.open;
    this.#state?.end('the connection ended');
    this.#postcopy?.abandon();
    this.#connection.close(new Error(reason));
    return this.closed;
  }

  #implemented(): Map<number, Handler> {
    const handlers = new Map<number, Handler>([
      [requests.GET_FEATURES, () => encodeU64(this.#device.features)],
      [requests.SET_FEATURES, (m) => this.#setFeatures(decodeU64(m.payload))],
      [requests.SET_OWNER, () => undefined],
      [requests.RESET_OWNER, () => this.#resetOwner()],
      [requests.SET_MEM_TABLE, (m) => this.#setMemoryTable(m)],
      [requests.SET_VRING_NUM, (m) => this.#setNum(m)],
      [requests.SET_VRING_ADDR, (m) => this.#setAddress(m)],
      [requests.SET_VRING_BASE, (m) => this.#setBase(m)],
      [requests.GET_VRING_BASE, (m) => this.#getBase(m)],
      [requests.SET_VRING_KICK, (m) => this.#setKick(m)],
      [requests.SET_VRING_CALL, (m) => this.#setNotifier(m, 'callFd')],
      [requests.SET_VRING_ERR, (m) => this.#setNotifier(m, 'errFd')],
    ]);
    if (this.#device.features & VHOST_F_LOG_ALL) handlers.set(requests.SET_LOG_FD, (m) => this.#setLogFd(m));
    if (this.#device.features & VHOST_USER_F_PROTOCOL_FEATURES) {
      const offered = this.#device.protocolFeatures;
      handlers.set(requests.GET_PROTOCOL_FEATURES, () => encodeU64(offered));
      handlers.set(requests.SET_PROTOCOL_FEATURES, (m) => this.#setProtocolFeatures(decodeU64(m.payload)));
      handlers.set(requests.SET_VRING_ENABLE, (m) => this.#setEnable(m));
      if (this.#device.features & VIRTIO_F_ACCESS_PLATFORM)
        handlers.set(requests.IOTLB_MSG, (m) => this.#setIotlb(m));
      if (offered & VHOST_USER_PROTOCOL_F_BACKEND_REQ)
        handlers.set(requests.SET_BACKEND_REQ_FD, (m) => this.#setChannel(m));
      if (offered & VHOST_USER_PROTOCOL_F_LOG_SHMFD)
        handlers.set(requests.SET_LOG_BASE, (m) => this.#setLogBase(m));
      if (offered & VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) {
        handlers.set(requests.GET_INFLIGHT_FD, (m) => this.#getInflight(m));
        handlers.set(requests.SET_INFLIGHT_FD, (m) => this.#setInflight(m));
      }
      if (offered & VHOST_USER_PROTOCOL_F_RARP) handlers.set(requests.SEND_RARP, (m) => this.#sendRarp(m));
      if (offered & VHOST_USER_PROTOCOL_F_MQ)
        handlers.set(requests.GET_QUEUE_NUM, () => encodeU64(BigInt(this.#device.queuePairs)));
      if (offered & VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS) {
        handlers.set(requests.GET_MAX_MEM_SLOTS, () => encodeU64(BigInt(MAX_SLOTS)));
        handlers.set(requests.ADD_MEM_REG, (m) => this.#addRegion(m));
        handlers.set(requests.REM_MEM_REG, (m) => this.#removeRegion(m));
      }
      if (offered & VHOST_USER_PROTOCOL_F_MTU)
        handlers.set(requests.NET_SET_MTU, (m) => this.#setMtu(decodeU64(m.payload)));
      if (offered & VHOST_USER_PROTOCOL_F_CONFIG) {
        handlers.set(requests.GET_CONFIG, (m) => this.#getConfig(m));
        handlers.set(requests.SET_CONFIG, (m) => this.#setConfig(m));
      }
      if (offered & VHOST_USER_PROTOCOL_F_STATUS) {
        handlers.set(requests.SET_STATUS, (m) => this.#setStatus(decodeU64(m.payload)));
        handlers.set(requests.GET_STATUS, () => encodeU64(BigInt(this.#status)));
      }
      if (offered & VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS)
        handlers.set(requests.VRING_KICK, (m) => this.#kick(m));
      if (offered & VHOST_USER_PROTOCOL_F_DEVICE_STATE) {
        handlers.set(requests.SET_DEVICE_STATE_FD, (m) => this.#setStateFd(m));
        handlers.set(requests.CHECK_DEVICE_STATE, () => this.#checkState());
      }
      if (offered & VHOST_USER_PROTOCOL_F_PAGEFAULT) {
        handlers.set(requests.POSTCOPY_ADVISE, (m) => this.#advisePostcopy(m));
        handlers.set(requests.POSTCOPY_LISTEN, () => this.#listenPostcopy());
        handlers.set(requests.POSTCOPY_END, () => this.#endPostcopy());
      }
      if (offered & VHOST_USER_PROTOCOL_F_RESET_DEVICE)
        handlers.set(requests.RESET_DEVICE, () => this.#resetDevice());
    }
    return handlers;
  }

  async #handle(message: Message): Promise<void> {
    const { request, flags } = message;
    const acknowledge =
      (flags & FLAG_NEED_REPLY) !== 0 && (this.#protocolFeatures & VHOST_USER_PROTOCOL_F_REPLY_ACK) !== 0n;
    const late = this.#postcopy?.active === true;
    const answers = hasAnswer(request, this.#protocolFeatures) || (late && answersWithRegions(request));
    try {
      const known = late && acknowledgesRegions({ request, size: message.payload.length });
      const handler = known ? (m: Message) => this.#regionsKnown(m) : this.#handlers.get(request);
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
    const channel = this.#channel;
    this.#postcopy?.abandon();
    this.#useChannel(undefined);
    channel?.close();
    for (const vring of this.#vrings) closeNotifiers(vring);
    this.#state?.end('the connection ended');
    try {
      await this.#device.reset();
    } catch (error) {
      this.#report(`reset: ${(error as Error).message}`);
    }
    for (const queue of this.#inBand.values()) queue.close();
    this.#inBand.clear();
    for (const vring of this.#vrings) vring.running = false;
    this.#memory = [];
    this.#options.onState?.();
    this.#options.onClose?.(reason?.message ?? 'the front-end closed the connection');
    this.#ended();
  }

  #changed(): undefined {
    this.#options.onState?.();
    return undefined;
  }

  async #setFeatures(bits: bigint): Promise<undefined> {
    const extra = bits & ~this.#device.features;
    if (extra !== 0n) throw new ProtocolError(`${featureNames(extra).join(', ')} not offered`);
    if (this.#postcopy?.active) checkPostcopy(bits);
    const before = this.#features;
    if (before !== undefined && this.#vrings.some((vring) => vring.running)) {
      // Live migration begins and ends this way, with the guest running.
      const change = (before ^ bits) & ~VHOST_F_LOG_ALL;
      if (change !== 0n)
        throw new ProtocolError(`${featureNames(change).join(', ')} changed while a queue is running`);
    }
    if (bits !== before) await this.#device.setFeatures(bits);
    this.#features = bits;
    // "Ring states": without protocol features nobody could enable a ring.
    if ((bits & VHOST_USER_F_PROTOCOL_FEATURES) === 0n) await this.#enableAll(true);
    return this.#changed();
  }

  #setProtocolFeatures(bits: bigint): undefined {
    const extra = bits & ~this.#device.protocolFeatures;
    if (extra !== 0n) throw new ProtocolError(`${vhostProtocolFeatureNames(extra).join(', ')} not offered`);
    const needs = VHOST_USER_PROTOCOL_F_BACKEND_REQ | VHOST_USER_PROTOCOL_F_REPLY_ACK;
    // "In-band notifications": the connection is to end, there is no other way to say so.
    if (bits & VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS && (bits & needs) !== needs)
      throw new Error('in-band notifications need BACKEND_REQ and REPLY_ACK');
    this.#protocolFeatures = bits;
    return this.#changed();
  }

  /** Answered by specification: a fault in it is no reason to end the connection. */
  async #setIotlb({ request, payload }: Message): Promise<Uint8Array> {
    const message = decodeIotlb(payload);
    try {
      checkIotlb(message);
      if (((this.#features ?? 0n) & VIRTIO_F_ACCESS_PLATFORM) === 0n)
        throw new ProtocolError('a translation, and VIRTIO_F_ACCESS_PLATFORM is not acknowledged');
      const size = message.type === iotlb.INVALIDATE ? wholeRange(message.iova, message.size) : message.size;
      await this.#device.setIotlb?.({ ...message, size });
      return encodeU64(0n);
    } catch (error) {
      this.#report(named(request, error).message);
      return encodeU64(1n);
    }
  }

  /** The socket for requests of ours, in place of the one before. */
  #setChannel(message: Message): undefined {
    const fd = message.fds[0]!;
    if (fileInfo(fd).kind !== 'socket') throw new ProtocolError('the descriptor is not a socket');
    const channel = new BackendChannel({
      fd,
      poller: this.#options.poller,
      acknowledges: (this.#protocolFeatures & VHOST_USER_PROTOCOL_F_REPLY_ACK) !== 0n,
      onClose: (reason) => {
        if (this.#channel === channel) this.#useChannel(undefined);
        if (reason !== undefined) this.#report(reason);
      },
    });
    message.fds.length = 0;
    const old = this.#channel;
    this.#useChannel(channel);
    old?.close();
    return undefined;
  }

  #useChannel(channel: BackendChannel | undefined): void {
    this.#channel = channel;
    this.#device.setChannel?.(channel);
  }

  /** Deprecated; the document leaves a back-end to ignore it or to disable all rings. */
  async #resetOwner(): Promise<undefined> {
    await this.#enableAll(false);
    return this.#changed();
  }

  /** Opens the userfaultfd that the front-end is to serve. Says "no" without one: migration fails then, in order. */
  #advisePostcopy(message: Message): Answer {
    const nothing = new Uint8Array(0);
    try {
      if ((this.#protocolFeatures & VHOST_USER_PROTOCOL_F_PAGEFAULT) === 0n)
        throw new ProtocolError('VHOST_USER_PROTOCOL_F_PAGEFAULT is not acknowledged');
      if (this.#postcopy?.active) throw new ProtocolError('postcopy is under way already');
      this.#postcopy?.abandon();
      this.#postcopy = this.#device.openPostcopy?.({
        patience: this.#options.messageTimeout ?? PATIENCE,
        onGiveUp: (reason) => this.#connection.close(new Error(reason)),
      });
      if (!this.#postcopy) throw new Error('this device has none');
      return { payload: nothing, fd: duplicateFd(this.#postcopy.fd) };
    } catch (error) {
      this.#report(named(message.request, error).message);
      return nothing;
    }
  }

  /** Pages may be missing from now on, in what is mapped from now on. */
  #listenPostcopy(): undefined {
    const postcopy = this.#postcopy;
    if (!postcopy) throw new ProtocolError('no POSTCOPY_ADVISE came before it');
    if (this.#memory.length > 0)
      throw new ProtocolError('memory is mapped already, and may have been touched');
    checkPostcopy(this.#features ?? 0n);
    postcopy.listening = true;
    // A handler may wait for pages that nobody brings any more.
    this.#connection.onHangUp = () => {
      postcopy.abandon();
      this.#connection.close();
    };
    return undefined;
  }

  #regionsKnown({ request, payload }: Message): undefined {
    const failure = decodeU64(payload);
    if (failure !== 0n) throw new Error(`${requestName(request)}: the front-end failed (${failure})`);
    this.#postcopy!.acknowledge();
    return undefined;
  }

  #endPostcopy(): Uint8Array {
    try {
      if (!this.#postcopy) throw new ProtocolError('no POSTCOPY_ADVISE came before it');
      this.#postcopy.end();
      this.#connection.onHangUp = undefined;
      return encodeU64(0n);
    } catch (error) {
      this.#report(named(requests.POSTCOPY_END, error).message);
      return encodeU64(1n);
    }
  }

  /** Where this process sees the regions: the front-end is told of pages by such addresses. */
  #inProcess(regions: readonly RegionLayout[]): RegionLayout[] {
    return regions.map((region) => ({
      ...region,
      userAddress: this.#postcopy!.addressOf(region.guestAddress),
    }));
  }

  async #setMemoryTable(message: Message): Promise<Answer> {
    const regions = decodeMemoryTable(message.payload);
    checkRegions(regions);
    for (const [i, region] of regions.entries()) checkFile(i, region, message.fds[i]!);
    const fds = message.fds.splice(0);
    await this.#device.setMemoryTable(regions.map((region, i) => ({ ...region, fd: fds[i]! })));
    this.#memory = regions;
    this.#checkLogReach();
    this.#changed();
    return this.#postcopy?.active ? encodeMemoryTable(this.#inProcess(regions)) : undefined;
  }

  /**
   * QEMU 7.2 sends each region once for every queue pair, and takes it back as often: what is there already is not
   * added again, its descriptor is closed unused, and to take back what is gone already is no fault.
   */
  async #addRegion(message: Message): Promise<Answer> {
    const region = decodeRegion(message.payload);
    const answer = () => (this.#postcopy?.active ? encodeRegion(this.#inProcess([region])[0]!) : undefined);
    if (this.#memory.some((r) => sameRegion(r, region) && r.mmapOffset === region.mmapOffset))
      return answer();
    const count = this.#memory.length;
    if (count >= MAX_SLOTS) throw new ProtocolError(`all of the ${MAX_SLOTS} memory slots are taken`);
    checkRegion(count, region, this.#memory);
    checkFile(count, region, message.fds[0]!);
    await this.#device.addRegion({ ...region, fd: message.fds.pop()! });
    this.#memory = [...this.#memory, region];
    this.#checkLogReach();
    this.#changed();
    return answer();
  }

  /** A descriptor that came along is closed unused, as the document allows. */
  async #removeRegion(message: Message): Promise<undefined> {
    const region = decodeRegion(message.payload);
    const { guestAddress, userAddress, size } = region;
    const found = this.#memory.find((r) => sameRegion(r, region));
    if (!found) {
      if (!this.#memory.some((r) => regionsOverlap(r, region))) return undefined;
      const words = `0x${size.toString(16)} bytes at guest address 0x${guestAddress.toString(16)}`;
      throw new ProtocolError(`no region of ${words}, user address 0x${userAddress.toString(16)}`);
    }
    for (const [index, { running, address }] of this.#vrings.entries()) {
      const parts = running && address ? [address.descUser, address.availUser, address.usedUser] : [];
      if (parts.some((at) => at >= userAddress && at < userAddress + size))
        throw new ProtocolError(`queue ${index} is running in this region`);
    }
    await this.#device.removeRegion(found);
    this.#memory = this.#memory.filter((region) => region !== found);
    return this.#changed();
  }

  /** The file holds the log from an offset on; the front-end waits for the answer, which says no more than that. */
  async #setLogBase(message: Message): Promise<Uint8Array | undefined> {
    const { payload, fds } = message;
    const fd = fds[0];
    if (fd === undefined || payload.length !== LOG_PAYLOAD)
      throw new ProtocolError(`${payload.length} bytes and ${fds.length} descriptors, 16 and 1 expected`);
    const { size, offset } = decodeLog(payload);
    checkLog(size, offset, fd);
    await this.#device.setLog({ fd: fds.pop()!, size, offset });
    this.#logSize = size;
    this.#checkLogReach();
    return this.#protocolFeatures & VHOST_USER_PROTOCOL_F_LOG_SHMFD ? encodeU64(0n) : undefined;
  }

  #setLogFd(message: Message): undefined {
    const fd = message.fds[0]!;
    if (!isEventFd(fd)) throw new ProtocolError('the descriptor is not an eventfd');
    setNonBlocking(fd);
    this.#device.setLogFd(message.fds.pop()!);
    return undefined;
  }

  /** A file of its own for each request: the front-end keeps it, and says with SET_INFLIGHT_FD which one to use. */
  #getInflight(message: Message): FileAnswer {
    const { queues, queueSize } = decodeInflight(message.payload);
    this.#checkInflightQueues(queues, queueSize);
    const { fd, ...layout } = createInflight(queues, queueSize, this.#packed);
    return { payload: encodeInflight(layout), fd };
  }

  async #setInflight(message: Message): Promise<undefined> {
    const layout = decodeInflight(message.payload);
    this.#checkInflightQueues(layout.queues, layout.queueSize);
    const index = this.#vrings.findIndex((vring) => vring.running);
    if (index >= 0) throw new ProtocolError(`queue ${index} is running`);
    if (this.#postcopy?.active)
      throw new ProtocolError('notes of buffers in work can not be read while memory comes by postcopy');
    checkInflight(layout, this.#packed, message.fds[0]!);
    this.#device.setInflight({ ...layout, fd: message.fds.pop()! });
    return undefined;
  }

  #checkInflightQueues(queues: number, queueSize: number): void {
    const most = this.#queues;
    if (queues < 1 || queues > most) throw new ProtocolError(`${queues} queues, 1 to ${most} expected`);
    if (queueSize < 1 || queueSize > MAX_VRING_SIZE)
      throw new ProtocolError(`queues of ${queueSize} entries, 1 to ${MAX_VRING_SIZE} expected`);
  }

  /** The address lies in the first six bytes of the u64; nothing is said of the others. */
  async #sendRarp(message: Message): Promise<undefined> {
    const mac = decodeU64(message.payload) & 0xffff_ffff_ffffn;
    if (mac === 0n || mac & 1n) {
      const bytes = Buffer.from(message.payload.subarray(0, 6))
        .toString('hex')
        .replace(/..(?=.)/g, '$&:');
      throw new ProtocolError(`${bytes} is no address of a guest`);
    }
    await this.#device.announce(mac);
    return undefined;
  }

  /** Whoever migrates with a log that doesn't reach all memory loses what is written beyond: it should be known. */
  #checkLogReach(): void {
    if (this.#logSize === undefined) return;
    const reach = logReach(this.#logSize);
    const beyond = this.#memory.find(({ guestAddress, size }) => guestAddress + size > reach);
    if (beyond === undefined) return;
    const end = hex(beyond.guestAddress + beyond.size);
    this.#report(`SET_LOG_BASE: the log reaches guest address ${hex(reach)}, memory goes on to ${end}`);
  }

  #setMtu(mtu: bigint): undefined {
    if (mtu < MIN_MTU || mtu > MAX_MTU)
      throw new ProtocolError(`an MTU of ${mtu}, ${MIN_MTU} to ${MAX_MTU} expected`);
    try {
      this.#device.setMtu(Number(mtu));
    } catch (error) {
      throw new ProtocolError((error as Error).message);
    }
    return this.#changed();
  }

  /** Says "no" with an answer without payload, as the document has it. */
  #getConfig(message: Message): Uint8Array {
    try {
      const { offset, size, flags } = decodeConfig(message.payload);
      const bytes = new Uint8Array(size);
      bytes.set(this.#device.config().subarray(offset, offset + size));
      return encodeConfig({ offset, size, flags, bytes });
    } catch (error) {
      this.#report(named(message.request, error).message);
      return new Uint8Array(0);
    }
  }

  /** A driver may write its MAC address, without VERSION_1 (5.1.4.3), and a migration brings it along. */
  async #setConfig(message: Message): Promise<undefined> {
    const { offset, flags, bytes } = decodeConfig(message.payload);
    if (flags > 1) throw new ProtocolError(`flags ${flags}, 0 or 1 expected`);
    const before = this.#device.config();
    const after = before.slice();
    if (offset + bytes.length > after.length)
      throw new ProtocolError(`the network device's configuration space has ${after.length} bytes`);
    after.set(bytes, offset);
    const legacy = ((this.#features ?? 0n) & features.VIRTIO_F_VERSION_1) === 0n;
    const fixed = changedFields(before, after).filter((name) => name !== 'mac' || (flags === 0 && !legacy));
    if (fixed.length > 0) throw new ProtocolError(`${fixed.join(', ')} can't be written`);
    await this.#device.setMac(after.subarray(0, 6));
    return undefined;
  }

  async #setStatus(asked: bigint): Promise<undefined> {
    const bits = asked > 0xffn ? -1 : Number(asked);
    if (bits < 0 || foreignStatus(bits))
      throw new ProtocolError(`0x${asked.toString(16)} has bits that the device status doesn't have`);
    if (bits === 0) {
      // 2.1.2: the device is reset. What belongs to the connection stays, a front-end doesn't say it again.
      for (const index of this.#vrings.keys()) await this.#stop(index);
    }
    this.#status = nextStatus(this.#status, bits, {
      settled: this.#features !== undefined,
      legacy: ((this.#features ?? 0n) & features.VIRTIO_F_VERSION_1) === 0n,
      running: this.#vrings.some((vring) => vring.running),
    });
    if (bits & deviceStatus.FAILED)
      this.#report("SET_STATUS: the guest's driver gave up on the device (FAILED)");
    return this.#changed();
  }

  /** Answers with an error in bits 0 to 7, and with bit 8: no descriptor of ours in place of theirs. */
  #setStateFd(message: Message): Uint8Array {
    const { index: direction, num: phase } = decodeVringState(message.payload);
    try {
      if (direction !== SAVE && direction !== LOAD)
        throw new ProtocolError(`direction ${direction}, 0 or 1 expected`);
      if (phase !== 0) throw new ProtocolError(`phase ${phase}, 0 expected`);
      const index = this.#vrings.findIndex((vring) => vring.running);
      if (index >= 0) throw new ProtocolError(`queue ${index} is running`);
      this.#state?.end('another transfer took its place');
      const what =
        direction === SAVE
          ? encodeState(this.#device.saveState())
          : (bytes: Uint8Array) => this.#device.loadState(decodeState(bytes));
      const timeout = this.#options.messageTimeout ?? PATIENCE;
      this.#state = new StateTransfer(this.#options.poller, message.fds[0]!, timeout, what);
      message.fds.pop();
      return encodeU64(VRING_NO_FD);
    } catch (error) {
      this.#report(named(message.request, error).message);
      return encodeU64(VRING_NO_FD | 1n);
    }
  }

  /** The front-end has seen the end of the transfer before it asks. */
  async #checkState(): Promise<Uint8Array> {
    const failure = this.#state ? await this.#state.done : 'no state was transferred';
    this.#state = undefined;
    if (failure === undefined) return encodeU64(0n);
    this.#report(`CHECK_DEVICE_STATE: ${failure}`);
    return encodeU64(1n);
  }

  /**
   * All as at the start of the session but for what the front-end doesn't say again: its memory (QEMU only sends
   * what has changed of it), the protocol features and the eventfds.
   */
  async #resetDevice(): Promise<undefined> {
    for (const [index, vring] of this.#vrings.entries()) {
      await this.#stop(index);
      Object.assign(vring, { size: 0, base: 0, enabled: false, address: undefined });
    }
    this.#features = undefined;
    await this.#device.setFeatures(0n);
    this.#status = 0;
    return this.#changed();
  }

  #setNum(message: Message): undefined {
    const { index, num } = decodeVringState(message.payload);
    const vring = this.#vring(index);
    // A packed ring may have any number of entries (virtio 1.3, 2.8.10.1 only bounds it).
    const wrong = !this.#packed && (num & (num - 1)) !== 0;
    if (num < 1 || num > MAX_VRING_SIZE || wrong)
      throw new ProtocolError(
        `queue ${index}: size ${num}, ${this.#packed ? 'a number' : 'a power of 2'} from 1 to ${MAX_VRING_SIZE} expected`,
      );
    if (vring.running && num !== vring.size) throw running(index, 'size');
    vring.size = num;
    return this.#changed();
  }

  async #setAddress(message: Message): Promise<undefined> {
    const { index, flags, descUser, usedUser, availUser, logGuest } = decodeVringAddress(message.payload);
    const vring = this.#vring(index);
    if ((flags & ~VRING_LOG) !== 0)
      throw new ProtocolError(`queue ${index}: unknown flags 0x${(flags & ~VRING_LOG).toString(16)}`);
    if (flags !== 0 && (this.#device.features & VHOST_F_LOG_ALL) === 0n)
      throw new ProtocolError(
        `queue ${index}: flags 0x${flags.toString(16)}, but logging was not negotiated`,
      );
    if (flags !== 0 && logGuest > END_OF_ADDRESSES - USED_BOUND)
      throw new ProtocolError(`queue ${index}: a used ring at log address ${hex(logGuest)} wraps`);
    const now = vring.address;
    const same = now?.descUser === descUser && now.usedUser === usedUser && now.availUser === availUser;
    if (vring.running && !same) throw running(index, 'addresses');
    vring.address = { descUser, usedUser, availUser };
    const logUsed = flags & VRING_LOG ? logGuest : null;
    if (vring.running && logUsed !== vring.logUsed) await this.#update(index, { logUsed });
    vring.logUsed = logUsed;
    return undefined;
  }

  #setBase(message: Message): undefined {
    const { index, num } = decodeVringState(message.payload);
    const vring = this.#vring(index);
    // Of a packed ring it holds both positions, each with its wrap counter.
    if (num > MAX_BASE && !this.#packed)
      throw new ProtocolError(`queue ${index}: base ${num}, at most ${MAX_BASE} expected`);
    if (vring.running && num !== vring.base) throw running(index, 'base');
    vring.base = num;
    return undefined;
  }

  async #getBase(message: Message): Promise<Uint8Array> {
    const { index } = decodeVringState(message.payload);
    const vring = this.#vring(index);
    await this.#stop(index);
    return encodeVringState({ index, num: vring.base });
  }

  async #stop(index: number): Promise<void> {
    const vring = this.#vrings[index]!;
    if (!vring.running) return;
    vring.base = await this.#device.stopVring(index);
    vring.running = false;
    this.#changed();
  }

  async #setKick(message: Message): Promise<undefined> {
    const index = decodeVringIndex(message.request, message.payload);
    const vring = this.#vring(index);
    checkNotifier(index, message);
    if (vring.running) return this.#update(index, { kickFd: message.fds.pop() ?? -1 });
    return this.#start(index, vring, () => message.fds.pop() ?? -1);
  }

  /** In place of an eventfd. The first one starts the ring, as SET_VRING_KICK would. */
  async #kick(message: Message): Promise<undefined> {
    const { index, num } = decodeVringState(message.payload);
    const vring = this.#vring(index);
    if (num !== 0) throw new ProtocolError(`queue ${index}: ${num}, 0 expected`);
    const inBand = this.#inBandQueue(index);
    if (!inBand) throw new ProtocolError('in-band notifications were not negotiated');
    if (!vring.running) await this.#start(index, vring, () => inBand.kickFd());
    inBand.kick();
    return undefined;
  }

  /** The queue's notifications by messages; undefined where that wasn't agreed. */
  #inBandQueue(index: number): InBandQueue | undefined {
    if ((this.#protocolFeatures & VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS) === 0n) return undefined;
    let queue = this.#inBand.get(index);
    if (queue) return queue;
    queue = new InBandQueue(this.#options.poller, {
      call: () => this.#channel?.vringCall(index),
      error: () => this.#channel?.vringError(index),
    });
    this.#inBand.set(index, queue);
    return queue;
  }

  async #start(index: number, vring: Vring, takeKick: () => number): Promise<undefined> {
    const { size, address } = vring;
    if (this.#features === undefined) throw missing(index, 'SET_FEATURES');
    if (this.#memory.length === 0) throw missing(index, 'SET_MEM_TABLE');
    if (this.#postcopy?.unknown)
      throw missing(index, 'the front-end has acknowledged where its memory lies here');
    if (size === 0) throw missing(index, 'SET_VRING_NUM');
    // The size may have been set while packed rings were acknowledged, and they are not any more.
    if (!this.#packed && (size & (size - 1)) !== 0)
      throw new ProtocolError(`queue ${index}: size ${size}, a power of 2 expected of a split ring`);
    if (!address) throw missing(index, 'SET_VRING_ADDR');
    const { base, logUsed } = vring;
    const inBand = this.#inBandQueue(index);
    // An eventfd is preferred to messages.
    const callFd = inBand && !vring.callGiven ? inBand.callFd() : vring.callFd;
    const errFd = inBand && vring.errFd === -1 ? inBand.errFd() : copyOf(vring.errFd);
    const enabled = vring.enabled || (this.#features & VHOST_USER_F_PROTOCOL_FEATURES) === 0n;
    const kickFd = takeKick();
    vring.callFd = -1;
    try {
      const setup = { size, base, ...address, kickFd, callFd, errFd, enabled, logUsed };
      await this.#device.startVring(index, setup);
    } catch (error) {
      // The ring has stayed stopped: nothing has changed.
      throw new ProtocolError(`queue ${index}: ${(error as Error).message}`);
    }
    vring.running = true;
    vring.enabled = enabled;
    return this.#changed();
  }

  async #setNotifier(message: Message, which: 'callFd' | 'errFd'): Promise<undefined> {
    const index = decodeVringIndex(message.request, message.payload);
    const vring = this.#vring(index);
    checkNotifier(index, message);
    const fd = message.fds.pop() ?? -1;
    if (which === 'callFd') vring.callGiven = true;
    if (vring.running && which === 'callFd') return this.#update(index, { callFd: fd });
    if (vring[which] !== -1) closeFd(vring[which]);
    vring[which] = fd;
    return vring.running ? this.#update(index, { errFd: copyOf(fd) }) : undefined;
  }

  async #setEnable(message: Message): Promise<undefined> {
    const { index, num } = decodeVringState(message.payload);
    const vring = this.#vring(index);
    if (num > 1) throw new ProtocolError(`queue ${index}: ${num}, 0 or 1 expected`);
    await this.#enable(vring, index, num === 1);
    return this.#changed();
  }

  async #enableAll(enabled: boolean): Promise<void> {
    for (const [index, vring] of this.#vrings.entries()) await this.#enable(vring, index, enabled);
  }

  async #enable(vring: Vring, index: number, enabled: boolean): Promise<void> {
    if (vring.running && vring.enabled !== enabled) await this.#update(index, { enabled });
    vring.enabled = enabled;
  }

  async #update(index: number, change: VringChange): Promise<undefined> {
    await this.#device.updateVring(index, change);
    return undefined;
  }

  get #packed(): boolean {
    return ((this.#features ?? 0n) & features.VIRTIO_F_RING_PACKED) !== 0n;
  }

  /** Virtqueues that the device may have: two for each pair, and one for commands. */
  get #queues(): number {
    const control = this.#device.features & features.VIRTIO_NET_F_CTRL_VQ ? 1 : 0;
    return 2 * this.#device.queuePairs + control;
  }

  #vring(index: number): Vring {
    const limit = this.#queues;
    if (index >= limit) throw new ProtocolError(`queue ${index} does not exist, this device has ${limit}`);
    while (this.#vrings.length <= index) this.#vrings.push(freshVring());
    return this.#vrings[index]!;
  }
}

/** Throws a ProtocolError for features that don't go together with postcopy. */
function checkPostcopy(bits: bigint): void {
  for (const [feature, reason] of POSTCOPY_REFUSES) if (bits & feature) throw new ProtocolError(reason);
}

/** Requests that are answered with regions in postcopy. */
function answersWithRegions(request: number): boolean {
  return request === requests.SET_MEM_TABLE || request === requests.ADD_MEM_REG;
}

function freshVring(): Vring {
  return {
    size: 0,
    base: 0,
    running: false,
    enabled: false,
    address: undefined,
    logUsed: null,
    callGiven: false,
    callFd: -1,
    errFd: -1,
  };
}

/** Type, size and permissions of a translation. Throws a ProtocolError. */
function checkIotlb({ type, iova, size, userAddress, access }: IotlbMessage): void {
  if (type === iotlb.INVALIDATE) return;
  if (type !== iotlb.UPDATE) throw new ProtocolError(`type ${type}, an update or an invalidation expected`);
  if (size === 0n) throw new ProtocolError('a translation of no bytes');
  if (iova + size > END_OF_ADDRESSES || userAddress + size > END_OF_ADDRESSES)
    throw new ProtocolError(
      `I/O address ${hex(iova)} or user address ${hex(userAddress)} + ${hex(size)} wraps`,
    );
  if (access < 1 || access > 3) throw new ProtocolError(`access ${access}, 1 to 3 expected`);
}

/** The same kind of error with the request's name before it. */
function named(request: number, error: unknown): ProtocolError {
  const { message } = error as Error;
  const name = requestName(request);
  return new ProtocolError(message.startsWith(`${name}: `) ? message : `${name}: ${message}`);
}

function running(index: number, what: string): ProtocolError {
  return new ProtocolError(`queue ${index}: the ${what} can't change while it is running`);
}

function missing(index: number, request: string): ProtocolError {
  return new ProtocolError(`queue ${index} can't start before ${request}`);
}

function copyOf(fd: number): number {
  return fd === -1 ? -1 : duplicateFd(fd);
}

function closeNotifiers(vring: Vring): void {
  if (vring.callFd !== -1) closeFd(vring.callFd);
  if (vring.errFd !== -1) closeFd(vring.errFd);
  vring.callFd = -1;
  vring.errFd = -1;
}

function checkNotifier(index: number, { fds }: Message): void {
  const fd = fds[0];
  if (fd === undefined) return;
  if (!isEventFd(fd)) throw new ProtocolError(`queue ${index}: the descriptor is not an eventfd`);
  // A counter that the front-end lets run full must not block whoever signals it.
  setNonBlocking(fd);
}

function hex(value: bigint): string {
  return `0x${value.toString(16)}`;
}
