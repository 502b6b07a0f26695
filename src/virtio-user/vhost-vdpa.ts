/**
 * virtio-user over the kernel's vhost-vdpa: the other side of the rings is a vDPA device, in hardware or, with VDUSE,
 * in another program. /dev/vhost-vdpa-N is there once a vDPA device is bound to the driver vhost_vdpa.
 *
 * The device reaches memory by I/O virtual addresses only; ours are the addresses of this process. A request is
 * answered when the device has answered, which may be another process, or this one.
 *
 * The control queue is a ring like others. A device that puts it into a group of its own (VHOST_VDPA_GET_VRING_GROUP)
 * has all groups in address space 0 after a reset, where our memory is, and they stay there: another one would hide
 * the queue from a guest behind this program, and there is none.
 */
import { closeFd, drain, EPOLLIN, eventfd, isSystemError, type Poller, SystemError } from '../sys/index.ts';
import { VhostFile, view } from '../vhost/kernel.ts';
import { encodeU64 } from '../vhost/messages.ts';
import { controlQueueIndex } from '../virtio/control-queue.ts';
import { featureNames, features } from '../virtio/features.ts';
import { decodeNetConfig, NET_CONFIG_LENGTH } from '../virtio/net-config.ts';
import { deviceStatus, statusNames } from '../virtio/status.ts';
import { VirtioUserError } from './errors.ts';
import type {
  Agreement,
  DeviceConfig,
  RingPlace,
  SharedMemory,
  Transport,
  TransportEvents,
} from './transport.ts';

export const VHOST_VDPA = '/dev/vhost-vdpa';

const { ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK } = deviceStatus;
/** What a device with several queue pairs offers (5.1.3.1). */
const SEVERAL = features.VIRTIO_NET_F_MQ | features.VIRTIO_NET_F_CTRL_VQ;
/** virtio 1.3, 5: the network device. */
const NETWORK = 1;

/** Bits of VHOST_GET_BACKEND_FEATURES (linux/vhost_types.h). */
const VHOST_BACKEND_F_IOTLB_MSG_V2 = 1n << 1n;
const VHOST_BACKEND_F_IOTLB_BATCH = 1n << 2n;

/** struct vhost_msg_v2: type and address space, then struct vhost_iotlb_msg, padded to 64 bytes. */
const MESSAGE_LENGTH = 72;
const VHOST_IOTLB_MSG_V2 = 2;
const VHOST_IOTLB_UPDATE = 2;
const VHOST_IOTLB_BATCH_BEGIN = 5;
const VHOST_IOTLB_BATCH_END = 6;
const VHOST_ACCESS_RW = 3;

const MISSING =
  'no such vDPA device: "vdpa dev show" lists them, "vdpa dev add" makes one, and the module vhost_vdpa ("modprobe vhost_vdpa" as root) gives those that are bound to it such a file; one that is a network interface is bound to virtio_vdpa instead';
const ADVICE = {
  ENOENT: MISSING,
  ENODEV: MISSING,
  ENXIO: MISSING,
  EACCES:
    'permission denied: give it a group with a udev rule, KERNEL=="vhost-vdpa-*", GROUP="kvm", MODE="0660"',
  EBUSY: 'another program has it open: a vDPA device has one driver',
};

export interface VhostVdpaOptions extends TransportEvents {
  /** `/dev/vhost-vdpa-0` */
  path: string;
  /** Queue pairs that are to be used. */
  queues: number;
  /** Milliseconds to wait for each answer. */
  timeout: number;
  poller: Poller;
}

export class VhostVdpaTransport implements Transport {
  readonly #options: VhostVdpaOptions;
  #current: VhostFile | undefined;
  #configCall = -1;
  #agreed = 0n;
  #batch = false;
  #status = 0;

  constructor(options: VhostVdpaOptions) {
    this.#options = options;
  }

