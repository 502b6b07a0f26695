/**
 * A front-end with an IOMMU (VIRTIO_F_ACCESS_PLATFORM): IOTLB_MSG in, misses out over the back-end channel, and
 * front-ends that answer late, wrongly, too much or not at all, beside a healthy pair.
 */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createSwitch, type Switch } from '../../src/index.ts';
import { closeFd, openFds, type Poller, sharedPoller, socketPair } from '../../src/sys/index.ts';
import { FRONTEND_PROTOCOL_FEATURES } from '../../src/vhost/frontend.ts';
import * as m from '../../src/vhost/messages.ts';
import { features, vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { frame, mac } from '../support/ethernet.ts';
import type { Descriptor } from '../support/plane.ts';
import { GUEST, RawGuest, USER } from '../support/raw-guest.ts';
import { sockets } from '../support/sockets.ts';
import { Traffic } from '../support/traffic.ts';
import { until } from '../support/until.ts';
import { RawEnd } from './harness.ts';

const PAGE = 4096n;
const IOVA = 0xff_0000_0000n;
const RINGS = 0x8000n;
const SIZE = 64;
const { MISS, UPDATE, INVALIDATE, ACCESS_FAIL } = m.iotlb;

/** Rings keep their order; of the pages behind them, each has changed places with its neighbour. */
function toIova(address: bigint): bigint {
  const offset = address - GUEST;
  return IOVA + (offset < RINGS ? offset : offset ^ PAGE);
}

class IommuGuest extends RawGuest {
  readonly #ends = socketPair();
  readonly back = new RawEnd(this.#ends[1]);
  /** Pages asked for, and addresses complained of. */
  readonly misses: bigint[] = [];
  readonly refused: bigint[] = [];
  /** What to answer a miss with; 0: nothing. */
  access = 3;
  /** Answers from other pages than usual. */
  readonly moved = new Map<bigint, bigint>();
  #answering: Promise<void> = Promise.resolve();

  constructor(path: string, poller: Poller) {
    super(path, poller, { size: SIZE, features: features.VIRTIO_F_VERSION_1 | features.VIRTIO_NET_F_MRG_RXBUF | features.VIRTIO_F_INDIRECT_DESC | features.VIRTIO_F_ACCESS_PLATFORM }); // biome-ignore format: a list
  }

  override async negotiate(): Promise<void> {
    const { VHOST_USER_PROTOCOL_F_BACKEND_REQ } = vhostProtocolFeatures;
    await this.session.negotiate(this.wanted, FRONTEND_PROTOCOL_FEATURES | VHOST_USER_PROTOCOL_F_BACKEND_REQ);
  }

  /** Gives the switch the channel, and answers what comes on it. */
  async connectBack(): Promise<void> {
    await this.session.setBackendChannel(this.#ends[0]);
    this.#answering = this.#answer();
  }

  async #answer(): Promise<void> {
    for (;;) {
      const message = await this.back.next().catch(() => undefined);
      if (!message) return;
      const { type, iova, access } = m.decodeIotlb(message.payload);
      if (type === ACCESS_FAIL) this.refused.push(iova);
      if (type !== MISS) continue;
      this.misses.push(iova);
      assert.ok(access >= 1 && access <= 3);
      if (this.access > 0) await this.map(iova, PAGE, this.access).catch(() => {});
    }
  }

  /** Translates as toIova() has it, page by page. */
  async map(iova: bigint, size: bigint, access = 3): Promise<void> {
    for (let at = iova; at < iova + size; at += PAGE) {
      const offset = at - IOVA;
      const place = this.moved.get(at) ?? (offset < RINGS ? offset : offset ^ PAGE);
      await this.session.setIotlb({ type: UPDATE, iova: at, size: PAGE, userAddress: USER + place, access });
    }
  }

  async unmap(iova: bigint, size: bigint): Promise<void> {
    await this.session.setIotlb({ type: INVALIDATE, iova, size, userAddress: 0n, access: 0 });
  }

  override layout(index: number, base = 0) {
    const layout = super.layout(index, base);
    const at = (user: bigint) => user - USER + IOVA;
    return { ...layout, descUser: at(layout.descUser), availUser: at(layout.availUser), usedUser: at(layout.usedUser) }; // biome-ignore format: a record
  }

  override describe(index: number, at: number, d: Descriptor): void {
    super.describe(index, at, { ...d, address: toIova(d.address) });
  }

  override async close(): Promise<void> {
    await super.close();
    this.back.close();
    await this.#answering;
    closeFd(this.#ends[0]);
  }
}

async function world(t: TestContext) {
  const path = sockets(t);
  const lease = sharedPoller();
  const names = ['bad', 'plain', 'h1', 'h2'];
  const ports = names.map((name) => ({ name, type: 'vhost-user' as const, target: path(name) }));
  const vswitch: Switch = await createSwitch({ ports });
  const healthy = await Traffic.start({ path: path('h1') }, { path: path('h2') });
  const errors: string[] = [];
  vswitch.on('portError', ({ port, error }) => {
    errors.push(`${port}: ${error}`);
  });
  const guest = new IommuGuest(path('bad'), lease.poller);
  const plain = new RawGuest(path('plain'), lease.poller);
  await plain.start();
  plain.lend();
  t.after(async () => {
    await healthy.flows();
    await guest.close();
    await plain.close();
    await healthy.stop();
    await vswitch.close();
    await lease.release();
  });
  await guest.negotiate();
  await guest.session.setMemoryTable([guest.region]);
  return { vswitch, guest, plain, errors };
}

const startRings = async (guest: IommuGuest) => {
  for (const index of [0, 1]) await guest.startRing(index);
  guest.lend();
};

/** Sends if the ring has room: the switch may be busy elsewhere. */
const sent = new Set<string>();
function offer(from: RawGuest, bytes: Buffer): void {
  sent.add(bytes.toString('latin1'));
  if (((from.offered[1]! - from.usedIdx(1)) & 0xffff) < SIZE / 2) from.send(bytes);
}

/**
 * Sends frames of many lengths, each until it comes: while translations are asked for frames are dropped, or wait.
 * What comes must be one that was sent.
 */
async function exchange(from: RawGuest, to: RawGuest, ids: [number, number], count: number): Promise<void> {
  const at = (n: number) => frame(mac(ids[1]), mac(ids[0]), 60 + ((n * 37) % 1440), n);
  to.received();
  for (let n = 0; n < count; n++) {
    await until(() => {
      const came = to.received().filter((bytes) => bytes.subarray(0, 12).equals(at(n).subarray(0, 12)));
      for (const bytes of came) assert.ok(sent.has(bytes.toString('latin1')), 'it is as it was sent');
      if (came.some((bytes) => bytes.equals(at(n)))) return true;
      offer(from, at(n));
      return false;
    }, `frame ${n} comes`);
  }
}

test('rings and buffers at I/O addresses: what is missing is asked for, and then frames flow', async (t) => {
  const { guest, plain, vswitch } = await world(t);
  await guest.connectBack();
  await startRings(guest);
  await exchange(guest, plain, [1, 2], 4);
  await exchange(plain, guest, [2, 1], 4);
  await exchange(guest, plain, [1, 2], 400);
  await exchange(plain, guest, [2, 1], 400);
  assert.ok(guest.misses.includes(IOVA), 'the rings were asked for');
  assert.ok(
    guest.misses.some((iova) => iova >= IOVA + RINGS),
    'and buffers',
  );
  // A page is asked for once for each thing that is done there.
  assert.ok(guest.misses.length <= 2 * new Set(guest.misses).size, `${guest.misses.length} misses`);
  assert.equal(vswitch.port('bad').state, 'up');
});

test('a page that was taken away and given elsewhere is not used any more', async (t) => {
  const { guest, plain } = await world(t);
  await guest.connectBack();
  await startRings(guest);
  await exchange(guest, plain, [1, 2], 4);
  await exchange(plain, guest, [2, 1], 4);
  // All that lies behind the rings moves 128 pages up.
  const end = IOVA + 128n * PAGE;
  for (let at = IOVA + RINGS; at < end; at += PAGE) guest.moved.set(at, ((at - IOVA) ^ PAGE) + 128n * PAGE);
  await guest.unmap(IOVA + RINGS, end - IOVA - RINGS);
  const before = guest.read(GUEST + RINGS, Number(120n * PAGE));
  const to = 128 * 4096;
  await until(() => {
    offer(plain, frame(mac(1), mac(2), 200, 7));
    return guest.read(GUEST + RINGS + BigInt(to), 64 * 4096).includes(frame(mac(1), mac(2), 200, 7));
  }, 'frames come where the pages are now');
  assert.ok(guest.read(GUEST + RINGS, Number(120n * PAGE)).equals(before), 'and not where they were');
});

test('everything is taken away again and again while frames flow', async (t) => {
  const { guest, plain } = await world(t);
  await guest.connectBack();
  await startRings(guest);
  for (let turn = 0; turn < 30; turn++) {
    await exchange(guest, plain, [1, 2], 4);
    await exchange(plain, guest, [2, 1], 16);
    await guest.unmap(0n, turn % 2 === 0 ? 0n : 0xffff_ffff_ffff_ffffn);
  }
  await exchange(guest, plain, [1, 2], 4);
});

test('memory that may only be read is not written to: the queue breaks and says why', async (t) => {
  const { guest, plain, vswitch, errors } = await world(t);
  await guest.connectBack();
  await guest.map(IOVA, RINGS);
  guest.access = m.ACCESS_READ;
  await startRings(guest);
  await exchange(guest, plain, [1, 2], 4);
  const before = guest.read(GUEST + RINGS, 64 * 2048);
  await until(() => {
    offer(plain, frame(mac(1), mac(2), 200, 7));
    return vswitch.port('bad').queues[0]!.error !== null;
  }, 'the queue is broken');
  assert.match(vswitch.port('bad').queues[0]!.error!, /I\/O address 0xff0000\w+ is not mapped for what the queue does there/); // biome-ignore format: a line
  assert.ok(guest.errSignalled(0));
  assert.ok(guest.read(GUEST + RINGS, 64 * 2048).equals(before), 'nothing was written');
  await until(() => guest.refused.length > 0, 'the front-end is told');
  await exchange(guest, plain, [1, 2], 16);
  assert.deepEqual(errors, []);
});

test('a front-end that never answers has rings that wait, and nothing else', async (t) => {
  const { guest, plain, vswitch } = await world(t);
  guest.access = 0;
  await guest.connectBack();
  await startRings(guest);
  await until(() => guest.misses.length > 0, 'the rings are asked for');
  for (let i = 0; i < 32; i++) plain.send(frame(mac(1), mac(2)));
  await sleep(50);
  assert.ok(guest.misses.length <= 6, `each page of the rings once: ${guest.misses.length}`);
  assert.equal(await guest.session.stopVring(1), 0);
  // What it says without being asked is as good.
  await guest.map(IOVA, BigInt(guest.bytes));
  await until(() => vswitch.port('bad').queues[0]!.state === 'running', 'the ring runs');
  await exchange(plain, guest, [2, 1], 4);
});

/** Sends so many frames, each when the ring has room for it; resolves when the switch has them all. */
async function sendNumbered(plain: RawGuest, count: number, at: (n: number) => Buffer): Promise<void> {
  for (let n = 0; n < count; n++) {
    await until(() => ((plain.offered[1]! - plain.usedIdx(1)) & 0xffff) < SIZE / 2, 'room to send');
    plain.send(at(n));
  }
  await until(() => plain.usedIdx(1) === (plain.offered[1]! & 0xffff), 'the switch has them all');
}

/** A guest whose place is known, and which answers no more: all was taken back. */
async function silence(guest: IommuGuest, plain: RawGuest): Promise<void> {
  await guest.connectBack();
  await startRings(guest);
  await exchange(guest, plain, [1, 2], 2);
  guest.access = 0;
  await guest.unmap(0n, 0n);
}

const toGuest = (vswitch: Switch) => vswitch.port('bad').queues[0]!;

test('frames wait for a translation, in order, and none is dropped while there is room', async (t) => {
  const { guest, plain, vswitch } = await world(t);
  await silence(guest, plain);
  const at = (n: number) => frame(mac(1), mac(2), 60 + ((n * 97) % 1400), n);
  await sendNumbered(plain, 50, at);
  // First the rings and a part of the buffers, so that some go and some wait on.
  await guest.map(IOVA, RINGS + 4n * PAGE);
  await until(() => toGuest(vswitch).packets > 0, 'some go');
  assert.ok(toGuest(vswitch).packets < 50);
  await sendNumbered(plain, 10, (n) => at(50 + n));
  await guest.map(IOVA + RINGS, BigInt(guest.bytes) - RINGS);
  const came: Buffer[] = [];
  const ours = (bytes: Buffer) => bytes.subarray(0, 12).equals(at(0).subarray(0, 12));
  await until(() => came.push(...guest.received().filter(ours)) >= 60, 'all of them come');
  for (const [n, bytes] of came.entries()) assert.ok(bytes.equals(at(n)), `frame ${n} in its turn`);
  assert.equal(toGuest(vswitch).drops.ringFull, undefined);
});

test('a guest that never answers has its frames kept up to a bound, and loses them when it stops', async (t) => {
  const { guest, plain, vswitch } = await world(t);
  await silence(guest, plain);
  const { noGuest: before = 0 } = toGuest(vswitch).drops;
  const count = 2000;
  await sendNumbered(plain, count, (n) => frame(mac(1), mac(2), 1400, n));
  const { ringFull = 0 } = toGuest(vswitch).drops;
  assert.ok(ringFull > count / 2 && ringFull < count, `${ringFull} of ${count} dropped`);
  await guest.session.stopVring(0);
  const { noGuest = 0 } = toGuest(vswitch).drops;
  assert.ok(ringFull + noGuest - before >= count, 'each frame is counted');
});

test('without a channel nothing is asked, and translations that come do', async (t) => {
  const { guest, plain } = await world(t);
  await startRings(guest);
  await guest.map(IOVA, BigInt(guest.bytes));
  await exchange(guest, plain, [1, 2], 4);
  await exchange(plain, guest, [2, 1], 4);
});

test('4,000 translations that nobody asked for cost no more than 2,048', async (t) => {
  const { guest, plain } = await world(t);
  await guest.connectBack();
  await startRings(guest);
  for (let i = 0n; i < 4000n; i++)
    await guest.session.setIotlb({ type: UPDATE, iova: i << 40n, size: 1n, userAddress: USER, access: 3 });
  await exchange(guest, plain, [1, 2], 4);
  await exchange(plain, guest, [2, 1], 4);
  await exchange(guest, plain, [1, 2], 64);
});

test('translations that make no sense are answered "no", by name, and the session goes on', async (t) => {
  const { guest, errors } = await world(t);
  const fds = openFds();
  const sane = { type: UPDATE, iova: 0n, size: PAGE, userAddress: USER, access: 3 };
  const wrong: [Partial<m.IotlbMessage>, RegExp][] = [
    [{ type: 0 }, /IOTLB_MSG: type 0, an update or an invalidation expected/],
    [{ type: MISS }, /type 1/],
    [{ type: 255 }, /type 255/],
    [{ size: 0n }, /no bytes/],
    [{ iova: (1n << 64n) - 1n }, /wraps/],
    [{ userAddress: (1n << 64n) - 1n }, /wraps/],
    [{ access: 0 }, /access 0, 1 to 3 expected/],
    [{ access: 7 }, /access 7/],
    [{ userAddress: 0n }, /user address 0x0 is in no region/],
    [{ userAddress: USER + BigInt(guest.bytes) - PAGE, size: 2n * PAGE }, /is in no region/],
    [{ size: (1n << 64n) - 1n, iova: 0n, userAddress: 0n }, /is in no region/],
  ];
  for (const [change, says] of wrong) {
    await assert.rejects(guest.session.setIotlb({ ...sane, ...change }), /refused/);
    assert.match(errors.at(-1)!, says);
  }
  await guest.session.setIotlb(sane);
  await guest.unmap((1n << 64n) - 1n, 5n);
  assert.equal(openFds(), fds);
});
