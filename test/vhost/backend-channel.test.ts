/** The back-end's own requests (SET_BACKEND_REQ_FD), and front-ends that don't read, don't answer, or lie. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { closeFd, eventfd, openFds, sharedPoller, socketPair } from '../../src/sys/index.ts';
import type { BackendChannel } from '../../src/vhost/backend-channel.ts';
import * as m from '../../src/vhost/messages.ts';
import { vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { until } from '../support/until.ts';
import { OFFERED_PROTOCOL, RawEnd, RecordingDevice, serve } from './harness.ts';

const lease = sharedPoller();
after(() => lease.release());

const R = m.requests;
const B = m.backendRequests;
const { VHOST_USER_PROTOCOL_F_BACKEND_REQ, VHOST_USER_PROTOCOL_F_CONFIG, VHOST_USER_PROTOCOL_F_REPLY_ACK } =
  vhostProtocolFeatures;
const CHANNEL = VHOST_USER_PROTOCOL_F_BACKEND_REQ | VHOST_USER_PROTOCOL_F_CONFIG;

class ChannelDevice extends RecordingDevice {
  override protocolFeatures = OFFERED_PROTOCOL | VHOST_USER_PROTOCOL_F_BACKEND_REQ;
  channel: BackendChannel | undefined;

  setChannel(channel: BackendChannel | undefined): void {
    this.channel = channel;
  }
}

/** A session with a channel, and the front-end's ends of both. */
async function open(bits = CHANNEL | VHOST_USER_PROTOCOL_F_REPLY_ACK) {
  const device = new ChannelDevice();
  const served = serve(lease.poller, device);
  const [near, far] = socketPair();
  served.end.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(bits));
  served.end.message(R.SET_BACKEND_REQ_FD, undefined, { fds: [near] });
  closeFd(near);
  await until(() => device.channel, 'the channel is there');
  const back = new RawEnd(far);
  const close = async () => {
    served.end.close();
    back.close();
    await served.session.closed;
  };
  /** The session answers as ever. */
  const alive = async () => {
    served.end.message(R.GET_FEATURES);
    assert.equal((await served.end.next())?.request, R.GET_FEATURES);
  };
  return { ...served, device, channel: device.channel!, back, close, alive };
}

test('each request has its number, layout and flags', async () => {
  const c = await open();
  c.channel.vringCall(3);
  c.channel.vringError(1);
  c.channel.iotlb({ iova: 0x1234_5000n, size: 0x1000n, userAddress: 0n, access: 2, type: m.iotlb.MISS });
  const changed = c.channel.configChanged();
  const came = [await c.back.next(), await c.back.next(), await c.back.next(), await c.back.next()];
  assert.deepEqual(
    came.map((message) => [message!.request, message!.flags, Buffer.from(message!.payload).toString('hex')]),
    [
      [B.VRING_CALL, 1, '0300000000000000'],
      [B.VRING_ERR, 1, '0100000000000000'],
      [B.IOTLB_MSG, 1, `0050341200000000${'0010000000000000'}${'00'.repeat(8)}0201${'00'.repeat(6)}`],
      [B.CONFIG_CHANGE_MSG, 1 | m.FLAG_NEED_REPLY, ''],
    ],
  );
  c.back.message(B.CONFIG_CHANGE_MSG, m.encodeU64(0n), { flags: m.FLAG_REPLY });
  assert.equal(await changed, true);
  const refused = c.channel.configChanged();
  c.back.message(B.CONFIG_CHANGE_MSG, m.encodeU64(1n), { flags: m.FLAG_REPLY });
  assert.equal(await refused, false);
  await c.close();
});

test('without REPLY_ACK nothing is asked for an answer', async () => {
  const c = await open(CHANNEL);
  assert.equal(await c.channel.configChanged(), true);
  assert.equal((await c.back.next())?.flags, 1);
  await c.close();
});

test('without CONFIG nothing is told of a configuration space', async () => {
  const c = await open(VHOST_USER_PROTOCOL_F_BACKEND_REQ | VHOST_USER_PROTOCOL_F_REPLY_ACK);
  assert.equal(await c.channel.configChanged(), false);
  c.channel.vringCall(0);
  assert.equal((await c.back.next())?.request, B.VRING_CALL);
  await c.close();
});

