/**
 * virtio-user over a vhost-user socket: to Vireo's ports, DPDK's vhost PMD, Open vSwitch, passt and whatever else
 * is such a back-end. As a client it dials the back-end's socket; as a server it listens on its own until the
 * back-end dials, each time anew.
 */
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { acceptUnix, closeFd, connectUnix, EPOLLIN, listenUnix, type Poller } from '../sys/index.ts';
import { FRONTEND_PROTOCOL_FEATURES, FrontendSession } from '../vhost/frontend.ts';
import { vhostProtocolFeatures } from '../virtio/features.ts';
import { deviceStatus } from '../virtio/status.ts';
import type {
  Agreement,
  DeviceConfig,
  RingPlace,
  SharedMemory,
  Transport,
  TransportEvents,
} from './transport.ts';

const { VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD } = vhostProtocolFeatures;
const { ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK } = deviceStatus;

export interface VhostUserOptions extends TransportEvents {
  path: string;
  role: 'client' | 'server';
  /** Milliseconds to wait for each answer. */
  timeout: number;
  /** Lets the back-end note which buffers it has in work. */
  inflight: boolean;
  poller: Poller;
}

export class VhostUserTransport implements Transport {
  readonly #options: VhostUserOptions;
  #current: FrontendSession | undefined;
  #takesNotes = false;
  /** Memory in which the back-end notes buffers in work; a later back-end finds it as the one before left it. */
  #notes: Awaited<ReturnType<FrontendSession['getInflight']>> | undefined;

  constructor(options: VhostUserOptions) {
    this.#options = options;
  }

  async connect(signal: AbortSignal): Promise<void> {
    const { path, role, poller, timeout, onClose } = this.#options;
    const fd = role === 'server' ? await accept(path, poller, signal) : connectUnix(path);
    this.#current = new FrontendSession({ fd, poller, timeout, onClose });
  }

  async negotiate(wanted: bigint): Promise<Agreement> {
    const session = this.#session;
    const notes = this.#options.inflight ? VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD : 0n;
    const agreed = await session.negotiate(wanted, FRONTEND_PROTOCOL_FEATURES | notes);
    this.#takesNotes = (agreed.protocolFeatures & VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) !== 0n;
    // The device may refuse what it offered, and says so here.
    await session.setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if ((((await session.status()) ?? FEATURES_OK) & FEATURES_OK) === 0)
      throw new Error('the back-end does not accept the features that it offered');
    return { features: agreed.features, queuePairs: agreed.queuePairs, inflight: this.#takesNotes };
  }

  config(): Promise<DeviceConfig | undefined> {
    return this.#session.config();
  }

  async share({ fd, address, length, rings, ringSize }: SharedMemory, fresh: boolean): Promise<void> {
    const session = this.#session;
    const size = BigInt(length);
    await session.setMemoryTable([{ guestAddress: address, userAddress: address, size, mmapOffset: 0n, fd }]);
    if (!this.#takesNotes) return;
    if (fresh) this.dispose();
    this.#notes ??= await session.getInflight(rings, ringSize);
    await session.setInflight(this.#notes);
  }

  setRing(index: number, place: RingPlace): Promise<void> {
    return this.#session.setVring(index, place);
  }

  startRing(index: number, fds: { kickFd: number; callFd: number }): Promise<void> {
    return this.#session.startVring(index, fds);
  }

  enableRing(index: number, enabled: boolean): Promise<void> {
    return this.#session.enable(index, enabled);
  }

  async ready(): Promise<void> {
    await this.#session.setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
  }

  async stopRing(index: number): Promise<void> {
    await this.#session.stopVring(index);
  }

  async close(): Promise<void> {
    await this.#current?.close();
  }

  dispose(): void {
    if (this.#notes) closeFd(this.#notes.fd);
    this.#notes = undefined;
  }

  get #session(): FrontendSession {
    if (!this.#current) throw new Error('not connected');
    return this.#current;
  }
}

/** The first connection to a socket of ours, which is there as long as this waits for it. */
async function accept(path: string, poller: Poller, signal: AbortSignal): Promise<number> {
  const listenFd = listenUnix(path);
  try {
    const signalled = new EventTarget();
    poller.add(listenFd, EPOLLIN, () => signalled.dispatchEvent(new Event('ready')));
    await once(signalled, 'ready', { signal }).catch(() => {
      throw signal.reason;
    });
    const fd = acceptUnix(listenFd);
    if (fd === undefined) throw new Error(`the back-end that connected to ${path} left at once`);
    return fd;
  } finally {
    poller.remove(listenFd);
    closeFd(listenFd);
    rmSync(path, { force: true });
  }
}
