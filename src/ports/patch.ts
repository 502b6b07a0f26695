/**
 * A patch port: one end of a cable between two bridges of a switch. Each end names the other; frames pass while both
 * are there. The cable is a pair of sockets, whose messages have the virtio-net header of guests' frames before each,
 * so that checksums and large segments stay undone on the way, and all rules of both ports hold.
 */
import type { Framing } from '../io/index.ts';
import type { PortSpec, PortState } from '../switch/types.ts';
import { closeFd, messageSocketPair } from '../sys/index.ts';
import { features as F } from '../virtio/features.ts';
import type { End, Link } from './kernel-port.ts';

const OFFLOADS =
  F.VIRTIO_NET_F_CSUM |
  F.VIRTIO_NET_F_GUEST_CSUM |
  F.VIRTIO_NET_F_HOST_TSO4 |
  F.VIRTIO_NET_F_GUEST_TSO4 |
  F.VIRTIO_NET_F_HOST_TSO6 |
  F.VIRTIO_NET_F_GUEST_TSO6 |
  F.VIRTIO_NET_F_HOST_ECN |
  F.VIRTIO_NET_F_GUEST_ECN |
  F.VIRTIO_NET_F_HOST_UFO |
  F.VIRTIO_NET_F_GUEST_UFO |
  F.VIRTIO_NET_F_HOST_USO |
  F.VIRTIO_NET_F_GUEST_USO4 |
  F.VIRTIO_NET_F_GUEST_USO6;

/** The patch ports of a switch by their names. */
export type Patches = Map<string, PatchEnd>;

export class PatchEnd implements End {
  readonly queues = 1;
  readonly framing: Framing = { prefix: 12, messages: 'many', offloads: OFFLOADS };
  readonly role = null;
  readonly #name: string;
  readonly #peer: string;
  readonly #patches: Patches;
  #link: Link | undefined;
  #fd = -1;
  connections = 0;

  constructor({ name, target }: PortSpec, patches: Patches) {
    this.#name = name;
    this.#peer = target;
    this.#patches = patches;
    patches.set(name, this);
  }

  get state(): PortState {
    return this.#fd >= 0 ? 'up' : 'down';
  }

  start(link: Link): void {
    this.#link = link;
    const peer = this.#patches.get(this.#peer);
    if (!peer?.isFor(this.#name)) {
      const why = peer ? `leads elsewhere` : "isn't there";
      link.error(`the other end, patch port ${this.#peer}, ${why}`);
      return;
    }
    const [here, there] = messageSocketPair();
    this.#plug(here);
    peer.#plug(there);
  }

  /** Does it lead to the patch port of this name? */
  isFor(name: string): boolean {
    return this.#link !== undefined && this.#peer === name;
  }

  #plug(fd: number): void {
    this.#fd = fd;
    this.connections++;
    this.#link!.error(null);
    this.#link!.open([{ kind: 'messages', fd }], (reason) => this.#link!.error(reason));
    this.#link!.set(true);
  }

  /** The other end goes. */
  async #unplug(): Promise<void> {
    await this.#link!.close(`the other end, patch port ${this.#peer}, is gone`);
    this.#closeFd();
    this.#link!.error(`the other end, patch port ${this.#peer}, isn't there`);
  }

  #closeFd(): void {
    if (this.#fd >= 0) closeFd(this.#fd);
    this.#fd = -1;
  }

  async close(): Promise<void> {
    if (this.#patches.get(this.#name) === this) this.#patches.delete(this.#name);
    const peer = this.#patches.get(this.#peer);
    if (this.#fd >= 0 && peer?.isFor(this.#name)) await peer.#unplug();
    this.#closeFd();
  }
}
