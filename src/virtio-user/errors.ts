/** The one error class of virtio-user: a code for programs, a sentence for people. */

/**
 * `BAD_OPTION`: no device can be made of this option. `NO_BACKEND`: nobody is there, or it isn't allowed to reach
 * them. `BACKEND`: the back-end refused, lied, left, or didn't answer in time, or can't do what was asked for.
 * `BROKEN_RING`: the back-end broke a rule of a ring. `RESOURCES`: there is no room for rings and buffers, or no
 * descriptor. `CLOSED`: this device was closed.
 */
export type VirtioUserErrorCode =
  | 'BAD_OPTION'
  | 'NO_BACKEND'
  | 'BACKEND'
  | 'BROKEN_RING'
  | 'RESOURCES'
  | 'CLOSED';

export class VirtioUserError extends Error {
  override readonly name = 'VirtioUserError';
  readonly code: VirtioUserErrorCode;

  constructor(code: VirtioUserErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** What was thrown, as a VirtioUserError: with this code where it is none yet. */
export function asVirtioUserError(code: VirtioUserErrorCode, error: unknown): VirtioUserError {
  if (error instanceof VirtioUserError) return error;
  return new VirtioUserError(code, (error as Error).message, { cause: error });
}
