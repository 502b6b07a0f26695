/** A device's own state on its way to another back-end: SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, constants, openSync, readFileSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { closeFd, openFds, send, socketPair } from '../../src/sys/index.ts';
import { decodeState, encodeState, LOAD, SAVE } from '../../src/vhost/device-state.ts';
import * as m from '../../src/vhost/messages.ts';
import { sockets } from '../support/sockets.ts';
import { forThisFile, OFFERED, OFFERED_PROTOCOL, type RawEnd, RecordingDevice, serve } from './harness.ts';

const R = m.requests;
const TAKEN = m.VRING_NO_FD;
const REFUSED = m.VRING_NO_FD | 1n;
const STATE = { mtu: 1400, mac: '02:00:00:00:00:07' };

const { poller, g } = forThisFile();

function negotiated(timeout?: number) {
  const served = serve(poller, new RecordingDevice(), timeout);
  served.end.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(OFFERED_PROTOCOL));
  served.end.message(R.SET_FEATURES, m.encodeU64(OFFERED));
  return served;
}

async function transfer(end: RawEnd, direction: number, fd: number, phase = 0): Promise<bigint> {
  end.message(R.SET_DEVICE_STATE_FD, m.encodeVringState({ index: direction, num: phase }), { fds: [fd] });
  const answer = await end.next();
  assert.equal(answer?.request, R.SET_DEVICE_STATE_FD);
  assert.equal(answer.fds.length, 0);
  return m.decodeU64(answer.payload);
}

async function check(end: RawEnd): Promise<bigint> {
  end.message(R.CHECK_DEVICE_STATE);
  const answer = await end.next();
  assert.equal(answer?.request, R.CHECK_DEVICE_STATE);
  return m.decodeU64(answer.payload);
}

test('what one device saves another one loads, through a pipe', async (t) => {
  const fds = openFds();
  const path = sockets(t)('pipe');
  execFileSync('mkfifo', [path]);
  const source = negotiated();
  const destination = negotiated();
  source.device.mtu = STATE.mtu;
  source.device.setMac(Uint8Array.of(2, 0, 0, 0, 0, 7));
  // Open for both, so that neither waits for the other.
  const pipe = openSync(path, constants.O_RDWR);
  const [reading, writing] = [openSync(path, 'r'), openSync(path, 'w')];
  assert.equal(await transfer(source.end, SAVE, writing), TAKEN);
  assert.equal(await transfer(destination.end, LOAD, reading), TAKEN);
  for (const fd of [pipe, reading, writing]) closeSync(fd);
  assert.equal(await check(source.end), 0n);
  assert.equal(await check(destination.end), 0n);
  assert.deepEqual(destination.device.saveState(), STATE);
  for (const { end, session, errors } of [source, destination]) {
    assert.deepEqual(errors, []);
    end.close();
    await session.closed;
  }
  assert.equal(openFds(), fds);
});

test('what makes no sense is answered with an error, by name', async () => {
  const fds = openFds();
  const { end, session, errors } = negotiated();
  const [near, far] = socketPair();
  for (const [direction, phase, fd, words] of [
    [2, 0, near, 'direction 2, 0 or 1 expected'],
    [SAVE, 1, near, 'phase 1, 0 expected'],
    [LOAD, 0, g.ram, 'the descriptor is neither a pipe nor a socket'],
    [SAVE, 0, g.kick, 'the descriptor is neither a pipe nor a socket'],
  ] as const) {
    assert.equal(await transfer(end, direction, fd, phase), REFUSED);
    assert.equal(errors.pop(), `SET_DEVICE_STATE_FD: ${words}`);
  }
  assert.equal(await check(end), 1n);
  assert.equal(errors.pop(), 'CHECK_DEVICE_STATE: no state was transferred');
  const at = g.region.userAddress;
  end.message(R.SET_MEM_TABLE, m.encodeMemoryTable([g.region]), { fds: [g.ram] });
  end.message(R.SET_VRING_NUM, m.encodeVringState({ index: 0, num: 8 }));
  const ring = { index: 0, flags: 0, descUser: at, availUser: at + 0x1000n, usedUser: at + 0x2000n };
  end.message(R.SET_VRING_ADDR, m.encodeVringAddress({ ...ring, logGuest: 0n }));
  end.message(R.SET_VRING_KICK, m.encodeVringIndex(0, false));
  assert.equal(await transfer(end, SAVE, near), REFUSED);
  assert.equal(errors.pop(), 'SET_DEVICE_STATE_FD: queue 0 is running');
  end.close();
  await session.closed;
  for (const fd of [near, far]) closeFd(fd);
  assert.equal(openFds(), fds);
});

test('a state that is none is not loaded, and the device stays as it was', async () => {
  const good = encodeState(STATE);
  const json = (value: unknown) => encodeState(value as typeof STATE);
  const cases: [bytes: Uint8Array, words: RegExp][] = [
    [new Uint8Array(0), /0 bytes that are no state of this back-end/],
    [Buffer.from('something else'), /14 bytes that are no state/],
    [good.subarray(0, 20), /cut off or damaged/],
    [Uint8Array.from(good, (byte, i) => (i === 6 ? 2 : byte)), /a state of version 2, 1 is known here/],
    [new Uint8Array(5000), /more than 4096 bytes/],
    [json(null), /an MTU of undefined/],
    [json({ ...STATE, mtu: 67 }), /an MTU of 67/],
    [json({ ...STATE, mtu: '9000' }), /an MTU of "9000"/],
    [json({ ...STATE, mac: 'x'.repeat(3000) }), /a MAC address of "x{39}$/],
    [json({ ...STATE, mtu: 9001 }), /an MTU of 9001 is too much/],
  ];
  for (const [bytes, words] of cases) {
    const { end, session, device, errors } = negotiated();
    device.mtuLimit = 9000;
    const before = device.saveState();
    const [near, far] = socketPair();
    assert.equal(await transfer(end, LOAD, near), TAKEN);
    closeFd(near);
    assert.equal(send(far, bytes.length ? bytes : new Uint8Array(0)) === 'again', false);
    closeFd(far);
    assert.equal(await check(end), 1n);
    assert.match(errors[0]!, /^CHECK_DEVICE_STATE: /);
    assert.match(errors[0]!, words);
    assert.deepEqual(device.saveState(), before);
    end.close();
    await session.closed;
  }
  assert.deepEqual(decodeState(good), STATE);
});

test('a pipe that never ends, is closed at once, or comes twice', async () => {
  const fds = openFds();
  const { end, session, errors } = negotiated(200);
  const [near, far] = socketPair();
  assert.equal(await transfer(end, LOAD, near), TAKEN);
  assert.equal(await check(end), 1n);
  assert.equal(errors.pop(), 'CHECK_DEVICE_STATE: no end of it within 0.2 s');
  closeFd(near);
  closeFd(far);

  const [ours, theirs] = socketPair();
  closeFd(theirs);
  assert.equal(await transfer(end, SAVE, ours), TAKEN);
  assert.equal(await check(end), 1n);
  assert.match(errors.pop()!, /EPIPE/);
  closeFd(ours);

  const [first, a] = socketPair();
  const [second, b] = socketPair();
  assert.equal(await transfer(end, LOAD, first), TAKEN);
  assert.equal(await transfer(end, SAVE, second), TAKEN);
  assert.equal(await check(end), 0n);
  for (const fd of [first, a, second]) closeFd(fd);
  assert.deepEqual(decodeState(readFileSync(b)), { ...STATE, mtu: null, mac: '52:54:00:00:00:01' });
  closeFd(b);

  // And one that is open when the port is removed while the front-end waits for it.
  const [last, c] = socketPair();
  assert.equal(await transfer(end, LOAD, last), TAKEN);
  end.message(R.CHECK_DEVICE_STATE);
  writeSync(c, 'VIR');
  await session.close();
  for (const fd of [last, c]) closeFd(fd);
  end.close();
  assert.equal(openFds(), fds);
});
