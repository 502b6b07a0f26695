/**
 * Messages about the guest's memory and what lies beside it: regions, translations of an IOMMU, the dirty log, notes
 * of buffers in work.
 */
import { isEventFd, setNonBlocking } from '../sys/index.ts';
import { features, vhostProtocolFeatures } from '../virtio/features.ts';
import { logReach } from './dirty-log.ts';
import { checkInflight, createInflight } from './inflight.ts';
import { wholeRange } from './iotlb.ts';
import {
  decodeInflight,
  decodeIotlb,
  decodeLog,
  decodeMemoryTable,
  decodeRegion,
  encodeInflight,
  encodeMemoryTable,
  encodeRegion,
  encodeU64,
  type IotlbMessage,
  iotlb,
  MAX_SLOTS,
  type Message,
  ProtocolError,
  type RegionLayout,
} from './messages.ts';
import { checkFile, checkLog, checkRegion, checkRegions, regionsOverlap, sameRegion } from './regions.ts';
import { isPacked, queueLimit } from './ring-messages.ts';
import {
  type Answer,
  END_OF_ADDRESSES,
  type FileAnswer,
  hex,
  MAX_VRING_SIZE,
  named,
  type Session,
} from './session.ts';

const { VIRTIO_F_ACCESS_PLATFORM } = features;
const { VHOST_USER_PROTOCOL_F_LOG_SHMFD } = vhostProtocolFeatures;
/** Bytes of SET_LOG_BASE's payload: size and offset. */
const LOG_PAYLOAD = 16;

export async function setMemoryTable(s: Session, message: Message): Promise<Answer> {
  const regions = decodeMemoryTable(message.payload);
  checkRegions(regions);
  for (const [i, region] of regions.entries()) checkFile(i, region, message.fds[i]!);
  const fds = message.fds.splice(0);
  await s.device.setMemoryTable(regions.map((region, i) => ({ ...region, fd: fds[i]! })));
  s.memory = regions;
  checkLogReach(s);
  s.changed();
  return s.postcopy?.active ? encodeMemoryTable(inProcess(s, regions)) : undefined;
}

/**
 * QEMU 7.2 sends each region once for every queue pair, and takes it back as often: what is there already is not
 * added again, its descriptor is closed unused, and to take back what is gone already is no fault.
 */
export async function addRegion(s: Session, message: Message): Promise<Answer> {
  const region = decodeRegion(message.payload);
  const answer = () => (s.postcopy?.active ? encodeRegion(inProcess(s, [region])[0]!) : undefined);
  if (s.memory.some((r) => sameRegion(r, region) && r.mmapOffset === region.mmapOffset)) return answer();
  const count = s.memory.length;
  if (count >= MAX_SLOTS) throw new ProtocolError(`all of the ${MAX_SLOTS} memory slots are taken`);
  checkRegion(count, region, s.memory);
  checkFile(count, region, message.fds[0]!);
  await s.device.addRegion({ ...region, fd: message.fds.pop()! });
  s.memory = [...s.memory, region];
  checkLogReach(s);
  s.changed();
  return answer();
}

/** A descriptor that came along is closed unused, as the document allows. */
export async function removeRegion(s: Session, message: Message): Promise<undefined> {
  const region = decodeRegion(message.payload);
  const { guestAddress, userAddress, size } = region;
  const found = s.memory.find((r) => sameRegion(r, region));
  if (!found) {
    if (!s.memory.some((r) => regionsOverlap(r, region))) return undefined;
    const words = `0x${size.toString(16)} bytes at guest address 0x${guestAddress.toString(16)}`;
    throw new ProtocolError(`no region of ${words}, user address 0x${userAddress.toString(16)}`);
  }
  for (const [index, { running, address }] of s.vrings.entries()) {
    const parts = running && address ? [address.descUser, address.availUser, address.usedUser] : [];
    if (parts.some((at) => at >= userAddress && at < userAddress + size))
      throw new ProtocolError(`queue ${index} is running in this region`);
  }
  await s.device.removeRegion(found);
  s.memory = s.memory.filter((region) => region !== found);
  return s.changed();
}

/** Where this process sees the regions: the front-end is told of pages by such addresses. */
function inProcess(s: Session, regions: readonly RegionLayout[]): RegionLayout[] {
  return regions.map((region) => ({
    ...region,
    userAddress: s.postcopy!.addressOf(region.guestAddress),
  }));
}

