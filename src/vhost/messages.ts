/**
 * The messages of the vhost-user protocol (QEMU's docs/interop/vhost-user.rst): numbers, names, what each must
 * look like, and how its payload is laid out.
 *
 * A message is a header of 12 bytes (request, flags, size of the payload: three u32) and a payload. Numbers are
 * in the machine's byte order, which is little-endian wherever this runs.
 */
import { vhostProtocolFeatures as protocol } from '../virtio/features.ts';
import { MAX_CONFIG_LENGTH } from '../virtio/net-config.ts';

export const HEADER_SIZE = 12;
/** No message is larger; the largest that has a layout here is a memory table of 8 regions (264 bytes). */
export const MAX_PAYLOAD = 4096;
/** Most descriptors with one message: one for each region of a memory table. */
export const MAX_DESCRIPTORS = 8;
/** Most regions in a memory table (VHOST_MEMORY_BASELINE_NREGIONS). */
export const MAX_REGIONS = 8;
/** Most regions added one by one: as many as the kernel's vhost takes, and QEMU asks of memory that is plugged. */
export const MAX_SLOTS = 509;

export const VERSION = 1;
export const VERSION_MASK = 0x3;
export const FLAG_REPLY = 0x4;
export const FLAG_NEED_REPLY = 0x8;

/** What a front-end asks of a back-end. */
export const requests = {
  GET_FEATURES: 1,
  SET_FEATURES: 2,
  SET_OWNER: 3,
  RESET_OWNER: 4,
  SET_MEM_TABLE: 5,
  SET_LOG_BASE: 6,
  SET_LOG_FD: 7,
  SET_VRING_NUM: 8,
  SET_VRING_ADDR: 9,
  SET_VRING_BASE: 10,
  GET_VRING_BASE: 11,
  SET_VRING_KICK: 12,
  SET_VRING_CALL: 13,
  SET_VRING_ERR: 14,
  GET_PROTOCOL_FEATURES: 15,
  SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17,
  SET_VRING_ENABLE: 18,
  SEND_RARP: 19,
  NET_SET_MTU: 20,
  SET_BACKEND_REQ_FD: 21,
  IOTLB_MSG: 22,
  SET_VRING_ENDIAN: 23,
  GET_CONFIG: 24,
  SET_CONFIG: 25,
  CREATE_CRYPTO_SESSION: 26,
  CLOSE_CRYPTO_SESSION: 27,
  POSTCOPY_ADVISE: 28,
  POSTCOPY_LISTEN: 29,
  POSTCOPY_END: 30,
  GET_INFLIGHT_FD: 31,
  SET_INFLIGHT_FD: 32,
  GPU_SET_SOCKET: 33,
  RESET_DEVICE: 34,
  VRING_KICK: 35,
  GET_MAX_MEM_SLOTS: 36,
  ADD_MEM_REG: 37,
  REM_MEM_REG: 38,
  SET_STATUS: 39,
  GET_STATUS: 40,
  GET_SHARED_OBJECT: 41,
  SET_DEVICE_STATE_FD: 42,
  CHECK_DEVICE_STATE: 43,
  GET_SHMEM_CONFIG: 44,
} as const;

export type RequestName = keyof typeof requests;

/** What a back-end asks of a front-end, over the socket of SET_BACKEND_REQ_FD. */
export const backendRequests = {
  IOTLB_MSG: 1,
  CONFIG_CHANGE_MSG: 2,
  VRING_HOST_NOTIFIER_MSG: 3,
  VRING_CALL: 4,
  VRING_ERR: 5,
  SHARED_OBJECT_ADD: 6,
  SHARED_OBJECT_REMOVE: 7,
  SHARED_OBJECT_LOOKUP: 8,
  SHMEM_MAP: 9,
  SHMEM_UNMAP: 10,
} as const;

/** What the other end sent breaks the protocol; the message names the request and the rule. */
export class ProtocolError extends Error {
  override readonly name = 'ProtocolError';
}

export interface Header {
  request: number;
  flags: number;
  /** Bytes of payload. */
  size: number;
}

