/** Messages about the device as a whole: its configuration space, its MTU and address, its status, its reset. */
import { features } from '../virtio/features.ts';
import { changedFields, MAX_MTU, MIN_MTU } from '../virtio/net-config.ts';
import { deviceStatus, foreignStatus, nextStatus } from '../virtio/status.ts';
import { decodeConfig, decodeU64, encodeConfig, encodeU64, type Message, ProtocolError } from './messages.ts';
import { stopQueue } from './ring-messages.ts';
import { named, type Session } from './session.ts';

export function setMtu(s: Session, mtu: bigint): undefined {
  if (mtu < MIN_MTU || mtu > MAX_MTU)
    throw new ProtocolError(`an MTU of ${mtu}, ${MIN_MTU} to ${MAX_MTU} expected`);
  try {
    s.device.setMtu(Number(mtu));
  } catch (error) {
    throw new ProtocolError((error as Error).message);
  }
  return s.changed();
}

/** Says "no" with an answer without payload, as the document has it. */
export function getConfig(s: Session, message: Message): Uint8Array {
  try {
    const { offset, size, flags } = decodeConfig(message.payload);
    const bytes = new Uint8Array(size);
    bytes.set(s.device.config().subarray(offset, offset + size));
    return encodeConfig({ offset, size, flags, bytes });
  } catch (error) {
    s.report(named(message.request, error).message);
    return new Uint8Array(0);
  }
}

/** A driver may write its MAC address, without VERSION_1 (5.1.4.3), and a migration brings it along. */
export async function setConfig(s: Session, message: Message): Promise<undefined> {
  const { offset, flags, bytes } = decodeConfig(message.payload);
  if (flags > 1) throw new ProtocolError(`flags ${flags}, 0 or 1 expected`);
  const before = s.device.config();
  const after = before.slice();
  if (offset + bytes.length > after.length)
    throw new ProtocolError(`the network device's configuration space has ${after.length} bytes`);
  after.set(bytes, offset);
  const legacy = ((s.features ?? 0n) & features.VIRTIO_F_VERSION_1) === 0n;
  const fixed = changedFields(before, after).filter((name) => name !== 'mac' || (flags === 0 && !legacy));
  if (fixed.length > 0) throw new ProtocolError(`${fixed.join(', ')} can't be written`);
  await s.device.setMac(after.subarray(0, 6));
  return undefined;
}

export async function setStatus(s: Session, asked: bigint): Promise<undefined> {
  const bits = asked > 0xffn ? -1 : Number(asked);
  if (bits < 0 || foreignStatus(bits))
    throw new ProtocolError(`0x${asked.toString(16)} has bits that the device status doesn't have`);
  if (bits === 0) {
    // 2.1.2: the device is reset. What belongs to the connection stays, a front-end doesn't say it again.
    for (const index of s.vrings.keys()) await stopQueue(s, index);
  }
  takeStatus(s, bits);
  if (bits & deviceStatus.FAILED) s.report("SET_STATUS: the guest's driver gave up on the device (FAILED)");
  return s.changed();
}

function takeStatus(s: Session, bits: number): void {
  s.status = nextStatus(s.status, bits, {
    settled: s.settled,
    legacy: ((s.features ?? 0n) & features.VIRTIO_F_VERSION_1) === 0n,
    running: s.vrings.some((vring) => vring.running),
  });
}

/** The device doesn't agree to the driver's features: FEATURES_OK, if it was there, isn't true any more (2.2.2). */
export function takeBackStatus(s: Session): void {
  takeStatus(s, s.status);
}

/** What was taken of the driver's, and whether a reset is needed (2.1.2). */
export function getStatus(s: Session): Uint8Array {
  return encodeU64(BigInt(s.status | (s.device.needsReset ? deviceStatus.DEVICE_NEEDS_RESET : 0)));
}

/**
 * All as at the start of the session but for what the front-end doesn't say again: its memory (QEMU only sends
 * what has changed of it), the protocol features and the eventfds. Notes of buffers in work are of rings that won't
 * be any more: whoever wants to have notes taken gets new ones (QEMU does).
 */
export async function resetDevice(s: Session): Promise<undefined> {
  for (const [index, vring] of s.vrings.entries()) {
    await stopQueue(s, index);
    Object.assign(vring, { size: 0, base: 0, enabled: false, address: undefined });
  }
  s.features = undefined;
  s.settled = false;
  await s.device.setFeatures(0n);
  s.device.setInflight(null);
  s.status = 0;
  return s.changed();
}

/** The address lies in the first six bytes of the u64; nothing is said of the others. */
export async function sendRarp(s: Session, message: Message): Promise<undefined> {
  const mac = decodeU64(message.payload) & 0xffff_ffff_ffffn;
  if (mac === 0n || mac & 1n) {
    const bytes = Buffer.from(message.payload.subarray(0, 6))
      .toString('hex')
      .replace(/..(?=.)/g, '$&:');
    throw new ProtocolError(`${bytes} is no address of a guest`);
  }
  await s.device.announce(mac);
  return undefined;
}
