/** Stream ports against programs that speak the framing, and such that don't. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createConnection, createServer, type Socket } from 'node:net';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createSwitch, type PortSpec, type Role, type Switch } from '../../src/index.ts';
import { openFds } from '../../src/sys/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { sockets } from '../support/sockets.ts';
import { Traffic } from '../support/traffic.ts';
import { until } from '../support/until.ts';

const guest = (name: string, target: string) => ({ name, type: 'vhost-user' as const, target });
const stream = (target: string, role: Role = 'server') => ({
  ...{ name: 's', type: 'stream' as const },
  ...{ target, role },
});
const state = (vswitch: Switch, wanted: string) =>
  until(() => vswitch.port('s').state === wanted, `the port is ${wanted}`);
/** Up, and its rings are open. */
const up = (vswitch: Switch) =>
  until(
    () => vswitch.port('s').queues.every(({ enabled }) => enabled) && vswitch.port('s').state === 'up',
    'it is up',
  );

/** A frame behind its length. */
function framed(bytes: Uint8Array): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
}

/** The other end of a stream port. */
class Peer {
  readonly socket: Socket;
  readonly frames: Buffer[] = [];
  closed = false;
  #bytes = Buffer.alloc(0);

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on('error', () => {});
    socket.on('close', () => {
      this.closed = true;
    });
    socket.on('data', (bytes: Buffer) => {
      this.#bytes = Buffer.concat([this.#bytes, bytes]);
      while (this.#bytes.length >= 4 && this.#bytes.length >= 4 + this.#bytes.readUInt32BE(0)) {
        const end = 4 + this.#bytes.readUInt32BE(0);
        this.frames.push(this.#bytes.subarray(4, end));
        this.#bytes = this.#bytes.subarray(end);
      }
    });
  }

  static async dial(path: string): Promise<Peer> {
    const socket = createConnection(path);
    await once(socket, 'connect');
    return new Peer(socket);
  }
}

for (const role of ['server', 'client'] as const) {
  test(`frames of any size cross both ways, the port as ${role}, and again after the peer has gone`, async (t) => {
    const path = sockets(t);
    const server = createServer().listen(role === 'client' ? path('s') : path('unused'));
    t.after(() => server.close());
    const accepted: Peer[] = [];
    server.on('connection', (socket) => accepted.push(new Peer(socket)));
    await using vswitch = await createSwitch({ ports: [guest('a', path('a')), stream(path('s'), role)] });
    await using device = await VirtioUser.open({ path: path('a') });
    for (let time = 1; time <= 2; time++) {
      const peer =
        role === 'server'
          ? await Peer.dial(path('s'))
          : await until(() => accepted[time - 1], 'the port dials');
      await up(vswitch);
      assert.equal(vswitch.port('s').connections, time);
      for (const length of [14, 60, 1514, 9014, 65_550]) {
        const there = frame(BROADCAST, mac(1), length);
        device.send(there);
        await until(() => peer.frames.some((bytes) => bytes.equals(there)), `${length} bytes arrive`);
        const back = frame(BROADCAST, mac(2), length, 1);
        // In two pieces: the length is cut, too.
        peer.socket.write(framed(back).subarray(0, 3));
        await until(() => peer.socket.writableLength === 0, 'the first piece is out');
        peer.socket.write(framed(back).subarray(3));
        const came = await until(() => device.receive(), `${length} bytes come back`);
        assert.ok(back.equals(came));
      }
      peer.socket.destroy();
      await until(
        () => vswitch.port('s').state !== 'up' || vswitch.port('s').connections > time,
        'it has gone',
      );
    }
    assert.equal(vswitch.port('s').lastError, null);
  });
}

