/** Device control. Who calls it knows the request's structure. */
import { check } from './errors.ts';
import { libc } from './libc.ts';

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
