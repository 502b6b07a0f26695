/** Device control. Who calls it knows the request's structure. */
import { check, SystemError } from './errors.ts';
import { lastErrno, libc } from './libc.ts';

const DIRECTIONS = { none: 0, write: 1, read: 2, both: 3 } as const;

/**
 * The number of a request (asm-generic/ioctl.h): whether the kernel reads ('write': _IOW) or fills (_IOR) its
 * structure of `size` bytes.
 */
export function ioctlNumber(
  direction: keyof typeof DIRECTIONS,
  type: number,
  number: number,
  size: number,
): number {
  return ((DIRECTIONS[direction] << 30) | (size << 16) | (type << 8) | number) >>> 0;
}

/**
 * ioctl(2). `argument` is memory that the kernel reads or fills (which must be as large as the request says),
 * or a plain value. Returns the call's result; throws a SystemError that names descriptor and request.
 */
export function ioctl(fd: number, request: number | bigint, argument: Uint8Array | bigint | number): number {
  const result =
    argument instanceof Uint8Array
      ? libc.ioctlPointer(fd, request, argument)
      : libc.ioctlValue(fd, request, argument);
  return check(result, 'ioctl', `${fd}, 0x${request.toString(16)}`);
}

/**
 * The same for a request that another process has to answer before the call returns, in a thread of its own.
 * `argument` must not be touched until the promise settles.
 */
export function ioctlAsync(fd: number, request: number, argument: Uint8Array): Promise<number> {
  return new Promise((resolve, reject) => {
    libc.ioctlPointer.async(fd, request, argument, (error: unknown, result: number) => {
      if (error) reject(error);
      else if (result !== -1) resolve(result);
      // koffi hands the other thread's errno on to this callback.
      else reject(new SystemError('ioctl', lastErrno(), `${fd}, 0x${request.toString(16)}`));
    });
  });
}
