/** File descriptors: closing, non-blocking mode, and what they are. */
import { constants, lstatSync, openSync, readdirSync, readlinkSync } from 'node:fs';
import { check, SystemError } from './errors.ts';
import { errnoByName, lastErrno, libc, pinned } from './libc.ts';
import { addressOf } from './memory.ts';

const F_GETFL = 3;
const F_SETFL = 4;
const F_DUPFD_CLOEXEC = 1030;
const O_NONBLOCK = 0o4000;
const RWF_NOWAIT = 8;

/** Closes a descriptor; throws a SystemError (EBADF) when it isn't open. */
export function closeFd(fd: number): void {
  check(libc.close(fd), 'close', fd);
}

/** Tells the file at a path from another one there later; undefined: there is none. */
export function fileId(path: string): string | undefined {
  const file = lstatSync(path, { throwIfNoEntry: false });
  return file && `${file.dev}:${file.ino}`;
}

/** A second descriptor, close-on-exec, for the same open file. */
export function duplicateFd(fd: number): number {
  return check(libc.fcntl(fd, F_DUPFD_CLOEXEC, 0), 'fcntl', fd);
}

/** Sets O_NONBLOCK. The flag belongs to the open file: a peer that holds the same file can clear it again. */
export function setNonBlocking(fd: number): void {
  const flags = check(libc.fcntl(fd, F_GETFL, 0), 'fcntl', fd);
  if ((flags & O_NONBLOCK) === 0) check(libc.fcntl(fd, F_SETFL, flags | O_NONBLOCK), 'fcntl', fd);
}

/**
 * A pipe's end opened again, non-blocking: its flags are nobody else's then. The old descriptor is closed. Returns it
 * as it is where the pipe's owner doesn't let this process open it.
 */
export function ownPipe(fd: number, writing: boolean): number {
  let own: number;
  try {
    own = openSync(`/proc/self/fd/${fd}`, (writing ? constants.O_WRONLY : constants.O_RDONLY) | O_NONBLOCK);
  } catch {
    return fd;
  }
  closeFd(fd);
  return own;
}

/**
 * Reads what is there, at most as much as `to` holds; 0 at the end. Never waits on a socket, whatever a peer that
 * holds the same one does to its flags; of pipes see ownPipe. Throws a SystemError: EAGAIN where there is nothing yet.
 */
export function readNow(fd: number, to: Uint8Array): number {
  return now(libc.preadv2, 'read', fd, to);
}

/** Writes what there is room for; as readNow. */
export function writeNow(fd: number, bytes: Uint8Array): number {
  return now(libc.pwritev2, 'write', fd, bytes);
}

function now(call: typeof libc.preadv2, name: string, fd: number, bytes: Uint8Array): number {
  const vector = pinned(16);
  vector.writeBigUInt64LE(addressOf(bytes), 0);
  vector.writeBigUInt64LE(BigInt(bytes.length), 8);
  const moved = call(fd, vector, 1, -1, RWF_NOWAIT);
  if (moved !== -1 || lastErrno() !== errnoByName.EOPNOTSUPP) return check(moved, name, fd);
  return check(call(fd, vector, 1, -1, 0), name, fd);
}

/** What the kernel calls this descriptor: 'anon_inode:[eventfd]', 'socket:[123]', '/memfd:ram (deleted)', a path. */
export function fdKind(fd: number): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'EIO';
    throw new SystemError('readlink', code === 'ENOENT' ? 'EBADF' : code, String(fd));
  }
}

/** Is this an eventfd? False as well for a descriptor that isn't open. */
export function isEventFd(fd: number): boolean {
  try {
    return fdKind(fd) === 'anon_inode:[eventfd]';
  } catch {
    return false;
  }
}

/** How many descriptors this process has open. */
export function openFds(): number {
  // One of those listed is the directory's own.
  return readdirSync('/proc/self/fd').length - 1;
}
