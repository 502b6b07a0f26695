/**
 * A vhost-user port: a virtual machine, or any virtio-user driver, plugged in through a unix socket.
 *
 * As a server it listens and serves one front-end at a time; the next one waits in the backlog until the first
 * is gone. As a client it dials the front-end's socket, and dials again whenever the connection ends: the guest
 * then survives a restart of the switch, and the switch that of the guest.
 */
import { lstatSync, rmSync } from 'node:fs';
import type { PortStruct } from '../arena/index.ts';
import type { PortSpec, PortState, PortStatus, Role } from '../switch/types.ts';
import {
  acceptUnix,
  closeFd,
  connectUnix,
  EPOLLIN,
  fileInfo,
  isSystemError,
  listenUnix,
  setNonBlocking,
  userfaultfd,
} from '../sys/index.ts';
import { BackendSession } from '../vhost/backend.ts';
import { NetDevice } from '../vhost/net-device.ts';
import { features, vhostProtocolFeatureNames, vhostProtocolFeatures } from '../virtio/features.ts';
import { offeredFeatures } from './features.ts';
import { deviceDetail, ringWords, totals } from './net-status.ts';
import type { DetailOfKind, Port, PortContext } from './port.ts';

/**
 * Most queue pairs of a guest where the port's options don't say less. A control queue comes behind them all
 * (VIRTIO 5.1.2), and has to have a number in the 8 bits of SET_VRING_KICK too.
 */
const QUEUE_PAIRS = 128;
const QUEUE_PAIRS_WITH_CONTROL = 127;

/** Milliseconds between two dials: doubled from the first to the last. */
const FIRST_REDIAL = 50;
const LAST_REDIAL = 1000;

/** Milliseconds that a front-end has to say all it wants to when its rings run. */
const LEAVE = 500;

export class VhostUserPort implements Port {
  readonly spec: PortSpec;
  readonly #context: PortContext;
  readonly #struct: PortStruct;
  readonly #device: NetDevice;
  #listenFd = -1;
  #isAccepting = false;
  /** A connection that was there at the start; served once, and never dialled again. */
  #connectedFd = -1;
  /** Tells our socket from one that somebody put in its place. */
  #socketId: string | undefined;
  #session: BackendSession | null = null;
  /** The next dial, or the next look at a socket that could not be accepted from. */
  #retry: NodeJS.Timeout | null = null;
  /** A guest that came while the link is down is let go. */
  #leave: NodeJS.Timeout | undefined;
  #redialDelay = FIRST_REDIAL;
  #closed = false;
  /** The link is set down. */
  #unplugged = false;
  /** Nobody can connect: a guest that can't be told of its link otherwise sees its back-end gone. */
  #away = false;
  #up = false;
  #connections = 0;
  #lastError: string | null = null;
  /** Why nobody answered the last dial; each reason is reported once. */
  #dialError: string | null = null;