/** The file holds the log from an offset on; the front-end waits for the answer, which says no more than that. */
export async function setLogBase(s: Session, message: Message): Promise<Uint8Array | undefined> {
  const { payload, fds } = message;
  const fd = fds[0];
  if (fd === undefined || payload.length !== LOG_PAYLOAD)
    throw new ProtocolError(`${payload.length} bytes and ${fds.length} descriptors, 16 and 1 expected`);
  const { size, offset } = decodeLog(payload);
  checkLog(size, offset, fd);
  await s.device.setLog({ fd: fds.pop()!, size, offset });
  s.logSize = size;
  checkLogReach(s);
  return s.protocolFeatures & VHOST_USER_PROTOCOL_F_LOG_SHMFD ? encodeU64(0n) : undefined;
}

export function setLogFd(s: Session, message: Message): undefined {
  const fd = message.fds[0]!;
  if (!isEventFd(fd)) throw new ProtocolError('the descriptor is not an eventfd');
  setNonBlocking(fd);
  s.device.setLogFd(message.fds.pop()!);
  return undefined;
}

/** Whoever migrates with a log that doesn't reach all memory loses what is written beyond: it should be known. */
function checkLogReach(s: Session): void {
  if (s.logSize === undefined) return;
  const reach = logReach(s.logSize);
  const beyond = s.memory.find(({ guestAddress, size }) => guestAddress + size > reach);
  if (beyond === undefined) return;
  const end = hex(beyond.guestAddress + beyond.size);
  s.report(`SET_LOG_BASE: the log reaches guest address ${hex(reach)}, memory goes on to ${end}`);
}

/** A file of its own for each request: the front-end keeps it, and says with SET_INFLIGHT_FD which one to use. */
export function getInflight(s: Session, message: Message): FileAnswer {
  const { queues, queueSize } = decodeInflight(message.payload);
  checkInflightQueues(s, queues, queueSize);
  const { fd, ...layout } = createInflight(queues, queueSize, isPacked(s));
  return { payload: encodeInflight(layout), fd };
}

export async function setInflight(s: Session, message: Message): Promise<undefined> {
  const layout = decodeInflight(message.payload);
  checkInflightQueues(s, layout.queues, layout.queueSize);
  const index = s.vrings.findIndex((vring) => vring.running);
  if (index >= 0) throw new ProtocolError(`queue ${index} is running`);
  if (s.postcopy?.active)
    throw new ProtocolError('notes of buffers in work can not be read while memory comes by postcopy');
  checkInflight(layout, isPacked(s), message.fds[0]!);
  s.device.setInflight({ ...layout, fd: message.fds.pop()! });
  return undefined;
}

function checkInflightQueues(s: Session, queues: number, queueSize: number): void {
  const most = queueLimit(s);
  if (queues < 1 || queues > most) throw new ProtocolError(`${queues} queues, 1 to ${most} expected`);
  if (queueSize < 1 || queueSize > MAX_VRING_SIZE)
    throw new ProtocolError(`queues of ${queueSize} entries, 1 to ${MAX_VRING_SIZE} expected`);
}

/** Answered by specification: a fault in it is no reason to end the connection. */
export async function setIotlb(s: Session, { request, payload }: Message): Promise<Uint8Array> {
  const message = decodeIotlb(payload);
  try {
    checkIotlb(message);
    if (((s.features ?? 0n) & VIRTIO_F_ACCESS_PLATFORM) === 0n)
      throw new ProtocolError('a translation, and VIRTIO_F_ACCESS_PLATFORM is not acknowledged');
    const size = message.type === iotlb.INVALIDATE ? wholeRange(message.iova, message.size) : message.size;
    await s.device.setIotlb?.({ ...message, size });
    return encodeU64(0n);
  } catch (error) {
    s.report(named(request, error).message);
    return encodeU64(1n);
  }
}

/** Type, size and permissions of a translation. Throws a ProtocolError. */
function checkIotlb({ type, iova, size, userAddress, access }: IotlbMessage): void {
  if (type === iotlb.INVALIDATE) return;
  if (type !== iotlb.UPDATE) throw new ProtocolError(`type ${type}, an update or an invalidation expected`);
  if (size === 0n) throw new ProtocolError('a translation of no bytes');
  if (iova + size > END_OF_ADDRESSES || userAddress + size > END_OF_ADDRESSES)
    throw new ProtocolError(
      `I/O address ${hex(iova)} or user address ${hex(userAddress)} + ${hex(size)} wraps`,
    );
  if (access < 1 || access > 3) throw new ProtocolError(`access ${access}, 1 to 3 expected`);
}
