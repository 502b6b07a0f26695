/**
 * A TAP: an interface of the host's kernel, whose frames come here (Linux's Documentation/networking/tuntap.rst).
 *
 * Every frame has the virtio-net header that guests' frames have, so checksums and segments that a guest leaves to
 * others stay undone on the way into the kernel's stack, and the other way round. An interface that is there already,
 * such as one that `ip tuntap` made for a user without rights, is attached to; else it is made, and goes with the
 * port. One that is deleted under the port is attached to again when it is back.
 */
import { closeSync } from 'node:fs';
import type { Framing } from '../io/index.ts';
import type { PortSpec, PortState } from '../switch/types.ts';
import {
  interfaceIndex,
  linkFault,
  openTap,
  type Poller,
  setInterfaceUp,
  setNonBlocking,
  setTapCarrier,
  setTapHeader,
  setTapOffloads,
  tapOffloads,
  watchInterfaces,
} from '../sys/index.ts';
import { features as F } from '../virtio/features.ts';
import type { End, Link } from './kernel-port.ts';

/** What the kernel may leave undone when it is told so, and what it takes undone. */
const OFFLOADS = [
  [tapOffloads.TUN_F_CSUM, F.VIRTIO_NET_F_CSUM | F.VIRTIO_NET_F_GUEST_CSUM],
  [tapOffloads.TUN_F_TSO4, F.VIRTIO_NET_F_HOST_TSO4 | F.VIRTIO_NET_F_GUEST_TSO4],
  [tapOffloads.TUN_F_TSO6, F.VIRTIO_NET_F_HOST_TSO6 | F.VIRTIO_NET_F_GUEST_TSO6],
  [tapOffloads.TUN_F_TSO_ECN, F.VIRTIO_NET_F_HOST_ECN | F.VIRTIO_NET_F_GUEST_ECN],
  [tapOffloads.TUN_F_UFO, F.VIRTIO_NET_F_HOST_UFO | F.VIRTIO_NET_F_GUEST_UFO],
  [tapOffloads.TUN_F_USO4, F.VIRTIO_NET_F_HOST_USO | F.VIRTIO_NET_F_GUEST_USO4],
  [tapOffloads.TUN_F_USO6, F.VIRTIO_NET_F_HOST_USO | F.VIRTIO_NET_F_GUEST_USO6],
] as const;
/** From the newest kernels' to those that every kernel has; the bits for USO come together, with Linux 6.2. */
const OFFERS = [127, 111, 31, 15];

/** Milliseconds between two looks for an interface that has gone. */
const RETRY = 1000;

export class TapEnd implements End {
  readonly queues: number;
  readonly framing: Framing;
  readonly role = null;
  readonly #name: string;
  #fds: number[] = [];
  #link: Link | undefined;
  #unwatch: () => void = () => {};
  #retry: NodeJS.Timeout | null = null;
  #fault = 'is down';
  #closed = false;
  /** The carrier that the interface is to have. */
  #carrier = true;
  connections = 1;

  /** Attaches to the interface, or makes it. Throws an Error that says what is missing. */
  constructor(spec: PortSpec, poller: Poller) {
    this.queues = spec.queues ?? 1;
    this.#name = spec.target;
    const isNew = interfaceIndex(spec.target) === undefined;
    const { fds, offloads } = attach(spec.target, this.queues);
    this.#fds = fds;
    this.framing = { prefix: 12, messages: 'one', offloads };
    try {
      if (isNew) setInterfaceUp(spec.target);
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
    return this.#fault === '' ? 'up' : 'down';
  }

  get note(): string {
    return `interface ${this.#name} ${this.#fds.length === 0 ? 'is gone' : this.#fault}`.trimEnd();
  }

  start(link: Link): void {
    this.#link = link;
    this.#open();
  }

  setLink(up: boolean): void {
    this.#carrier = up;
    try {
      if (this.#fds.length > 0) setTapCarrier(this.#fds[0]!, up);
    } catch (error) {
      this.#link!.error((error as Error).message);
    }
  }

  #open(): void {
    // First: what a ring that isn't enabled takes is lost.
    this.#look();
    this.#link!.open(
      this.#fds.map((fd) => ({ kind: 'file', fd })),
      (reason) => void this.#lost(reason),
    );
  }

  /** The state of the interface is the link's. */
  #look(): void {
    if (this.#fds.length === 0) return;
    // One that was moved to another network namespace works on, and nobody tells of it here.
    this.#fault = linkFault(this.#name) ?? '';
    this.#link?.set(this.#fault === '', `interface ${this.#name} ${this.#fault}`);
  }

  async #lost(reason: string): Promise<void> {
    let words = reason;
    try {
      if (interfaceIndex(this.#name) === undefined)
        words = 'it was deleted; the port goes on with it when it is back';
    } catch {
      // Out of descriptors, most likely: the reason will do.
    }
    this.#link!.error(`interface ${this.#name}: ${words}`);
    await this.#link!.close(`interface ${this.#name} is gone`);
    this.#closeFds();
    if (this.#closed) return;
    this.#retry = setTimeout(() => this.#again(), RETRY);
  }

  #again(): void {
    this.#retry = null;
    try {
      if (interfaceIndex(this.#name) !== undefined) {
        this.#fds = attach(this.#name, this.queues).fds;
        this.connections++;
        if (!this.#carrier) setTapCarrier(this.#fds[0]!, false);
        this.#link!.error(null);
        this.#open();
        return;
      }
    } catch (error) {
      this.#link!.error((error as Error).message);
    }
    this.#retry = setTimeout(() => this.#again(), RETRY);
  }

  #closeFds(): void {
    for (const fd of this.#fds) closeSync(fd);
    this.#fds = [];
  }

  async close(): Promise<void> {
    this.#closed = true;
    if (this.#retry) clearTimeout(this.#retry);
    this.#unwatch();
    this.#closeFds();
  }
}

/** A descriptor for each queue pair, and the offloads that the kernel has. */
function attach(name: string, queues: number): { fds: number[]; offloads: bigint } {
  const fds = openTap(name, queues);
  try {
    for (const fd of fds) {
      setNonBlocking(fd);
      setTapHeader(fd, 12);
    }
    const bits = OFFERS.find((offer) => setTapOffloads(fds[0]!, offer)) ?? 0;
    const offloads = OFFLOADS.reduce((sum, [bit, features]) => (bits & bit ? sum | features : sum), 0n);
    return { fds, offloads };
  } catch (error) {
    for (const fd of fds) closeSync(fd);
    throw error;
  }
}