/** A complete message. Its receiver takes descriptors out of `fds`; those that it leaves there are closed. */
export interface Message {
  request: number;
  flags: number;
  payload: Uint8Array;
  fds: number[];
}

/** Exactly so many, or from the first to the second. */
type Range = number | readonly [min: number, max: number];

/** What a request must look like. */
export interface RequestRule {
  /** Bytes of payload. */
  size: Range;
  /** Descriptors; `regions`: one a region of the memory table, `vring`: one unless bit 8 of the u64 is set. */
  descriptors: Range | 'regions' | 'vring';
  /** True: it's answered by specification; a mask: only with this protocol feature. */
  answer: boolean | bigint;
  /** Protocol feature that brings the request in; 0n: part of the base protocol. */
  feature: bigint;
}

function rule(
  size: Range,
  descriptors: RequestRule['descriptors'] = 0,
  answer: boolean | bigint = false,
  feature = 0n,
): RequestRule {
  return { size, descriptors, answer, feature };
}

const U64 = 8;
const VRING_STATE = 8;
const VRING_ADDRESS = 40;
const REGION = 32;
const TABLE_HEADER = 8;
const LOG = 16;
const CONFIG_HEADER = 12;
const CONFIG = [CONFIG_HEADER, CONFIG_HEADER + MAX_CONFIG_LENGTH] as const;
/** Four fields of 20 bytes, which C pads to 24. */
const INFLIGHT = [20, 24] as const;

const rules: Record<RequestName, RequestRule> = {
  GET_FEATURES: rule(0, 0, true),
  SET_FEATURES: rule(U64),
  SET_OWNER: rule(0),
  RESET_OWNER: rule(0),
  SET_MEM_TABLE: rule([TABLE_HEADER + REGION, TABLE_HEADER + REGION * MAX_REGIONS], 'regions'),
  SET_LOG_BASE: rule([U64, LOG], [0, 1], protocol.VHOST_USER_PROTOCOL_F_LOG_SHMFD),
  SET_LOG_FD: rule([0, U64], 1),
  SET_VRING_NUM: rule(VRING_STATE),
  SET_VRING_ADDR: rule(VRING_ADDRESS),
  SET_VRING_BASE: rule(VRING_STATE),
  GET_VRING_BASE: rule(VRING_STATE, 0, true),
  SET_VRING_KICK: rule(U64, 'vring'),
  SET_VRING_CALL: rule(U64, 'vring'),
  SET_VRING_ERR: rule(U64, 'vring'),
  GET_PROTOCOL_FEATURES: rule(0, 0, true),
  SET_PROTOCOL_FEATURES: rule(U64),
  GET_QUEUE_NUM: rule(0, 0, true, protocol.VHOST_USER_PROTOCOL_F_MQ),
  SET_VRING_ENABLE: rule(VRING_STATE),
  SEND_RARP: rule(U64, 0, false, protocol.VHOST_USER_PROTOCOL_F_RARP),
  NET_SET_MTU: rule(U64, 0, false, protocol.VHOST_USER_PROTOCOL_F_MTU),
  SET_BACKEND_REQ_FD: rule(0, 1, false, protocol.VHOST_USER_PROTOCOL_F_BACKEND_REQ),
  IOTLB_MSG: rule(32, 0, true),
  SET_VRING_ENDIAN: rule(VRING_STATE, 0, false, protocol.VHOST_USER_PROTOCOL_F_CROSS_ENDIAN),
  GET_CONFIG: rule(CONFIG, 0, true, protocol.VHOST_USER_PROTOCOL_F_CONFIG),
  SET_CONFIG: rule(CONFIG, 0, false, protocol.VHOST_USER_PROTOCOL_F_CONFIG),
  CREATE_CRYPTO_SESSION: rule([0, MAX_PAYLOAD], 0, true, protocol.VHOST_USER_PROTOCOL_F_CRYPTO_SESSION),
  CLOSE_CRYPTO_SESSION: rule(U64, 0, false, protocol.VHOST_USER_PROTOCOL_F_CRYPTO_SESSION),
  POSTCOPY_ADVISE: rule(0, 0, true, protocol.VHOST_USER_PROTOCOL_F_PAGEFAULT),
  POSTCOPY_LISTEN: rule(0, 0, false, protocol.VHOST_USER_PROTOCOL_F_PAGEFAULT),
  POSTCOPY_END: rule(0, 0, true, protocol.VHOST_USER_PROTOCOL_F_PAGEFAULT),
  GET_INFLIGHT_FD: rule(INFLIGHT, 0, true, protocol.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD),
  SET_INFLIGHT_FD: rule(INFLIGHT, 1, false, protocol.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD),
  GPU_SET_SOCKET: rule(0, 1),
  RESET_DEVICE: rule(0, 0, false, protocol.VHOST_USER_PROTOCOL_F_RESET_DEVICE),
  VRING_KICK: rule(VRING_STATE, 0, false, protocol.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS),
  GET_MAX_MEM_SLOTS: rule(0, 0, true, protocol.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS),
  ADD_MEM_REG: rule(U64 + REGION, 1, false, protocol.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS),
  REM_MEM_REG: rule(U64 + REGION, [0, 1], false, protocol.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS),
  SET_STATUS: rule(U64, 0, false, protocol.VHOST_USER_PROTOCOL_F_STATUS),
  GET_STATUS: rule(0, 0, true, protocol.VHOST_USER_PROTOCOL_F_STATUS),
  GET_SHARED_OBJECT: rule(16, 0, true, protocol.VHOST_USER_PROTOCOL_F_SHARED_OBJECT),
  SET_DEVICE_STATE_FD: rule(8, 1, true, protocol.VHOST_USER_PROTOCOL_F_DEVICE_STATE),
  CHECK_DEVICE_STATE: rule(0, 0, true, protocol.VHOST_USER_PROTOCOL_F_DEVICE_STATE),
  // Its protocol feature's bit isn't the same in all published versions of the document.
  GET_SHMEM_CONFIG: rule(0, 0, true),
};

