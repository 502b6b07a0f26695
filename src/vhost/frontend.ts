/**
 * The front-end's end of a vhost-user connection: what a virtio driver outside of a virtual machine says to a
 * back-end such as our own, DPDK's vhost library or a kernel-less device.
 *
 * The order that every back-end accepts, and DPDK's insists on (ring addresses after the memory table, the kick
 * last of a ring's messages): negotiate, setMemoryTable, then for each ring setVring and startVring, then enable;
 * stopVring for each ring in the end. Requests are acknowledged where REPLY_ACK was negotiated. A request without
 * acknowledgement resolves when it has left.
 *
 * Nothing that the back-end sends is trusted: an answer must be to the oldest open request, of its exact size,
 * without descriptors, and in time. Anything else ends the connection, and every open request rejects with the
 * reason.
 */
import { closeFd, type Poller } from '../sys/index.ts';
import { vhostProtocolFeatures, features as virtio } from '../virtio/features.ts';
import { decodeNetConfig, NET_CONFIG_LENGTH } from '../virtio/net-config.ts';
import { Connection } from './connection.ts';
import type { LogSetup, MemoryRegion } from './device.ts';
import { checkInflight } from './inflight.ts';
import {
  decodeConfig,
  decodeInflight,
  decodeU64,
  decodeVringState,
  encodeConfig,
  encodeInflight,
  encodeIotlb,
  encodeLog,
  encodeMemoryTable,
  encodeRegion,
  encodeU64,
  encodeVringAddress,
  encodeVringIndex,
  encodeVringState,
  FLAG_NEED_REPLY,
  FLAG_REPLY,
  type Header,
  type InflightLayout,
  type IotlbMessage,
  MAX_REGIONS,
  MAX_SLOTS,
  type Message,
  ProtocolError,
  requestName,
  requests,
  VERSION,
  VRING_LOG,
} from './messages.ts';

const { VHOST_USER_F_PROTOCOL_FEATURES } = virtio;
const {
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_STATUS,
} = vhostProtocolFeatures;

/** Protocol features that this end understands. */
export const FRONTEND_PROTOCOL_FEATURES =
  VHOST_USER_PROTOCOL_F_MQ |
  VHOST_USER_PROTOCOL_F_REPLY_ACK |
  VHOST_USER_PROTOCOL_F_MTU |
  VHOST_USER_PROTOCOL_F_CONFIG |
  VHOST_USER_PROTOCOL_F_RESET_DEVICE |
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS |
  VHOST_USER_PROTOCOL_F_STATUS;

const NOTHING = new Uint8Array(0);
/** Every answer but that of GET_CONFIG is a u64 or a vring state. */
const ANSWER_SIZE = 8;
/** And that of GET_INFLIGHT_FD. */
const INFLIGHT_SIZE = 24;

export interface FrontendSessionOptions {
  /** A connected socket, accepted or dialled; the session closes it. */
  fd: number;
  poller: Poller;
  /** Milliseconds to wait for an answer; default 5,000. */
  timeout?: number;
  /** Once: the connection has ended. */
  onClose?(reason: string): void;
}

/** What both ends have agreed on. */
export interface Negotiated {
  features: bigint;
  protocolFeatures: bigint;
  /** Most queue pairs of the back-end; 1 where it doesn't say. */
  queuePairs: number;
}

/** Size, position and place of a ring, the addresses as in the memory table's user addresses. */
export interface VringLayout {
  size: number;
  /** Next entry of the available ring that the back-end looks at; 0 for a fresh ring. */
  base: number;
  descUser: bigint;
  usedUser: bigint;
  availUser: bigint;
  /** Guest address under which the back-end logs its writes to the used ring. */
  logUsed?: bigint;
}

interface Waiting {
  request: number;
  /** Bytes of the answer. */
  size: number;
  resolve: (message: Message) => void;
  reject: (reason: Error) => void;
  timer: NodeJS.Timeout;
}

