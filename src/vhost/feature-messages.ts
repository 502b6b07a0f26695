/** Messages that settle features: those of the virtio device, and those of the protocol. */
import {
  featureNames,
  features,
  vhostProtocolFeatureNames,
  vhostProtocolFeatures,
} from '../virtio/features.ts';
import { takeBackStatus } from './device-messages.ts';
import { ProtocolError } from './messages.ts';
import { enableAll } from './ring-messages.ts';
import type { Session } from './session.ts';
import { checkPostcopy } from './transfer-messages.ts';

const { VHOST_USER_F_PROTOCOL_FEATURES, VHOST_F_LOG_ALL } = features;
const {
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
} = vhostProtocolFeatures;

/**
 * May come again, with others while no ring runs. Where they are refused those before stay with rings that run, and
 * no other starts: a driver that has features which the device hasn't would lay out its frames in another way.
 */
export async function setFeatures(s: Session, bits: bigint): Promise<undefined> {
  s.settled = false;
  try {
    checkFeatures(s, bits);
  } catch (error) {
    takeBackStatus(s);
    throw error;
  }
  if (bits !== s.features) await s.device.setFeatures(bits);
  s.features = bits;
  s.settled = true;
  // "Ring states": without protocol features nobody could enable a ring.
  if ((bits & VHOST_USER_F_PROTOCOL_FEATURES) === 0n) await enableAll(s, true);
  return s.changed();
}

/** Throws a ProtocolError where the device doesn't have them, or not now. */
function checkFeatures(s: Session, bits: bigint): void {
  const extra = bits & ~s.device.features;
  if (extra !== 0n) throw new ProtocolError(`${featureNames(extra).join(', ')} not offered`);
  if (s.postcopy?.active) checkPostcopy(bits);
  if (s.features === undefined || !s.vrings.some((vring) => vring.running)) return;
  // Live migration begins and ends this way, with the guest running.
  const change = (s.features ^ bits) & ~VHOST_F_LOG_ALL;
  if (change !== 0n)
    throw new ProtocolError(`${featureNames(change).join(', ')} changed while a queue is running`);
}

export function setProtocolFeatures(s: Session, bits: bigint): undefined {
  const extra = bits & ~s.device.protocolFeatures;
  if (extra !== 0n) throw new ProtocolError(`${vhostProtocolFeatureNames(extra).join(', ')} not offered`);
  const needs = VHOST_USER_PROTOCOL_F_BACKEND_REQ | VHOST_USER_PROTOCOL_F_REPLY_ACK;
  // "In-band notifications": the connection is to end, there is no other way to say so.
  if (bits & VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS && (bits & needs) !== needs)
    throw new Error('in-band notifications need BACKEND_REQ and REPLY_ACK');
  s.protocolFeatures = bits;
  return s.changed();
}