test('a second channel takes the place of the first, and both go with the session', async () => {
  const fds = openFds();
  const c = await open();
  const [near, far] = socketPair();
  c.end.message(R.SET_BACKEND_REQ_FD, undefined, { fds: [near] });
  closeFd(near);
  await until(() => c.device.channel !== c.channel, 'the second one is there');
  assert.equal(await c.back.next(), undefined);
  const second = new RawEnd(far);
  c.device.channel!.vringCall(0);
  assert.equal((await second.next())?.request, B.VRING_CALL);
  const waiting = c.device.channel!.configChanged();
  await c.close();
  assert.equal(await waiting, false);
  assert.equal(c.device.channel, undefined);
  second.close();
  assert.equal(openFds(), fds);
});

test('a front-end that does not read its channel loses it, and nothing else', async () => {
  const c = await open();
  // What the socket holds, and what may wait here, is bounded.
  for (let i = 0; i < 1_000_000 && c.channel.open; i++) c.channel.vringCall(0);
  assert.equal(c.channel.open, false);
  await until(() => c.errors.length > 0, 'it is told');
  assert.match(c.errors[0]!, /^the back-end channel: the other end doesn't read: \d+ bytes wait for it$/);
  await c.alive();
  await c.close();
});

test('a front-end that does not answer loses it', async () => {
  const c = await open();
  const answers = Array.from({ length: 65 }, () => c.channel.configChanged());
  assert.deepEqual(await Promise.all(answers), Array(65).fill(false));
  await until(() => c.errors.length > 0, 'it is told');
  assert.match(c.errors[0]!, /doesn't answer: 64 answers are missing/);
  await c.alive();
  await c.close();
});

const LIES: [string, (end: RawEnd) => void][] = [
  ['an answer to nothing', (end) => end.message(B.VRING_CALL, m.encodeU64(0n), { flags: m.FLAG_REPLY })],
  ['a request', (end) => end.message(B.CONFIG_CHANGE_MSG)],
  ['an answer to another request', (end) => end.message(B.VRING_ERR, m.encodeU64(0n), { flags: m.FLAG_REPLY })],
  ['an answer of another size', (end) => end.message(B.CONFIG_CHANGE_MSG, new Uint8Array(9), { flags: m.FLAG_REPLY })],
  ['an answer of 4 GiB', (end) => end.message(B.CONFIG_CHANGE_MSG, new Uint8Array(8), { flags: m.FLAG_REPLY, size: 0xffff_ffff })],
  ['an answer with descriptors', (end) => { const fd = eventfd(); end.message(B.CONFIG_CHANGE_MSG, m.encodeU64(0n), { flags: m.FLAG_REPLY, fds: [fd, fd] }); closeFd(fd); }],
]; // biome-ignore format: a table

for (const [what, lie] of LIES) {
  test(`${what} ends the channel alone`, async () => {
    const fds = openFds();
    const c = await open();
    const asked = c.channel.configChanged();
    await c.back.next();
    lie(c.back);
    assert.equal(await asked, false);
    await until(() => c.errors.length > 0, 'it is told');
    assert.match(c.errors[0]!, /^the back-end channel: /);
    await c.alive();
    await c.close();
    assert.equal(openFds(), fds);
  });
}

test('a descriptor that is no socket is refused', async () => {
  const served = serve(lease.poller, new ChannelDevice());
  served.end.message(
    R.SET_PROTOCOL_FEATURES,
    m.encodeU64(OFFERED_PROTOCOL | VHOST_USER_PROTOCOL_F_BACKEND_REQ),
  );
  const fd = eventfd();
  served.end.message(R.SET_BACKEND_REQ_FD, undefined, { fds: [fd], flags: m.FLAG_NEED_REPLY });
  closeFd(fd);
  assert.equal(m.decodeU64((await served.end.next())!.payload), 1n);
  assert.match(served.errors[0]!, /SET_BACKEND_REQ_FD: the descriptor is not a socket/);
  served.end.close();
  await served.session.closed;
});
