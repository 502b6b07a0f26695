/**
 * What is agreed on and what isn't: features that weren't offered, those that are set again, before and while rings
 * run, after a reset; and what the device status says of it (virtio 1.3, 2.1, 2.2.2 and 3.1.1).
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { closeFd, openFds, sharedPoller, socketPair } from '../../src/sys/index.ts';
import { createInflight } from '../../src/vhost/inflight.ts';
import * as m from '../../src/vhost/messages.ts';
import { features, vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { deviceStatus } from '../../src/virtio/status.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { RawGuest } from '../support/raw-guest.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';
import { forThisFile, OFFERED, OFFERED_PROTOCOL, RawEnd, RecordingDevice, serve } from './harness.ts';

const R = m.requests;
const { ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, DEVICE_NEEDS_RESET } = deviceStatus;
const LIVE = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
const {
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_STATUS,
} = vhostProtocolFeatures;
const RESETS = VHOST_USER_PROTOCOL_F_REPLY_ACK | VHOST_USER_PROTOCOL_F_RESET_DEVICE;
const NOTES = RESETS | VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD;
const CHANNEL =
  RESETS | VHOST_USER_PROTOCOL_F_STATUS | VHOST_USER_PROTOCOL_F_CONFIG | VHOST_USER_PROTOCOL_F_BACKEND_REQ;
const FOREIGN = OFFERED | features.VIRTIO_F_SR_IOV;
const REFUSED = 'SET_FEATURES: VIRTIO_F_SR_IOV not offered';

const { poller, g } = forThisFile();

/** A session, and a front-end that asks for each answer: 0 for what was taken. */
function session(device = new RecordingDevice()) {
  const served = serve(poller, device);
  const { end } = served;
  end.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(OFFERED_PROTOCOL));
  const ask = async (request: number, payload: Uint8Array, fds: number[] = []) => {
    end.message(request, payload, { flags: m.FLAG_NEED_REPLY, fds });
    const answer = await end.next();
    assert.equal(answer?.request, request);
    return m.decodeU64(answer.payload);
  };
  return {
    ...served,
    ask,
    setFeatures: (bits: bigint) => ask(R.SET_FEATURES, m.encodeU64(bits)),
    setStatus: (bits: number) => ask(R.SET_STATUS, m.encodeU64(BigInt(bits))),
    status: async () => Number(await ask(R.GET_STATUS, new Uint8Array(0))),
    /** Says all of a ring but that it starts. */
    describe: async (index: number) => {
      const at = g.region.userAddress + BigInt(index) * 0x4000n;
      const ring = { index, flags: 0, descUser: at, availUser: at + 0x1000n, usedUser: at + 0x2000n };
      assert.equal(await ask(R.SET_MEM_TABLE, m.encodeMemoryTable([g.region]), [g.ram]), 0n);
      assert.equal(await ask(R.SET_VRING_NUM, m.encodeVringState({ index, num: 8 })), 0n);
      assert.equal(await ask(R.SET_VRING_ADDR, m.encodeVringAddress({ ...ring, logGuest: 0n })), 0n);
    },
    kick: (index: number) => ask(R.SET_VRING_KICK, m.encodeVringIndex(index, true), [g.kick]),
    stop: (index: number) => ask(R.GET_VRING_BASE, m.encodeVringState({ index, num: 0 })),
    close: async () => {
      end.close();
      await served.session.closed;
    },
  };
}

