/**
 * Stream sockets of the unix domain, with descriptors passed along.
 *
 * All are non-blocking and close-on-exec and known to the FFI alone: Node's own sockets would swallow the
 * descriptors that a peer passes. Bytes go through one scratch buffer, so a call moves 64 KiB at most.
 * Descriptors travel with the first byte of the send that they were given to.
 */
import { chmodSync, lstatSync, unlinkSync } from 'node:fs';
import { check, isSystemError, SystemError } from './errors.ts';
import { errnoByName, lastErrno, libc, pinned } from './libc.ts';

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_SEQPACKET = 5;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const SO_PEERCRED = 17;
const SCM_RIGHTS = 1;
const MSG_CTRUNC = 0x8;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x40000000;
const SHUT_RDWR = 2;

/** The longest path that sockaddr_un takes, in bytes, its ending NUL aside. */
export const MAX_SOCKET_PATH = 107;
/** Bytes of messages that may wait in a pair of sockets. */
const MESSAGES_WAIT = 4 << 20;
/** The most descriptors that one send may carry (the kernel's SCM_MAX_FD). */
export const MAX_PASSED_FDS = 253;

// struct msghdr (56 bytes), struct iovec (16), struct cmsghdr (16) and what they point to.
const MSG_IOV = 16;
const MSG_IOVLEN = 24;
const MSG_CONTROL = 32;
const MSG_CONTROLLEN = 40;
const MSG_FLAGS = 48;
const CMSG_LEVEL = 8;
const CMSG_TYPE = 12;
const CMSG_DATA = 16;

const data = pinned(65536);
const control = pinned(2048);
const iovec = pinned(16);
const message = pinned(56);
iovec.writeBigUInt64LE(libc.memmove(data, data, 0), 0);
message.writeBigUInt64LE(libc.memmove(iovec, iovec, 0), MSG_IOV);
message.writeBigUInt64LE(1n, MSG_IOVLEN);
const controlAddress = libc.memmove(control, control, 0);

function prepare(bytes: number, controlBytes: number): void {
  iovec.writeBigUInt64LE(BigInt(bytes), 8);
  message.writeBigUInt64LE(controlBytes === 0 ? 0n : controlAddress, MSG_CONTROL);
  message.writeBigUInt64LE(BigInt(controlBytes), MSG_CONTROLLEN);
  message.writeUInt32LE(0, MSG_FLAGS);
}

function newSocket(path: string): number {
  return check(libc.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), 'socket', path);
}

/** struct sockaddr_un. Throws a SystemError that says why the path can be none. */
export function unixAddress(call: string, path: string): Buffer {
  const bytes = Buffer.from(path);
  if (bytes.length === 0) throw new SystemError(call, 'EINVAL', path, 'the path is empty');
  if (bytes.includes(0))
    throw new SystemError(call, 'EINVAL', path.replaceAll('\0', '\\0'), 'the path contains a NUL');
  if (bytes.length > MAX_SOCKET_PATH) {
    const words = `the path has ${bytes.length} bytes and a socket's may have ${MAX_SOCKET_PATH}: choose a shorter one`;
    throw new SystemError(call, 'ENAMETOOLONG', path, words);
  }
  const address = pinned(2 + bytes.length + 1);
  address.writeUInt16LE(AF_UNIX, 0);
  address.set(bytes, 2);
  return address;
}

/**
 * Listens on a path. A socket there that nobody listens on is replaced; anything else is left alone and refused
 * with a SystemError: EADDRINUSE (a live listener), ENOTSOCK (not a socket), ENAMETOOLONG, or what the kernel says.
 * `mode` is the socket file's (by default the umask's choice), set before anybody can connect; `backlog` how
 * many connections may wait.
 */
export function listenUnix(path: string, options: { mode?: number; backlog?: number } = {}): number {
  const fd = newSocket(path);
  try {
    bindUnix(fd, path);
    if (options.mode !== undefined) chmodSync(path, options.mode);
    check(libc.listen(fd, options.backlog ?? 128), 'listen', path);
    return fd;
  } catch (error) {
    libc.close(fd);
    throw error;
  }
}

