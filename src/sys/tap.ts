/**
 * TAPs: network interfaces of the kernel whose wire is a descriptor, one for each of the interface's queues
 * (Documentation/networking/tuntap.rst). Frames on it carry a virtio-net header.
 */
import { closeSync, openSync } from 'node:fs';
import { isSystemError, SystemError } from './errors.ts';
import { IFREQ_VALUE, interfaceRequest, MAX_INTERFACE_NAME } from './interface.ts';
import { ioctl, ioctlNumber } from './ioctl.ts';
import { pinned } from './libc.ts';

// linux/if_tun.h
const TUNSETIFF = ioctlNumber('write', 0x54, 202, 4);
const TUNSETOFFLOAD = ioctlNumber('write', 0x54, 208, 4);
const TUNGETIFF = ioctlNumber('read', 0x54, 210, 4);
const TUNSETSNDBUF = ioctlNumber('write', 0x54, 212, 4);
const TUNSETVNETHDRSZ = ioctlNumber('write', 0x54, 216, 4);
const TUNSETQUEUE = ioctlNumber('write', 0x54, 217, 4);
const TUNSETCARRIER = ioctlNumber('write', 0x54, 226, 4);
const IFF_TAP = 0x0002;
const IFF_MULTI_QUEUE = 0x0100;
const IFF_ATTACH_QUEUE = 0x0200;
const IFF_DETACH_QUEUE = 0x0400;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;

/** What the reader of a TAP takes in frames that it reads. */
export const tapOffloads = {
  TUN_F_CSUM: 0x01,
  TUN_F_TSO4: 0x02,
  TUN_F_TSO6: 0x04,
  TUN_F_TSO_ECN: 0x08,
  TUN_F_UFO: 0x10,
  TUN_F_USO4: 0x20,
  TUN_F_USO6: 0x40,
} as const;

const DEVICE = '/dev/net/tun';

/**
 * Opens `queues` queues of the TAP `name`, which is made where it isn't there, and then goes with its last
 * descriptor. Throws a SystemError that says what to do.
 */
export function openTap(name: string, queues: number): number[] {
  if (!isInterfaceName(name)) throw new RangeError(`"${name}" can't be the name of a network interface`);
  const fds: number[] = [];
  try {
    for (let i = 0; i < queues; i++) {
      const fd = openTun();
      fds.push(fd);
      attach(fd, name, queues);
      // Without a limit of its own the kernel would hold frames back until the other side has taken earlier ones.
      ioctl(fd, TUNSETSNDBUF, int(0x7fff_ffff));
    }
    return fds;
  } catch (error) {
    fds.forEach((fd) => void closeSync(fd));
    throw error;
  }
}

/** Can a network interface be called so? 1 to 15 bytes, without blanks, slashes and colons. */
export function isInterfaceName(name: string): boolean {
  return (
    name !== '' &&
    Buffer.byteLength(name) <= MAX_INTERFACE_NAME &&
    !/[/:\s%]/.test(name) &&
    !/^\.\.?$/.test(name)
  );
}

function openTun(): number {
  try {
    return openSync(DEVICE, 'r+');
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'EIO';
    const missing = `there are no TAPs: load the kernel's module, "modprobe tun", or give the container ${DEVICE}`;
    const advice: Record<string, string> = {
      ENOENT: missing,
      ENODEV: missing,
      ENXIO: missing,
      EACCES: 'permission denied: its usual mode is 0666',
    };
    throw new SystemError('open', code, DEVICE, advice[code]);
  }
}

/** A TAP that was made with several queues doesn't take a descriptor without the flag, and the other way round. */
function attach(fd: number, name: string, queues: number): void {
  const set = (flags: number) => {
    const request = interfaceRequest(name);
    request.writeUInt16LE(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | flags, IFREQ_VALUE);
    ioctl(fd, TUNSETIFF, request);
  };
  try {
    try {
      set(queues > 1 ? IFF_MULTI_QUEUE : 0);
    } catch (error) {
      if (queues > 1 || !isSystemError(error, 'EINVAL')) throw error;
      set(IFF_MULTI_QUEUE);
    }
  } catch (error) {
    if (!isSystemError(error)) throw error;
    const make = `ip tuntap add dev ${name} mode tap vnet_hdr user NAME${queues > 1 ? ' multi_queue' : ''}`;
    const advice: Record<string, string> = {
      EPERM: `not permitted: that takes CAP_NET_ADMIN, or an interface made for this user before, "${make}"`,
      EBUSY: 'in use by another program, or it has no more queues',
      EINVAL: `an interface of that name is there, and it isn't a TAP that suits: "${make}" makes one`,
    };
    throw new SystemError('TUNSETIFF', error.code, name, advice[error.code]);
  }
}

/** False once the interface was removed: the descriptor is open, and nothing is behind it. */
export function tapIsThere(fd: number): boolean {
  try {
    ioctl(fd, TUNGETIFF, interfaceRequest(''));
    return true;
  } catch (error) {
    if (isSystemError(error, 'EBADFD')) return false;
    throw error;
  }
}

/** Sets the length of the virtio-net header before each frame of a queue: 10 or 12 bytes. */
export function setTapHeader(fd: number, length: number): void {
  ioctl(fd, TUNSETVNETHDRSZ, int(length));
}

/** Lets frames come that have this work left undone in them. False: the kernel doesn't know one of the bits. */
export function setTapOffloads(fd: number, bits: number): boolean {
  try {
    // A plain value, unlike the others.
    ioctl(fd, TUNSETOFFLOAD, bits);
    return true;
  } catch (error) {
    if (isSystemError(error, 'EINVAL')) return false;
    throw error;
  }
}

/** Gives a TAP a carrier or takes it away, as a cable does; a kernel before 5.0 can't. */
export function setTapCarrier(fd: number, on: boolean): void {
  try {
    ioctl(fd, TUNSETCARRIER, int(on ? 1 : 0));
  } catch (error) {
    if (!isSystemError(error, 'EINVAL')) throw error;
  }
}

/** Detaches a queue, so that the kernel spreads flows over the others, or attaches it again. */
export function setTapQueue(fd: number, attached: boolean): void {
  const request = interfaceRequest('');
  request.writeUInt16LE(attached ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE, IFREQ_VALUE);
  ioctl(fd, TUNSETQUEUE, request);
}

function int(value: number): Buffer {
  const bytes = pinned(4);
  bytes.writeInt32LE(value);
  return bytes;
}