describe('features that were not offered', () => {
  test('are no ground for FEATURES_OK, nor for a ring; those that were are, after them', async () => {
    const s = session();
    await s.describe(0);
    assert.equal(await s.setFeatures(FOREIGN), 1n);
    assert.deepEqual(s.errors.splice(0), [REFUSED]);
    assert.equal(await s.setStatus(LIVE), 0n);
    assert.equal(await s.status(), ACKNOWLEDGE | DRIVER);
    assert.equal(await s.kick(0), 1n);
    assert.deepEqual(s.errors.splice(0), ["SET_VRING_KICK: queue 0 can't start before SET_FEATURES"]);
    assert.equal(s.device.rings.size, 0);
    assert.equal(await s.setFeatures(OFFERED), 0n);
    assert.equal(await s.status(), ACKNOWLEDGE | DRIVER, 'to be said again');
    await s.setStatus(LIVE);
    assert.equal(await s.status(), LIVE);
    assert.equal(await s.kick(0), 0n);
    assert.equal(s.device.rings.size, 1);
    await s.close();
  });

  test('after others that were taken: neither the old nor the new ones hold', async () => {
    const s = session();
    await s.describe(0);
    await s.setFeatures(OFFERED);
    await s.setStatus(LIVE);
    assert.equal(await s.status(), LIVE);
    assert.equal(await s.setFeatures(FOREIGN), 1n);
    assert.deepEqual(s.errors.splice(0), [REFUSED]);
    assert.equal(await s.status(), ACKNOWLEDGE | DRIVER);
    await s.setStatus(LIVE);
    assert.equal(await s.status(), ACKNOWLEDGE | DRIVER);
    assert.equal(await s.kick(0), 1n);
    assert.deepEqual(s.errors.splice(0), [
      "SET_VRING_KICK: queue 0 can't start: the last SET_FEATURES was refused",
    ]);
    assert.equal(await s.setFeatures(OFFERED), 0n, 'the same as before, taken anew');
    assert.equal(s.device.calls.filter((call) => call.startsWith('setFeatures')).length, 1);
    await s.setStatus(LIVE);
    assert.equal(await s.status(), LIVE);
    assert.equal(await s.kick(0), 0n);
    await s.close();
  });

  test('by a legacy driver: there is no DRIVER_OK either', async () => {
    const s = session();
    const legacy = features.VHOST_USER_F_PROTOCOL_FEATURES;
    assert.equal(await s.setFeatures(legacy | features.VIRTIO_NET_F_MQ), 1n);
    await s.setStatus(ACKNOWLEDGE | DRIVER | DRIVER_OK);
    assert.equal(await s.status(), ACKNOWLEDGE | DRIVER);
    await s.setFeatures(legacy);
    await s.setStatus(ACKNOWLEDGE | DRIVER | DRIVER_OK);
    assert.equal(await s.status(), ACKNOWLEDGE | DRIVER | DRIVER_OK);
    await s.close();
  });

  test('without protocol features among them enable no ring', async () => {
    const s = session();
    await s.describe(0);
    assert.equal(await s.setFeatures(features.VIRTIO_F_VERSION_1 | features.VIRTIO_F_SR_IOV), 1n);
    assert.equal(s.session.queues[0]!.enabled, false);
    assert.equal(await s.setFeatures(features.VIRTIO_F_VERSION_1), 0n);
    assert.equal(s.session.queues[0]!.enabled, true);
    await s.close();
  });

  test('every bit beside the offered ones, alone and with them', async () => {
    const s = session();
    for (let bit = 0n; bit < 64n; bit++) {
      const one = 1n << bit;
      const taken = (OFFERED & one) !== 0n;
      assert.equal(await s.setFeatures(one), taken ? 0n : 1n, `bit ${bit}`);
      assert.equal(await s.setFeatures(OFFERED | one), taken ? 0n : 1n, `bit ${bit} and those offered`);
      await s.setStatus(LIVE);
      assert.equal((await s.status()) & FEATURES_OK, taken ? FEATURES_OK : 0, `bit ${bit}`);
    }
    await s.close();
  });
});

