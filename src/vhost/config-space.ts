/**
 * What a driver reads of a network device (virtio 1.3, 5.1.4): the bytes of its configuration space, and the MTU, which
 * a front-end may say otherwise (NET_SET_MTU).
 */
import { features as VIRTIO } from '../virtio/features.ts';
import { askAnnouncement, encodeNetConfig, type NetConfig, sayLink } from '../virtio/net-config.ts';
import { RSS_LIMITS } from './device-control.ts';
import type { DeviceState } from './device-state.ts';

/** What a port says of the device itself; a front-end may have its own ideas of what it doesn't. */
export type DeviceLimits = Pick<NetConfig, 'mac' | 'mtu' | 'speed'>;

export class ConfigSpace {
  readonly #limits: DeviceLimits;
  readonly #pairs: number;
  readonly #features: bigint;
  #linkUp = true;
  #mtu: number | null = null;
  #bytes: Uint8Array = new Uint8Array(0);

  /** `features` are those that the device offers. */
  constructor(limits: DeviceLimits, pairs: number, features: bigint) {
    this.#limits = limits;
    this.#pairs = pairs;
    this.#features = features;
    this.reset();
  }

  /** All as the port has it; the link stays up or down. */
  reset(): void {
    const hashes = this.#features & (VIRTIO.VIRTIO_NET_F_RSS | VIRTIO.VIRTIO_NET_F_HASH_REPORT);
    this.#mtu = this.#limits.mtu ?? null;
    this.#bytes = encodeNetConfig({
      ...this.#limits,
      pairs: this.#pairs,
      linkUp: this.#linkUp,
      ...(hashes ? { rss: RSS_LIMITS } : {}),
    });
  }

  get bytes(): Uint8Array {
    return this.#bytes;
  }

  /** 6 bytes; zeros: it isn't known. */
  get mac(): Uint8Array {
    return this.#bytes.subarray(0, 6);
  }

  setMac(mac: Uint8Array): void {
    this.#bytes.set(mac);
  }

  /** What the guest was told to keep to; null where nobody told it anything. */
  get mtu(): number | null {
    return this.#mtu;
  }

  /** Throws an Error where it is more than the port's limit. */
  setMtu(mtu: number): void {
    const { mtu: limit } = this.#limits;
    if (limit !== undefined && mtu > limit)
      throw new Error(`an MTU of ${mtu}, but this port's limit is mtu=${limit}`);
    this.#mtu = mtu;
  }

  /** False where it was so before. */
  setLink(up: boolean): boolean {
    if (up === this.#linkUp) return false;
    this.#linkUp = up;
    sayLink(this.#bytes, up);
    return true;
  }

  /** Asks the driver to announce itself (5.1.6.5.4), or not any more. */
  askAnnouncement(asked: boolean): void {
    askAnnouncement(this.#bytes, asked);
  }

  /** What another back-end has to know of it. */
  save(): DeviceState {
    const mac = Buffer.from(this.mac)
      .toString('hex')
      .replace(/..(?=.)/g, '$&:');
    return { mtu: this.#mtu, mac };
  }
}