const known = new Map<number, { name: RequestName; rule: RequestRule }>();
for (const [name, number] of Object.entries(requests) as [RequestName, number][])
  known.set(number, { name, rule: rules[name] });

/** `SET_MEM_TABLE`, or `message 99` for a number that no version of the protocol has. */
export function requestName(request: number): string {
  return known.get(request)?.name ?? `message ${request}`;
}

/** What a request must look like; undefined for a number that no version of the protocol has. */
export function requestRule(request: number): RequestRule | undefined {
  return known.get(request)?.rule;
}

/** Is this request answered, by specification, with these protocol features acknowledged? */
export function hasAnswer(request: number, protocolFeatures: bigint): boolean {
  const answer = requestRule(request)?.answer ?? false;
  return typeof answer === 'bigint' ? (answer & protocolFeatures) !== 0n : answer;
}

function outside(range: Range, value: number): string | undefined {
  const [min, max] = typeof range === 'number' ? [range, range] : range;
  if (value >= min && value <= max) return undefined;
  if (min === max) return `${min} expected`;
  return value < min ? `at least ${min} expected` : `at most ${max} expected`;
}

const plural = (n: number, word: string): string => `${n} ${word}${n === 1 ? '' : 's'}`;

const ACKNOWLEDGING: readonly number[] = [
  0,
  requests.SET_MEM_TABLE,
  requests.ADD_MEM_REG,
  requests.REM_MEM_REG,
];

/**
 * In postcopy the front-end says with the request that it has sent last, and a u64 in place of its payload, that it
 * knows where the regions lie. (QEMU says so with 0, which is no request, where it had nothing to send.)
 */
export function acknowledgesRegions({ request, size }: Pick<Header, 'request' | 'size'>): boolean {
  return size === U64 && ACKNOWLEDGING.includes(request);
}