  /** Listens, or dials for the first time. Throws a SystemError when it can't listen. */
  constructor(spec: PortSpec, context: PortContext) {
    this.spec = spec;
    this.#context = context;
    this.#struct = context.structures.port(context.slot);
    this.#struct.set('addressLimit', context.maxAddresses);
    this.#struct.set64('filtered', 0n);
    const offered = offeredFeatures(spec);
    const hasControl = (offered.features & features.VIRTIO_NET_F_CTRL_VQ) !== 0n;
    const queuePairs = spec.queues ?? (hasControl ? QUEUE_PAIRS_WITH_CONTROL : QUEUE_PAIRS);
    // Said now, not when a guest is on its way.
    if (offered.protocolFeatures & vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_PAGEFAULT)
      closeFd(userfaultfd());
    if (queuePairs === 1) offered.features &= ~features.VIRTIO_NET_F_MQ;
    try {
      // The socket comes first: where it can't be had there is no device yet that would have to be given back.
      if (context.socketFd !== undefined) this.#inherit(context.socketFd);
      else if (this.#role === 'server') {
        this.#listen();
      }
      this.#accepting(this.#connectedFd < 0);
      this.#device = new NetDevice({
        ...context,
        ...offered,
        queuePairs,
        config: { mac: spec.mac, mtu: spec.mtu, speed: spec.speed },
        sealed: spec.sealed,
        events: {
          onRings: () => {
            const broken = this.#device.queues.find((q) => q.error !== null);
            this.#ringsChanged(
              broken ? `queue ${broken.index}: ${broken.error}` : 'the front-end stopped its rings',
            );
          },
          onQueueBroken: (queue, reason) => {
            this.#lastError = `queue ${queue}: ${reason}`;
            context.events.queueBroken(queue, reason);
            this.#session?.queueBroken();
          },
          onMemoryLost: (reason) => {
            this.#fail(reason);
            void this.#session?.close(reason);
          },
        },
      });
    } catch (error) {
      this.#stopListening();
      throw error;
    }
    if (this.#connectedFd >= 0) this.#serve(this.#connectedFd);
    else if (this.#role === 'client') this.#dial();
  }

  /** Takes a socket that whoever started this program has opened: one that listens, or a connection. */
  #inherit(fd: number): void {
    if (fileInfo(fd).kind !== 'socket') throw new Error(`descriptor ${fd} is no socket`);
    setNonBlocking(fd);
    let first: number | undefined;
    try {
      first = acceptUnix(fd);
      this.#listenFd = fd;
    } catch (error) {
      if (!isSystemError(error, 'EINVAL')) throw error;
      this.#connectedFd = fd;
    }
    // Somebody waited already: as good as a connection, and the next one is accepted after it.
    if (first !== undefined) this.#connectedFd = first;
  }

  #listen(): void {
    this.#listenFd = listenUnix(this.spec.target);
    this.#socketId = fileId(this.spec.target);
  }

  setLink(up: boolean): void {
    clearTimeout(this.#leave);
    this.#unplugged = !up;
    this.#device.setLink(up);
    if (!up) this.#letGo();
    else if (this.#away) {
      this.#away = false;
      this.#comeBack();
    }
  }

  /**
   * The link is down, and the guest that is there must know. Where its device has no word for that, what it notices is
   * that its back-end is gone: QEMU takes the link down then, and up with the next one. It waits for one that listens
   * and doesn't answer, so nobody listens until the link is up. A guest that isn't there yet is served first, since
   * QEMU doesn't start without.
   */
  #letGo(): void {
    const session = this.#session;
    if (!this.#unplugged || !this.#up || !session || this.#context.socketFd !== undefined) return;
    const { VHOST_USER_PROTOCOL_F_CONFIG } = vhostProtocolFeatures;
    if (session.protocolFeatures & VHOST_USER_PROTOCOL_F_CONFIG && this.#device.tellsLink) return;
    this.#away = true;
    this.#stopListening();
    session.close('its link is set down');
  }

  #comeBack(): void {
    this.#retry = null;
    // A connection that is about to end is followed by the next one.
    if (this.#closed || this.#away || this.#listenFd >= 0 || (this.#role === 'client' && this.#session))
      return;
    if (this.#role === 'client') {
      this.#dial();
      return;
    }
    try {
      this.#listen();
      if (!this.#session) this.#accepting(true);
    } catch (error) {
      this.#fail((error as Error).message);
      this.#retry = setTimeout(() => this.#comeBack(), LAST_REDIAL);
    }
  }

  get #role(): Role {
    return this.spec.role ?? 'server';
  }

  #accepting(on: boolean): void {
    if (this.#listenFd < 0) return;
    if (on === this.#isAccepting) return;
    this.#isAccepting = on;
    if (on) this.#context.poller.add(this.#listenFd, EPOLLIN, () => this.#accept());
    else this.#context.poller.remove(this.#listenFd);
  }

  #accept(): void {
    try {
      const fd = acceptUnix(this.#listenFd);
      if (fd === undefined) return;
      this.#accepting(false);
      this.#serve(fd);
    } catch (error) {
      // Out of descriptors, most likely: the front-end still waits, and the socket stays readable.
      this.#accepting(false);
      this.#fail((error as Error).message);
      this.#retry = setTimeout(() => this.#accepting(true), LAST_REDIAL);
    }
  }

  #dial(): void {
    this.#retry = null;
    try {
      this.#serve(connectUnix(this.spec.target));
      this.#redialDelay = FIRST_REDIAL;
      // Nobody there yet is what a client waits for: over as soon as somebody is.
      if (this.#lastError === this.#dialError) this.#lastError = null;
      this.#dialError = null;
    } catch (error) {
      const reason = (error as Error).message;
      if (reason !== this.#dialError) this.#fail(reason);
      this.#dialError = reason;
      this.#dialLater();
    }
  }

  #dialLater(): void {
    this.#retry = setTimeout(() => this.#dial(), this.#redialDelay);
    this.#redialDelay = Math.min(2 * this.#redialDelay, LAST_REDIAL);
  }

  #serve(fd: number): void {
    this.#connections++;
    try {
      this.#session = new BackendSession({
        fd,
        poller: this.#context.poller,
        device: this.#device,
        peer: this.spec.target,
        onError: (message) => this.#fail(message),
        onClose: (reason) => this.#ended(reason),
      });
    } catch (error) {
      closeFd(fd);
      throw error;
    }
  }

  #ended(reason: string): void {
    this.#session = null;
    this.#ringsChanged(reason);
    if (this.#closed || this.#away) return;
    if (this.#listenFd >= 0) this.#accepting(true);
    else if (this.#connectedFd >= 0)
      this.#fail(`the connection that this port was given has ended: ${reason}`);
    else this.#dialLater();
  }

  #fail(message: string): void {
    this.#lastError = message;
    this.#context.events.portError(message);
  }

  #ringsChanged(reason: string): void {
    const up = this.#device.enabledPairs > 0;
    if (up === this.#up) return;
    this.#up = up;
    if (!up) this.#context.events.guestDown(reason);
    else {
      this.#context.events.guestUp();
      // Not in the middle of what it has to say yet.
      if (this.#unplugged) this.#leave = setTimeout(() => this.#letGo(), LEAVE);
    }
  }

  reportBroken(): void {
    this.#device.reportBroken();
  }

  get #state(): PortState {
    if (this.#device.queues.some((q) => q.error !== null)) return 'broken';
    if (this.#up) return 'up';
    if (this.#session) return 'connected';
    if (this.#role === 'client') return 'dialing';
    return this.#listenFd < 0 ? 'failed' : 'listening';
  }

  status(): PortStatus {
    return {
      name: this.spec.name,
      type: this.spec.type,
      target: this.spec.target,
      role: this.#role,
      state: this.#state,
      rings: ringWords(this.#device),
      lastError: this.#lastError,
      ...totals(this.#device, this.#context.arena),
    };
  }

  detail(): DetailOfKind {
    return {
      ...this.status(),
      ...deviceDetail(this.#device, this.#context.arena),
      driverStatus: this.#session?.driverStatus ?? '',
      protocolFeatures: {
        offered: vhostProtocolFeatureNames(this.#device.protocolFeatures),
        acknowledged: vhostProtocolFeatureNames(this.#session?.protocolFeatures ?? 0n),
      },
      filtered: Number(this.#struct.get64('filtered')),
      addresses: { learned: this.#struct.get('addresses'), limit: this.#struct.get('addressLimit') },
      connections: this.#connections,
    };
  }

  #stopListening(): void {
    if (this.#listenFd < 0) return;
    this.#accepting(false);
    closeFd(this.#listenFd);
    this.#listenFd = -1;
    if (this.#socketId && this.#socketId === fileId(this.spec.target))
      rmSync(this.spec.target, { force: true });
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#retry) clearTimeout(this.#retry);
    clearTimeout(this.#leave);
    this.#stopListening();
    const session = this.#session;
    if (session) {
      session.close('the port was removed');
      await session.closed;
    }
    await this.#device.close();
  }
}

function fileId(path: string): string | undefined {
  const file = lstatSync(path, { throwIfNoEntry: false });
  return file && `${file.dev}:${file.ino}`;
}
