/** The device status field (virtio 1.3, 2.1): how far a driver has come with its device. */

export const deviceStatus = {
  ACKNOWLEDGE: 1,
  DRIVER: 2,
  DRIVER_OK: 4,
  FEATURES_OK: 8,
  DEVICE_NEEDS_RESET: 64,
  FAILED: 128,
} as const;

const DRIVERS_BITS =
  deviceStatus.ACKNOWLEDGE |
  deviceStatus.DRIVER |
  deviceStatus.DRIVER_OK |
  deviceStatus.FEATURES_OK |
  deviceStatus.FAILED;

/** The names of status bits, as `ACKNOWLEDGE DRIVER`; `0x30` for bits that no version has. */
export function statusNames(bits: number): string {
  const names = Object.entries(deviceStatus).filter(([, bit]) => bits & bit);
  const rest = names.reduce((left, [, bit]) => left & ~bit, bits);
  return [...names.map(([name]) => name), ...(rest ? [`0x${rest.toString(16)}`] : [])].join(' ');
}

/** Bits that a driver may not write. */
export function foreignStatus(bits: number): number {
  return bits & ~(DRIVERS_BITS | deviceStatus.DEVICE_NEEDS_RESET);
}

/**
 * What the field holds after a driver wrote `asked`, which isn't 0. The driver reads it again (3.1.1, step 6):
 * - FEATURES_OK and DRIVER_OK aren't taken before features were settled, nor DRIVER_OK by a driver that isn't
 *   legacy before FEATURES_OK;
 * - no bit is cleared while rings run (2.1.1); with all of them stopped it is a new beginning.
 */
export function nextStatus(
  before: number,
  asked: number,
  device: { settled: boolean; legacy: boolean; running: boolean },
): number {
  let next = (asked & DRIVERS_BITS) | (device.running ? before : 0);
  if (!device.settled) next &= ~(deviceStatus.FEATURES_OK | deviceStatus.DRIVER_OK);
  if (!device.legacy && !(next & deviceStatus.FEATURES_OK)) next &= ~deviceStatus.DRIVER_OK;
  return next;
}
