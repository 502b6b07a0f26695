/**
 * The kernel's side of a vDPA device in userspace (VDUSE), as linux/vduse.h and the kernel's
 * Documentation/userspace-api/vduse.rst have it: devices are made and destroyed by /dev/vduse/control, and
 * /dev/vduse/NAME tells of one what its driver wants.
 *
 * Whoever holds /dev/vduse/NAME answers requests of the kernel, which waits 30 seconds for each and then gives the
 * device up. The device itself stays when its program dies: who opens it next goes on with it.
 */
import { closeSync, constants, existsSync, openSync, readSync, writeSync } from 'node:fs';
import { ioctl, ioctlNumber, isSystemError, SystemError, systemPageSize } from '../sys/index.ts';

const DIRECTORY = '/dev/vduse';
const CONTROL = `${DIRECTORY}/control`;
const BASE = 0x81;
const API_VERSION = 0n;
const VIRTIO_ID_NET = 1;

/** Sizes of the structures, and of what is before those that have no end of their own. */
const NAME_MAX = 256;
const DEV_CONFIG = 336;
const IOTLB_ENTRY = 32;
const CONFIG_DATA = 8;
const VQ_CONFIG = 32;
const VQ_INFO = 48;
const VQ_EVENTFD = 8;
export const REQUEST_LENGTH = 152;
export const RESPONSE_LENGTH = 152;
/** In both: where the union begins. */
const BODY = 24;

/** The requests that are used, without VDUSE_ before their names. */
export const ioctls = {
  SET_API_VERSION: ioctlNumber('write', BASE, 0x01, 8),
  CREATE_DEV: ioctlNumber('write', BASE, 0x02, DEV_CONFIG),
  DESTROY_DEV: ioctlNumber('write', BASE, 0x03, NAME_MAX),
  IOTLB_GET_FD: ioctlNumber('both', BASE, 0x10, IOTLB_ENTRY),
  DEV_GET_FEATURES: ioctlNumber('read', BASE, 0x11, 8),
  DEV_SET_CONFIG: ioctlNumber('write', BASE, 0x12, CONFIG_DATA),
  DEV_INJECT_CONFIG_IRQ: ioctlNumber('none', BASE, 0x13, 0),
  VQ_SETUP: ioctlNumber('write', BASE, 0x14, VQ_CONFIG),
  VQ_GET_INFO: ioctlNumber('both', BASE, 0x15, VQ_INFO),
  VQ_SETUP_KICKFD: ioctlNumber('write', BASE, 0x16, VQ_EVENTFD),
} as const;

/** enum vduse_req_type; others are answered with a failure. */
export const vduseRequests = { GET_VQ_STATE: 0, SET_STATUS: 1, UPDATE_IOTLB: 2 } as const;

/** What the kernel asks. */
export type VduseRequest = { id: number } & (
  | { type: 'GET_VQ_STATE'; index: number }
  | { type: 'SET_STATUS'; status: number }
  | { type: 'UPDATE_IOTLB'; start: bigint; last: bigint }
  | { type: 'unknown'; number: number }
);

/**
 * Where a ring goes on. Of a split one, the next entry of the available ring; of a packed one the next descriptors
 * to take and to give back, each with its wrap counter in bit 15: as in SET_VRING_BASE of vhost-user.
 */
export type RingState = { split: number } | { packed: number };

/** What the driver has said of a ring. */
export interface VduseRing {
  /** Entries; 0: nothing was said yet. */
  size: number;
  /** I/O addresses of the three parts. */
  desc: bigint;
  driver: bigint;
  device: bigint;
  /** Where it began, in the form of `RingState`. */
  base: number;
  ready: boolean;
}

/** A range of I/O addresses, and the file behind it; the descriptor is the caller's. */
export interface IotlbRange {
  start: bigint;
  /** The last address of it. */
  last: bigint;
  /** Where `start` lies in the file. */
  offset: bigint;
  /** What the device may do there: 1 read, 2 write. */
  access: number;
  fd: number;
}

export interface VduseConfig {
  features: bigint;
  queues: number;
  /** The configuration space. */
  config: Uint8Array;
}

/** struct vduse_dev_config, with the configuration space behind it. */
export function encodeDeviceConfig(name: string, { features, queues, config }: VduseConfig): Uint8Array {
  const bytes = Buffer.alloc(DEV_CONFIG + config.length);
  writeName(bytes, name);
  bytes.writeUInt32LE(VIRTIO_ID_NET, 260);
  bytes.writeBigUInt64LE(features, 264);
  bytes.writeUInt32LE(queues, 272);
  bytes.writeUInt32LE(systemPageSize, 276);
  bytes.writeUInt32LE(config.length, 332);
  bytes.set(config, DEV_CONFIG);
  return bytes;
}

