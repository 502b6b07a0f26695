/**
 * virtio-user over the kernel's vhost-net: the other side of the rings is a TAP, a network interface of the host. So
 * a program has an exception path into the host's network stack, at one copy a frame and no system call but kicks.
 *
 * A /dev/vhost-net has two rings, so each queue pair has one of its own and a queue of the TAP. The kernel reads and
 * writes the rings; checksums and segments are the TAP's affair, so those features are offered here in its name.
 */
import {
  closeFd,
  openTap,
  setTapHeader,
  setTapOffloads,
  setTapQueue,
  tapIsThere,
  tapOffloads,
} from '../sys/index.ts';
import { VhostFile, view } from '../vhost/kernel.ts';
import { features } from '../virtio/features.ts';
import type { Agreement, RingPlace, SharedMemory, Transport, TransportEvents } from './transport.ts';

export const VHOST_NET = '/dev/vhost-net';

/**
 * Milliseconds between two looks whether the interface is still there. The descriptor of a TAP would tell at once, but
 * whoever waits for that is woken for each frame.
 */
const LOOK_MS = 500;

/** A TAP has at most this many queues (MAX_TAP_QUEUES). */
const MAX_QUEUES = 256;

/** Features of a network device that don't depend on the TAP's kernel: what is sent, the TAP takes as it is. */
const SENDING =
  features.VIRTIO_NET_F_CSUM |
  features.VIRTIO_NET_F_HOST_TSO4 |
  features.VIRTIO_NET_F_HOST_TSO6 |
  features.VIRTIO_NET_F_HOST_ECN |
  features.VIRTIO_NET_F_HOST_UFO |
  features.VIRTIO_NET_F_MQ;

/** What a frame that comes may have left undone, and the TAP's word for it. */
const RECEIVING: readonly (readonly [feature: bigint, offload: number])[] = [
  [features.VIRTIO_NET_F_GUEST_CSUM, tapOffloads.TUN_F_CSUM],
  [features.VIRTIO_NET_F_GUEST_TSO4, tapOffloads.TUN_F_TSO4],
  [features.VIRTIO_NET_F_GUEST_TSO6, tapOffloads.TUN_F_TSO6],
  [features.VIRTIO_NET_F_GUEST_ECN, tapOffloads.TUN_F_TSO_ECN],
  [features.VIRTIO_NET_F_GUEST_UFO, tapOffloads.TUN_F_UFO],
];

/** Since Linux 6.2; the kernel has both or none, and then takes what is sent as well. */
const USO = features.VIRTIO_NET_F_GUEST_USO4 | features.VIRTIO_NET_F_GUEST_USO6;
const USO_OFFLOADS = tapOffloads.TUN_F_USO4 | tapOffloads.TUN_F_USO6;

const MISSING =
  'this kernel has no vhost-net: load the module, "modprobe vhost_net" as root, or use a kernel that is built with CONFIG_VHOST_NET';
const ADVICE = {
  ENOENT: MISSING,
  ENODEV: MISSING,
  ENXIO: MISSING,
  EACCES:
    'permission denied: join the group that owns it ("usermod -aG kvm NAME" on Debian), or give it one with a udev rule, KERNEL=="vhost-net", GROUP="kvm", MODE="0660"',
};

export interface VhostNetOptions extends TransportEvents {
  /** Name of the TAP. */
  interface: string;
  queues: number;
  /** Milliseconds that a call may take. */
  timeout: number;
}

export class VhostNetTransport implements Transport {
  readonly #options: VhostNetOptions;
  /** One for each queue pair. */
  #devices: VhostFile[] = [];
  #taps: number[] = [];
  readonly #detached = new Set<number>();
  #look: NodeJS.Timeout | undefined;
  #connected = false;

  constructor(options: VhostNetOptions) {
    this.#options = options;
  }

