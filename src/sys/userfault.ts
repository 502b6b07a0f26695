/**
 * userfaultfd(2): page faults that somebody else answers. Whoever touches a page that isn't there waits in the
 * kernel until the holder of the descriptor has put the page there and wakes it.
 *
 * The holder can do more than that: it may watch and fill any memory of this process in which no page is yet. It
 * is to be trusted as this process is.
 */
import { readFileSync } from 'node:fs';
import { check, SystemError } from './errors.ts';
import { closeFd } from './fd.ts';
import { ioctl } from './ioctl.ts';
import { errnoByName, lastErrno, pinned, userfault } from './libc.ts';

const O_CLOEXEC = 0o2000000;
const O_NONBLOCK = 0o4000;
const UFFD_USER_MODE_ONLY = 1;
const UFFD_API = 0xaan;
const UFFDIO_API = 0xc018aa3f;
const UFFDIO_REGISTER = 0xc020aa00;
const UFFDIO_UNREGISTER = 0x8010aa01;
const UFFDIO_WAKE = 0x8010aa02;
const UFFDIO_REGISTER_MODE_MISSING = 1n;

/**
 * A new userfaultfd of this process, non-blocking and close-on-exec, agreed with the kernel. Only faults outside of
 * system calls wait, which is what the kernel lets everybody have (from Linux 5.11 on); before that it takes
 * privileges or the sysctl vm.unprivileged_userfaultfd. Throws a SystemError.
 */
export function userfaultfd(): number {
  if (!userfault) throw new SystemError('userfaultfd', 'ENOSYS', process.arch);
  let fd = userfault(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
  if (fd === -1 && lastErrno() === errnoByName.EINVAL) fd = userfault(O_CLOEXEC | O_NONBLOCK);
  check(fd, 'userfaultfd', 'of this process');
  const api = pinned(24);
  api.writeBigUInt64LE(UFFD_API);
  try {
    ioctl(fd, UFFDIO_API, api);
  } catch (error) {
    closeFd(fd);
    throw error;
  }
  return fd;
}

function range(address: bigint, length: bigint, size = 16): Buffer {
  const bytes = pinned(size);
  bytes.writeBigUInt64LE(address, 0);
  bytes.writeBigUInt64LE(length, 8);
  return bytes;
}

/** Lets whoever touches a page that its file doesn't have wait. Whole pages of the file. Throws a SystemError. */
export function watchMissing(fd: number, address: bigint, length: bigint): void {
  const argument = range(address, length, 32);
  argument.writeBigUInt64LE(UFFDIO_REGISTER_MODE_MISSING, 16);
  ioctl(fd, UFFDIO_REGISTER, argument);
}

/** Missing pages are empty ones again, and whoever waits for one goes on. Throws a SystemError. */
export function unwatchMissing(fd: number, address: bigint, length: bigint): void {
  ioctl(fd, UFFDIO_UNREGISTER, range(address, length));
}

/** Lets whoever waits for a page of this range look again. Throws a SystemError. */
export function wakeFaulting(fd: number, address: bigint, length: bigint): void {
  ioctl(fd, UFFDIO_WAKE, range(address, length));
}

/** Threads that wait for a page now. */
export function faultingThreads(fd: number): number {
  const info = readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8');
  return Number(/^total:\s*(\d+)$/m.exec(info)?.[1] ?? 0);
}
