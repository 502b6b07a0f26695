/** What a hostile front-end may send: one line an attack, with the sentence that the port must end it with. */
import { openSync, writeSync } from 'node:fs';
import { closeFd, eventfd, memfd, socketPair } from '../../src/sys/index.ts';
import * as m from '../../src/vhost/messages.ts';
import { features, vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { Random } from '../support/random.ts';
import { GUEST, USER } from '../support/raw-guest.ts';
import { type Attacker, address, NOTHING, R, RING, state, TIB, table } from './attacker.ts';

export interface Attack {
  /** With the CVE that the same input once was in another back-end. */
  name: string;
  /** What the port says afterwards. */
  says: RegExp;
  act: (a: Attacker) => void | Promise<void>;
}

const u64 = m.encodeU64;
const MIB = 1n << 20n;
const protocol = vhostProtocolFeatures;
const HALF = m.encodeMessage(R.SET_FEATURES, 0, u64(0n));

/** One message and nothing before it, with so many copies of a descriptor. */
const single = (
  name: string,
  says: RegExp,
  request: number,
  payload: Uint8Array = NOTHING,
  count = 0,
): Attack => ({
  name,
  says,
  act: (a) => a.message(request, payload, Array(count).fill(a.ram)),
});
/** A header with words of its own. */
const forged = (name: string, says: RegExp, words: Parameters<Attacker['forged']>[0], payload?: Uint8Array): Attack => ({
  name,
  says,
  act: (a) => a.forged(words, payload),
}); // biome-ignore format: a table's helper
/** A memory table after the negotiation; its descriptors are the 1 MiB file for each region, or others. */
const memory = (name: string, says: RegExp, regions: Partial<m.RegionLayout>[], fds?: (a: Attacker) => number[]): Attack => ({
  name,
  says,
  act: (a) => {
    a.negotiate();
    a.message(R.SET_MEM_TABLE, table(...regions), fds ? fds(a) : regions.map(() => a.ram));
  },
}); // biome-ignore format: a table's helper
/** What comes once memory is shared. */
const shared = (name: string, says: RegExp, act: Attack['act'], packed = false): Attack => ({
  name,
  says,
  act: (a) => {
    a.share({ packed });
    return act(a);
  },
});
/** What comes once memory is shared and these protocol features are agreed. */
const spoken = (name: string, says: RegExp, bits: bigint, act: Attack['act']): Attack =>
  shared(name, says, (a) => {
    a.message(R.SET_PROTOCOL_FEATURES, u64(bits));
    return act(a);
  });
/** Ring 1 somewhere else than where a ring belongs. */
const placed = (name: string, says: RegExp, at: readonly [bigint, bigint, bigint], size?: number, packed?: boolean): Attack =>
  shared(name, says, (a) => a.ring(1, at, size, packed ? 0x8000 : undefined), packed); // biome-ignore format: a table's helper
/** Features are agreed, and then this. */
const agreed = (name: string, says: RegExp, act: (a: Attacker) => void, packed = false): Attack => ({
  name,
  says,
  act: (a) => {
    a.negotiate({ packed });
    act(a);
  },
});

export const HEADERS: Attack[] = [
  forged('version 0', /GET_FEATURES: protocol version 0, 1 expected/, { flags: 0 }),
  forged('version 2', /protocol version 2, 1 expected/, { flags: 2 }),
  forged('a reply', /a reply where a request is expected/, { flags: 5 }),
  forged('unknown flags', /unknown flags 0x10/, { flags: 0x11 }),
  forged('all flags', /protocol version 3, 1 expected/, { flags: 0xffff_ffff }),
  forged('a payload of 4 GiB', /SET_FEATURES: payload of 4294967295 bytes, 8 expected/, { request: R.SET_FEATURES, size: 0xffff_ffff }),
  forged('a payload where there is none', /GET_FEATURES: payload of 8 bytes, 0 expected/, {}, u64(0n)),
  forged('a short payload', /SET_VRING_ADDR: payload of 8 bytes, 40 expected/, { request: R.SET_VRING_ADDR }, u64(0n)),
  forged('a payload shorter than its header says, and the next message in its place', /SET_FEATURES: payload of 4 bytes, 8 expected/, { request: R.SET_FEATURES, size: 4 }, u64(0n)),
  forged('request 0', /message 0: no such request is known here/, { request: 0 }),
  forged('request 0xffffffff', /message 4294967295: no such request is known here/, { request: 0xffff_ffff }),
  forged('an unknown request of 4097 bytes', /payload of 4097 bytes, at most 4096 expected/, { request: 77, size: 4097 }),
  { name: 'a header cut off', says: /message header: the connection closed in the middle of it/, act: (a) => a.bytes(HALF.subarray(0, 5)) },
  { name: 'a header of one byte', says: /message header: the connection closed in the middle of it/, act: (a) => a.bytes(HALF.subarray(0, 1)) },
  { name: 'a payload cut off', says: /SET_FEATURES: the connection closed in the middle of it/, act: (a) => a.bytes(HALF.subarray(0, 15)) },
  { name: 'a payload cut off before its first byte', says: /SET_FEATURES: the connection closed in the middle of it/, act: (a) => a.bytes(HALF.subarray(0, 12)) },
  { name: 'noise', says: /protocol version|unknown flags|a reply/, act: (a) => a.bytes(new Random(3).bytes(300)) },
]; // biome-ignore format: a table

export const DESCRIPTORS: Attack[] = [
  single('one with GET_FEATURES (CVE-2019-14818)', /GET_FEATURES: 1 descriptor, 0 expected/, R.GET_FEATURES, NOTHING, 1),
  single('eight with SET_OWNER (CVE-2019-14818)', /SET_OWNER: 8 descriptors, 0 expected/, R.SET_OWNER, NOTHING, 8),
  single('nine', /message header: more than 8 descriptors/, R.SET_OWNER, NOTHING, 9),
  single('250', /message header: more than 8 descriptors/, R.SET_OWNER, NOTHING, 250),
  single('eight with an unknown request (CVE-2019-14818)', /message 99: no such request is known here/, 99, NOTHING, 8),
  single('none with a memory table', /SET_MEM_TABLE: 0 descriptors, 1 expected/, R.SET_MEM_TABLE, table({})),
  single('two with a memory table of one region', /SET_MEM_TABLE: 2 descriptors, 1 expected/, R.SET_MEM_TABLE, table({}), 2),
  single('none with a kick that has one', /SET_VRING_KICK: 0 descriptors, 1 expected/, R.SET_VRING_KICK, m.encodeVringIndex(0, true)),
  single('two with a kick', /SET_VRING_KICK: 2 descriptors, 1 expected/, R.SET_VRING_KICK, m.encodeVringIndex(0, true), 2),
  single('one with a call that has none', /SET_VRING_CALL: 1 descriptor, 0 expected/, R.SET_VRING_CALL, m.encodeVringIndex(0, false), 1),
  single('a call that is no eventfd', /SET_VRING_CALL: queue 0: the descriptor is not an eventfd/, R.SET_VRING_CALL, m.encodeVringIndex(0, true), 1),
  single('an err that is no eventfd', /SET_VRING_ERR: queue 1: the descriptor is not an eventfd/, R.SET_VRING_ERR, m.encodeVringIndex(1, true), 1),
  single('a kick that is no eventfd', /SET_VRING_KICK: queue 1: the descriptor is not an eventfd/, R.SET_VRING_KICK, m.encodeVringIndex(1, true), 1),
  { name: 'one with the payload in place of the header', says: /SET_FEATURES: descriptors came with the payload, not with the header/, act: (a) => { a.bytes(HALF.subarray(0, 12)); a.bytes(HALF.subarray(12), [a.ram]); } },
  { name: 'one with each byte of a header (CVE-2019-14818)', says: /message header: more than 8 descriptors/, act: (a) => { for (let i = 0; i < 12; i++) a.bytes(HALF.subarray(i, i + 1), [a.ram]); } },
]; // biome-ignore format: a table

export const FEATURES: Attack[] = [
  single('one that was not offered', /SET_FEATURES: VIRTIO_F_SR_IOV not offered/, R.SET_FEATURES, u64(features.VIRTIO_F_SR_IOV)),
  single('all', /SET_FEATURES: .*VIRTIO_F_ADMIN_VQ.* not offered/, R.SET_FEATURES, u64(2n ** 64n - 1n)),
  single('bits without a name', /SET_FEATURES: .*63.*|not offered/, R.SET_FEATURES, u64(1n << 63n)),
  single('a protocol feature that was not offered', /SET_PROTOCOL_FEATURES: VHOST_USER_PROTOCOL_F_CRYPTO_SESSION not offered/, R.SET_PROTOCOL_FEATURES, u64(vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_CRYPTO_SESSION)),
  single('all protocol features', /SET_PROTOCOL_FEATURES: .* not offered/, R.SET_PROTOCOL_FEATURES, u64(2n ** 64n - 1n)),
  shared('changed while a queue is running', /SET_FEATURES: .*VIRTIO_F_VERSION_1.* changed while a queue is running/, (a) => { a.ring(1); a.message(R.SET_FEATURES, u64(features.VHOST_USER_F_PROTOCOL_FEATURES)); }),
  shared('packed rings while a split one is running', /VIRTIO_F_RING_PACKED changed while a queue is running/, (a) => { a.ring(1); a.negotiate({ packed: true }); }),
]; // biome-ignore format: a table

export const QUEUES: Attack[] = [
  single('queue 256 (CVE-2020-10723)', /SET_VRING_NUM: queue 256 does not exist/, R.SET_VRING_NUM, state(256, 64)),
  single('queue 0x10000, which is 0 in 16 bits (CVE-2020-10723)', /queue 65536 does not exist/, R.SET_VRING_BASE, state(0x10000, 0)),
  single('queue 0x10001 enabled (CVE-2020-10723)', /queue 65537 does not exist/, R.SET_VRING_ENABLE, state(0x10001, 1)),
  single('queue 0xffffffff (CVE-2020-10723)', /queue 4294967295 does not exist/, R.SET_VRING_ENABLE, state(0xffff_ffff, 1)),
  single('the place of queue 0x80000000', /queue 2147483648 does not exist/, R.SET_VRING_ADDR, address(0x8000_0000, RING)),
  single('the base of a queue that does not exist', /GET_VRING_BASE: queue 70000 does not exist/, R.GET_VRING_BASE, state(70000, 0)),
  single('bits above the index of a kick (CVE-2020-10723)', /SET_VRING_KICK: bits 0x10000 have no meaning beside the queue's index/, R.SET_VRING_KICK, u64(0x10100n)),
  single('a kick of queue 255', /queue 255 can't start before SET_FEATURES/, R.SET_VRING_KICK, m.encodeVringIndex(255, false)),
  single('enabled twice over', /SET_VRING_ENABLE: queue 0: 2, 0 or 1 expected/, R.SET_VRING_ENABLE, state(0, 2)),
  single('a ring of 0', /queue 0: size 0, a power of 2/, R.SET_VRING_NUM, state(0, 0)),
  single('a ring of 3', /queue 0: size 3, a power of 2/, R.SET_VRING_NUM, state(0, 3)),
  single('a ring of 32769', /queue 0: size 32769, a power of 2/, R.SET_VRING_NUM, state(0, 32769)),
  single('a ring of 65536', /queue 0: size 65536, a power of 2/, R.SET_VRING_NUM, state(0, 65536)),
  agreed('a packed ring of 0', /queue 0: size 0, a number from 1 to 32768/, (a) => a.message(R.SET_VRING_NUM, state(0, 0)), true),
  agreed('a packed ring of 32769', /queue 0: size 32769, a number from 1 to 32768/, (a) => a.message(R.SET_VRING_NUM, state(0, 32769)), true),
  single('a base of 65536', /queue 0: base 65536, at most 65535/, R.SET_VRING_BASE, state(0, 65536)),
  single('a kick before everything', /queue 0 can't start before SET_FEATURES/, R.SET_VRING_KICK, m.encodeVringIndex(0, false)),
  agreed('a kick before memory', /queue 0 can't start before SET_MEM_TABLE/, (a) => a.message(R.SET_VRING_KICK, m.encodeVringIndex(0, false))),
  agreed('a place before memory, and a kick', /queue 1 can't start before SET_MEM_TABLE/, (a) => a.ring(1)),
  shared('a kick before the size', /queue 0 can't start before SET_VRING_NUM/, (a) => a.message(R.SET_VRING_KICK, m.encodeVringIndex(0, false))),
  shared('a kick before the place', /queue 0 can't start before SET_VRING_ADDR/, (a) => { a.message(R.SET_VRING_NUM, state(0, 64)); a.message(R.SET_VRING_KICK, m.encodeVringIndex(0, false)); }),
  shared('a running ring that changes its size', /queue 0: the size can't change while it is running/, (a) => { a.ring(0); a.message(R.SET_VRING_NUM, state(0, 128)); }),
  shared('a running ring that changes its place', /queue 0: the addresses can't change while it is running/, (a) => { a.ring(0); a.message(R.SET_VRING_ADDR, address(0, [USER, USER + 0x3000n, USER + 0x2000n])); }),
  shared('a running ring that changes its base', /queue 0: the base can't change while it is running/, (a) => { a.ring(0); a.message(R.SET_VRING_BASE, state(0, 77)); }),
  shared('a packed base outside of the ring', /base 0x8040 is outside of a packed ring of 64 entries/, (a) => a.ring(1, RING, 64, 0x8040), true),
  shared('a packed used position outside of the ring', /base 0xffff8000 is outside of a packed ring/, (a) => a.ring(1, RING, 64, 0xffff_8000), true),
  shared('a size of packed rings for a split one', /queue 1: size 63, a power of 2 expected of a split ring/, (a) => {
    a.negotiate({ packed: true });
    a.message(R.SET_VRING_NUM, state(1, 63));
    a.negotiate();
    a.message(R.SET_VRING_ADDR, address(1, RING));
    a.message(R.SET_VRING_KICK, m.encodeVringIndex(1, false));
  }),
]; // biome-ignore format: a table

export const PLACES: Attack[] = [
  placed('a descriptor table that is not aligned', /queue 1: descriptor table at user address 0x7f0000000008, 1024 bytes: not aligned to 16 bytes/, [USER + 8n, RING[1], RING[2]]),
  placed('an available ring that is not aligned', /available ring .* not aligned to 2 bytes/, [RING[0], RING[1] + 1n, RING[2]]),
  placed('a used ring that is not aligned', /used ring .* not aligned to 4 bytes/, [RING[0], RING[1], RING[2] + 2n]),
  placed('a packed ring that is not aligned', /descriptor ring .* not aligned to 16 bytes/, [USER + 4n, RING[1], RING[2]], 64, true),
  placed('an event suppression structure that is not aligned', /device's event suppression structure .* not aligned to 4 bytes/, [USER, RING[1], RING[2] + 1n], 64, true),
  placed('a ring at 0', /descriptor table at user address 0x0, .* not inside one region/, [0n, RING[1], RING[2]]),
  placed('a ring at a guest address', /not inside one region/, [GUEST, RING[1], RING[2]]),
  placed('a ring below its region', /descriptor table .* not inside one region/, [USER - 16n, RING[1], RING[2]]),
  placed('a ring that runs out of its region (CVE-2018-1059)', /used ring at user address 0x7f00000fff00, 518 bytes: not inside one region/, [RING[0], RING[1], USER + 0xfff00n]),
  placed('an available ring that runs out by its last two bytes (CVE-2018-1059)', /available ring at user address 0x7f00000fff7c, 134 bytes: not inside one region/, [RING[0], USER + MIB - 132n, RING[2]]),
  placed('a packed ring that runs out of its region (CVE-2018-1059)', /descriptor ring at user address 0x7f00000ffc10, 1024 bytes: not inside one region/, [USER + 0xffc10n, RING[1], RING[2]], 64, true),
  placed('an event suppression structure at the end of memory', /driver's event suppression structure at user address 0x7f0000100000, 4 bytes: not inside one region/, [USER, USER + MIB, RING[2]], 64, true),
  placed('a ring that wraps', /not inside one region/, [0xffff_ffff_ffff_fff0n, RING[1], RING[2]]),
  placed('a ring larger than memory', /descriptor table .* 524288 bytes: not inside one region/, [USER + 0x8_0010n, RING[1], RING[2]], 32768),
  agreed('a place after memory could not be mapped', /SET_MEM_TABLE: region 0: .* can't be mapped/, (a) => { a.message(R.SET_MEM_TABLE, table({}), a.own(eventfd())); a.ring(1); }),
  shared('a memory table that leaves a running ring out', /SET_MEM_TABLE: descriptor table .* not inside one region/, (a) => { a.ring(1); a.message(R.SET_MEM_TABLE, table({ userAddress: USER + MIB }), [a.ram]); }),
]; // biome-ignore format: a table

const nine = Array.from({ length: 9 }, (_, i) => ({
  guestAddress: GUEST + BigInt(i) * MIB,
  userAddress: USER + BigInt(i) * MIB,
}));
export const MEMORY: Attack[] = [
  single('no regions', /SET_MEM_TABLE: (payload of 8 bytes|0 regions)/, R.SET_MEM_TABLE, new Uint8Array(8)),
  single('nine regions', /SET_MEM_TABLE: payload of 296 bytes, at most 264/, R.SET_MEM_TABLE, table(...nine), 8),
  single('nine regions by number, eight by size', /SET_MEM_TABLE: 9 regions, 1 to 8 expected/, R.SET_MEM_TABLE, table(...nine).subarray(0, 264), 8),
  single('0xffffffff regions', /SET_MEM_TABLE: 4294967295 regions, 1 to 8 expected/, R.SET_MEM_TABLE, new Uint8Array(40).fill(0xff), 1),
  single('two regions by number, one by size', /SET_MEM_TABLE: payload of 40 bytes for 2 regions, 72 expected/, R.SET_MEM_TABLE, table({}, {}).subarray(0, 40), 2),
  memory('a file shorter than the region', /region 0: region file shorter than declared, 0x100000 bytes where offset \+ size is 0x100001/, [{ size: MIB + 1n }]),
  memory('an offset that runs out of the file', /region file shorter than declared/, [{ mmapOffset: 0x1000n }]),
  memory('an empty region', /region 0 is empty/, [{ size: 0n }]),
  memory('a size that becomes 0 when it is aligned', /region 0: (guest|user) address .* wraps/, [{ size: 2n ** 64n - 1n }]),
  memory('a region that wraps', /region 0: guest address .* wraps/, [{ guestAddress: 0xffff_ffff_ffff_f000n }]),
  memory('a region that wraps for the front-end', /region 0: user address .* wraps/, [{ userAddress: 0xffff_ffff_ffff_f000n }]),
  memory('an offset that wraps (CVE-2020-10722)', /region 0: file offset .* wraps/, [{ mmapOffset: 0xffff_ffff_ffff_f000n }]),
  memory('regions that overlap', /regions 0 and 1 overlap in guest addresses/, [{}, { userAddress: USER + MIB }]),
  memory('regions that overlap by one byte', /regions 0 and 1 overlap in guest addresses/, [{}, { userAddress: USER + MIB, guestAddress: GUEST + MIB - 1n }]),
  memory('regions that overlap for the front-end', /regions 0 and 1 overlap in user addresses/, [{}, { guestAddress: GUEST + MIB }]),
  memory('a socket', /region 0: a socket can't be mapped/, [{}], (a) => a.own(...socketPair()).slice(0, 1)),
  memory('an eventfd', /region 0: an eventfd or the like can't be mapped/, [{}], (a) => a.own(eventfd())),
  memory('a pipe', /region 0: a pipe can't be mapped/, [{}], (a) => [a.pipe()]),
  memory('a device', /region 0: a device can't be mapped/, [{}], (a) => a.own(openSync('/dev/null', 'r'))),
  memory('a directory', /region 0: a directory can't be mapped/, [{}], (a) => a.own(openSync('/', 'r'))),
  memory('a file open for reading alone', /region at guest address 0x40000000: mmap.*EACCES/, [{}], (a) => a.own(openSync(`/proc/self/fd/${a.ram}`, 'r'))),
  memory('a region that no process has room for', /region at guest address 0x40000000: .* fit/, [{ size: 128n * TIB }], (a) => [a.sparse(128n * TIB)]),
  memory('regions that have room one by one, and not together', / fit/, [{ size: 64n * TIB }, { size: 64n * TIB, guestAddress: GUEST + 64n * TIB, userAddress: USER + 64n * TIB }], (a) => { const fd = a.sparse(64n * TIB); return [fd, fd]; }),
]; // biome-ignore format: a table

/** Memory region by region; negotiated with CONFIGURE_MEM_SLOTS. */
const slots = (name: string, says: RegExp, act: (a: Attacker) => void): Attack =>
  shared(name, says, (a) => {
    a.message(R.SET_PROTOCOL_FEATURES, u64(vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS));
    act(a);
  });
const region = (changes: Partial<m.RegionLayout> = {}) =>
  m.encodeRegion({
    guestAddress: GUEST + MIB,
    userAddress: USER + MIB,
    size: MIB,
    mmapOffset: 0n,
    ...changes,
  });
export const SLOTS: Attack[] = [
  slots('a region that overlaps one that is there', /ADD_MEM_REG: .*overlap in guest addresses/, (a) => a.message(R.ADD_MEM_REG, region({ guestAddress: GUEST + 4096n }), [a.ram])),
  slots('a region that overlaps one for the front-end', /ADD_MEM_REG: .*overlap in user addresses/, (a) => a.message(R.ADD_MEM_REG, region({ userAddress: USER + 4096n }), [a.ram])),
  slots('an empty region', /ADD_MEM_REG: region 1 is empty/, (a) => a.message(R.ADD_MEM_REG, region({ size: 0n }), [a.ram])),
  slots('a region that wraps', /ADD_MEM_REG: region 1: guest address .* wraps/, (a) => a.message(R.ADD_MEM_REG, region({ guestAddress: 2n ** 64n - 4096n }), [a.ram])),
  slots('a region of 126 GB of a file of one megabyte (SPDK #1183)', /ADD_MEM_REG: region 1: region file shorter than declared/, (a) => a.message(R.ADD_MEM_REG, region({ size: 126n << 30n }), [a.ram])),
  slots('an eventfd for a region', /ADD_MEM_REG: region 1: an eventfd or the like can't be mapped/, (a) => a.message(R.ADD_MEM_REG, region(), a.own(eventfd()))),
  slots('no descriptor', /ADD_MEM_REG: 0 descriptors, 1 expected/, (a) => a.message(R.ADD_MEM_REG, region())),
  slots('the removal of a part of a region', /REM_MEM_REG: no region of 0x1000 bytes/, (a) => a.message(R.REM_MEM_REG, region({ guestAddress: GUEST, userAddress: USER, size: 4096n }))),
  slots('the removal of a region with a running ring', /REM_MEM_REG: queue 1 is running in this region/, (a) => { a.ring(1); a.message(R.REM_MEM_REG, region({ guestAddress: GUEST, userAddress: USER })); }),
]; // biome-ignore format: a table

const LOG = features.VHOST_F_LOG_ALL;
/** A dirty log; negotiated with LOG_SHMFD, and LOG_ALL. */
const log = (name: string, says: RegExp, size: bigint, offset: bigint, fds?: (a: Attacker) => number[]): Attack => ({
  name,
  says,
  act: (a) => {
    a.share();
    a.message(R.SET_PROTOCOL_FEATURES, u64(vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_LOG_SHMFD));
    a.message(R.SET_LOG_BASE, m.encodeLog({ size, offset }), fds ? fds(a) : [a.ram]);
    a.message(R.SET_FEATURES, u64(features.VHOST_USER_F_PROTOCOL_FEATURES | features.VIRTIO_F_VERSION_1 | LOG));
  },
}); // biome-ignore format: a table's helper
export const LOGS: Attack[] = [
  log('a log whose size and offset wrap (CVE-2020-10722)', /SET_LOG_BASE: offset 0x[0-9a-f]+ \+ size 0x[0-9a-f]+ wraps/, 0x1_0000n, 2n ** 64n - 4096n),
  log('an empty log', /SET_LOG_BASE: the log is empty/, 0n, 0n),
  log('a log longer than its file', /SET_LOG_BASE: log file shorter than declared/, 2n * MIB, 0n),
  log('a log that is an eventfd', /SET_LOG_BASE: an eventfd or the like can't be mapped/, 4096n, 0n, (a) => a.own(eventfd())),
  log('a log without a file', /SET_LOG_BASE: 16 bytes and 0 descriptors|SET_LOG_BASE: 0 descriptors/, 4096n, 0n, () => []),
  log('a log too small for its guest (CVE-2019-14835)', /SET_LOG_BASE: the log reaches guest address 0x8000, memory goes on to 0x40100000/, 1n, 0n),
]; // biome-ignore format: a table

const translation = (changes: Partial<m.IotlbMessage>) =>
  m.encodeIotlb({
    iova: 0x1000n,
    size: 4096n,
    userAddress: USER,
    access: 3,
    type: m.iotlb.UPDATE,
    ...changes,
  });
/** Translations of I/O addresses: a fault in one is answered, and the session goes on until its front-end leaves. */
const iotlb = (name: string, says: RegExp, changes: Partial<m.IotlbMessage>): Attack => ({
  name,
  says,
  act: (a) => {
    a.message(R.SET_OWNER);
    a.message(R.SET_FEATURES, u64(features.VHOST_USER_F_PROTOCOL_FEATURES | features.VIRTIO_F_VERSION_1 | features.VIRTIO_F_ACCESS_PLATFORM));
    a.message(R.SET_MEM_TABLE, table({}), [a.ram]);
    a.message(R.IOTLB_MSG, translation(changes));
  },
}); // biome-ignore format: a table's helper
export const TRANSLATIONS: Attack[] = [
  iotlb('one of no bytes', /IOTLB_MSG: a translation of no bytes/, { size: 0n }),
  iotlb('one that wraps', /IOTLB_MSG: .* wraps/, { iova: 2n ** 64n - 4096n, size: 8192n }),
  iotlb('one whose user address wraps', /IOTLB_MSG: .* wraps/, { userAddress: 2n ** 64n - 4096n, size: 8192n }),
  iotlb('one that runs out of memory', /IOTLB_MSG: user address 0x7f0000100000 is in no region/, { userAddress: USER + MIB - 4096n, size: 8192n }),
  iotlb('one to nowhere', /IOTLB_MSG: user address 0x1000 is in no region/, { userAddress: 0x1000n }),
  iotlb('one without permissions', /IOTLB_MSG: access 0, 1 to 3 expected/, { access: 0 }),
  iotlb('one with permissions that do not exist', /IOTLB_MSG: access 255, 1 to 3 expected/, { access: 255 }),
  iotlb('a miss, which is ours to say', /IOTLB_MSG: type 1, an update or an invalidation expected/, { type: 1 }),
  shared('one without an IOMMU', /IOTLB_MSG: a translation, and VIRTIO_F_ACCESS_PLATFORM is not acknowledged/, (a) => a.message(R.IOTLB_MSG, translation({}))),
]; // biome-ignore format: a table

/** Notes of buffers in work; negotiated with INFLIGHT_SHMFD. */
const inflight = (name: string, says: RegExp, changes: Partial<m.InflightLayout>): Attack =>
  shared(name, says, (a) => {
    a.message(R.SET_PROTOCOL_FEATURES, u64(vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD));
    const layout = { size: 0x8000n, offset: 0n, queues: 2, queueSize: 64, ...changes };
    a.message(R.SET_INFLIGHT_FD, m.encodeInflight(layout), [a.ram]);
  });
export const INFLIGHT: Attack[] = [
  inflight('notes of more queues than there are (CVE-2021-3839)', /SET_INFLIGHT_FD: 65535 queues, 1 to 256 expected/, { queues: 65535 }),
  inflight('notes of no queue', /SET_INFLIGHT_FD: 0 queues, 1 to 256 expected/, { queues: 0 }),
  inflight('notes of queues without entries', /SET_INFLIGHT_FD: queues of 0 entries, 1 to 32768 expected/, { queueSize: 0 }),
  inflight('notes of queues that are too long', /SET_INFLIGHT_FD: queues of 65535 entries, 1 to 32768 expected/, { queueSize: 65535 }),
  inflight('notes of no size', /SET_INFLIGHT_FD: 0 bytes for 2 queues/, { size: 0n }),
  inflight('notes of one queue where there are two', /SET_INFLIGHT_FD: 1088 bytes for 2 queues of 64 entries, 2176 expected/, { size: 1088n }),
  inflight('notes longer than their file', /SET_INFLIGHT_FD: file of 1048576 bytes is shorter than offset \+ size/, { size: 2n * MIB }),
  inflight('notes that begin behind their file', /SET_INFLIGHT_FD: file of 1048576 bytes is shorter than offset \+ size/, { offset: MIB }),
  inflight('notes in the middle of a word', /SET_INFLIGHT_FD: offset 4 is no multiple of 8/, { offset: 4n }),
  inflight('notes at a place that wraps', /SET_INFLIGHT_FD: file of 1048576 bytes is shorter than offset \+ size/, { offset: 2n ** 64n - 8n }),
  spoken('notes that are an eventfd', /SET_INFLIGHT_FD: the descriptor is no memory file/, protocol.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD, (a) => a.message(R.SET_INFLIGHT_FD, m.encodeInflight({ size: 0x8000n, offset: 0n, queues: 2, queueSize: 64 }), a.own(eventfd()))),
  spoken('notes while a queue runs', /SET_INFLIGHT_FD: queue 1 is running/, protocol.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD, (a) => { a.ring(1); a.message(R.SET_INFLIGHT_FD, m.encodeInflight({ size: 0x8000n, offset: 0n, queues: 2, queueSize: 64 }), [a.ram]); }),
  spoken('a wish for notes of 65535 queues (CVE-2021-3839)', /GET_INFLIGHT_FD: 65535 queues, 1 to 256 expected/, protocol.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD, (a) => a.message(R.GET_INFLIGHT_FD, m.encodeInflight({ size: 0n, offset: 0n, queues: 65535, queueSize: 64 }))),
]; // biome-ignore format: a table

/** What a device says of itself and is told of itself. */
const config = (offset: number, size: number, flags = 0, bytes = size) =>
  m.encodeConfig({ offset, size, flags, bytes: new Uint8Array(bytes).fill(0xee) });
const CONFIG = protocol.VHOST_USER_PROTOCOL_F_CONFIG;
const STATUS = protocol.VHOST_USER_PROTOCOL_F_STATUS;
export const CONFIGURATION: Attack[] = [
  ...[67n, 0n, 65536n, 0x1_0000_0000n + 1500n, 2n ** 64n - 1n].map((mtu) =>
    single(`an MTU of ${mtu}`, new RegExp(`NET_SET_MTU: an MTU of ${mtu}, 68 to 65535 expected`), R.NET_SET_MTU, u64(mtu))),
  spoken('a wish for 257 bytes of configuration space', /GET_CONFIG: payload of 269 bytes, at most 268 expected/, CONFIG, (a) => a.message(R.GET_CONFIG, config(0, 257))),
  spoken('257 bytes of configuration space', /SET_CONFIG: payload of 269 bytes, at most 268 expected/, CONFIG, (a) => a.message(R.SET_CONFIG, config(0, 257))),
  spoken('a piece of 4 GiB of configuration space in four bytes', /GET_CONFIG: 4 bytes of configuration space, 4294967295 announced/, CONFIG, (a) => a.message(R.GET_CONFIG, config(0, 0xffff_ffff, 0, 4))),
  spoken('a piece that is shorter than its bytes', /SET_CONFIG: 8 bytes of configuration space, 6 announced/, CONFIG, (a) => a.message(R.SET_CONFIG, config(0, 6, 0, 8))),
  spoken('a piece that begins behind the end', /GET_CONFIG: bytes 256 to 257 of the configuration space, which has 256/, CONFIG, (a) => a.message(R.GET_CONFIG, config(256, 1))),
  spoken('a piece whose place wraps', /SET_CONFIG: bytes 4294967295 to 4294967301 of the configuration space, which has 256/, CONFIG, (a) => a.message(R.SET_CONFIG, config(0xffff_ffff, 6))),
  spoken('more than a network device has', /SET_CONFIG: the network device's configuration space has \d+ bytes/, CONFIG, (a) => a.message(R.SET_CONFIG, config(0, 256))),
  spoken('flags that do not exist', /SET_CONFIG: flags 2, 0 or 1 expected/, CONFIG, (a) => a.message(R.SET_CONFIG, config(0, 6, 2))),
  spoken('a link that is written', /SET_CONFIG: status can't be written/, CONFIG, (a) => a.message(R.SET_CONFIG, config(6, 2))),
  spoken('a status of 256', /SET_STATUS: 0x100 has bits that the device status doesn't have/, STATUS, (a) => a.message(R.SET_STATUS, u64(256n))),
  spoken('a status of 64 bits', /SET_STATUS: 0xf0000000000000f has bits/, STATUS, (a) => a.message(R.SET_STATUS, u64(0xf00_0000_0000_000fn))),
  spoken('a status with a bit that nobody has', /SET_STATUS: 0x10 has bits/, STATUS, (a) => a.message(R.SET_STATUS, u64(0x10n))),
  single('the address of a group announced', /SEND_RARP: 01:00:5e:00:00:01 is no address of a guest/, R.SEND_RARP, Uint8Array.of(1, 0, 0x5e, 0, 0, 1, 0, 0)),
  single('no address announced', /SEND_RARP: 00:00:00:00:00:00 is no address of a guest/, R.SEND_RARP, u64(0n)),
  single('a back-end channel that is a file', /SET_BACKEND_REQ_FD: the descriptor is not a socket/, R.SET_BACKEND_REQ_FD, NOTHING, 1),
  single('a signal for the log that is a file', /SET_LOG_FD: the descriptor is not an eventfd/, R.SET_LOG_FD, NOTHING, 1),
]; // biome-ignore format: a table

/** Notifications by messages. */
const IN_BAND = protocol.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS;
const WHOLE = IN_BAND | protocol.VHOST_USER_PROTOCOL_F_BACKEND_REQ | protocol.VHOST_USER_PROTOCOL_F_REPLY_ACK;
export const KICKS: Attack[] = [
  shared('one that was not negotiated', /VRING_KICK: in-band notifications were not negotiated/, (a) => a.message(R.VRING_KICK, state(1, 0))),
  shared('in-band notifications without a way back', /SET_PROTOCOL_FEATURES: in-band notifications need BACKEND_REQ and REPLY_ACK/, (a) => a.message(R.SET_PROTOCOL_FEATURES, u64(IN_BAND))),
  spoken('one of queue 256', /VRING_KICK: queue 256 does not exist/, WHOLE, (a) => a.message(R.VRING_KICK, state(256, 0))),
  spoken('one of queue 0xffffffff', /VRING_KICK: queue 4294967295 does not exist/, WHOLE, (a) => a.message(R.VRING_KICK, state(0xffff_ffff, 0))),
  spoken('one that says more', /VRING_KICK: queue 1: 1, 0 expected/, WHOLE, (a) => a.message(R.VRING_KICK, state(1, 1))),
  spoken('one before its ring has a size', /VRING_KICK: queue 1 can't start before SET_VRING_NUM/, WHOLE, (a) => a.message(R.VRING_KICK, state(1, 0))),
]; // biome-ignore format: a table

/** The device's state for another back-end, through a pipe. */
const DEVICE_STATE = protocol.VHOST_USER_PROTOCOL_F_DEVICE_STATE;
const [SAVE, LOAD] = [0, 1];
const transfer = (name: string, says: RegExp, direction: number, phase: number, fds: (a: Attacker) => number[]): Attack =>
  spoken(name, says, DEVICE_STATE, (a) => a.message(R.SET_DEVICE_STATE_FD, state(direction, phase), fds(a))); // biome-ignore format: a table's helper
export const STATES: Attack[] = [
  transfer('a third direction', /SET_DEVICE_STATE_FD: direction 2, 0 or 1 expected/, 2, 0, (a) => [a.pipe()]),
  transfer('a direction of 32 bits', /SET_DEVICE_STATE_FD: direction 4294967295, 0 or 1 expected/, 0xffff_ffff, 0, (a) => [a.pipe()]),
  transfer('another phase', /SET_DEVICE_STATE_FD: phase 1, 0 expected/, SAVE, 1, (a) => [a.pipe()]),
  transfer('memory in place of a pipe', /SET_DEVICE_STATE_FD: the descriptor is neither a pipe nor a socket/, LOAD, 0, (a) => [a.ram]),
  transfer('an eventfd in place of a pipe', /SET_DEVICE_STATE_FD: the descriptor is neither a pipe nor a socket/, SAVE, 0, (a) => a.own(eventfd())),
  transfer('a device in place of a pipe', /SET_DEVICE_STATE_FD: the descriptor is neither a pipe nor a socket/, LOAD, 0, (a) => a.own(openSync('/dev/zero', 'r'))),
  spoken('a state while a queue runs', /SET_DEVICE_STATE_FD: queue 1 is running/, DEVICE_STATE, (a) => { a.ring(1); a.message(R.SET_DEVICE_STATE_FD, state(SAVE, 0), [a.pipe()]); }),
  spoken('the end of a transfer that there was not', /CHECK_DEVICE_STATE: no state was transferred/, DEVICE_STATE, (a) => a.message(R.CHECK_DEVICE_STATE)),
  spoken('a state that is noise', /CHECK_DEVICE_STATE: 300 bytes that are no state of this back-end/, DEVICE_STATE, async (a) => {
    const [near, far] = socketPair();
    a.own(near);
    writeSync(far, new Random(5).bytes(300));
    closeFd(far);
    a.message(R.SET_DEVICE_STATE_FD, state(LOAD, 0), [near]);
    await a.answer();
    a.message(R.CHECK_DEVICE_STATE);
    await a.answer();
  }),
]; // biome-ignore format: a table

/** Postcopy, out of its order; the rest is in test/vhost/postcopy.test.ts. */
const PAGEFAULT = protocol.VHOST_USER_PROTOCOL_F_PAGEFAULT;
export const POSTCOPY: Attack[] = [
  single('a userfaultfd without PAGEFAULT', /POSTCOPY_ADVISE: VHOST_USER_PROTOCOL_F_PAGEFAULT is not acknowledged/, R.POSTCOPY_ADVISE),
  single('postcopy that nobody advised', /POSTCOPY_LISTEN: no POSTCOPY_ADVISE came before it/, R.POSTCOPY_LISTEN),
  single('the end of what never began', /POSTCOPY_END: no POSTCOPY_ADVISE came before it/, R.POSTCOPY_END),
  spoken('postcopy once memory is there', /POSTCOPY_LISTEN: memory is mapped already/, PAGEFAULT, async (a) => { a.message(R.POSTCOPY_ADVISE); await a.answer(); a.message(R.POSTCOPY_LISTEN); }),
]; // biome-ignore format: a table

/** Messages that a network device has no use for, each with a payload of its right size. */
export const REFUSED: Attack[] = [
  single('a crypto session with a key of 4 GiB (CVE-2020-10724, CVE-2020-14374 to 14378)', /CREATE_CRYPTO_SESSION: not offered by this back-end/, R.CREATE_CRYPTO_SESSION, new Uint8Array(616).fill(0xff)),
  single('the end of a crypto session', /CLOSE_CRYPTO_SESSION: not offered by this back-end/, R.CLOSE_CRYPTO_SESSION, u64(0n)),
  single('the socket of a display', /GPU_SET_SOCKET: not offered by this back-end/, R.GPU_SET_SOCKET, NOTHING, 1),
  single('a byte order', /SET_VRING_ENDIAN: not offered by this back-end/, R.SET_VRING_ENDIAN, state(0, 1)),
  single('regions of shared memory', /GET_SHMEM_CONFIG: not offered by this back-end/, R.GET_SHMEM_CONFIG),
  single('a shared object', /GET_SHARED_OBJECT: not offered by this back-end/, R.GET_SHARED_OBJECT, new Uint8Array(16)),
]; // biome-ignore format: a table

/** Memory whose ring 1 is poisoned: it breaks when a worker gets to look at it before the attacker has left. */
function poison(write: (memory: Buffer) => void): Attack {
  const memory = Buffer.alloc(0x3000);
  memory.writeUInt16LE(1, 0x1002);
  write(memory);
  return {
    name: 'a poisoned ring',
    says: /queue 1/,
    act: (a) => {
      const fd = memfd('poison', 1 << 20);
      a.own(fd);
      writeSync(fd, memory, 0, memory.length, 0);
      a.negotiate();
      a.message(R.SET_MEM_TABLE, table({}), [fd]);
      a.message(R.SET_VRING_ENABLE, state(1, 1));
      a.ring(1);
    },
  };
}
export const POISONED: Attack[] = [
  // A chain that is its own end, an address nowhere, a head out of range, a wild jump of avail.idx.
  poison((b) => b.writeUInt16LE(1, 12)),
  poison((b) => b.writeUInt32LE(100, 8)),
  poison((b) => b.writeUInt16LE(64, 0x1004)),
  poison((b) => b.writeUInt16LE(30_000, 0x1002)),
];
