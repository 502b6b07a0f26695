/** Errors of system calls: which call, on what, the errno by its name, and what that means. */
import { errnoByName, lastErrno, libc } from './libc.ts';

const names = new Map<number, string>();
for (const [name, errno] of Object.entries(errnoByName)) {
  // EAGAIN has two names; the first is the one that people know.
  if (!names.has(errno) || name === 'EAGAIN' || name === 'EDEADLK' || name === 'EOPNOTSUPP')
    names.set(errno, name);
}

/** Plainer words than strerror's, by errno, or by call and errno where the call narrows the meaning. */
const explanations: Readonly<Record<string, string>> = {
  'connect ECONNREFUSED': 'nobody listens there',
  'connect EAGAIN': 'the listener has too many connections waiting',
  'connect ENOENT': 'there is no such socket',
  'connect EPROTOTYPE': 'the socket there is of another type',
  'bind EADDRINUSE': 'the path is in use',
  'bind ENOENT': 'the directory does not exist',
  'sched_setaffinity EINVAL': 'this process may not run there',
  'userfaultfd EPERM':
    'this kernel or its sandbox keeps it from this process: sysctl vm.unprivileged_userfaultfd=1 on Linux before 5.11, ' +
    'a seccomp profile that allows userfaultfd in a container',
  EPERM: 'not permitted',
  ENOENT: 'no such file or directory',
  EBADF: 'not an open file descriptor',
  EAGAIN: 'not ready now, try again',
  ENOMEM: 'out of memory or of memory mappings',
  EACCES: 'permission denied',
  EBUSY: 'in use',
  EEXIST: 'exists already',
  ENODEV: 'no such device, or not possible on this file',
  EINVAL: 'invalid argument',
  ENFILE: 'the system is out of file descriptors',
  EMFILE: 'this process is out of file descriptors: raise its limit (ulimit -n)',
  ENOTTY: 'not possible on this kind of file',
  ENOSPC: 'no space left',
  EPIPE: 'the other side has closed the connection',
  ENAMETOOLONG: 'the name is too long',
  ENOSYS: 'this kernel does not have it',
  ENOTSOCK: 'not a socket',
  EOPNOTSUPP: 'not supported',
  EADDRINUSE: 'the address is in use',
  ECONNRESET: 'the other side has reset the connection',
  ENOTCONN: 'not connected',
  ECONNREFUSED: 'connection refused',
};

/** The name of an errno ('ENOENT'), 'E<number>' for one that has none. */
export function errnoName(errno: number): string {
  return names.get(errno) ?? `E${errno}`;
}

/** A system call failed: `connect(/tmp/a.sock): ECONNREFUSED, nobody listens there`. */
export class SystemError extends Error {
  override readonly name = 'SystemError';
  /** The call's name, 'connect'. */
  readonly call: string;
  /** The errno's name, 'ECONNREFUSED'. */
  readonly code: string;
  readonly errno: number;
  /** The argument that matters: a path, a descriptor, an address. */
  readonly detail: string;

  /** `errno` by number or name; `explanation` replaces the usual words. */
  constructor(call: string, errno: number | string, detail: string, explanation?: string) {
    const number = typeof errno === 'string' ? (errnoByName[errno] ?? 0) : errno;
    const code = typeof errno === 'string' ? errno : errnoName(errno);
    const words =
      explanation ?? explanations[`${call} ${code}`] ?? explanations[code] ?? libc.strerror(number);
    super(`${call}(${detail}): ${code}, ${words}`);
    this.call = call;
    this.code = code;
    this.errno = number;
    this.detail = detail;
  }
}

/** Returns a call's result; throws a SystemError when that is -1. `detail` is the argument that matters. */
export function check(result: number, call: string, detail: string | number): number {
  if (result === -1) throw new SystemError(call, lastErrno(), String(detail));
  return result;
}

/** Is this a SystemError, of one of these codes where any are given? */
export function isSystemError(error: unknown, ...codes: string[]): error is SystemError {
  return error instanceof SystemError && (codes.length === 0 || codes.includes(error.code));
}