/** A request's header, before its payload is read. Throws a ProtocolError. */
export function checkRequestHeader(header: Header, { postcopy = false } = {}): void {
  const name = requestName(header.request);
  const version = header.flags & VERSION_MASK;
  if (version !== VERSION) throw new ProtocolError(`${name}: protocol version ${version}, 1 expected`);
  if (header.flags & FLAG_REPLY) throw new ProtocolError(`${name}: a reply where a request is expected`);
  const extra = (header.flags & ~(VERSION_MASK | FLAG_NEED_REPLY)) >>> 0;
  if (extra !== 0) throw new ProtocolError(`${name}: unknown flags 0x${extra.toString(16)}`);
  if (postcopy && acknowledgesRegions(header)) return;
  const wrong = outside(requestRule(header.request)?.size ?? [0, MAX_PAYLOAD], header.size);
  if (wrong) throw new ProtocolError(`${name}: payload of ${plural(header.size, 'byte')}, ${wrong}`);
}

/** A complete request: does its payload agree with itself and with its descriptors? Throws a ProtocolError. */
export function checkRequest({ request, payload, fds }: Message, { postcopy = false } = {}): void {
  const name = requestName(request);
  let expected = requestRule(request)?.descriptors ?? [0, MAX_DESCRIPTORS];
  if (postcopy && acknowledgesRegions({ request, size: payload.length })) expected = 0;
  if (expected === 'vring') expected = decodeU64(payload) & VRING_NO_FD ? 0 : 1;
  if (expected === 'regions') {
    const count = decodeRegionCount(payload);
    if (count < 1 || count > MAX_REGIONS)
      throw new ProtocolError(`${name}: ${plural(count, 'region')}, 1 to ${MAX_REGIONS} expected`);
    const size = TABLE_HEADER + REGION * count;
    if (payload.length !== size) {
      const words = `payload of ${plural(payload.length, 'byte')} for ${plural(count, 'region')}`;
      throw new ProtocolError(`${name}: ${words}, ${size} expected`);
    }
    expected = count;
  }
  const wrong = outside(expected, fds.length);
  if (wrong) throw new ProtocolError(`${name}: ${plural(fds.length, 'descriptor')}, ${wrong}`);
}

/** The header of 12 bytes at the front of `bytes`. */
export function decodeHeader(bytes: Uint8Array): Header {
  const view = viewOf(bytes);
  return {
    request: view.getUint32(0, true),
    flags: view.getUint32(4, true),
    size: view.getUint32(8, true),
  };
}