test('frames wait for a guest without buffers, until it takes nothing for seconds', async (t) => {
  const path = sockets(t);
  await using vswitch = await createSwitch({
    ports: [guest('a', path('a')), guest('b', path('b')), stream(path('s'))],
  });
  await using slow = await VirtioUser.open({ path: path('a'), queueSize: 64 });
  await using other = await VirtioUser.open({ path: path('b'), queueSize: 64 });
  const peer = await Peer.dial(path('s'));
  await up(vswitch);
  // The switch is to know where both are.
  slow.send(frame(BROADCAST, mac(1)));
  other.send(frame(BROADCAST, mac(2)));
  await until(() => peer.frames.length === 2, 'both are known');
  await until(() => other.receive(), 'one hears the other');
  await until(() => slow.receive(), 'and the other it');

  // Far more than its ring and all queues on the way have room for.
  const count = 5000;
  const sizes = [60, 1514, 9014];
  for (let i = 0; i < count; i++) peer.socket.write(framed(frame(mac(1), mac(9), sizes[i % 3], i)));
  await until(() => vswitch.port('a').txPackets > 0, 'the first ones are there');
  for (let i = 0; i < count; i++) {
    const bytes = await until(() => slow.receive(), `frame ${i} comes`);
    assert.ok(frame(mac(1), mac(9), sizes[i % 3], i).equals(bytes));
  }
  assert.equal(vswitch.port('a').txDrops, 0);
  assert.equal(vswitch.port('s').rxPackets, count);

  // Who takes nothing is given up, and those behind get what is theirs.
  for (let i = 0; i < count; i++) peer.socket.write(framed(frame(mac(1), mac(9))));
  const last = frame(mac(2), mac(9));
  peer.socket.write(framed(last));
  assert.ok(last.equals(await until(() => other.receive(), 'the other guest gets its frame')));
  const { txPackets, drops } = vswitch.port('a');
  assert.ok(drops.ringFull! > 0);
  assert.equal(txPackets + drops.ringFull!, 2 * count + 1);
  // It has taken some, and is waited for again.
  while (slow.receive() !== undefined);
  for (let i = 0; i < count; i++) peer.socket.write(framed(frame(mac(1), mac(9), 60, i)));
  for (let i = 0; i < count; i++) {
    const bytes = await until(() => slow.receive(), `frame ${i} comes`);
    assert.ok(frame(mac(1), mac(9), 60, i).equals(bytes));
  }
  assert.equal(vswitch.port('a').drops.ringFull, drops.ringFull);
});

/** The same frame with a tag of 802.1Q. */
const tagged = (bytes: Buffer, vlan: number): Buffer =>
  Buffer.concat([bytes.subarray(0, 12), Buffer.from([0x81, 0, vlan >> 8, vlan & 255]), bytes.subarray(12)]);

/** More frames than a guest has buffers for reach it, one after the other. */
async function noneIsLost(
  vswitch: Switch,
  peer: Peer,
  slow: VirtioUser,
  from: (bytes: Buffer) => Buffer,
): Promise<void> {
  // Where it is is to be known, in its VLAN.
  await until(() => {
    slow.send(frame(BROADCAST, mac(1)));
    return peer.frames.length > 0;
  }, 'it is known');
  const count = 600;
  for (let i = 0; i < count; i++) peer.socket.write(framed(from(frame(mac(1), mac(9), 1514, i))));
  // Its buffers are full, and the rest waits.
  for (let last = 0, now = -1; now !== last || now === 0; ) {
    last = now;
    await sleep(20);
    now = vswitch.port('a').txPackets + vswitch.port('a').txDrops;
  }
  for (let i = 0; i < count; i++) {
    const bytes = await until(() => slow.receive(), `frame ${i} comes`);
    assert.ok(frame(mac(1), mac(9), 1514, i).equals(bytes), `frame ${i}`);
  }
  assert.equal(vswitch.port('a').txDrops, 0);
}

const asIs = (bytes: Buffer): Buffer => bytes;
const arrangements: [name: string, Partial<Record<'s' | 'a' | 'bond', Partial<PortSpec>>>, from: typeof asIs][] = [
  ['in its VLAN', { s: { vlan: 10 }, a: { vlan: 10 } }, asIs],
  ['in a VLAN of a trunk', { s: { trunk: '10+20' }, a: { vlan: 20 } }, (bytes) => tagged(bytes, 20)],
  ['in the native VLAN of a trunk', { s: { trunk: '10+20', native: 10 }, a: { vlan: 10 } }, asIs],
  ['on another bridge', { s: { bridge: 'two' }, a: { bridge: 'two' } }, asIs],
  ['behind a bond', { bond: { target: 'a+b' } }, asIs],
  ['behind a bond, by flows, in a VLAN', { s: { vlan: 10 }, bond: { target: 'a+b', mode: 'balance', vlan: 10 } }, asIs],
  ['from a member of a bond', { a: { vlan: 10 }, bond: { target: 's+b', vlan: 10 } }, asIs],
]; // biome-ignore format: a table
for (const [name, fields, from] of arrangements) {
  test(`frames wait for a guest without buffers ${name}`, async (t) => {
    const path = sockets(t);
    await using vswitch = await createSwitch({
      bridges: [{ name: 'two' }],
      ports: [
        { ...guest('a', path('a')), ...fields.a },
        guest('b', path('b')),
        { ...stream(path('s')), ...fields.s },
        ...(fields.bond ? [{ name: 'bond', type: 'bond', ...fields.bond } as PortSpec] : []),
      ],
    });
    await using slow = await VirtioUser.open({ path: path('a'), queueSize: 64 });
    const peer = await Peer.dial(path('s'));
    await up(vswitch);
    await noneIsLost(vswitch, peer, slow, from);
  });
}