  async connect(): Promise<void> {
    const { path, timeout } = this.#options;
    this.#current = await VhostFile.open(path, { advice: ADVICE, timeout });
    try {
      const id = view(await this.#device.call('VHOST_VDPA_GET_DEVICE_ID', new Uint8Array(4)));
      if (id.getUint32(0, true) !== NETWORK)
        throw new Error(
          `${path} is a virtio device of type ${id.getUint32(0, true)}, a network device (1) expected`,
        );
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  async negotiate(wanted: bigint): Promise<Agreement> {
    const device = this.#device;
    await this.#reset();
    await this.#setStatus(ACKNOWLEDGE);
    await this.#setStatus(ACKNOWLEDGE | DRIVER);
    const offered = await device.features();
    // Addresses go through translations here, whether the driver cares or not.
    this.#agreed = offered & (wanted | features.VIRTIO_F_ACCESS_PLATFORM);
    // 5.1.3.1: without commands, nobody could say how many pairs are in use.
    if ((this.#agreed & features.VIRTIO_NET_F_CTRL_VQ) === 0n) this.#agreed &= ~features.VIRTIO_NET_F_MQ;
    await device.setFeatures(this.#agreed);
    await this.#setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK);

    const backend = view(await device.call('VHOST_GET_BACKEND_FEATURES', new Uint8Array(8)));
    const known =
      backend.getBigUint64(0, true) & (VHOST_BACKEND_F_IOTLB_MSG_V2 | VHOST_BACKEND_F_IOTLB_BATCH);
    if ((known & VHOST_BACKEND_F_IOTLB_MSG_V2) === 0n)
      throw new Error(
        `${this.#options.path}: the kernel has no IOTLB messages of version 2, Linux 5.7 or later expected`,
      );
    await device.call('VHOST_SET_BACKEND_FEATURES', encodeU64(known));
    this.#batch = (known & VHOST_BACKEND_F_IOTLB_BATCH) !== 0n;
    await this.#watchConfig();
    return { features: this.#agreed, queuePairs: await this.#pairs(offered), inflight: false };
  }

  /** Queue pairs of the device. Rejects where it has fewer than are to be used, and says what lacks. */
  async #pairs(offered: bigint): Promise<number> {
    const { path, queues } = this.#options;
    // The field is there with either feature (5.1.4), and says where the control queue is.
    const told = this.#agreed & (features.VIRTIO_NET_F_MQ | features.VIRTIO_NET_F_RSS);
    const pairs = told === 0n ? 1 : (await this.config()).pairs;
    if (pairs < queues) {
      const lacking = featureNames(SEVERAL & ~offered).join(' and ');
      const why = lacking ? `without ${lacking}` : '"vdpa dev add" with "max_vqp" may give it more';
      throw new VirtioUserError('BACKEND', `queues ${queues}: ${path} has ${pairs} at most, ${why}`);
    }
    const control = this.#agreed & features.VIRTIO_NET_F_CTRL_VQ;
    const needed = control ? controlQueueIndex(this.#agreed, pairs) + 1 : 2 * queues;
    const rings = await this.#rings();
    if (rings < needed)
      throw new VirtioUserError(
        'BACKEND',
        `${path}: the device says that it has ${pairs} pairs of queues, which take ${needed} rings with the control queue, but the kernel knows of ${rings}; with queues: 1 it takes fewer`,
      );
    return pairs;
  }

  /** Rings that the kernel knows of, which says so since Linux 6.2; before, one that isn't there is refused later. */
  async #rings(): Promise<number> {
    try {
      const count = await this.#device.call('VHOST_VDPA_GET_VQS_COUNT', new Uint8Array(4));
      return view(count).getUint32(0, true);
    } catch (error) {
      if (isSystemError(error, 'ENOTTY')) return Number.POSITIVE_INFINITY;
      throw error;
    }
  }

  async config(): Promise<DeviceConfig> {
    // struct vhost_vdpa_config: offset, length, and the bytes.
    const request = new Uint8Array(8 + NET_CONFIG_LENGTH);
    for (let length = NET_CONFIG_LENGTH; ; length -= 4) {
      view(request).setUint32(4, length, true);
      try {
        await this.#device.call('VHOST_VDPA_GET_CONFIG', request);
        return decodeNetConfig(request.subarray(8));
      } catch (error) {
        // A device may have fewer fields than we know; what it hasn't reads as zeros.
        if (length <= 12) throw error;
      }
    }
  }

  async share({ address, length }: SharedMemory): Promise<void> {
    const range = view(await this.#device.call('VHOST_VDPA_GET_IOVA_RANGE', new Uint8Array(16)));
    const first = range.getBigUint64(0, true);
    const last = range.getBigUint64(8, true);
    if (address < first || address + BigInt(length) - 1n > last)
      throw new Error(
        `${this.#options.path}: the device reaches addresses from 0x${first.toString(16)} to 0x${last.toString(16)}, and our memory is at 0x${address.toString(16)}`,
      );
    try {
      if (this.#batch) await this.#iotlb(VHOST_IOTLB_BATCH_BEGIN);
      await this.#iotlb(VHOST_IOTLB_UPDATE, address, BigInt(length));
      if (this.#batch) await this.#iotlb(VHOST_IOTLB_BATCH_END);
    } catch (error) {
      // Whatever the reason is, the kernel says EFAULT; memory that a device reaches by a real IOMMU is locked.
      if (!isSystemError(error, 'EFAULT')) throw error;
      const advice = `the kernel refuses to map memory for the device: ${length >>> 10} KiB of rings and buffers may be above the limit of locked memory; raise it ("ulimit -l", LimitMEMLOCK= of systemd), or use fewer queues or a smaller queueSize`;
      throw new SystemError(error.call, error.code, this.#options.path, advice);
    }
  }

  async setRing(index: number, place: RingPlace): Promise<void> {
    const most = view(await this.#device.call('VHOST_VDPA_GET_VRING_NUM', new Uint8Array(2))).getUint16(
      0,
      true,
    );
    if (place.size > most)
      throw new RangeError(
        `queueSize ${place.size}: the rings of ${this.#options.path} have ${most} at most`,
      );
    // Of a packed ring both positions are told, the one of used descriptors in the upper half.
    const packed = (this.#agreed & features.VIRTIO_F_RING_PACKED) !== 0n;
    const base = packed ? place.base | (place.base << 16) : place.base;
    await this.#device.setRing(index, { ...place, base });
  }

  async startRing(index: number, fds: { kickFd: number; callFd: number }): Promise<void> {
    await this.#device.setEvents(index, fds);
  }

  /** A driver must not take this back (4.1.4.3.2); what it can say is how many pairs are in use. */
  async enableRing(index: number, enabled: boolean): Promise<void> {
    if (!enabled)
      throw new VirtioUserError(
        'BACKEND',
        `${this.#options.path}: a queue of a vDPA device can't be disabled; with several, control.setPairs(n) leaves the first n pairs in use`,
      );
    await this.#device.ring('VHOST_VDPA_SET_VRING_ENABLE', index, 1);
  }

  async ready(): Promise<void> {
    await this.#setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
  }

  /** A vDPA device stops as a whole: with a reset. */
  async stopRing(): Promise<void> {
    if (this.#status !== 0) await this.#reset();
  }

  async close(): Promise<void> {
    const { poller, onClose } = this.#options;
    if (this.#configCall !== -1) {
      poller.remove(this.#configCall);
      closeFd(this.#configCall);
      this.#configCall = -1;
    }
    const device = this.#current;
    this.#current = undefined;
    // The last one to leave resets the device, which may have to answer.
    await device?.close();
    if (device) onClose('closed here');
  }

  dispose(): void {}

  async #watchConfig(): Promise<void> {
    const { poller, onConfigChange } = this.#options;
    const fd = eventfd();
    this.#configCall = fd;
    poller.add(fd, EPOLLIN, () => {
      drain(fd);
      onConfigChange();
    });
    const call = new Uint8Array(4);
    view(call).setInt32(0, fd, true);
    await this.#device.call('VHOST_VDPA_SET_CONFIG_CALL', call);
  }

  async #reset(): Promise<void> {
    await this.#device.call('VHOST_VDPA_SET_STATUS', Uint8Array.of(0));
    this.#status = 0;
  }

  /** Sets the status and reads it again: a device that refuses, or doesn't answer, keeps the old one. */
  async #setStatus(bits: number): Promise<void> {
    await this.#device.call('VHOST_VDPA_SET_STATUS', Uint8Array.of(bits));
    const [now] = await this.#device.call('VHOST_VDPA_GET_STATUS', new Uint8Array(1));
    this.#status = bits;
    if ((now! & bits) === bits) return;
    const missing = statusNames(bits & ~now!);
    const asked = missing.includes('FEATURES_OK') ? ` with ${featureNames(this.#agreed).join(', ')}` : '';
    throw new Error(`${this.#options.path}: the device does not take the status ${missing}${asked}`);
  }

  async #iotlb(type: number, address = 0n, size = 0n): Promise<void> {
    const message = new Uint8Array(MESSAGE_LENGTH);
    const fields = view(message);
    fields.setUint32(0, VHOST_IOTLB_MSG_V2, true);
    fields.setBigUint64(8, address, true);
    fields.setBigUint64(16, size, true);
    fields.setBigUint64(24, address, true);
    fields.setUint8(32, VHOST_ACCESS_RW);
    fields.setUint8(33, type);
    await this.#device.file.write('IOTLB message', message);
  }

  get #device(): VhostFile {
    if (!this.#current) throw new Error('not connected');
    return this.#current;
  }
}
