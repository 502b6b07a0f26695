/**
 * Files that a front-end shares, and that its owner could make shorter while they are mapped: whoever touches what is
 * missing then gets a signal (src/sys/guard.ts). They are sealed against that, where they take seals.
 */
import { sealAgainstShrink } from '../sys/index.ts';

/** Seals a file; false where it takes no seal. Throws an Error that says what to do if it is to. */
export function seal(fd: number, required: boolean): boolean {
  const sealed = sealAgainstShrink(fd);
  if (!sealed && required)
    throw new Error(
      'its file could be made shorter while it is in use, and the port has sealed=true: give the guest memory that ' +
        'takes seals, with QEMU by -object memory-backend-memfd,share=on',
    );
  return sealed;
}