for (const queue of [0, 1]) {
  test(`frames wait for queue ${queue} of a guest, which its driver has asked for (RSS)`, async (t) => {
    const path = sockets(t);
    await using vswitch = await createSwitch({
      ports: [{ ...guest('a', path('a')), features: '+ctrl-vq', queues: 2 }, stream(path('s'))],
    });
    const options = { queueSize: 64, queues: 2, control: true };
    await using slow = await VirtioUser.open({ path: path('a'), ...options });
    // Of frames that aren't IP no hash is taken.
    const key = Buffer.alloc(40, 7);
    await slow.control!.setRss({
      hashTypes: 0x3f,
      key,
      unclassified: queue,
      table: [0, 1],
      transmitQueues: 2,
    });
    const peer = await Peer.dial(path('s'));
    await up(vswitch);
    await noneIsLost(vswitch, peer, slow, asIs);
  });
}

test('a burst in one piece arrives in order, and a peer that reads nothing holds up nobody', async (t) => {
  const path = sockets(t);
  await using vswitch = await createSwitch({
    ports: [guest('a', path('a')), guest('b', path('b')), guest('c', path('c')), stream(path('s'))],
  });
  const traffic = await Traffic.start({ path: path('a') }, { path: path('b') });
  await using device = await VirtioUser.open({ path: path('c'), queueSize: 1024 });
  const peer = await Peer.dial(path('s'));
  await up(vswitch);
  // Learned, so that what is for one is for nobody else.
  peer.socket.write(framed(frame(mac(9), mac(2))));
  const flooded = frame(mac(9), mac(1));
  device.send(flooded);
  await until(() => vswitch.fdb().length >= 4, 'the addresses are learned');
  await until(() => peer.frames.some((bytes) => bytes.equals(flooded)), 'what was flooded has come');
  while (device.receive());
  const burst = Array.from({ length: 500 }, (_, i) => frame(mac(1), mac(2), 60 + i, i));
  peer.socket.write(Buffer.concat(burst.map(framed)));
  for (const sent of burst) {
    const came = await until(() => device.receive(), 'the next frame of the burst');
    assert.ok(sent.equals(came));
  }
  peer.socket.pause();
  const large = frame(mac(2), mac(1), 9000);
  await until(() => {
    for (let i = 0; i < 64; i++) device.send(large);
    return (vswitch.port('s').drops.ringFull ?? 0) > 100;
  }, 'its ring is full');
  await traffic.flows();
  peer.frames.length = 0;
  peer.socket.resume();
  await until(() => peer.frames.length > 80, 'what waited arrives');
  assert.ok(peer.frames.every((bytes) => bytes.equals(large)));
  peer.socket.destroy();
  await traffic.stop();
});

test('a peer that speaks something else loses its connection, with the reason; the next one is served', async (t) => {
  const path = sockets(t);
  await using vswitch = await createSwitch({ ports: [guest('a', path('a')), stream(path('s'))] });
  await using device = await VirtioUser.open({ path: path('a') });
  const fds: number[] = [];
  for (const bytes of [
    Buffer.alloc(4),
    Buffer.alloc(4),
    Buffer.from('GET / HTTP/1.1\r\n\r\n'),
    Buffer.from([0, 1, 0, 15, 1, 2]),
  ]) {
    const peer = await Peer.dial(path('s'));
    await up(vswitch);
    fds.push(openFds());
    peer.socket.write(bytes);
    await until(() => peer.closed, 'it loses its connection');
    await state(vswitch, 'listening');
    assert.match(
      vswitch.port('s').lastError!,
      /^what comes is no frame, it begins with a length of 0 or of more/,
    );
  }
  // The first time the program opens what it keeps.
  assert.equal(new Set(fds.slice(1)).size, 1, `${fds.join(', ')} descriptors`);
  const peer = await Peer.dial(path('s'));
  await up(vswitch);
  assert.equal(vswitch.port('s').lastError, null);
  // Too short for addresses: passed over.
  peer.socket.write(Buffer.concat([framed(Buffer.alloc(13)), framed(frame(BROADCAST, mac(2)))]));
  const came = await until(() => device.receive(), 'a frame comes');
  assert.ok(frame(BROADCAST, mac(2)).equals(came));
  peer.socket.destroy();
});
