/**
 * An interface of the host that the switch takes over, such as a network card: what it receives comes here, and what
 * is for its network goes out by it, through packet sockets (packet(7)), one a queue pair.
 *
 * The kernel's stack stays on the interface, unless it is kept from it. An interface that goes away is bound to again
 * when one of its name is back.
 */
import type { Framing } from '../io/index.ts';
import type { PortSpec, PortState } from '../switch/types.ts';
import {
  closeFd,
  interfaceIndex,
  isInterfaceUp,
  lacksPacketRight,
  openPacketSockets,
  type Poller,
  watchInterfaces,
} from '../sys/index.ts';
import { features as F } from '../virtio/features.ts';
import type { End, Link } from './kernel-port.ts';

/** What the kernel may leave undone in a frame that it gives, and what it takes undone. */
const OFFLOADS =
  F.VIRTIO_NET_F_CSUM |
  F.VIRTIO_NET_F_HOST_TSO4 |
  F.VIRTIO_NET_F_HOST_TSO6 |
  F.VIRTIO_NET_F_HOST_ECN |
  F.VIRTIO_NET_F_HOST_UFO |
  F.VIRTIO_NET_F_HOST_USO |
  F.VIRTIO_NET_F_GUEST_CSUM |
  F.VIRTIO_NET_F_GUEST_TSO4 |
  F.VIRTIO_NET_F_GUEST_TSO6 |
  F.VIRTIO_NET_F_GUEST_ECN;

export class AfPacketEnd implements End {
  readonly queues: number;
  readonly framing: Framing = { prefix: 10, messages: 'many', control: true, offloads: OFFLOADS };
  readonly role = null;
  readonly #name: string;
  readonly #unwatch: () => void;
  #fds: number[] = [];
  /** The interface that they are bound to. */
  #index: number | undefined;
  #link: Link | undefined;
  #up = false;
  /** The sockets of an interface that has gone are being given back. */
  #leaving = false;
  #closed = false;
  connections = 0;

  /** Binds to the interface. Throws an Error that says what is missing. */
  constructor(spec: PortSpec, poller: Poller) {
    this.queues = spec.queues ?? 1;
    this.#name = spec.target;
    this.#bind();
    if (this.#index === undefined)
      throw new Error(`there is no interface ${this.#name}: \`ip link\` lists those that are`);
    try {
      this.#unwatch = watchInterfaces(
        poller,
        () => this.#look(),
        (error) => this.#link?.error(error.message),
      );
    } catch (error) {
      this.#closeFds();
      throw error;
    }
  }

  get state(): PortState {
    if (this.#fds.length === 0) return 'failed';
    return this.#up ? 'up' : 'down';
  }

  start(link: Link): void {
    this.#link = link;
    this.#open();
  }

  #bind(): void {
    const index = interfaceIndex(this.#name);
    if (index === undefined) return;
    try {
      this.#fds = openPacketSockets(index, this.queues);
    } catch (error) {
      if (!lacksPacketRight(error)) throw error;
      throw new Error(
        `interface ${this.#name}: a packet socket takes the capability CAP_NET_RAW: run the switch by ` +
          '`systemd-run -p AmbientCapabilities=CAP_NET_RAW ...`, or as root',
        { cause: error },
      );
    }
    this.#index = index;
    this.connections++;
  }

  #open(): void {
    this.#link!.open(
      this.#fds.map((fd) => ({ kind: 'messages', fd })),
      (reason) => void this.#lost(reason),
    );
    this.#look();
  }

  /** Follows the interface: its state, its end, and one of the same name that comes. */
  #look(): void {
    if (this.#closed || this.#leaving || !this.#link) return;
    const index = interfaceIndex(this.#name);
    if (this.#fds.length > 0 && index !== this.#index) {
      void this.#lost('it is gone; the port goes on with it when it is back');
    } else if (this.#fds.length === 0 && index !== undefined) {
      try {
        this.#bind();
        this.#link.error(null);
        this.#open();
      } catch (error) {
        this.#link.error((error as Error).message);
      }
    } else if (this.#fds.length > 0) {
      this.#up = isInterfaceUp(this.#name) === true;
      this.#link.set(this.#up, `interface ${this.#name} is down`);
    }
  }

  async #lost(reason: string): Promise<void> {
    if (this.#leaving) return;
    this.#leaving = true;
    this.#link!.error(`interface ${this.#name}: ${reason}`);
    await this.#link!.close(`interface ${this.#name} is gone`);
    this.#closeFds();
    this.#leaving = false;
    try {
      // It may have come back meanwhile.
      this.#look();
    } catch (error) {
      this.#link!.error((error as Error).message);
    }
  }

  #closeFds(): void {
    for (const fd of this.#fds) closeFd(fd);
    this.#fds = [];
    this.#index = undefined;
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#unwatch();
    this.#closeFds();
  }
}
