/** What the switch does for a guest that moves: its dirty log under traffic, and its announcement. */
import assert from 'node:assert/strict';
import { readSync } from 'node:fs';
import { describe, type TestContext, test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { closeFd, eventfd, memfd, sharedPoller } from '../../src/sys/index.ts';
import { features, vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac, macKey, macText } from '../support/ethernet.ts';
import { GUEST, RawGuest } from '../support/raw-guest.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

const PAGE = 4096;
const FEATURES = features.VIRTIO_F_VERSION_1 | features.VIRTIO_NET_F_MRG_RXBUF;
const PROTOCOL =
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_REPLY_ACK |
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_LOG_SHMFD |
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_RARP;
/** Bytes of a log that reaches the end of the raw guest's megabyte. */
const LOG_SIZE = Number((GUEST >> 15n) + 32n);

/** A switch, a virtio-user device on one port and a raw guest, both rings running, on the other. */
async function setUp(t: TestContext, workers = 1) {
  const path = sockets(t);
  const ports = ['a', 'b'].map((name) => ({ name, type: 'vhost-user' as const, target: path(name) }));
  const vswitch = await createSwitch({ workers, ports });
  t.after(() => vswitch.close());
  const peer = await VirtioUser.open({ path: path('a') });
  t.after(() => peer.close());
  const lease = sharedPoller();
  const guest = new RawGuest(path('b'), lease.poller);
  t.after(async () => {
    await guest.close();
    await lease.release();
  });
  const agreed = await guest.session.negotiate(FEATURES, PROTOCOL);
  assert.equal(agreed.protocolFeatures, PROTOCOL);
  await guest.session.setMemoryTable([guest.region]);
  for (const index of [0, 1]) await guest.startRing(index);
  return { vswitch, peer, guest, features: agreed.features };
}

function bits(fd: number, offset: number): number[] {
  const bytes = Buffer.alloc(LOG_SIZE);
  readSync(fd, bytes, 0, LOG_SIZE, offset);
  const pages: number[] = [];
  for (const [i, byte] of bytes.entries())
    for (let bit = 0; bit < 8; bit++) if (byte & (1 << bit)) pages.push(8 * i + bit);
  return pages;
}

for (const workers of [1, 2]) {
  describe(`with ${workers} ${workers === 1 ? 'worker' : 'workers'}`, () => {
    test('a log that begins under traffic has every page that changes from the acknowledgement on', async (t) => {
      const { vswitch, peer, guest, features } = await setUp(t, workers);
      const [here, there] = [mac(1), mac(2)];
      guest.lend();
      guest.send(frame(BROADCAST, there));
      await until(() => peer.receive(), 'the guest is known');
      let salt = 0;
      const traffic = async (frames: number) => {
        for (let came = 0; came < frames; ) {
          for (let i = 0; i < 8; i++) peer.send(frame(there, here, 60 + (salt % 1400), salt++));
          if (guest.usedIdx(1) === guest.offered[1]) guest.send(frame(here, there, 60, salt));
          came += guest.received().length;
          while (peer.receive());
          await new Promise(setImmediate);
        }
      };
      await traffic(200);
      // Not at the beginning of a page of its file, as it may be.
      const offset = 64;
      const fd = memfd('log', offset + LOG_SIZE);
      const logFd = eventfd();
      t.after(() => [fd, logFd].forEach(closeFd));
      for (let turn = 0; turn < 3; turn++) {
        await guest.session.setLog({ fd, offset: BigInt(offset), size: BigInt(LOG_SIZE) });
        for (const index of [0, 1]) {
          const ring = guest.layout(index);
          const logUsed = GUEST + (ring.usedUser - guest.region.userAddress);
          await guest.session.setVringAddress(index, { ...ring, logUsed });
        }
        await guest.session.setFeatures(features | (1n << 26n));
        // The driver's own writes lie in pages of their own, or in ones that the switch has to mark anyway.
        const before = guest.read(GUEST, guest.bytes);
        await traffic(300);
        const bases = [await guest.session.stopVring(0), await guest.session.stopVring(1)];
        const after = guest.read(GUEST, guest.bytes);
        const marked = new Set(bits(fd, offset));
        // Receive buffers that changed were filled by the switch, and the used rings are its own.
        let changed = 0;
        const check = (from: number, length: number, what: string) => {
          for (let at = from; at < from + length; at++) {
            if (before[at] === after[at]) continue;
            changed++;
            assert.ok(marked.has(Number((GUEST + BigInt(at)) / BigInt(PAGE))), `${what}, byte ${at}`);
          }
        };
        check(Number(guest.buffer(0) - GUEST), guest.size * 2048, 'receive buffers');
        for (const index of [0, 1]) {
          const { usedUser } = guest.layout(index);
          check(Number(usedUser - guest.region.userAddress), 6 + 8 * guest.size, `used ring ${index}`);
        }
        assert.ok(changed > 1000, `${changed} bytes changed`);
        const last = Number((GUEST + BigInt(guest.bytes)) / BigInt(PAGE));
        assert.ok([...marked].every((page) => page >= Number(GUEST / BigInt(PAGE)) && page < last));
        // The migration failed, say: the guest goes on here, and nothing is logged.
        await guest.session.setFeatures(features);
        for (const index of [0, 1]) await guest.startRing(index, bases[index]!);
        const still = bits(fd, offset).length;
        await traffic(100);
        assert.equal(bits(fd, offset).length, still);
      }
      assert.equal(vswitch.port('b').lastError, null);
    });

    test('an announced guest is known at once, and everybody hears of it', async (t) => {
      const { vswitch, peer, guest } = await setUp(t, workers);
      for (const n of [7, 8]) {
        await guest.session.announce(macKey(mac(n)));
        assert.equal(vswitch.fdb().find((entry) => entry.mac === macText(mac(n)))?.port, 'b');
        const came = Buffer.from(await until(() => peer.receive(), 'the announcement'));
        const body = Buffer.concat([Buffer.from('000108000604', 'hex'), Buffer.from([0, 3])]);
        const [sender, target] = [Buffer.concat([mac(n), Buffer.alloc(4)]), mac(n)];
        const head = Buffer.concat([BROADCAST, mac(n), Buffer.from('8035', 'hex')]);
        const expected = Buffer.concat([head, body, sender, target, Buffer.alloc(60)], 60);
        assert.equal(came.toString('hex'), expected.toString('hex'));
      }
    });
  });
}

describe('a log', () => {
  test('that does not reach the end of memory is reported, and breaks nothing', async (t) => {
    const { vswitch, peer, guest, features } = await setUp(t);
    const fd = memfd('log', PAGE);
    t.after(() => closeFd(fd));
    await guest.session.setLog({ fd, offset: 0n, size: BigInt(PAGE) });
    assert.equal(
      vswitch.port('b').lastError,
      'SET_LOG_BASE: the log reaches guest address 0x8000000, memory goes on to 0x40100000',
    );
    await guest.session.setFeatures(features | (1n << 26n));
    guest.lend();
    peer.send(frame(BROADCAST, mac(1)));
    await until(() => guest.received().length > 0, 'a frame comes all the same');
    const bytes = Buffer.alloc(PAGE);
    readSync(fd, bytes, 0, PAGE, 0);
    assert.ok(bytes.every((byte) => byte === 0));
  });
});
