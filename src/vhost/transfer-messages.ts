/** Messages by which a device moves: its state through a pipe, and memory that comes when it is touched (postcopy). */
import { duplicateFd } from '../sys/index.ts';
import { features, vhostProtocolFeatures } from '../virtio/features.ts';
import { decodeState, encodeState, LOAD, SAVE, StateTransfer } from './device-state.ts';
import {
  decodeU64,
  decodeVringState,
  encodeU64,
  type Message,
  ProtocolError,
  requestName,
  requests,
  VRING_NO_FD,
} from './messages.ts';
import { type Answer, named, type Session } from './session.ts';

const { VHOST_USER_PROTOCOL_F_PAGEFAULT } = vhostProtocolFeatures;

/** What the main thread reads and writes of guest memory with these must be there. */
const POSTCOPY_REFUSES = [
  [features.VIRTIO_F_ACCESS_PLATFORM, 'a guest behind an IOMMU can not migrate by postcopy'],
  [features.VIRTIO_NET_F_CTRL_VQ, 'a guest whose control queue is served here can not migrate by postcopy'],
] as const;

/** Answers with an error in bits 0 to 7, and with bit 8: no descriptor of ours in place of theirs. */
export function setStateFd(s: Session, message: Message): Uint8Array {
  const { index: direction, num: phase } = decodeVringState(message.payload);
  try {
    if (direction !== SAVE && direction !== LOAD)
      throw new ProtocolError(`direction ${direction}, 0 or 1 expected`);
    if (phase !== 0) throw new ProtocolError(`phase ${phase}, 0 expected`);
    const index = s.vrings.findIndex((vring) => vring.running);
    if (index >= 0) throw new ProtocolError(`queue ${index} is running`);
    s.state?.end('another transfer took its place');
    const what =
      direction === SAVE
        ? encodeState(s.device.saveState())
        : (bytes: Uint8Array) => s.device.loadState(decodeState(bytes));
    s.state = new StateTransfer(s.poller, message.fds[0]!, s.patience, what);
    message.fds.pop();
    return encodeU64(VRING_NO_FD);
  } catch (error) {
    s.report(named(message.request, error).message);
    return encodeU64(VRING_NO_FD | 1n);
  }
}

/** The front-end has seen the end of the transfer before it asks. */
export async function checkState(s: Session): Promise<Uint8Array> {
  const failure = s.state ? await s.state.done : 'no state was transferred';
  s.state = undefined;
  if (failure === undefined) return encodeU64(0n);
  s.report(`CHECK_DEVICE_STATE: ${failure}`);
  return encodeU64(1n);
}

/** Opens the userfaultfd that the front-end is to serve. Says "no" without one: migration fails then, in order. */
export function advisePostcopy(s: Session, message: Message): Answer {
  const nothing = new Uint8Array(0);
  try {
    if ((s.protocolFeatures & VHOST_USER_PROTOCOL_F_PAGEFAULT) === 0n)
      throw new ProtocolError('VHOST_USER_PROTOCOL_F_PAGEFAULT is not acknowledged');
    if (s.postcopy?.active) throw new ProtocolError('postcopy is under way already');
    s.postcopy?.abandon();
    s.postcopy = s.device.openPostcopy?.({
      patience: s.patience,
      onGiveUp: (reason) => s.close(new Error(reason)),
    });
    if (!s.postcopy) throw new Error('this device has none');
    return { payload: nothing, fd: duplicateFd(s.postcopy.fd) };
  } catch (error) {
    s.report(named(message.request, error).message);
    return nothing;
  }
}

/** Pages may be missing from now on, in what is mapped from now on. */
export function listenPostcopy(s: Session): undefined {
  const postcopy = s.postcopy;
  if (!postcopy) throw new ProtocolError('no POSTCOPY_ADVISE came before it');
  if (s.memory.length > 0) throw new ProtocolError('memory is mapped already, and may have been touched');
  checkPostcopy(s.features ?? 0n);
  postcopy.listening = true;
  // A handler may wait for pages that nobody brings any more.
  s.onHangUp(() => {
    postcopy.abandon();
    s.close();
  });
  return undefined;
}

export function regionsKnown(s: Session, { request, payload }: Message): undefined {
  const failure = decodeU64(payload);
  if (failure !== 0n) throw new Error(`${requestName(request)}: the front-end failed (${failure})`);
  s.postcopy!.acknowledge();
  return undefined;
}

export function endPostcopy(s: Session): Uint8Array {
  try {
    if (!s.postcopy) throw new ProtocolError('no POSTCOPY_ADVISE came before it');
    s.postcopy.end();
    s.onHangUp(undefined);
    return encodeU64(0n);
  } catch (error) {
    s.report(named(requests.POSTCOPY_END, error).message);
    return encodeU64(1n);
  }
}

/** Throws a ProtocolError for features that don't go together with postcopy. */
export function checkPostcopy(bits: bigint): void {
  for (const [feature, reason] of POSTCOPY_REFUSES) if (bits & feature) throw new ProtocolError(reason);
}

/** Requests that are answered with regions in postcopy. */
export function answersWithRegions(request: number): boolean {
  return request === requests.SET_MEM_TABLE || request === requests.ADD_MEM_REG;
}
