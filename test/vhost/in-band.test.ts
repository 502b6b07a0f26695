/** In-band notifications: VRING_KICK from the front-end, VRING_CALL and VRING_ERR on the back-end channel. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { closeFd, drain, openFds, signal, socketPair } from '../../src/sys/index.ts';
import * as m from '../../src/vhost/messages.ts';
import { vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { forThisFile, OFFERED, OFFERED_PROTOCOL, RawEnd, RecordingDevice, serve } from './harness.ts';

const R = m.requests;
const ACK = m.FLAG_NEED_REPLY;
const IN_BAND =
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS |
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_BACKEND_REQ |
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_REPLY_ACK;

const { poller, g } = forThisFile();

const state = (index: number, num = 0) => m.encodeVringState({ index, num });

/** A session with these protocol features, a memory, a described ring 0, and a back-end channel. */
function negotiated(bits = IN_BAND) {
  const device = new RecordingDevice();
  device.protocolFeatures = OFFERED_PROTOCOL | IN_BAND;
  const served = serve(poller, device);
  const { end } = served;
  const [near, far] = socketPair();
  end.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(bits));
  if (bits & vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_BACKEND_REQ)
    end.message(R.SET_BACKEND_REQ_FD, undefined, { fds: [far] });
  closeFd(far);
  end.message(R.SET_FEATURES, m.encodeU64(OFFERED));
  end.message(R.SET_MEM_TABLE, m.encodeMemoryTable([g.region]), { fds: [g.ram] });
  end.message(R.SET_VRING_NUM, state(0, 8));
  const at = g.region.userAddress;
  const ring = { index: 0, flags: 0, descUser: at, availUser: at + 0x1000n, usedUser: at + 0x2000n };
  end.message(R.SET_VRING_ADDR, m.encodeVringAddress({ ...ring, logGuest: 0n }));
  return { ...served, channel: new RawEnd(near) };
}

async function kick(end: RawEnd, index: number, num = 0): Promise<bigint> {
  end.message(R.VRING_KICK, state(index, num), { flags: ACK });
  return m.decodeU64((await end.next())!.payload);
}

test('a kick starts the ring and wakes it, calls and errors come as messages', async () => {
  const fds = openFds();
  const { end, session, device, errors, channel } = negotiated();
  assert.equal(await kick(end, 0), 0n);
  const ring = device.rings.get(0)!;
  for (let turn = 0; turn < 3; turn++) {
    assert.ok(drain(ring.kickFd), 'the worker is woken');
    for (const [fd, request] of [
      [ring.callFd, m.backendRequests.VRING_CALL],
      [ring.errFd, m.backendRequests.VRING_ERR],
    ] as const) {
      signal(fd);
      const told = await channel.next();
      assert.equal(told?.request, request);
      assert.deepEqual(m.decodeVringState(told.payload), { index: 0, num: 0 });
    }
    assert.equal(await kick(end, 0), 0n);
  }
  // It stops and starts again as any other.
  end.message(R.GET_VRING_BASE, state(0));
  assert.equal(m.decodeVringState((await end.next())!.payload).num, 7);
  assert.equal(await kick(end, 0), 0n);
  assert.equal(device.rings.get(0)!.base, 7);
  assert.deepEqual(errors, []);
  channel.close();
  end.close();
  await session.closed;
  assert.equal(openFds(), fds);
});

test('an eventfd is preferred to messages', async () => {
  const { end, session, device, channel } = negotiated();
  end.message(R.SET_VRING_CALL, m.encodeVringIndex(0, true), { fds: [g.call] });
  end.message(R.SET_VRING_ERR, m.encodeVringIndex(0, true), { fds: [g.err] });
  end.message(R.SET_VRING_KICK, m.encodeVringIndex(0, true), { fds: [g.kick] });
  assert.equal(await kick(end, 0), 0n);
  const ring = device.rings.get(0)!;
  for (const [theirs, ours] of [
    [ring.callFd, g.call],
    [ring.errFd, g.err],
  ] as const) {
    signal(theirs);
    assert.ok(drain(ours));
  }
  assert.equal(drain(ring.kickFd), false, 'the message moves nothing where there is an eventfd');
  channel.close();
  end.close();
  await session.closed;
});

test('what makes no sense is refused by name', async () => {
  const { end, session, errors, channel } = negotiated();
  for (const [index, num, words] of [
    [0, 1, 'VRING_KICK: queue 0: 1, 0 expected'],
    [99, 0, /VRING_KICK: queue 99 does not exist/],
    [1, 0, "VRING_KICK: queue 1 can't start before SET_VRING_NUM"],
  ] as const) {
    assert.equal(await kick(end, index, num), 1n);
    const error = errors.pop()!;
    if (typeof words === 'string') assert.equal(error, words);
    else assert.match(error, words);
  }
  channel.close();
  end.close();
  await session.closed;

  const plain = negotiated(IN_BAND & ~vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS);
  assert.equal(await kick(plain.end, 0), 1n);
  assert.equal(plain.errors.pop(), 'VRING_KICK: in-band notifications were not negotiated');
  plain.channel.close();
  plain.end.close();
  await plain.session.closed;
});

test('without the channel or acknowledgements the connection ends', async () => {
  for (const missing of ['BACKEND_REQ', 'REPLY_ACK'] as const) {
    const bits = IN_BAND & ~vhostProtocolFeatures[`VHOST_USER_PROTOCOL_F_${missing}`];
    const fds = openFds();
    const device = new RecordingDevice();
    device.protocolFeatures = IN_BAND;
    const { end, ended } = serve(poller, device);
    end.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(bits));
    assert.equal(
      await ended(),
      'SET_PROTOCOL_FEATURES: in-band notifications need BACKEND_REQ and REPLY_ACK',
    );
    end.close();
    assert.equal(openFds(), fds);
  }
});
