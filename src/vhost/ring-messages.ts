/**
 * Messages about rings: sizes, places and bases, eventfds and kicks, start and stop. A queue is stopped until
 * SET_VRING_KICK, runs until GET_VRING_BASE, and is enabled or disabled independently of that.
 */
import { closeFd, duplicateFd, isEventFd, setNonBlocking } from '../sys/index.ts';
import { features, vhostProtocolFeatures } from '../virtio/features.ts';
import type { VringChange } from './device.ts';
import { InBandQueue } from './in-band.ts';
import {
  decodeVringAddress,
  decodeVringIndex,
  decodeVringState,
  encodeVringState,
  type Message,
  ProtocolError,
  VRING_LOG,
} from './messages.ts';
import { END_OF_ADDRESSES, hex, MAX_VRING_SIZE, type Session, type Vring } from './session.ts';

const { VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES } = features;
const { VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS } = vhostProtocolFeatures;
const MAX_BASE = 0xffff;
/** No used ring has more bytes. */
const USED_BOUND = 1n << 20n;

/** Deprecated; the document leaves a back-end to ignore it or to disable all rings. */
export async function resetOwner(s: Session): Promise<undefined> {
  await enableAll(s, false);
  return s.changed();
}

export function setNum(s: Session, message: Message): undefined {
  const { index, num } = decodeVringState(message.payload);
  const vring = vringOf(s, index);
  // A packed ring may have any number of entries (virtio 1.3, 2.8.10.1 only bounds it).
  const wrong = !isPacked(s) && (num & (num - 1)) !== 0;
  if (num < 1 || num > MAX_VRING_SIZE || wrong)
    throw new ProtocolError(
      `queue ${index}: size ${num}, ${isPacked(s) ? 'a number' : 'a power of 2'} from 1 to ${MAX_VRING_SIZE} expected`,
    );
  if (vring.running && num !== vring.size) throw running(index, 'size');
  vring.size = num;
  return s.changed();
}

export async function setAddress(s: Session, message: Message): Promise<undefined> {
  const { index, flags, descUser, usedUser, availUser, logGuest } = decodeVringAddress(message.payload);
  const vring = vringOf(s, index);
  if ((flags & ~VRING_LOG) !== 0)
    throw new ProtocolError(`queue ${index}: unknown flags 0x${(flags & ~VRING_LOG).toString(16)}`);
  if (flags !== 0 && (s.device.features & VHOST_F_LOG_ALL) === 0n)
    throw new ProtocolError(`queue ${index}: flags 0x${flags.toString(16)}, but logging was not negotiated`);
  if (flags !== 0 && logGuest > END_OF_ADDRESSES - USED_BOUND)
    throw new ProtocolError(`queue ${index}: a used ring at log address ${hex(logGuest)} wraps`);
  const now = vring.address;
  const same = now?.descUser === descUser && now.usedUser === usedUser && now.availUser === availUser;
  if (vring.running && !same) throw running(index, 'addresses');
  vring.address = { descUser, usedUser, availUser };
  const logUsed = flags & VRING_LOG ? logGuest : null;
  if (vring.running && logUsed !== vring.logUsed) await updateQueue(s, index, { logUsed });
  vring.logUsed = logUsed;
  return undefined;
}

export function setBase(s: Session, message: Message): undefined {
  const { index, num } = decodeVringState(message.payload);
  const vring = vringOf(s, index);
  // Of a packed ring it holds both positions, each with its wrap counter.
  if (num > MAX_BASE && !isPacked(s))
    throw new ProtocolError(`queue ${index}: base ${num}, at most ${MAX_BASE} expected`);
  if (vring.running && num !== vring.base) throw running(index, 'base');
  vring.base = num;
  return undefined;
}

export async function getBase(s: Session, message: Message): Promise<Uint8Array> {
  const { index } = decodeVringState(message.payload);
  const vring = vringOf(s, index);
  await stopQueue(s, index);
  return encodeVringState({ index, num: vring.base });
}

export async function stopQueue(s: Session, index: number): Promise<void> {
  const vring = s.vrings[index]!;
  if (!vring.running) return;
  vring.base = await s.device.stopVring(index);
  vring.running = false;
  s.changed();
}

export async function setKick(s: Session, message: Message): Promise<undefined> {
  const index = decodeVringIndex(message.request, message.payload);
  const vring = vringOf(s, index);
  checkNotifier(index, message);
  if (vring.running) return updateQueue(s, index, { kickFd: message.fds.pop() ?? -1 });
  return startQueue(s, index, vring, () => message.fds.pop() ?? -1);
}

/** In place of an eventfd. The first one starts the ring, as SET_VRING_KICK would. */
export async function kick(s: Session, message: Message): Promise<undefined> {
  const { index, num } = decodeVringState(message.payload);
  const vring = vringOf(s, index);
  if (num !== 0) throw new ProtocolError(`queue ${index}: ${num}, 0 expected`);
  const inBand = inBandQueue(s, index);
  if (!inBand) throw new ProtocolError('in-band notifications were not negotiated');
  if (!vring.running) await startQueue(s, index, vring, () => inBand.kickFd());
  inBand.kick();
  return undefined;
}

/** The queue's notifications by messages; undefined where that wasn't agreed. */
function inBandQueue(s: Session, index: number): InBandQueue | undefined {
  if ((s.protocolFeatures & VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS) === 0n) return undefined;
  let queue = s.inBand.get(index);
  if (queue) return queue;
  queue = new InBandQueue(s.poller, {
    call: () => s.channel?.vringCall(index),
    error: () => s.channel?.vringError(index),
  });
  s.inBand.set(index, queue);
  return queue;
}