/** Drives one back-end. Every method rejects with a named Error when the back-end refuses, lies or leaves. */
export class FrontendSession {
  /** Resolves when the connection has ended. */
  readonly closed: Promise<void>;
  readonly #options: FrontendSessionOptions;
  readonly #connection: Connection;
  readonly #waiting: Waiting[] = [];
  #ended: () => void = () => {};
  #protocolFeatures = 0n;
  #packed = false;

  /** Throws a SystemError when the poller can't watch the socket, which then stays the caller's. */
  constructor(options: FrontendSessionOptions) {
    this.#options = options;
    this.closed = new Promise((resolve) => {
      this.#ended = resolve;
    });
    this.#connection = new Connection({
      fd: options.fd,
      poller: options.poller,
      messageTimeout: options.timeout ?? 5000,
      checkHeader: (header) => this.#checkAnswer(header),
      checkMessage: ({ request, fds }) => {
        const expected = request === requests.GET_INFLIGHT_FD ? 1 : 0;
        if (fds.length !== expected)
          throw new ProtocolError(
            `${requestName(request)}: an answer with ${fds.length} descriptors, ${expected} expected`,
          );
      },
      onMessage: (message) => {
        const { resolve, timer } = this.#waiting.shift()!;
        clearTimeout(timer);
        // What the connection still holds after this is closed.
        resolve({ ...message, fds: message.fds.splice(0) });
      },
      onClose: (reason) => this.#finish(reason),
    });
  }

  /**
   * Begins the session and settles the features: of those wanted, the ones that the back-end offers.
   * `protocolFeatures` are some of FRONTEND_PROTOCOL_FEATURES.
   */
  async negotiate(wanted: bigint, protocolFeatures = FRONTEND_PROTOCOL_FEATURES): Promise<Negotiated> {
    await this.#tell(requests.SET_OWNER, NOTHING);
    const offered = decodeU64(await this.#ask(requests.GET_FEATURES, NOTHING));
    let queuePairs = 1;
    if (offered & VHOST_USER_F_PROTOCOL_FEATURES) {
      const answer = decodeU64(await this.#ask(requests.GET_PROTOCOL_FEATURES, NOTHING));
      const agreed = answer & protocolFeatures;
      await this.#tell(requests.SET_PROTOCOL_FEATURES, encodeU64(agreed));
      this.#protocolFeatures = agreed;
      if (agreed & VHOST_USER_PROTOCOL_F_MQ) queuePairs = await this.#queuePairs();
    }
    const features = offered & (wanted | VHOST_USER_F_PROTOCOL_FEATURES);
    await this.#do(requests.SET_FEATURES, encodeU64(features));
    this.#packed = (features & virtio.VIRTIO_F_RING_PACKED) !== 0n;
    return { features, protocolFeatures: this.#protocolFeatures, queuePairs };
  }

  async #queuePairs(): Promise<number> {
    const count = decodeU64(await this.#ask(requests.GET_QUEUE_NUM, NOTHING));
    if (count >= 1n && count <= 0x8000n) return Number(count);
    throw this.#distrust(`GET_QUEUE_NUM: ${count} queue pairs, 1 to 32768 expected`);
  }

  /** Shares memory, 1 to 8 regions. The descriptors stay the caller's. */
  async setMemoryTable(regions: readonly MemoryRegion[]): Promise<void> {
    if (regions.length < 1 || regions.length > MAX_REGIONS)
      throw new RangeError(`a memory table has 1 to ${MAX_REGIONS} regions, not ${regions.length}`);
    const fds = regions.map(({ fd }) => fd);
    await this.#do(requests.SET_MEM_TABLE, encodeMemoryTable(regions), fds);
  }

  /** Most regions that the back-end takes one by one, 1 to 509; 8 where it takes whole tables only. */
  async maxMemorySlots(): Promise<number> {
    if ((this.#protocolFeatures & VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS) === 0n) return MAX_REGIONS;
    const slots = decodeU64(await this.#ask(requests.GET_MAX_MEM_SLOTS, NOTHING));
    if (slots >= 1n) return Number(slots < MAX_SLOTS ? slots : MAX_SLOTS);
    throw this.#distrust('GET_MAX_MEM_SLOTS: 0 slots, at least 1 expected');
  }

  /** Shares one region more; CONFIGURE_MEM_SLOTS must be agreed on. The descriptor stays the caller's. */
  async addRegion(region: MemoryRegion): Promise<void> {
    await this.#do(requests.ADD_MEM_REG, encodeRegion(region), [region.fd]);
  }

  /** Takes a region back, in which no running ring lies. */
  async removeRegion(region: Omit<MemoryRegion, 'fd'>): Promise<void> {
    await this.#do(requests.REM_MEM_REG, encodeRegion(region));
  }

  /** Tells the back-end the MTU, 68 to 65535, that the driver keeps to. False: it wasn't agreed to talk of it. */
  async setMtu(mtu: number): Promise<boolean> {
    if ((this.#protocolFeatures & VHOST_USER_PROTOCOL_F_MTU) === 0n) return false;
    await this.#do(requests.NET_SET_MTU, encodeU64(BigInt(mtu)));
    return true;
  }

  /** The device's configuration space; undefined where the back-end has none. Rejects when it can't be read. */
  async config(): Promise<ReturnType<typeof decodeNetConfig> | undefined> {
    if ((this.#protocolFeatures & VHOST_USER_PROTOCOL_F_CONFIG) === 0n) return undefined;
    const wanted = { offset: 0, size: NET_CONFIG_LENGTH, flags: 0, bytes: new Uint8Array(NET_CONFIG_LENGTH) };
    const payload = encodeConfig(wanted);
    const answer = await this.#ask(requests.GET_CONFIG, payload, [], 0, payload.length);
    if (answer.length === 0) throw new Error('GET_CONFIG: the back-end refused it');
    try {
      const { offset, bytes } = decodeConfig(answer);
      if (offset !== 0) throw new ProtocolError(`an answer for offset ${offset}, 0 expected`);
      return decodeNetConfig(bytes);
    } catch (error) {
      throw this.#distrust(`GET_CONFIG: ${(error as Error).message}`);
    }
  }

  /** Sets the device status. False: it wasn't agreed to talk of it. */
  async setStatus(bits: number): Promise<boolean> {
    if ((this.#protocolFeatures & VHOST_USER_PROTOCOL_F_STATUS) === 0n) return false;
    await this.#do(requests.SET_STATUS, encodeU64(BigInt(bits)));
    return true;
  }

  /** The device status as the back-end has it; undefined where it wasn't agreed to talk of it. */
  async status(): Promise<number | undefined> {
    if ((this.#protocolFeatures & VHOST_USER_PROTOCOL_F_STATUS) === 0n) return undefined;
    const status = decodeU64(await this.#ask(requests.GET_STATUS, NOTHING));
    if (status <= 0xffn) return Number(status);
    throw this.#distrust(`GET_STATUS: status 0x${status.toString(16)}, a byte expected`);
  }

  /** Resets the device; memory and protocol features stay. False: it wasn't agreed that it can be. */
  async resetDevice(): Promise<boolean> {
    if ((this.#protocolFeatures & VHOST_USER_PROTOCOL_F_RESET_DEVICE) === 0n) return false;
    await this.#do(requests.RESET_DEVICE, NOTHING);
    return true;
  }

  /** Describes a stopped ring. */
  async setVring(index: number, { size, base, ...ring }: VringLayout): Promise<void> {
    await this.#do(requests.SET_VRING_NUM, encodeVringState({ index, num: size }));
    await this.#do(requests.SET_VRING_BASE, encodeVringState({ index, num: base }));
    await this.setVringAddress(index, ring);
  }

  /** Where a ring lies; of a running ring only whether it is logged may change. */
  async setVringAddress(index: number, ring: Omit<VringLayout, 'size' | 'base'>): Promise<void> {
    const { descUser, usedUser, availUser, logUsed } = ring;
    const flags = logUsed === undefined ? 0 : VRING_LOG;
    const address = { index, flags, descUser, usedUser, availUser, logGuest: logUsed ?? 0n };
    await this.#do(requests.SET_VRING_ADDR, encodeVringAddress(address));
  }

  /** Acknowledges other features than before; while a ring runs only VHOST_F_LOG_ALL may differ. */
  async setFeatures(features: bigint): Promise<void> {
    await this.#do(requests.SET_FEATURES, encodeU64(features));
  }

  /** Shares the bitmap that the back-end logs its writes in; needs LOG_SHMFD. The descriptor stays the caller's. */
  async setLog({ fd, size, offset }: LogSetup): Promise<void> {
    const status = decodeU64(await this.#ask(requests.SET_LOG_BASE, encodeLog({ size, offset }), [fd]));
    if (status !== 0n) throw new Error(`SET_LOG_BASE: the back-end refused it (status ${status})`);
  }

  /** Asks for memory to note buffers in work in; needs INFLIGHT_SHMFD. The descriptor is the caller's from then on. */
  async getInflight(queues: number, queueSize: number): Promise<InflightLayout & { fd: number }> {
    const request = requests.GET_INFLIGHT_FD;
    const asked = { size: 0n, offset: 0n, queues, queueSize };
    const { payload, fds } = await this.#message(request, encodeInflight(asked), [], 0, INFLIGHT_SIZE);
    const layout = decodeInflight(payload);
    const fd = fds[0]!;
    try {
      checkInflight({ ...layout, queues, queueSize }, this.#packed, fd);
    } catch (error) {
      closeFd(fd);
      throw this.#distrust(`GET_INFLIGHT_FD: ${(error as Error).message}`);
    }
    return { ...layout, queues, queueSize, fd };
  }

  /** Gives the back-end that memory, before the rings start. The descriptor stays the caller's. */
  async setInflight({ fd, ...layout }: InflightLayout & { fd: number }): Promise<void> {
    await this.#do(requests.SET_INFLIGHT_FD, encodeInflight(layout), [fd]);
  }

  /** Lets the back-end announce the guest; `mac` has the address's first byte lowest. Needs RARP. */
  async announce(mac: bigint): Promise<void> {
    await this.#do(requests.SEND_RARP, encodeU64(mac));
  }

  /** Gives the back-end a socket for requests of its own; needs BACKEND_REQ. The descriptor stays the caller's. */
  async setBackendChannel(fd: number): Promise<void> {
    await this.#do(requests.SET_BACKEND_REQ_FD, NOTHING, [fd]);
  }

  /** Brings or takes away a translation; with VIRTIO_F_ACCESS_PLATFORM only. Rejects where the back-end refuses it. */
  async setIotlb(message: IotlbMessage): Promise<void> {
    const status = decodeU64(await this.#ask(requests.IOTLB_MSG, encodeIotlb(message)));
    if (status !== 0n) throw new Error(`IOTLB_MSG: the back-end refused it (status ${status})`);
  }

  /** Starts a ring. The eventfds stay the caller's; -1: none, that side polls. */
  async startVring(index: number, fds: { kickFd: number; callFd: number; errFd?: number }): Promise<void> {
    if (fds.errFd !== undefined) await this.#setDescriptor(requests.SET_VRING_ERR, index, fds.errFd);
    await this.#setDescriptor(requests.SET_VRING_CALL, index, fds.callFd);
    await this.#setDescriptor(requests.SET_VRING_KICK, index, fds.kickFd);
  }

  /** Changes the eventfd that interrupts this end, at any time; -1: none. */
  async setCall(index: number, fd: number): Promise<void> {
    await this.#setDescriptor(requests.SET_VRING_CALL, index, fd);
  }

  /** Enables or disables a ring; a back-end without protocol features enables rings by itself. */
  async enable(index: number, enabled: boolean): Promise<void> {
    await this.#do(requests.SET_VRING_ENABLE, encodeVringState({ index, num: enabled ? 1 : 0 }));
  }

  /**
   * Stops a ring. Returns the next entry of the available ring that the back-end would look at; of a packed ring
   * both of its positions, each with its wrap counter.
   */
  async stopVring(index: number): Promise<number> {
    const answer = await this.#ask(requests.GET_VRING_BASE, encodeVringState({ index, num: 0 }));
    const state = decodeVringState(answer);
    if (state.index === index && (state.num <= 0xffff || this.#packed)) return state.num;
    const words = `queue ${state.index} at ${state.num} in the answer for queue ${index}`;
    throw this.#distrust(`GET_VRING_BASE: ${words}`);
  }

  /** Ends the connection; open requests reject. */
  close(reason = 'closed here'): Promise<void> {
    this.#connection.close(new Error(reason));
    return this.closed;
  }

  /** Ends the connection with a back-end whose answer makes no sense. */
  #distrust(message: string): ProtocolError {
    const error = new ProtocolError(message);
    this.#connection.close(error);
    return error;
  }

  #setDescriptor(request: number, index: number, fd: number): Promise<void> {
    return this.#do(request, encodeVringIndex(index, fd !== -1), fd === -1 ? [] : [fd]);
  }

  /** Sends, and waits for the acknowledgement where there is one. */
  async #do(request: number, payload: Uint8Array, fds: readonly number[] = []): Promise<void> {
    if ((this.#protocolFeatures & VHOST_USER_PROTOCOL_F_REPLY_ACK) === 0n)
      return this.#tell(request, payload, fds);
    const status = decodeU64(await this.#ask(request, payload, fds, FLAG_NEED_REPLY));
    if (status !== 0n) throw new Error(`${requestName(request)}: the back-end refused it (status ${status})`);
  }

  async #tell(request: number, payload: Uint8Array, fds: readonly number[] = []): Promise<void> {
    await this.#connection.send(request, 0, payload, fds);
    if (!this.#connection.open) throw this.#gone(request);
  }

  async #ask(
    request: number,
    payload: Uint8Array,
    fds: readonly number[] = [],
    flags = 0,
    size = ANSWER_SIZE,
  ): Promise<Uint8Array> {
    return (await this.#message(request, payload, fds, flags, size)).payload;
  }

  #message(
    request: number,
    payload: Uint8Array,
    fds: readonly number[],
    flags: number,
    size: number,
  ): Promise<Message> {
    return new Promise((resolve, reject) => {
      if (!this.#connection.open) return reject(this.#gone(request));
      const timeout = this.#options.timeout ?? 5000;
      const timer = setTimeout(() => {
        const words = `no answer from the back-end within ${timeout / 1000} s`;
        this.#connection.close(new ProtocolError(`${requestName(request)}: ${words}`));
      }, timeout);
      this.#waiting.push({ request, size, resolve, reject, timer });
      void this.#connection.send(request, flags, payload, fds);
    });
  }

  #checkAnswer({ request, flags, size }: Header): void {
    const expected = this.#waiting[0];
    const name = requestName(request);
    if (!expected) throw new ProtocolError(`${name}: an answer that nobody asked for`);
    if (request !== expected.request)
      throw new ProtocolError(`${requestName(expected.request)}: the back-end answered ${name}`);
    if (flags !== (VERSION | FLAG_REPLY))
      throw new ProtocolError(`${name}: an answer with flags 0x${flags.toString(16)}, 0x5 expected`);
    // A back-end without an answer to GET_CONFIG says so with no payload.
    if (size !== expected.size && !(size === 0 && request === requests.GET_CONFIG))
      throw new ProtocolError(`${name}: an answer of ${size} bytes, ${expected.size} expected`);
  }

  #gone(request: number): Error {
    const reason = this.#connection.reason?.message ?? 'the back-end closed the connection';
    return new ProtocolError(
      reason.startsWith(requestName(request)) ? reason : `${requestName(request)}: ${reason}`,
    );
  }

  #finish(reason: Error | undefined): void {
    for (const { request, reject, timer } of this.#waiting.splice(0)) {
      clearTimeout(timer);
      reject(this.#gone(request));
    }
    this.#options.onClose?.(reason?.message ?? 'the back-end closed the connection');
    this.#ended();
  }
}
