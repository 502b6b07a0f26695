/** Network interfaces of this process's network namespace: their flags, numbers, and word of changes (netdevice(7)). */
import { EPOLLIN } from './epoll.ts';
import { check, isSystemError } from './errors.ts';
import { closeFd } from './fd.ts';
import { ioctl } from './ioctl.ts';
import { libc, pinned } from './libc.ts';
import { addressOf } from './memory.ts';
import type { Poller } from './poller.ts';

const AF_INET = 2;
const AF_NETLINK = 16;
const SOCK_DGRAM = 2;
const SOCK_RAW = 3;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const NETLINK_ROUTE = 0;
const RTMGRP_LINK = 1;
const SIOCGIFFLAGS = 0x8913;
const SIOCSIFFLAGS = 0x8914;
const SIOCGIFINDEX = 0x8933;
const SIOCGIFMTU = 0x8921;
const SIOCETHTOOL = 0x8946;
const ETHTOOL_GCHANNELS = 0x3c;
const IFF_UP = 1;
const IFF_RUNNING = 0x40;

/** Bytes of an interface's name without the final zero. */
export const MAX_INTERFACE_NAME = 15;
/** struct ifreq; what is asked for stands behind the name, at `IFREQ_VALUE`. */
const IFREQ = 40;
export const IFREQ_VALUE = 16;

/** A struct ifreq with this name. */
export function interfaceRequest(name: string): Buffer {
  const request = pinned(IFREQ);
  request.write(name, 0, MAX_INTERFACE_NAME);
  return request;
}

function ask(request: number, argument: Buffer): void {
  const fd = check(libc.socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), 'socket', 'AF_INET');
  try {
    ioctl(fd, request, argument);
  } finally {
    closeFd(fd);
  }
}

/** The value that the kernel puts into a struct ifreq; undefined: there is no such interface. */
function query(name: string, request: number): Buffer | undefined {
  const argument = interfaceRequest(name);
  try {
    ask(request, argument);
    return argument.subarray(IFREQ_VALUE);
  } catch (error) {
    if (isSystemError(error, 'ENODEV', 'ENXIO')) return undefined;
    throw error;
  }
}

/** The bytes that a frame of this interface carries behind its header; undefined: there is no such interface. */
export const interfaceMtu = (name: string): number | undefined => query(name, SIOCGIFMTU)?.readInt32LE(0);

/** The number of an interface; undefined: there is none of this name. */
export const interfaceIndex = (name: string): number | undefined => query(name, SIOCGIFINDEX)?.readInt32LE(0);

/**
 * Why no frames pass, as the interface tells: `is down` while nobody has set it up, `has no carrier` without a cable
 * or with its other end down; '': they do. Undefined: there is no such interface.
 */
export function linkFault(name: string): '' | 'is down' | 'has no carrier' | undefined {
  const flags = query(name, SIOCGIFFLAGS)?.readUInt16LE(0);
  if (flags === undefined) return undefined;
  if ((flags & IFF_UP) === 0) return 'is down';
  return (flags & IFF_RUNNING) === 0 ? 'has no carrier' : '';
}

/** The queues that an interface receives by; 1 where its driver doesn't tell. Throws a SystemError. */
export function receiveQueues(name: string): number {
  // struct ethtool_channels: the maxima, then rx, tx, other and combined.
  const channels = pinned(36);
  channels.writeUInt32LE(ETHTOOL_GCHANNELS, 0);
  const request = interfaceRequest(name);
  request.writeBigUInt64LE(addressOf(channels), IFREQ_VALUE);
  try {
    ask(SIOCETHTOOL, request);
  } catch (error) {
    if (isSystemError(error, 'EOPNOTSUPP')) return 1;
    throw error;
  }
  return Math.max(1, channels.readUInt32LE(20) + channels.readUInt32LE(32));
}

/** Sets an interface up. Throws a SystemError (ENODEV, EPERM without CAP_NET_ADMIN). */
export function setInterfaceUp(name: string): void {
  const argument = interfaceRequest(name);
  ask(SIOCGIFFLAGS, argument);
  argument.writeUInt16LE(argument.readUInt16LE(IFREQ_VALUE) | IFF_UP, IFREQ_VALUE);
  ask(SIOCSIFFLAGS, argument);
}

/**
 * Calls `changed` whenever some interface comes, goes, or changes its state (rtnetlink(7)); ask what it is now. What
 * that throws, as for want of descriptors, goes to `onError`. Returns what ends it. Throws a SystemError.
 */
export function watchInterfaces(
  poller: Poller,
  changed: () => void,
  onError: (error: Error) => void,
): () => void {
  const type = SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC;
  const fd = check(libc.socket(AF_NETLINK, type, NETLINK_ROUTE), 'socket', 'AF_NETLINK');
  const message = pinned(16 * 1024);
  try {
    // struct sockaddr_nl.
    const address = pinned(12);
    address.writeUInt16LE(AF_NETLINK, 0);
    address.writeUInt32LE(RTMGRP_LINK, 8);
    check(libc.bind(fd, address, address.length), 'bind', 'AF_NETLINK');
    poller.add(fd, EPOLLIN, () => {
      // Whether some were lost (ENOBUFS) or read: what they say is looked up anyway.
      for (let i = 0; i < 64 && libc.read(fd, message, message.length) > 0; i++);
      try {
        changed();
      } catch (error) {
        onError(error as Error);
      }
    });
  } catch (error) {
    closeFd(fd);
    throw error;
  }
  return () => {
    poller.remove(fd);
    closeFd(fd);
  };
}