describe('features set again', () => {
  test('while no ring runs the last ones hold, and the device hears of changes alone', async () => {
    const s = session();
    const less = OFFERED & ~features.VIRTIO_F_IN_ORDER;
    for (const bits of [OFFERED, OFFERED, less, OFFERED, OFFERED])
      assert.equal(await s.setFeatures(bits), 0n);
    assert.deepEqual(
      s.device.calls.filter((call) => call.startsWith('setFeatures')),
      [OFFERED, less, OFFERED].map((bits) => `setFeatures ${bits.toString(16)}`),
    );
    assert.equal(s.session.features, OFFERED);
    await s.close();
  });

  test('while a ring runs: the same and logging are taken, others are not, and the ring goes on', async () => {
    const s = session();
    const quiet = OFFERED & ~features.VHOST_F_LOG_ALL;
    for (const index of [0, 1]) await s.describe(index);
    await s.setFeatures(quiet);
    assert.equal(await s.kick(0), 0n);
    await s.setStatus(LIVE);
    for (const bits of [quiet, OFFERED, OFFERED, quiet]) assert.equal(await s.setFeatures(bits), 0n);
    assert.equal(await s.status(), LIVE);
    assert.equal(await s.setFeatures(quiet & ~features.VIRTIO_NET_F_MRG_RXBUF), 1n);
    assert.deepEqual(s.errors.splice(0), [
      'SET_FEATURES: VIRTIO_NET_F_MRG_RXBUF changed while a queue is running',
    ]);
    assert.equal(s.session.features, quiet);
    assert.equal((await s.status()) & FEATURES_OK, 0);
    assert.deepEqual([...s.device.rings.keys()], [0], 'it goes on');
    assert.equal(await s.kick(1), 1n, 'and no other begins');
    assert.equal(await s.setFeatures(quiet), 0n);
    await s.setStatus(LIVE);
    assert.equal(await s.status(), LIVE);
    assert.equal(await s.kick(1), 0n);
    // All stopped: it is free to choose again.
    for (const index of [0, 1]) await s.stop(index);
    assert.equal(await s.setFeatures(quiet & ~features.VIRTIO_NET_F_MRG_RXBUF), 0n);
    assert.equal(await s.kick(0), 0n);
    await s.close();
  });
});

describe('after a reset', () => {
  test('of the device the features are to be set again, and notes of buffers in work are gone', async () => {
    const fds = openFds();
    const s = session();
    await s.setFeatures(OFFERED);
    await s.setStatus(LIVE);
    const { fd, ...layout } = createInflight(2, 8, false);
    assert.equal(await s.ask(R.SET_INFLIGHT_FD, m.encodeInflight(layout), [fd]), 0n);
    closeFd(fd);
    s.device.calls.length = 0;
    assert.equal(await s.ask(R.RESET_DEVICE, new Uint8Array(0)), 0n);
    assert.deepEqual(s.device.calls, ['setFeatures 0', 'setInflight']);
    await s.setStatus(LIVE);
    assert.equal(await s.status(), ACKNOWLEDGE | DRIVER);
    await s.setFeatures(OFFERED);
    await s.setStatus(LIVE);
    assert.equal(await s.status(), LIVE);
    await s.close();
    assert.equal(openFds(), fds);
  });

  test('by the status they hold, as front-ends have it that do not say them again', async () => {
    const s = session();
    await s.describe(0);
    await s.setFeatures(OFFERED);
    await s.setStatus(LIVE);
    await s.kick(0);
    await s.setStatus(0);
    assert.equal(await s.status(), 0);
    assert.equal(s.device.rings.size, 0);
    await s.setStatus(LIVE);
    assert.equal(await s.status(), LIVE);
    assert.equal(await s.kick(0), 0n);
    await s.close();
  });
});

