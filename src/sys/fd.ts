/** File descriptors: closing, non-blocking mode, and what they are. */
import { readdirSync, readlinkSync } from 'node:fs';
import { check, SystemError } from './errors.ts';
import { libc } from './libc.ts';

const F_GETFL = 3;
const F_SETFL = 4;
const F_DUPFD_CLOEXEC = 1030;
const O_NONBLOCK = 0o4000;

/** Closes a descriptor; throws a SystemError (EBADF) when it isn't open. */
export function closeFd(fd: number): void {
  check(libc.close(fd), 'close', fd);
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