/** Gives a socket a path, under listenUnix()'s rules for what is there already. Throws a SystemError. */
export function bindUnix(fd: number, path: string): void {
  const address = unixAddress('bind', path);
  if (libc.bind(fd, address, address.length) === 0) return;
  const errno = lastErrno();
  if (errno !== errnoByName.EADDRINUSE) throw new SystemError('bind', errno, path);
  removeStaleSocket(path);
  check(libc.bind(fd, address, address.length), 'bind', path);
}

function removeStaleSocket(path: string): void {
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket() === false) {
    const words = 'the path exists and is not a socket: remove it or choose another path';
    throw new SystemError('bind', 'ENOTSOCK', path, words);
  }
  try {
    libc.close(connectUnix(path));
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return;
    if (isSystemError(error, 'ECONNREFUSED')) {
      unlinkSync(path);
      return;
    }
    if (!isSystemError(error, 'EAGAIN', 'EPROTOTYPE')) throw error;
  }
  const words = 'another process uses this socket: stop it or choose another path';
  throw new SystemError('bind', 'EADDRINUSE', path, words);
}

/**
 * Connects to a path. Throws a SystemError: ENOENT (no socket there), ECONNREFUSED (nobody listens),
 * EAGAIN (the listener's backlog is full: try later), EACCES, ENAMETOOLONG.
 */
export function connectUnix(path: string): number {
  const address = unixAddress('connect', path);
  const fd = newSocket(path);
  if (libc.connect(fd, address, address.length) === 0) return fd;
  const error = new SystemError('connect', lastErrno(), path);
  libc.close(fd);
  throw error;
}

/**
 * The next connection that waits on a listening socket, undefined when none does.
 * Throws a SystemError, above all EMFILE: the connection still waits then, and the socket stays readable.
 */