async function startQueue(
  s: Session,
  index: number,
  vring: Vring,
  takeKick: () => number,
): Promise<undefined> {
  const { size, address } = vring;
  if (s.features === undefined) throw missing(index, 'SET_FEATURES');
  if (!s.settled) throw new ProtocolError(`queue ${index} can't start: the last SET_FEATURES was refused`);
  if (s.memory.length === 0) throw missing(index, 'SET_MEM_TABLE');
  if (s.postcopy?.unknown) throw missing(index, 'the front-end has acknowledged where its memory lies here');
  if (size === 0) throw missing(index, 'SET_VRING_NUM');
  // The size may have been set while packed rings were acknowledged, and they are not any more.
  if (!isPacked(s) && (size & (size - 1)) !== 0)
    throw new ProtocolError(`queue ${index}: size ${size}, a power of 2 expected of a split ring`);
  if (!address) throw missing(index, 'SET_VRING_ADDR');
  const { base, logUsed } = vring;
  const inBand = inBandQueue(s, index);
  // An eventfd is preferred to messages.
  const callFd = inBand && !vring.callGiven ? inBand.callFd() : vring.callFd;
  const errFd = inBand && vring.errFd === -1 ? inBand.errFd() : copyOf(vring.errFd);
  const enabled = vring.enabled || (s.features & VHOST_USER_F_PROTOCOL_FEATURES) === 0n;
  const kickFd = takeKick();
  vring.callFd = -1;
  try {
    const setup = { size, base, ...address, kickFd, callFd, errFd, enabled, logUsed };
    await s.device.startVring(index, setup);
  } catch (error) {
    // The ring has stayed stopped: nothing has changed.
    throw new ProtocolError(`queue ${index}: ${(error as Error).message}`);
  }
  vring.running = true;
  vring.enabled = enabled;
  return s.changed();
}

export async function setNotifier(
  s: Session,
  message: Message,
  which: 'callFd' | 'errFd',
): Promise<undefined> {
  const index = decodeVringIndex(message.request, message.payload);
  const vring = vringOf(s, index);
  checkNotifier(index, message);
  const fd = message.fds.pop() ?? -1;
  if (which === 'callFd') vring.callGiven = true;
  if (vring.running && which === 'callFd') return updateQueue(s, index, { callFd: fd });
  if (vring[which] !== -1) closeFd(vring[which]);
  vring[which] = fd;
  return vring.running ? updateQueue(s, index, { errFd: copyOf(fd) }) : undefined;
}

export async function setEnable(s: Session, message: Message): Promise<undefined> {
  const { index, num } = decodeVringState(message.payload);
  const vring = vringOf(s, index);
  if (num > 1) throw new ProtocolError(`queue ${index}: ${num}, 0 or 1 expected`);
  await enableQueue(s, vring, index, num === 1);
  return s.changed();
}

export async function enableAll(s: Session, enabled: boolean): Promise<void> {
  for (const [index, vring] of s.vrings.entries()) await enableQueue(s, vring, index, enabled);
}

async function enableQueue(s: Session, vring: Vring, index: number, enabled: boolean): Promise<void> {
  if (vring.running && vring.enabled !== enabled) await updateQueue(s, index, { enabled });
  vring.enabled = enabled;
}

async function updateQueue(s: Session, index: number, change: VringChange): Promise<undefined> {
  await s.device.updateVring(index, change);
  return undefined;
}

export function isPacked(s: Session): boolean {
  return ((s.features ?? 0n) & features.VIRTIO_F_RING_PACKED) !== 0n;
}

/** Virtqueues that the device may have: two for each pair, and one for commands. */
export function queueLimit(s: Session): number {
  const control = s.device.features & features.VIRTIO_NET_F_CTRL_VQ ? 1 : 0;
  return 2 * s.device.queuePairs + control;
}

function vringOf(s: Session, index: number): Vring {
  const limit = queueLimit(s);
  if (index >= limit) throw new ProtocolError(`queue ${index} does not exist, this device has ${limit}`);
  while (s.vrings.length <= index) s.vrings.push(freshVring());
  return s.vrings[index]!;
}

function freshVring(): Vring {
  return {
    size: 0,
    base: 0,
    running: false,
    enabled: false,
    address: undefined,
    logUsed: null,
    callGiven: false,
    callFd: -1,
    errFd: -1,
  };
}

function running(index: number, what: string): ProtocolError {
  return new ProtocolError(`queue ${index}: the ${what} can't change while it is running`);
}

function missing(index: number, request: string): ProtocolError {
  return new ProtocolError(`queue ${index} can't start before ${request}`);
}

function copyOf(fd: number): number {
  return fd === -1 ? -1 : duplicateFd(fd);
}

export function closeNotifiers(vring: Vring): void {
  if (vring.callFd !== -1) closeFd(vring.callFd);
  if (vring.errFd !== -1) closeFd(vring.errFd);
  vring.callFd = -1;
  vring.errFd = -1;
}

function checkNotifier(index: number, { fds }: Message): void {
  const fd = fds[0];
  if (fd === undefined) return;
  if (!isEventFd(fd)) throw new ProtocolError(`queue ${index}: the descriptor is not an eventfd`);
  // A counter that the front-end lets run full must not block whoever signals it.
  setNonBlocking(fd);
}