describe('a real port', () => {
  /** A switch with two ports, a guest on the second that receives, and a way to connect others. */
  async function stage(t: { after(f: () => unknown): void }) {
    const path = sockets(t as never);
    const port = (name: string) => ({ name, type: 'vhost-user' as const, target: path(name), speed: 1000 });
    const vswitch = await createSwitch({ ports: [port('a'), port('b')] });
    const lease = sharedPoller();
    const guests: RawGuest[] = [];
    const connect = (name: string) => {
      const guest = new RawGuest(path(name), lease.poller);
      guests.push(guest);
      return guest;
    };
    t.after(async () => {
      for (const guest of guests) await guest.close();
      await lease.release();
      await vswitch.close();
    });
    const b = connect('b');
    await b.start();
    b.lend();
    return { vswitch, b, connect };
  }
  const AGREED =
    features.VIRTIO_F_VERSION_1 | features.VIRTIO_NET_F_MRG_RXBUF | features.VHOST_USER_F_PROTOCOL_FEATURES;

  test('a guest that wants what there is not can not start, comes to its senses, and is heard', async (t) => {
    const { vswitch, b, connect } = await stage(t);
    const a = connect('a');
    await a.negotiate();
    await a.session.setMemoryTable([a.region]);
    await assert.rejects(a.session.setFeatures(AGREED | features.VIRTIO_F_SR_IOV), /SET_FEATURES.*refused/);
    assert.equal(vswitch.port('a').lastError, REFUSED);
    await a.session.setStatus(LIVE);
    assert.equal(await a.session.status(), ACKNOWLEDGE | DRIVER);
    await assert.rejects(a.startRing(1), /SET_VRING_KICK.*refused/);
    assert.equal(vswitch.port('a').state, 'connected');
    await a.session.setFeatures(AGREED);
    await a.session.setStatus(LIVE);
    assert.equal(await a.session.status(), LIVE);
    for (const index of [0, 1]) await a.startRing(index);
    a.send(frame(BROADCAST, mac(1)));
    await until(() => b.received().length === 1, 'b hears of it');
  });

  test('a broken ring asks for a reset, which a live driver is told, and gets it back by one', async (t) => {
    const { vswitch, b, connect } = await stage(t);
    for (const [live, hears] of [
      [LIVE, true],
      [ACKNOWLEDGE | DRIVER | FEATURES_OK, false],
    ] as const) {
      const guest = connect('a');
      await guest.session.negotiate(guest.wanted, CHANNEL);
      const [near, far] = socketPair();
      const back = new RawEnd(far);
      await guest.session.setBackendChannel(near);
      closeFd(near);
      await guest.session.setMemoryTable([guest.region]);
      for (const index of [0, 1]) await guest.startRing(index);
      await guest.session.setStatus(live);
      assert.equal(await guest.session.status(), live);
      guest.offer(1, 999);
      await until(() => vswitch.port('a').state === 'broken', 'the ring broke');
      assert.equal(await guest.session.status(), live | DEVICE_NEEDS_RESET);
      if (hears) assert.equal((await back.next())?.request, m.backendRequests.CONFIG_CHANGE_MSG);
      await guest.session.resetDevice();
      assert.equal(await guest.session.status(), 0);
      for (const index of [0, 1]) guest.clear(index);
      await guest.session.setFeatures(AGREED);
      for (const index of [0, 1]) await guest.startRing(index);
      guest.send(frame(BROADCAST, mac(1)));
      await until(() => b.received().length === 1, 'b hears of it');
      await guest.close();
      // Had anything else been said, it would come before the end.
      assert.equal(await back.next(), undefined);
      back.close();
      await until(() => vswitch.port('a').state === 'listening', 'the port is free');
    }
  });

  test('rings begin anew after a reset of a device that had notes of buffers in work', async (t) => {
    const { b, connect } = await stage(t);
    const a = connect('a');
    await a.session.negotiate(a.wanted, NOTES);
    await a.session.setMemoryTable([a.region]);
    const layout = createInflight(2, a.size, false);
    t.after(() => closeFd(layout.fd));
    await a.session.setInflight(layout);
    for (let turn = 0; turn < 3; turn++) {
      for (const index of [0, 1]) await a.startRing(index);
      // More than once around, so that where it was is not where it begins.
      for (let i = 0; i < a.size + 5; i++) {
        a.send(frame(BROADCAST, mac(1)));
        await until(() => a.allUsed(1), 'it was taken');
        await until(() => b.received().length === 1, 'and came');
      }
      await a.session.resetDevice();
      for (const index of [0, 1]) a.clear(index);
      await a.session.setFeatures(AGREED);
    }
  });
});
