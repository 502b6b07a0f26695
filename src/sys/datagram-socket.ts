/** Datagram sockets, UDP's and the unix domain's, for threads that move frames, non-blocking. */
import { isIPv6 } from 'node:net';
import { check, SystemError } from './errors.ts';
import { closeFd } from './fd.ts';
import { errnoByName, lastErrno, libc, pinned } from './libc.ts';
import { addressOf } from './memory.ts';
import { bindUnix, unixAddress } from './unix-socket.ts';

const AF_UNSPEC = 0;
const AF_UNIX = 1;
const AF_INET = 2;
const AF_INET6 = 10;
const SOCK_DGRAM = 2;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_REUSEADDR = 2;
const SO_SNDBUF = 7;
const SO_RCVBUF = 8;
const MSG_PEEK = 2;
const MSG_DONTWAIT = 0x40;
/** Bytes of a struct sockaddr_un, a path with its final zero in it. */
const UNIX_ADDRESS = 110;
/** Bytes that may wait each way; the kernel has bounds of its own (net.core.rmem_max). */
const BUFFER = 4 << 20;

/** Where a UDP socket is; the address a number, of either version. */
export interface UdpAddress {
  address: string;
  port: number;
}

/** struct sockaddr_in, or sockaddr_in6. */
function internetAddress({ address, port }: UdpAddress): Buffer {
  if (!isIPv6(address)) {
    const bytes = pinned(16);
    bytes.writeUInt16LE(AF_INET, 0);
    bytes.writeUInt16BE(port, 2);
    bytes.set(address.split('.').map(Number), 4);
    return bytes;
  }
  const bytes = pinned(28);
  bytes.writeUInt16LE(AF_INET6, 0);
  bytes.writeUInt16BE(port, 2);
  const [head = '', tail] = address.split('::').map((half) => half.split(':').filter((word) => word !== ''));
  const words = [...head, ...Array(8 - head.length - (tail?.length ?? 0)).fill('0'), ...(tail ?? [])];
  for (const [i, word] of words.entries()) bytes.writeUInt16BE(Number.parseInt(word, 16), 8 + 2 * i);
  return bytes;
}

function open(domain: number): number {
  return check(
    libc.socket(domain, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0),
    'socket',
    `family ${domain}`,
  );
}

function enlarge(fd: number): void {
  const bytes = pinned(4);
  bytes.writeInt32LE(BUFFER);
  for (const name of [SO_SNDBUF, SO_RCVBUF])
    check(libc.setsockopt(fd, SOL_SOCKET, name, bytes, 4), 'setsockopt', fd);
}

/**
 * A UDP socket that receives at `local` from `remote` alone, and sends there. A port of 0 in `remote` takes what comes
 * from any port, and sends nothing. Throws a SystemError that names the address.
 */
export function udpSocket(local: UdpAddress, remote: UdpAddress): number {
  const fd = open(isIPv6(remote.address) ? AF_INET6 : AF_INET);
  try {
    enlarge(fd);
    const on = pinned(4);
    on.writeInt32LE(1);
    check(libc.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, on, 4), 'setsockopt', fd);
    for (const [call, to] of [
      ['bind', local],
      ['connect', remote],
    ] as const) {
      const bytes = internetAddress(to);
      check(libc[call](fd, bytes, bytes.length), call, `${to.address}, port ${to.port}`);
    }
    return fd;
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}

/** A datagram socket of the unix domain at this path. Throws a SystemError, as listenUnix(). */
export function unixDatagramSocket(path: string): number {
  const fd = open(AF_UNIX);
  try {
    enlarge(fd);
    bindUnix(fd, path);
    return fd;
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}

/**
 * Has a datagram socket send to this path and take from nobody else, or from nobody yet and from anybody (undefined).
 * Throws a SystemError: ENOENT, ECONNREFUSED (nobody has the socket there).
 */
export function connectDatagrams(fd: number, path: string | undefined): void {
  const nobody = pinned(2);
  nobody.writeUInt16LE(AF_UNSPEC, 0);
  const address = path === undefined ? nobody : unixAddress('connect', path);
  check(libc.connect(fd, address, address.length), 'connect', path ?? 'nobody');
}

/**
 * Who has sent the datagram that waits first, which is left where it is unless `take` is set: the path of a socket, null for one that has
 * none; undefined: nothing waits. Throws a SystemError.
 */
export function nextSender(fd: number, take: boolean): string | null | undefined {
  // struct msghdr, with room for a name and none for data.
  const [message, name] = [pinned(56), pinned(UNIX_ADDRESS)];
  message.writeBigUInt64LE(addressOf(name), 0);
  message.writeUInt32LE(UNIX_ADDRESS, 8);
  if (libc.recvmsg(fd, message, MSG_DONTWAIT | (take ? 0 : MSG_PEEK)) === -1) {
    const errno = lastErrno();
    if (errno === errnoByName.EAGAIN || errno === errnoByName.EINTR) return undefined;
    throw new SystemError('recvmsg', errno, String(fd));
  }
  const path = name.subarray(2, message.readUInt32LE(8));
  const end = path.indexOf(0);
  // A name of the abstract kind begins with a zero, and is nothing that a person can be told.
  return path.length === 0 || end === 0 ? null : path.subarray(0, end < 0 ? path.length : end).toString();
}
