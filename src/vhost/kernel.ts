/**
 * The kernel's vhost interface (linux/vhost.h): what vhost-net and vhost-vdpa have in common. The ioctls are those
 * that vhost-user's messages were made after; addresses are addresses of this process.
 */
import { DeviceFile, type DeviceFileOptions, ioctlNumber } from '../sys/index.ts';
import type { VringLayout } from './frontend.ts';
import { encodeU64 } from './messages.ts';

const VHOST_VIRTIO = 0xaf;
const request = (direction: 'none' | 'read' | 'write' | 'both', number: number, size: number) =>
  ioctlNumber(direction, VHOST_VIRTIO, number, size);

/** Requests and the sizes of their structures. */
export const vhostRequests = {
  VHOST_GET_FEATURES: request('read', 0x00, 8),
  VHOST_SET_FEATURES: request('write', 0x00, 8),
  VHOST_SET_OWNER: request('none', 0x01, 0),
  VHOST_SET_MEM_TABLE: request('write', 0x03, 8),
  VHOST_SET_VRING_NUM: request('write', 0x10, 8),
  VHOST_SET_VRING_ADDR: request('write', 0x11, 40),
  VHOST_SET_VRING_BASE: request('write', 0x12, 8),
  VHOST_SET_VRING_KICK: request('write', 0x20, 8),
  VHOST_SET_VRING_CALL: request('write', 0x21, 8),
  VHOST_SET_BACKEND_FEATURES: request('write', 0x25, 8),
  VHOST_GET_BACKEND_FEATURES: request('read', 0x26, 8),
  VHOST_NET_SET_BACKEND: request('write', 0x30, 8),
  VHOST_VDPA_GET_DEVICE_ID: request('read', 0x70, 4),
  VHOST_VDPA_GET_STATUS: request('read', 0x71, 1),
  VHOST_VDPA_SET_STATUS: request('write', 0x72, 1),
  VHOST_VDPA_GET_CONFIG: request('read', 0x73, 8),
  VHOST_VDPA_SET_VRING_ENABLE: request('write', 0x75, 8),
  VHOST_VDPA_GET_VRING_NUM: request('read', 0x76, 2),
  VHOST_VDPA_SET_CONFIG_CALL: request('write', 0x77, 4),
  VHOST_VDPA_GET_IOVA_RANGE: request('read', 0x78, 16),
  VHOST_VDPA_GET_VQS_COUNT: request('read', 0x80, 4),
} as const;

export type VhostRequest = keyof typeof vhostRequests;

/** One open device. Every method rejects with an Error that names the request and the device. */
export class VhostFile {
  readonly file: DeviceFile;

  private constructor(file: DeviceFile) {
    this.file = file;
  }

  /** Opens it for this process. */
  static async open(path: string, options: DeviceFileOptions): Promise<VhostFile> {
    const device = new VhostFile(await DeviceFile.open(path, options));
    try {
      await device.call('VHOST_SET_OWNER', new Uint8Array(0));
      return device;
    } catch (error) {
      await device.close();
      throw error;
    }
  }

  /** Makes a request; returns its structure, which the kernel may have filled. */
  async call(name: VhostRequest, structure: Uint8Array): Promise<Uint8Array> {
    await this.file.ioctl(name, vhostRequests[name], structure);
    return structure;
  }

  async features(): Promise<bigint> {
    return view(await this.call('VHOST_GET_FEATURES', new Uint8Array(8))).getBigUint64(0, true);
  }

  async setFeatures(bits: bigint): Promise<void> {
    await this.call('VHOST_SET_FEATURES', encodeU64(bits));
  }

  /** A request on a ring that takes one number: a size, a position, a descriptor (-1: none), on or off. */
  async ring(name: VhostRequest, index: number, value: number): Promise<void> {
    await this.call(name, pair(index, value));
  }

  /** Describes a stopped ring; `base` as VHOST_SET_VRING_BASE has it. */
  async setRing(index: number, { size, base, ...ring }: Omit<VringLayout, 'logUsed'>): Promise<void> {
    await this.ring('VHOST_SET_VRING_NUM', index, size);
    await this.ring('VHOST_SET_VRING_BASE', index, base);
    const address = new Uint8Array(40);
    const fields = view(address);
    fields.setUint32(0, index, true);
    fields.setBigUint64(8, ring.descUser, true);
    fields.setBigUint64(16, ring.usedUser, true);
    fields.setBigUint64(24, ring.availUser, true);
    await this.call('VHOST_SET_VRING_ADDR', address);
  }

  /** Gives a ring its eventfds, which stay the caller's. */
  async setEvents(index: number, { kickFd, callFd }: { kickFd: number; callFd: number }): Promise<void> {
    await this.ring('VHOST_SET_VRING_CALL', index, callFd);
    await this.ring('VHOST_SET_VRING_KICK', index, kickFd);
  }

  close(): Promise<void> {
    return this.file.close();
  }
}

export function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** struct vhost_vring_state, and struct vhost_vring_file. */
function pair(first: number, second: number): Uint8Array {
  const bytes = new Uint8Array(8);
  view(bytes).setUint32(0, first, true);
  view(bytes).setInt32(4, second | 0, true);
  return bytes;
}