export function acceptUnix(fd: number): number | undefined {
  for (;;) {
    const connection = libc.accept4(fd, null, null, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (connection !== -1) return connection;
    const errno = lastErrno();
    if (errno === errnoByName.EAGAIN) return undefined;
    if (errno !== errnoByName.EINTR && errno !== errnoByName.ECONNABORTED)
      throw new SystemError('accept4', errno, String(fd));
  }
}

function newPair(type: number): [number, number] {
  const pair = pinned(8);
  check(libc.socketpair(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 'socketpair', 'AF_UNIX');
  return [pair.readInt32LE(0), pair.readInt32LE(4)];
}

/** Two sockets connected to each other. */
export const socketPair = (): [number, number] => newPair(SOCK_STREAM);

/** The same for messages, which keep their bounds and their order; some megabytes of them may wait. */
export function messageSocketPair(): [number, number] {
  const pair = newPair(SOCK_SEQPACKET);
  const bytes = pinned(4);
  bytes.writeInt32LE(MESSAGES_WAIT);
  // The kernel gives what its bounds allow (net.core.wmem_max).
  for (const fd of pair)
    check(libc.setsockopt(fd, SOL_SOCKET, SO_SNDBUF, bytes, 4), 'setsockopt', String(fd));
  return pair;
}

/** What arrived: so many bytes in the buffer, and the descriptors that came with them, now the caller's. */
export interface Received {
  bytes: number;
  fds: number[];
  /** The peer passed more descriptors than the ones here: the rest is lost, there was no room for them. */
  truncated: boolean;
}

/**
 * Receives what is there, at most 64 KiB or the buffer's length. 'again': nothing yet. 'closed': the peer has
 * closed or reset the connection. The caller owns, and closes, every descriptor in `fds` (close-on-exec).
 * Throws a SystemError for any other failure.
 */
export function receive(fd: number, buffer: Uint8Array): Received | 'again' | 'closed' {
  if (buffer.length === 0) throw new RangeError('receive needs a buffer of at least one byte');
  prepare(Math.min(buffer.length, data.length), control.length);
  const bytes = uninterrupted(() => libc.recvmsg(fd, message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT));
  if (bytes === -1) {
    const errno = lastErrno();
    if (errno === errnoByName.EAGAIN) return 'again';
    if (errno === errnoByName.ECONNRESET) return 'closed';
    throw new SystemError('recvmsg', errno, String(fd));
  }
  const fds = receivedFds();
  if (bytes === 0) {
    for (const passed of fds) libc.close(passed);
    return 'closed';
  }
  buffer.set(data.subarray(0, bytes));
  return { bytes, fds, truncated: (message.readUInt32LE(MSG_FLAGS) & MSG_CTRUNC) !== 0 };
}

function receivedFds(): number[] {
  const fds: number[] = [];
  const end = Number(message.readBigUInt64LE(MSG_CONTROLLEN));
  let at = 0;
  while (at + CMSG_DATA <= end) {
    const length = Number(control.readBigUInt64LE(at));
    if (length < CMSG_DATA || at + length > end) break;
    const isRights =
      control.readInt32LE(at + CMSG_LEVEL) === SOL_SOCKET &&
      control.readInt32LE(at + CMSG_TYPE) === SCM_RIGHTS;
    if (isRights) for (let i = at + CMSG_DATA; i + 4 <= at + length; i += 4) fds.push(control.readInt32LE(i));
    at += (length + 7) & ~7;
  }
  return fds;
}

/**
 * Sends data and, with its first byte, up to 253 descriptors (which stay open here). Returns how many bytes
 * were taken, fewer than given when the socket is nearly full: the descriptors have gone with them then.
 * 'again': nothing was taken. Throws a SystemError (EPIPE, ECONNRESET when the peer is gone).
 */
export function send(fd: number, bytes: Uint8Array, fds: readonly number[] = []): number | 'again' {
  if (fds.length > MAX_PASSED_FDS)
    throw new RangeError(`a send carries at most ${MAX_PASSED_FDS} descriptors, not ${fds.length}`);
  if (bytes.length === 0) {
    if (fds.length > 0) throw new RangeError('descriptors travel with data: send at least one byte');
    return 0;
  }
  const length = Math.min(bytes.length, data.length);
  data.set(bytes.subarray(0, length));
  const controlLength = CMSG_DATA + fds.length * 4;
  prepare(length, fds.length === 0 ? 0 : (controlLength + 7) & ~7);
  if (fds.length > 0) {
    control.writeBigUInt64LE(BigInt(controlLength), 0);
    control.writeInt32LE(SOL_SOCKET, CMSG_LEVEL);
    control.writeInt32LE(SCM_RIGHTS, CMSG_TYPE);
    for (const [i, passed] of fds.entries()) control.writeInt32LE(passed, CMSG_DATA + i * 4);
  }
  const sent = uninterrupted(() => libc.sendmsg(fd, message, MSG_NOSIGNAL | MSG_DONTWAIT));
  if (sent === -1 && lastErrno() === errnoByName.EAGAIN) return 'again';
  return check(sent, 'sendmsg', fd);
}

function uninterrupted(call: () => number): number {
  for (;;) {
    const result = call();
    if (result !== -1 || lastErrno() !== errnoByName.EINTR) return result;
  }
}

/** Who is at the other end, as of its connect or listen. */
export function peerCredentials(fd: number): { pid: number; uid: number; gid: number } {
  const credentials = pinned(12);
  const length = pinned(4);
  length.writeUInt32LE(12, 0);
  check(libc.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, credentials, length), 'getsockopt', fd);
  return {
    pid: credentials.readInt32LE(0),
    uid: credentials.readUInt32LE(4),
    gid: credentials.readUInt32LE(8),
  };
}

/** Ends both directions: both ends then see the connection as closed. A peer that is gone already is fine. */
export function shutdownUnix(fd: number): void {
  if (libc.shutdown(fd, SHUT_RDWR) === 0) return;
  const errno = lastErrno();
  if (errno !== errnoByName.ENOTCONN) throw new SystemError('shutdown', errno, String(fd));
}
