/**
 * Hostile front-ends and guests on one port of a running switch, beside a healthy pair on two others: each attempt
 * ends with a sentence that names what was wrong, costs nothing that isn't given back, and nobody else notices.
 */
import assert from 'node:assert/strict';
import { ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import { createSwitch, type Switch } from '../../src/index.ts';
import {
  closeFd,
  connectUnix,
  memfd,
  openFds,
  type PollerLease,
  send,
  sharedPoller,
  socketPair,
} from '../../src/sys/index.ts';
import * as m from '../../src/vhost/messages.ts';
import { VirtioUser } from '../../src/vhost/virtio-user.ts';
import { features, vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { Random } from '../support/random.ts';
import { GUEST, RawGuest, USER } from '../support/raw-guest.ts';
import { Traffic } from '../support/traffic.ts';
import { until } from '../support/until.ts';

const R = m.requests;
const NOTHING = new Uint8Array(0);
const FEATURES =
  features.VHOST_USER_F_PROTOCOL_FEATURES | features.VIRTIO_F_VERSION_1 | features.VIRTIO_F_INDIRECT_DESC;

const directory = mkdtempSync(join(tmpdir(), 'vireo-bad-'));
const path = (name: string) => join(directory, `${name}.sock`);
let vswitch: Switch;
let healthy: Traffic;
let lease: PollerLease;
let fds: number;
/** A memory file of 1 MiB. */
let ram: number;

before(async () => {
  const ports = ['bad', 'x', 'y'].map((name) => ({ name, type: 'vhost-user' as const, target: path(name) }));
  vswitch = await createSwitch({ workers: 2, ports });
  healthy = await Traffic.start({ path: path('x') }, { path: path('y') });
  lease = sharedPoller();
  ram = memfd('ram', 1 << 20);
  fds = openFds();
});

after(async () => {
  try {
    await healthy.stop();
  } finally {
    await vswitch.close();
    await lease.release();
    for (const fd of [ram, ...poisons]) closeFd(fd);
    rmSync(directory, { recursive: true });
  }
});

/** A guest on the bad port, gone when the test is over. */
function guestOf(t: TestContext): RawGuest {
  const guest = new RawGuest(path('bad'), lease.poller);
  t.after(() => guest.close());
  return guest;
}

const listening = () => until(() => port().state === 'listening', 'the port listens again');

const port = () => vswitch.port('bad');

/** A socket to the bad port that sends whatever it is told to. */
class Attacker {
  readonly fd: number;

  constructor(name = 'bad') {
    this.fd = connectUnix(path(name));
  }

  bytes(bytes: Uint8Array, passed: number[] = []): void {
    assert.equal(send(this.fd, bytes, passed), bytes.length);
  }

  message(request: number, payload: Uint8Array = NOTHING, passed: number[] = [], flags = 0): void {
    this.bytes(m.encodeMessage(request, flags, payload), passed);
  }

  /** A message whose header's words are overwritten. */
  forged(words: { request?: number; flags?: number; size?: number }, payload: Uint8Array = NOTHING): void {
    const bytes = m.encodeMessage(words.request ?? R.GET_FEATURES, 0, payload);
    const view = new DataView(bytes.buffer);
    if (words.flags !== undefined) view.setUint32(4, words.flags, true);
    if (words.size !== undefined) view.setUint32(8, words.size, true);
    this.bytes(bytes);
  }

  /** As far as a front-end gets before it shares memory; with acknowledgements if asked for. */
  negotiate(acknowledge = false): void {
    this.message(R.SET_OWNER);
    if (acknowledge) {
      const replyAck = vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_REPLY_ACK;
      this.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(replyAck));
    }
    this.message(R.SET_FEATURES, m.encodeU64(FEATURES));
  }

  close(): void {
    closeFd(this.fd);
  }
}

const table = (...regions: Partial<m.RegionLayout>[]) =>
  m.encodeMemoryTable(
    regions.map((r) => ({ guestAddress: GUEST, userAddress: USER, size: 1n << 20n, mmapOffset: 0n, ...r })),
  );
const state = (index: number, num: number) => m.encodeVringState({ index, num });
const address = (index: number, desc: bigint, avail: bigint, used: bigint, flags = 0) =>
  m.encodeVringAddress({ index, flags, descUser: desc, availUser: avail, usedUser: used, logGuest: 0n });
const RING = [USER, USER + 0x1000n, USER + 0x2000n] as const;

interface Attack {
  name: string;
  /** What the port says afterwards. */
  says: RegExp;
  act: (a: Attacker) => void;
}

/** Negotiates, shares memory, describes ring 1, all with one thing wrong. */
function ringAttack(name: string, says: RegExp, at: readonly [bigint, bigint, bigint], size = 64): Attack {
  return {
    name,
    says,
    act: (a) => {
      a.negotiate();
      a.message(R.SET_MEM_TABLE, table({}), [ram]);
      a.message(R.SET_VRING_NUM, state(1, size));
      a.message(R.SET_VRING_ADDR, address(1, ...at));
      a.message(R.SET_VRING_KICK, m.encodeVringIndex(1, false));
    },
  };
}

function tableAttack(
  name: string,
  says: RegExp,
  payload: Uint8Array,
  passed: () => number[] = () => [ram],
): Attack {
  return {
    name,
    says,
    act: (a) => {
      a.negotiate();
      a.message(R.SET_MEM_TABLE, payload, passed());
    },
  };
}

const forged = (
  name: string,
  says: RegExp,
  words: Parameters<Attacker['forged']>[0],
  payload?: Uint8Array,
): Attack => ({
  name,
  says,
  act: (a) => a.forged(words, payload),
});
const single = (name: string, says: RegExp, request: number, payload?: Uint8Array, count = 0): Attack => ({
  name,
  says,
  act: (a) => a.message(request, payload, Array(count).fill(ram)),
});

const HALF = m.encodeMessage(R.SET_FEATURES, 0, m.encodeU64(0n));
const MESSAGES: Attack[] = [
  forged('version 0', /GET_FEATURES: protocol version 0, 1 expected/, { flags: 0 }),
  forged('version 2', /protocol version 2, 1 expected/, { flags: 2 }),
  forged('a reply', /a reply where a request is expected/, { flags: 5 }),
  forged('unknown flags', /unknown flags 0x10/, { flags: 0x11 }),
  forged('a payload of 4 GiB', /SET_FEATURES: payload of 4294967295 bytes, 8 expected/, { request: R.SET_FEATURES, size: 0xffff_ffff }),
  forged('a payload where there is none', /GET_FEATURES: payload of 8 bytes, 0 expected/, {}, m.encodeU64(0n)),
  forged('a short payload', /SET_VRING_ADDR: payload of 8 bytes, 40 expected/, { request: R.SET_VRING_ADDR }, m.encodeU64(0n)),
  forged('a request that is none', /message 0: no such request is known here/, { request: 0 }),
  forged('request 0xffffffff', /message 4294967295: no such request is known here/, { request: 0xffff_ffff }),
  forged('a request of 4097 bytes that is none', /payload of 4097 bytes, at most 4096 expected/, { request: 77, size: 4097 }),
  { name: 'a header cut off', says: /message header: the connection closed in the middle of it/, act: (a) => a.bytes(HALF.subarray(0, 5)) },
  { name: 'a payload cut off', says: /SET_FEATURES: the connection closed in the middle of it/, act: (a) => a.bytes(HALF.subarray(0, 15)) },
  { name: 'noise', says: /protocol version|unknown flags|a reply/, act: (a) => a.bytes(new Random(3).bytes(300)) },
  single('a descriptor with GET_FEATURES', /GET_FEATURES: 1 descriptor, 0 expected/, R.GET_FEATURES, NOTHING, 1),
  single('eight descriptors with SET_OWNER', /SET_OWNER: 8 descriptors, 0 expected/, R.SET_OWNER, NOTHING, 8),
  single('nine descriptors', /message header: more than 8 descriptors/, R.SET_OWNER, NOTHING, 9),
  single('250 descriptors', /message header: more than 8 descriptors/, R.SET_OWNER, NOTHING, 250),
  single('a memory table without a descriptor', /SET_MEM_TABLE: 0 descriptors, 1 expected/, R.SET_MEM_TABLE, table({})),
  single('a memory table with one too many', /SET_MEM_TABLE: 2 descriptors, 1 expected/, R.SET_MEM_TABLE, table({}), 2),
  single('a kick without its descriptor', /SET_VRING_KICK: 0 descriptors, 1 expected/, R.SET_VRING_KICK, m.encodeVringIndex(0, true)),
  single('a kick with two', /SET_VRING_KICK: 2 descriptors, 1 expected/, R.SET_VRING_KICK, m.encodeVringIndex(0, true), 2),
  single('a descriptor that it says does not come', /SET_VRING_CALL: 1 descriptor, 0 expected/, R.SET_VRING_CALL, m.encodeVringIndex(0, false), 1),
  single('a call that is no eventfd', /SET_VRING_CALL: queue 0: the descriptor is not an eventfd/, R.SET_VRING_CALL, m.encodeVringIndex(0, true), 1),
  single('features that were not offered', /SET_FEATURES: VIRTIO_NET_F_RSS not offered/, R.SET_FEATURES, m.encodeU64(features.VIRTIO_NET_F_RSS)),
  single('queue 2 of 2', /SET_VRING_NUM: queue 2 does not exist, this device has 2/, R.SET_VRING_NUM, state(2, 64)),
  single('queue 0x10000', /queue 65536 does not exist/, R.SET_VRING_BASE, state(0x10000, 0)),
  single('queue 0xffffffff', /queue 4294967295 does not exist/, R.SET_VRING_ENABLE, state(0xffff_ffff, 1)),
  single('a ring of 0', /queue 0: size 0, a power of 2/, R.SET_VRING_NUM, state(0, 0)),
  single('a ring of 3', /queue 0: size 3, a power of 2/, R.SET_VRING_NUM, state(0, 3)),
  single('a ring of 65536', /queue 0: size 65536, a power of 2/, R.SET_VRING_NUM, state(0, 65536)),
  single('a base of 65536', /queue 0: base 65536, at most 65535/, R.SET_VRING_BASE, state(0, 65536)),
  single('a kick before everything', /queue 0 can't start before SET_FEATURES/, R.SET_VRING_KICK, m.encodeVringIndex(0, false)),
]; // biome-ignore format: a table

const GIB = 1n << 30n;
const BIG = { size: 64n * GIB };
const MEMORY: Attack[] = [
  single('a table of no regions', /SET_MEM_TABLE: (payload of 8 bytes|0 regions)/, R.SET_MEM_TABLE, new Uint8Array(8)),
  tableAttack('a file shorter than the region', /region 0: region file shorter than declared, 0x100000 bytes where offset \+ size is 0x100001/, table({ size: (1n << 20n) + 1n })),
  tableAttack('an offset that runs out of the file', /region file shorter than declared/, table({ mmapOffset: 0x1000n })),
  tableAttack('an empty region', /region 0 is empty/, table({ size: 0n })),
  tableAttack('a region that wraps', /region 0: guest address .* wraps/, table({ guestAddress: 0xffff_ffff_ffff_f000n })),
  tableAttack('an offset that wraps', /region 0: file offset .* wraps/, table({ mmapOffset: 0xffff_ffff_ffff_f000n })),
  tableAttack('regions that overlap', /regions 0 and 1 overlap in guest addresses/, table({}, { userAddress: USER + (1n << 20n) }), () => [ram, ram]),
  tableAttack('a socket for memory', /region 0: a socket can't be mapped/, table({}), () => passOnce(...socketPair())),
  tableAttack('a device for memory', /region 0: a device can't be mapped/, table({}), () => passOnce(openSync('/dev/null', 'r'))),
  tableAttack('a directory for memory', /region 0: a directory can't be mapped/, table({}), () => passOnce(openSync('/', 'r'))),
  tableAttack('a file open for reading alone', /region at guest address 0x40000000: mmap.*EACCES/, table({}), () => passOnce(openSync(`/proc/self/fd/${ram}`, 'r'))),
  tableAttack('a region that no switch has room for', /region at guest address 0x40000000: 68719476736 bytes don't fit/, table(BIG), () => passOnce(sparse(BIG.size))),
  tableAttack('regions that have room one by one, and not together', /don't fit/, table({ size: 2n * GIB }, { size: 2n * GIB, guestAddress: GUEST + 2n * GIB, userAddress: USER + 2n * GIB }), () => { const fd = sparse(2n * GIB); return [...passOnce(fd), fd]; }),
]; // biome-ignore format: a table

const RINGS: Attack[] = [
  ringAttack('a descriptor table that is not aligned', /queue 1: descriptor table at user address 0x7f0000000008, 1024 bytes: not aligned to 16 bytes/, [USER + 8n, RING[1], RING[2]]),
  ringAttack('an available ring that is not aligned', /available ring .* not aligned to 2 bytes/, [RING[0], RING[1] + 1n, RING[2]]),
  ringAttack('a used ring that is not aligned', /used ring .* not aligned to 4 bytes/, [RING[0], RING[1], RING[2] + 2n]),
  ringAttack('a ring at 0', /descriptor table at user address 0x0, .* not inside one region/, [0n, RING[1], RING[2]]),
  ringAttack('a ring at a guest address', /not inside one region/, [GUEST, RING[1], RING[2]]),
  ringAttack('a ring that runs out of its region', /used ring at user address 0x7f00000fff00, 518 bytes: not inside one region/, [RING[0], RING[1], USER + 0xfff00n]),
  ringAttack('a ring that wraps', /not inside one region/, [0xffff_ffff_ffff_fff0n, RING[1], RING[2]]),
  ringAttack('a ring larger than memory', /descriptor table .* 524288 bytes: not inside one region/, [USER + 0x8_0010n, RING[1], RING[2]], 32768),
  {
    name: 'rings without memory',
    says: /queue 0 can't start before SET_MEM_TABLE/,
    act: (a) => { a.negotiate(); a.message(R.SET_VRING_KICK, m.encodeVringIndex(0, false)); },
  },
  {
    name: 'a running ring that changes',
    says: /queue 0: the size can't change while it is running/,
    act: (a) => {
      a.negotiate();
      a.message(R.SET_MEM_TABLE, table({}), [ram]);
      a.message(R.SET_VRING_NUM, state(0, 64));
      a.message(R.SET_VRING_ADDR, address(0, ...RING));
      a.message(R.SET_VRING_KICK, m.encodeVringIndex(0, false));
      a.message(R.SET_VRING_NUM, state(0, 128));
    },
  },
  {
    name: 'a memory table that leaves a running ring out',
    says: /SET_MEM_TABLE: descriptor table .* not inside one region/,
    act: (a) => {
      a.negotiate();
      a.message(R.SET_MEM_TABLE, table({}), [ram]);
      a.message(R.SET_VRING_NUM, state(1, 64));
      a.message(R.SET_VRING_ADDR, address(1, ...RING));
      a.message(R.SET_VRING_KICK, m.encodeVringIndex(1, false));
      a.message(R.SET_MEM_TABLE, table({ userAddress: USER + 0x10_0000n }), [ram]);
    },
  },
]; // biome-ignore format: a table

/** Memory whose ring 1 is poisoned: it breaks when a worker gets to look at it before the attacker has left. */
function poison(write: (memory: Buffer) => void): number {
  const memory = Buffer.alloc(0x3000);
  memory.writeUInt16LE(1, 0x1002);
  write(memory);
  const fd = memfd('poison', 1 << 20);
  writeSync(fd, memory, 0, memory.length, 0);
  return fd;
}
const poisons = [
  // A chain that is its own end, an address nowhere, a head out of range, a wild jump of avail.idx.
  poison((b) => b.writeUInt16LE(1, 12)),
  poison((b) => b.writeUInt32LE(100, 8)),
  poison((b) => b.writeUInt16LE(64, 0x1004)),
  poison((b) => b.writeUInt16LE(30_000, 0x1002)),
];
const POISONED: Attack[] = poisons.map((fd) => ({
  name: 'a poisoned ring',
  says: /queue 1/,
  act: (a) => {
    a.negotiate();
    a.message(R.SET_MEM_TABLE, table({}), [fd]);
    a.message(R.SET_VRING_NUM, state(1, 64));
    a.message(R.SET_VRING_ADDR, address(1, ...RING));
    a.message(R.SET_VRING_ENABLE, state(1, 1));
    a.message(R.SET_VRING_KICK, m.encodeVringIndex(1, false));
  },
}));

/** Descriptors to be closed here after the next attack. */
const passed: number[] = [];
function passOnce(...opened: number[]): number[] {
  passed.push(...opened);
  return [opened[0]!];
}
function sparse(size: bigint): number {
  const fd = memfd('sparse', 0);
  ftruncateSync(fd, Number(size));
  return fd;
}

/** Runs an attack; resolves when the port has ended the connection and listens again. */
async function attack({ act }: Attack): Promise<void> {
  const connections = port().connections;
  const a = new Attacker();
  try {
    act(a);
  } finally {
    a.close();
    for (const fd of passed.splice(0)) closeFd(fd);
  }
  await until(
    () => port().connections > connections && port().state === 'listening',
    'the port listens again',
  );
}

describe('messages', () => {
  for (const each of [...MESSAGES, ...MEMORY, ...RINGS]) {
    test(each.name, async () => {
      const errors: string[] = [];
      const listen = ({ port: name, error }: { port: string; error: string }) =>
        errors.push(`${name} ${error}`);
      vswitch.on('portError', listen);
      await attack(each);
      vswitch.off('portError', listen);
      assert.match(port().lastError!, each.says);
      assert.ok(
        errors.some((error) => each.says.test(error)),
        'the event says so too',
      );
      assert.ok(errors.every((error) => error.startsWith('bad ')));
      assert.deepEqual(port().memory, []);
      await healthy.flows(20);
      assert.equal(openFds(), fds);
    });
  }

  test('refused with an acknowledgement: the session goes on', async (t) => {
    const guest = guestOf(t);
    await guest.start();
    await assert.rejects(
      guest.session.setVring(0, { ...guest.layout(0), size: 3 }),
      /SET_VRING_NUM.*refused/,
    );
    assert.match(port().lastError!, /queue 0: size 3/);
    await assert.rejects(guest.session.enable(9, true), /refused/);
    assert.equal(port().state, 'up');
    guest.send(frame(BROADCAST, mac(4)));
    await until(() => guest.usedIdx(1) === 1, 'its rings go on');
    await guest.close();
    await listening();
  });
});

interface RingCase {
  name: string;
  queue: 0 | 1;
  says: RegExp;
  act: (g: RawGuest) => void;
}

const UNMAPPED = 0x9999_0000n;
const transmit = (
  name: string,
  says: RegExp,
  ...descriptors: Parameters<RawGuest['describe']>[2][]
): RingCase => ({
  name,
  queue: 1,
  says,
  act: (g) => {
    for (const [i, d] of descriptors.entries()) g.describe(1, i, d);
    g.offer(1, 0);
  },
});
const CASES: RingCase[] = [
  transmit('an address outside of the memory table', /guest address 0x99990000 is in no region/, { address: UNMAPPED, length: 100 }),
  transmit('a buffer that runs out of memory', /guest address 0x40100000 is in no region/, { address: GUEST + 0xf_fff0n, length: 100 }),
  transmit('a chain that loops', /chain is longer than its table of 64 entries \(a loop\?\)/, { address: GUEST + 0x8000n, length: 4, flags: 1, next: 1 }, { address: GUEST + 0x8000n, length: 4, flags: 1, next: 0 }),
  transmit('a chain that loops without a byte', /\(a loop\?\)/, { address: 0n, length: 0, flags: 1, next: 0 }),
  transmit('a next that is not in the table', /next index 64 is not below/, { address: GUEST + 0x8000n, length: 4, flags: 1, next: 64 }),
  transmit('a writable buffer', /descriptor 0 in a chain to transmit is device-writable/, { address: GUEST + 0x8000n, length: 100, flags: 2 }),
  transmit('an indirect table longer than the ring', /an indirect table of 1040 bytes/, { address: GUEST + 0x8000n, length: 1040, flags: 4 }),
  { name: 'an over-long indirect chain', queue: 1, says: /\(a loop\?\)/, act: (g) => {
    for (let i = 0; i < 64; i++) g.describeAt(GUEST + 0x8000n + BigInt(16 * i), { address: GUEST, length: 1, flags: 1, next: (i + 1) % 64 });
    g.describe(1, 0, { address: GUEST + 0x8000n, length: 1024, flags: 4 });
    g.offer(1, 0);
  } },
  { name: 'a head out of range', queue: 1, says: /head index 64 is not below the size/, act: (g) => g.offer(1, 64) },
  { name: 'a head of 65535', queue: 1, says: /head index 65535/, act: (g) => g.offer(1, 65535) },
  { name: 'a wild jump of avail.idx', queue: 1, says: /avail.idx jumped by 65, more than the ring holds/, act: (g) => g.setAvailIdx(1, 65) },
  { name: 'an avail.idx that goes back', queue: 1, says: /avail.idx jumped by 65535/, act: (g) => g.setAvailIdx(1, 65535) },
  { name: 'a head out of range to receive into', queue: 0, says: /head index 100/, act: (g) => g.offer(0, 100) },
  { name: 'a readable buffer to receive into', queue: 0, says: /descriptor 3 in a chain to receive into is not device-writable/, act: (g) => { g.describe(0, 3, { address: GUEST + 0x8000n, length: 2000 }); g.offer(0, 3); } },
  { name: 'a buffer to receive into outside of memory', queue: 0, says: /0x99990000 is in no region/, act: (g) => { g.describe(0, 3, { address: UNMAPPED, length: 2000, flags: 2 }); g.offer(0, 3); } },
  { name: 'an empty buffer to receive into', queue: 0, says: /0 bytes has no room for the header/, act: (g) => { g.describe(0, 3, { address: GUEST + 0x8000n, length: 0, flags: 2 }); g.offer(0, 3); } },
  { name: 'a wild jump of avail.idx to receive into', queue: 0, says: /avail.idx jumped by 20000/, act: (g) => g.setAvailIdx(0, 20000) },
]; // biome-ignore format: a table

describe('rings', () => {
  for (const { name, queue, says, act } of CASES) {
    test(name, async (t) => {
      const broken: string[] = [];
      const listen = (event: { port: string; queue: number; reason: string }) =>
        broken.push(`${event.port} ${event.queue} ${event.reason}`);
      vswitch.on('queueBroken', listen);
      const guest = guestOf(t);
      await guest.start();
      act(guest);
      // A ring to receive on is looked at when somebody has a frame for it.
      if (queue === 0) healthy.a.send(frame(BROADCAST, mac(3)));
      await until(() => broken.length > 0, 'the queue is reported as broken');
      vswitch.off('queueBroken', listen);
      assert.equal(broken.length, 1);
      assert.match(broken[0]!, says);
      assert.ok(broken[0]!.startsWith(`bad ${queue} `));
      const detail = port();
      assert.equal(detail.state, 'broken');
      assert.match(detail.lastError!, says);
      assert.equal(detail.queues[queue]!.state, 'broken');
      assert.match(detail.queues[queue]!.error!, says);
      assert.equal(detail.queues[1 - queue]!.state, 'running');
      assert.ok(guest.errSignalled(queue), 'its err eventfd is signalled');
      assert.ok(!guest.errSignalled(1 - queue));
      await healthy.flows(20);
      // The other queue goes on, and a new start repairs this one.
      if (queue === 0) {
        guest.send(frame(BROADCAST, mac(4)));
        await until(() => guest.usedIdx(1) === 1, 'the other queue goes on');
      }
      await guest.session.stopVring(queue);
      guest.offered[queue] = guest.usedIdx(queue);
      guest.setAvailIdx(queue, guest.usedIdx(queue));
      await guest.startRing(queue, guest.usedIdx(queue));
      assert.equal(port().state, 'up');
      guest.send(frame(BROADCAST, mac(4)));
      const target = guest.offered[1]!;
      await until(() => guest.usedIdx(1) === target, 'it works again');
      await guest.close();
      await listening();
      assert.equal(openFds(), fds);
    });
  }

  test('a guest that breaks its ring and leaves at once is still named', async (t) => {
    for (let i = 0; i < 50; i++) {
      const guest = guestOf(t);
      await guest.start();
      guest.describe(1, 0, { address: GUEST, length: 10 });
      guest.describe(1, 1, { address: BigInt(0x1000 + i), length: 100 });
      // Gone already for half of them, as this thread will find out when it gets to look.
      if (i % 2 === 0) void guest.session.close();
      guest.offer(1, 0, 1);
      // Seen by the worker, before this thread can have heard of it.
      const end = Date.now() + 20_000;
      while (guest.usedIdx(1) === 0 && Date.now() < end);
      await guest.close();
      await listening();
      assert.match(port().lastError!, new RegExp(`0x${(0x1000 + i).toString(16)} is in no region`));
    }
  });
});

test('a guest that scribbles over its rings while a worker reads them hurts itself alone', async (t) => {
  const random = new Random(11);
  const guest = guestOf(t);
  await guest.start();
  let broken = 0;
  const count = () => void broken++;
  vswitch.on('queueBroken', count);
  t.after(() => vswitch.off('queueBroken', count));
  const header = Buffer.concat([Buffer.alloc(12), frame(BROADCAST, mac(6), 20)]);
  for (let turn = 0; turn < 60; turn++) {
    // The rings' pages, in small pieces of good and bad words, while frames come for it as well.
    for (let i = 0; i < 200; i++) {
      const index = random.below(2);
      const at = random.below(guest.size);
      const address = random.below(10) === 0 ? BigInt(random.u32()) : guest.buffer(random.below(300));
      const length = random.pick([0, 12, 32, 60, 2048, random.u32()]);
      const flags = random.pick([0, 0, 1, 2, 2, 3, 4, random.u32() & 0xffff]);
      if (address >= GUEST && address < guest.buffer(300)) guest.write(address, header);
      guest.describe(index, at, { address, length, flags, next: random.below(guest.size + 1) });
      guest.offer(index, random.below(guest.size));
      if (i % 20 === 0) healthy.a.send(frame(BROADCAST, mac(3)));
    }
    await healthy.flows(5);
    for (const index of [0, 1]) {
      if (port().queues[index]!.state !== 'broken') continue;
      await guest.session.stopVring(index);
      guest.offered[index] = guest.usedIdx(index);
      guest.setAvailIdx(index, guest.usedIdx(index));
      await guest.startRing(index, guest.usedIdx(index));
    }
  }
  assert.ok(broken > 20, `${broken} times a ring broke`);
  await guest.close();
  await listening();
  await healthy.flows();
});

test('10,000 attempts leave no descriptor and no memory behind', async (t: TestContext) => {
  const random = new Random(42);
  // Rings that break in the data plane are a third of all.
  const attacks = [...MESSAGES, ...MEMORY, ...RINGS, ...Array(7).fill(POISONED).flat()] as Attack[];
  let named = 0;
  let nameless = 0;
  let broken = 0;
  const count = () => void named++;
  const countBroken = () => void broken++;
  vswitch.on('portError', count);
  vswitch.on('queueBroken', countBroken);
  t.after(() => {
    vswitch.off('portError', count);
    vswitch.off('queueBroken', countBroken);
  });
  const names = ['bad', 'bad2', 'bad3', 'bad4'];
  for (const name of names.slice(1)) await vswitch.addPort({ name, type: 'vhost-user', target: path(name) });
  const open = openFds();
  const served = () => names.reduce((sum, name) => sum + vswitch.port(name).connections, 0);
  const start = served();
  const flowed = healthy.count;
  // The backlog of the sockets keeps the ports busy; each attack leaves without waiting for what comes of it.
  for (let i = 0; i < 10_000; i++) {
    const a = new Attacker(names[i % names.length]);
    try {
      const chosen = random.pick(attacks);
      chosen.act(a);
      if (POISONED.includes(chosen)) nameless++;
    } finally {
      a.close();
      for (const fd of passed.splice(0)) closeFd(fd);
    }
    if (i % 64 === 63) await until(() => served() >= start + i - 16, 'the ports keep up');
  }
  const idle = () => names.every((name) => vswitch.port(name).state === 'listening');
  await until(() => served() === start + 10_000 && idle(), 'all are served');
  await healthy.flows();
  assert.ok(healthy.count > flowed);
  assert.equal(openFds(), open, 'no descriptor is left');
  for (const name of names.slice(1)) await vswitch.removePort(name);
  assert.ok(named >= 10_000 - nameless, `each has its error: ${named}`);
  assert.ok(broken > 0, 'and some poisoned rings were seen by a worker');
  assert.deepEqual(port().memory, []);
  // A guest of 3 GiB fits beside the healthy pair only if no piece of the arena is lost.
  const size = 3n * GIB;
  const fd = sparse(size);
  const large = new RawGuest(path('bad'), lease.poller);
  await large.negotiate();
  await large.session.setMemoryTable([{ ...large.region, size, fd }]);
  assert.equal(port().memory[0]!.size, Number(size));
  closeFd(fd);
  await large.close();
  await listening();
  assert.equal(openFds(), fds);
  const guest = await VirtioUser.open({ path: path('bad') });
  guest.send(frame(BROADCAST, mac(77)));
  await until(() => vswitch.fdb().some((entry) => entry.port === 'bad'), 'the port works as ever');
  await guest.close();
});