/** struct vduse_dev_request. */
export function decodeRequest(bytes: Uint8Array): VduseRequest {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const id = view.getUint32(4, true);
  const number = view.getUint32(0, true);
  switch (number) {
    case vduseRequests.GET_VQ_STATE:
      return { id, type: 'GET_VQ_STATE', index: view.getUint32(BODY, true) };
    case vduseRequests.SET_STATUS:
      return { id, type: 'SET_STATUS', status: view.getUint8(BODY) };
    case vduseRequests.UPDATE_IOTLB: {
      const [start, last] = [view.getBigUint64(BODY, true), view.getBigUint64(BODY + 8, true)];
      return { id, type: 'UPDATE_IOTLB', start, last };
    }
    default:
      return { id, type: 'unknown', number };
  }
}

/** struct vduse_dev_response: done or not, and the state of the ring that was asked for. */
export function encodeResponse(
  id: number,
  done: boolean,
  ring?: { index: number; state: RingState },
): Uint8Array {
  const bytes = new Uint8Array(RESPONSE_LENGTH);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, id, true);
  view.setUint32(4, done ? 0 : 1, true);
  if (!ring) return bytes;
  view.setUint32(BODY, ring.index, true);
  if ('split' in ring.state) view.setUint16(BODY + 4, ring.state.split & 0xffff, true);
  else {
    const { packed } = ring.state;
    for (const [i, place] of [packed & 0xffff, packed >>> 16].entries()) {
      view.setUint16(BODY + 4 + 4 * i, place >>> 15, true);
      view.setUint16(BODY + 6 + 4 * i, place & 0x7fff, true);
    }
  }
  return bytes;
}

/** struct vduse_vq_info. */
export function decodeRing(bytes: Uint8Array, packed: boolean): VduseRing {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const place = (at: number) => (view.getUint16(at, true) << 15) | (view.getUint16(at + 2, true) & 0x7fff);
  const base = packed ? (place(32) | (place(36) << 16)) >>> 0 : view.getUint16(32, true);
  return {
    size: view.getUint32(4, true),
    desc: view.getBigUint64(8, true),
    driver: view.getBigUint64(16, true),
    device: view.getBigUint64(24, true),
    base,
    ready: view.getUint8(40) !== 0,
  };
}

function writeName(bytes: Buffer, name: string): void {
  bytes.write(name, 0, NAME_MAX - 1);
}

/** Whether the device is on the vDPA bus: attached by `vdpa dev add`, and not yet taken off. */
export function isAttached(name: string): boolean {
  return existsSync(`/sys/bus/vdpa/devices/${name}`);
}

/** Runs a call of node:fs on a device; throws a SystemError in place of Node's. */
function open(path: string): number {
  try {
    return openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  } catch (error) {
    throw new SystemError('open', (error as NodeJS.ErrnoException).code ?? 'EIO', path);
  }
}

/** Opens /dev/vduse/control for a while. Throws an Error that says what is missing and how to get it. */
function withControl<T>(use: (fd: number) => T): T {
  let fd: number;
  try {
    fd = open(CONTROL);
  } catch (error) {
    if (isSystemError(error, 'ENOENT', 'ENXIO', 'ENODEV'))
      throw new Error(
        `there is no ${CONTROL}: load the kernel's module with \`modprobe vduse\` (CONFIG_VDPA_USER; Linux 6.12 is known to do)`,
      );
    if (isSystemError(error, 'EACCES', 'EPERM'))
      throw new Error(`no permission for ${CONTROL}: run as root, or give this user access to it`);
    throw error;
  }
  try {
    const version = Buffer.alloc(8);
    version.writeBigUInt64LE(API_VERSION);
    ioctl(fd, ioctls.SET_API_VERSION, version);
    return use(fd);
  } finally {
    closeSync(fd);
  }
}

/**
 * Makes /dev/vduse/NAME. False where one is there already. Throws an Error that says what the kernel refused.
 */
export function createDevice(name: string, config: VduseConfig): boolean {
  return withControl((fd) => {
    try {
      ioctl(fd, ioctls.CREATE_DEV, encodeDeviceConfig(name, config));
      return true;
    } catch (error) {
      if (isSystemError(error, 'EEXIST')) return false;
      if (isSystemError(error, 'EPERM'))
        throw new Error('a VDUSE network device takes the right CAP_NET_ADMIN: run as root');
      if (isSystemError(error, 'EINVAL'))
        throw new Error(
          'the kernel refuses a network device in VDUSE (VDUSE_CREATE_DEV: EINVAL): older ones have disks only, Linux 6.12 is known to do',
        );
      throw error;
    }
  });
}