/** A whole message, header and payload; the version is added to the flags. */
export function encodeMessage(request: number, flags: number, payload: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(HEADER_SIZE + payload.length);
  const view = viewOf(bytes);
  view.setUint32(0, request, true);
  view.setUint32(4, flags | VERSION, true);
  view.setUint32(8, payload.length, true);
  bytes.set(payload, HEADER_SIZE);
  return bytes;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

export function decodeU64(payload: Uint8Array): bigint {
  return viewOf(payload).getBigUint64(0, true);
}

export function encodeU64(value: bigint): Uint8Array {
  const bytes = new Uint8Array(U64);
  viewOf(bytes).setBigUint64(0, value, true);
  return bytes;
}

/** A vring's index and a number about it, both of 32 bits: size, base or enable. */
export interface VringState {
  index: number;
  num: number;
}

export function decodeVringState(payload: Uint8Array): VringState {
  const view = viewOf(payload);
  return { index: view.getUint32(0, true), num: view.getUint32(4, true) };
}

export function encodeVringState({ index, num }: VringState): Uint8Array {
  const bytes = new Uint8Array(VRING_STATE);
  const view = viewOf(bytes);
  view.setUint32(0, index, true);
  view.setUint32(4, num, true);
  return bytes;
}

/** Where the parts of a ring lie, in the front-end's own address space. */
export interface VringAddress {
  index: number;
  /** Bit 0: log the writes to the used ring. */
  flags: number;
  descUser: bigint;
  usedUser: bigint;
  availUser: bigint;
  /** Guest address for the log. */
  logGuest: bigint;
}

export function decodeVringAddress(payload: Uint8Array): VringAddress {
  const view = viewOf(payload);
  return {
    index: view.getUint32(0, true),
    flags: view.getUint32(4, true),
    descUser: view.getBigUint64(8, true),
    usedUser: view.getBigUint64(16, true),
    availUser: view.getBigUint64(24, true),
    logGuest: view.getBigUint64(32, true),
  };
}

export function encodeVringAddress(address: VringAddress): Uint8Array {
  const bytes = new Uint8Array(VRING_ADDRESS);
  const view = viewOf(bytes);
  view.setUint32(0, address.index, true);
  view.setUint32(4, address.flags, true);
  view.setBigUint64(8, address.descUser, true);
  view.setBigUint64(16, address.usedUser, true);
  view.setBigUint64(24, address.availUser, true);
  view.setBigUint64(32, address.logGuest, true);
  return bytes;
}

/** VHOST_VRING_F_LOG in VringAddress.flags. */
export const VRING_LOG = 1;

/** The place of a dirty log, in bytes of the file that came along. */
export function decodeLog(payload: Uint8Array): { size: bigint; offset: bigint } {
  const view = viewOf(payload);
  return { size: view.getBigUint64(0, true), offset: view.getBigUint64(8, true) };
}

export function encodeLog({ size, offset }: { size: bigint; offset: bigint }): Uint8Array {
  const bytes = new Uint8Array(LOG);
  viewOf(bytes).setBigUint64(0, size, true);
  viewOf(bytes).setBigUint64(8, offset, true);
  return bytes;
}

/** A piece of the configuration space, or of one that is asked for. */
export interface ConfigPiece {
  offset: number;
  size: number;
  /** 0: a driver writes; 1: the front-end restores it after a migration. */
  flags: number;
  bytes: Uint8Array;
}

/** The payload of GET_CONFIG and SET_CONFIG. Throws a ProtocolError when it contradicts itself. */
export function decodeConfig(payload: Uint8Array): ConfigPiece {
  const view = viewOf(payload);
  const [offset, size, flags] = [0, 4, 8].map((at) => view.getUint32(at, true)) as [number, number, number];
  const bytes = payload.subarray(CONFIG_HEADER);
  if (bytes.length !== size)
    throw new ProtocolError(`${bytes.length} bytes of configuration space, ${size} announced`);
  if (offset + size > MAX_CONFIG_LENGTH)
    throw new ProtocolError(
      `bytes ${offset} to ${offset + size} of the configuration space, which has ${MAX_CONFIG_LENGTH}`,
    );
  return { offset, size, flags, bytes };
}

export function encodeConfig({ offset, size, flags, bytes }: ConfigPiece): Uint8Array {
  const payload = new Uint8Array(CONFIG_HEADER + bytes.length);
  const view = viewOf(payload);
  for (const [i, value] of [offset, size, flags].entries()) view.setUint32(4 * i, value, true);
  payload.set(bytes, CONFIG_HEADER);
  return payload;
}

/** Where the notes of buffers in work lie, and for how many queues of which size. */
export interface InflightLayout {
  /** Bytes of the file; 0 in a request for one. */
  size: bigint;
  offset: bigint;
  queues: number;
  queueSize: number;
}

export function decodeInflight(payload: Uint8Array): InflightLayout {
  const view = viewOf(payload);
  return {
    size: view.getBigUint64(0, true),
    offset: view.getBigUint64(8, true),
    queues: view.getUint16(16, true),
    queueSize: view.getUint16(18, true),
  };
}

export function encodeInflight({ size, offset, queues, queueSize }: InflightLayout): Uint8Array {
  const bytes = new Uint8Array(INFLIGHT[1]);
  const view = viewOf(bytes);
  view.setBigUint64(0, size, true);
  view.setBigUint64(8, offset, true);
  view.setUint16(16, queues, true);
  view.setUint16(18, queueSize, true);
  return bytes;
}

/** Bit 8 of the u64 of SET_VRING_KICK, CALL and ERR: no descriptor comes with it. */
export const VRING_NO_FD = 0x100n;
const VRING_INDEX_MASK = 0xffn;

/** The vring of SET_VRING_KICK, CALL and ERR. Throws a ProtocolError for bits that have no meaning. */
export function decodeVringIndex(request: number, payload: Uint8Array): number {
  const value = decodeU64(payload);
  const extra = value & ~(VRING_INDEX_MASK | VRING_NO_FD);
  if (extra !== 0n) {
    const words = `bits 0x${extra.toString(16)} have no meaning beside the queue's index`;
    throw new ProtocolError(`${requestName(request)}: ${words}`);
  }
  return Number(value & VRING_INDEX_MASK);
}

/** The u64 of SET_VRING_KICK, CALL and ERR, with or without a descriptor. */
export function encodeVringIndex(index: number, hasDescriptor: boolean): Uint8Array {
  return encodeU64(BigInt(index) | (hasDescriptor ? 0n : VRING_NO_FD));
}

/** A region as the memory table describes it; addresses and sizes in bytes. */
export interface RegionLayout {
  guestAddress: bigint;
  size: bigint;
  userAddress: bigint;
  mmapOffset: bigint;
}

function decodeRegionCount(payload: Uint8Array): number {
  return viewOf(payload).getUint32(0, true);
}

/** The regions of a memory table that checkRequest has accepted. */
export function decodeMemoryTable(payload: Uint8Array): RegionLayout[] {
  const view = viewOf(payload);
  const regions: RegionLayout[] = [];
  for (let at = TABLE_HEADER; at < payload.length; at += REGION) regions.push(regionAt(view, at));
  return regions;
}

function regionAt(view: DataView, at: number): RegionLayout {
  return {
    guestAddress: view.getBigUint64(at, true),
    size: view.getBigUint64(at + 8, true),
    userAddress: view.getBigUint64(at + 16, true),
    mmapOffset: view.getBigUint64(at + 24, true),
  };
}

/** The region of ADD_MEM_REG and REM_MEM_REG, behind padding of 8 bytes. */
export function decodeRegion(payload: Uint8Array): RegionLayout {
  return regionAt(viewOf(payload), U64);
}

export function encodeRegion(region: RegionLayout): Uint8Array {
  const bytes = new Uint8Array(U64 + REGION);
  putRegion(viewOf(bytes), U64, region);
  return bytes;
}

export function encodeMemoryTable(regions: readonly RegionLayout[]): Uint8Array {
  const bytes = new Uint8Array(TABLE_HEADER + REGION * regions.length);
  const view = viewOf(bytes);
  view.setUint32(0, regions.length, true);
  for (const [i, region] of regions.entries()) putRegion(view, TABLE_HEADER + REGION * i, region);
  return bytes;
}

function putRegion(view: DataView, at: number, region: RegionLayout): void {
  view.setBigUint64(at, region.guestAddress, true);
  view.setBigUint64(at + 8, region.size, true);
  view.setBigUint64(at + 16, region.userAddress, true);
  view.setBigUint64(at + 24, region.mmapOffset, true);
}

/** What an IOTLB message is about (struct vhost_iotlb_msg). */
export const iotlb = { MISS: 1, UPDATE: 2, INVALIDATE: 3, ACCESS_FAIL: 4 } as const;

/** IotlbMessage.access */
export const ACCESS_READ = 1;
export const ACCESS_WRITE = 2;

/** A translation, or the lack of one. Addresses and size are bytes. */
export interface IotlbMessage {
  /** I/O virtual address. */
  iova: bigint;
  size: bigint;
  /** In the front-end's own address space. */
  userAddress: bigint;
  /** ACCESS_READ | ACCESS_WRITE */
  access: number;
  /** One of `iotlb`. */
  type: number;
}

export function decodeIotlb(payload: Uint8Array): IotlbMessage {
  const view = viewOf(payload);
  return {
    iova: view.getBigUint64(0, true),
    size: view.getBigUint64(8, true),
    userAddress: view.getBigUint64(16, true),
    access: view.getUint8(24),
    type: view.getUint8(25),
  };
}

export function encodeIotlb({ iova, size, userAddress, access, type }: IotlbMessage): Uint8Array {
  const bytes = new Uint8Array(32);
  const view = viewOf(bytes);
  view.setBigUint64(0, iova, true);
  view.setBigUint64(8, size, true);
  view.setBigUint64(16, userAddress, true);
  view.setUint8(24, access);
  view.setUint8(25, type);
  return bytes;
}