  async connect(): Promise<void> {
    const { queues, timeout, interface: name } = this.#options;
    try {
      for (let i = 0; i < queues; i++)
        this.#devices.push(await VhostFile.open(VHOST_NET, { advice: ADVICE, timeout }));
      this.#taps = openTap(name, queues);
      this.#connected = true;
      this.#look = setInterval(() => {
        if (!tapIsThere(this.#taps[0]!)) this.#gone(`the interface ${name} was removed`);
      }, LOOK_MS).unref();
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  async negotiate(wanted: bigint): Promise<Agreement> {
    const [tap] = this.#taps;
    // Bit 27 means VHOST_NET_F_VIRTIO_NET_HDR here: the kernel would cut the header off, and the TAP not see it.
    const kernel = (await this.#devices[0]!.features()) & ~features.VIRTIO_F_ANY_LAYOUT;
    const uso = setTapOffloads(tap!, tapOffloads.TUN_F_CSUM | USO_OFFLOADS);
    const offered = kernel | SENDING | receiving(uso) | (uso ? features.VIRTIO_NET_F_HOST_USO : 0n);
    const agreed = offered & wanted;
    for (const device of this.#devices) await device.setFeatures(agreed & kernel);
    const modern = agreed & (features.VIRTIO_F_VERSION_1 | features.VIRTIO_NET_F_MRG_RXBUF);
    for (const fd of this.#taps) setTapHeader(fd, modern ? 12 : 10);
    let offloads = RECEIVING.reduce((bits, [feature, bit]) => (agreed & feature ? bits | bit : bits), 0);
    if ((agreed & USO) === USO) offloads |= USO_OFFLOADS;
    // Nothing can be left undone where the checksum has to be there (5.1.3.1).
    if ((offloads & tapOffloads.TUN_F_CSUM) === 0) offloads = 0;
    setTapOffloads(tap!, offloads);
    return { features: agreed, queuePairs: MAX_QUEUES, inflight: false };
  }

  /** The kernel knows nothing of the device: address and MTU are the program's own. */
  async config(): Promise<undefined> {}

  async share({ address, length }: SharedMemory): Promise<void> {
    const table = new Uint8Array(8 + 32);
    const fields = view(table);
    fields.setUint32(0, 1, true);
    fields.setBigUint64(8, address, true);
    fields.setBigUint64(16, BigInt(length), true);
    fields.setBigUint64(24, address, true);
    for (const device of this.#devices) await device.call('VHOST_SET_MEM_TABLE', table);
  }

  async setRing(index: number, place: RingPlace): Promise<void> {
    await this.#device(index).setRing(index % 2, place);
  }

  async startRing(index: number, fds: { kickFd: number; callFd: number }): Promise<void> {
    await this.#device(index).setEvents(index % 2, fds);
  }

  /** A disabled ring isn't looked at; what is sent on it waits. */
  async enableRing(index: number, enabled: boolean): Promise<void> {
    const pair = index >> 1;
    const tap = this.#taps[pair]!;
    // The kernel sends a flow where it last came from, or by its hash: not to a queue that nobody reads.
    const steers = this.#taps.length > 1 && index % 2 === 0;
    if (enabled && steers && this.#detached.delete(pair)) setTapQueue(tap, true);
    await this.#device(index).ring('VHOST_NET_SET_BACKEND', index % 2, enabled ? tap : -1);
    if (!enabled && steers && !this.#detached.has(pair)) {
      await this.#device(index).ring('VHOST_NET_SET_BACKEND', 1, -1);
      setTapQueue(tap, false);
      this.#detached.add(pair);
    }
  }

  async ready(): Promise<void> {}

  async stopRing(index: number): Promise<void> {
    await this.#device(index).ring('VHOST_NET_SET_BACKEND', index % 2, -1);
  }

  async close(): Promise<void> {
    this.#gone('closed here');
    for (const device of this.#devices.splice(0)) await device.close();
    this.#taps.splice(0).forEach(closeFd);
    this.#detached.clear();
  }

  dispose(): void {}

  #gone(reason: string): void {
    clearInterval(this.#look);
    if (!this.#connected) return;
    this.#connected = false;
    this.#options.onClose(reason);
  }

  #device(ring: number): VhostFile {
    const device = this.#devices[ring >> 1];
    if (!device) throw new Error('not connected');
    return device;
  }
}

function receiving(uso: boolean): bigint {
  return RECEIVING.reduce((bits, [feature]) => bits | feature, uso ? USO : 0n);
}