/** Removes /dev/vduse/NAME. False where it is in use: open, or on the vDPA bus. */
export function destroyDevice(name: string): boolean {
  return withControl((fd) => {
    const bytes = Buffer.alloc(NAME_MAX);
    writeName(bytes, name);
    try {
      ioctl(fd, ioctls.DESTROY_DEV, bytes);
      return true;
    } catch (error) {
      if (isSystemError(error, 'EBUSY')) return false;
      throw error;
    }
  });
}

/** An open /dev/vduse/NAME. Calls throw a SystemError; EPERM where the kernel has given the device up. */
export class VduseDevice {
  readonly name: string;
  readonly fd: number;

  /** Throws a SystemError; EBUSY where another program has it open. */
  constructor(name: string) {
    this.name = name;
    this.fd = open(`${DIRECTORY}/${name}`);
  }

  /** The next request; undefined: there is none now. */
  read(): VduseRequest | undefined {
    const bytes = new Uint8Array(REQUEST_LENGTH);
    try {
      readSync(this.fd, bytes);
    } catch (error) {
      const { code = 'EIO' } = error as NodeJS.ErrnoException;
      if (code === 'EAGAIN') return undefined;
      throw new SystemError('read', code, `${DIRECTORY}/${this.name}`);
    }
    return decodeRequest(bytes);
  }

  /** Answers; an answer that nobody waits for any more (ENOENT) is forgotten. */
  respond(response: Uint8Array): void {
    try {
      writeSync(this.fd, response);
    } catch (error) {
      const { code = 'EIO' } = error as NodeJS.ErrnoException;
      if (code !== 'ENOENT') throw new SystemError('write', code, `${DIRECTORY}/${this.name}`);
    }
  }

  /** The features that the driver took; 0 before that. */
  features(): bigint {
    const bytes = Buffer.alloc(8);
    ioctl(this.fd, ioctls.DEV_GET_FEATURES, bytes);
    return bytes.readBigUInt64LE();
  }

  setConfig(config: Uint8Array): void {
    const bytes = Buffer.alloc(CONFIG_DATA + config.length);
    bytes.writeUInt32LE(config.length, 4);
    bytes.set(config, CONFIG_DATA);
    ioctl(this.fd, ioctls.DEV_SET_CONFIG, bytes);
  }

  /** Lets the driver read the configuration space again; false where no driver runs (DRIVER_OK isn't set). */
  configChanged(): boolean {
    try {
      ioctl(this.fd, ioctls.DEV_INJECT_CONFIG_IRQ, 0);
      return true;
    } catch (error) {
      if (isSystemError(error, 'EINVAL')) return false;
      throw error;
    }
  }

  /** Before the device is attached, for each of its queues: the most entries that its ring may have. */
  setUpQueue(index: number, maxSize: number): void {
    const bytes = Buffer.alloc(VQ_CONFIG);
    bytes.writeUInt32LE(index, 0);
    bytes.writeUInt16LE(maxSize, 4);
    ioctl(this.fd, ioctls.VQ_SETUP, bytes);
  }

  /** What the driver said of a ring; undefined: the device has no such queue. */
  ring(index: number, packed: boolean): VduseRing | undefined {
    const bytes = Buffer.alloc(VQ_INFO);
    bytes.writeUInt32LE(index, 0);
    try {
      ioctl(this.fd, ioctls.VQ_GET_INFO, bytes);
    } catch (error) {
      if (isSystemError(error, 'EINVAL')) return undefined;
      throw error;
    }
    return decodeRing(bytes, packed);
  }

  /** The eventfd on which kicks come. The kernel keeps the eventfd, not the descriptor. */
  setKick(index: number, eventfd: number): void {
    const bytes = Buffer.alloc(VQ_EVENTFD);
    bytes.writeUInt32LE(index, 0);
    bytes.writeInt32LE(eventfd, 4);
    ioctl(this.fd, ioctls.VQ_SETUP_KICKFD, bytes);
  }

  /** The range in which an I/O address lies, and its file; undefined: it isn't mapped. */
  iotlb(address: bigint): IotlbRange | undefined {
    const bytes = Buffer.alloc(IOTLB_ENTRY);
    bytes.writeBigUInt64LE(address, 8);
    bytes.writeBigUInt64LE(address, 16);
    let fd: number;
    try {
      fd = ioctl(this.fd, ioctls.IOTLB_GET_FD, bytes);
    } catch (error) {
      if (isSystemError(error, 'EINVAL')) return undefined;
      throw error;
    }
    const [offset, start, last] = [0, 8, 16].map((at) => bytes.readBigUInt64LE(at)) as [
      bigint,
      bigint,
      bigint,
    ];
    return { start, last, offset, access: bytes[24]!, fd };
  }

  close(): void {
    closeSync(this.fd);
  }
}
