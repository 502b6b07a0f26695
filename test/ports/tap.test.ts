/** TAP ports: the kernel's own network stack behind a port, in a network namespace that this test makes. */
import assert from 'node:assert/strict';
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, type TestContext, test } from 'node:test';
import { createSwitch, type Switch } from '../../src/index.ts';
import { openFds } from '../../src/sys/index.ts';
import type { Offload } from '../../src/virtio/net-header.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { root } from '../peers/available.ts';
import { Child } from '../peers/process.ts';
import { mac, macText } from '../support/ethernet.ts';
import { faults, frameOf, type Segment } from '../support/ip.ts';
import { ip, ownNetwork } from '../support/network.ts';
import { sockets } from '../support/sockets.ts';
import { Traffic } from '../support/traffic.ts';
import { until } from '../support/until.ts';

const program = join(root, 'dist/src/cli/main.js');

/** The addresses of the frames of support/ip.ts, and theirs of Ethernet. */
const HERE = '10.1.2.3';
const KERNEL = '10.4.5.6';
const here = mac(1);
const DATAGRAM: Segment = { version: 4, protocol: 'udp', payload: Buffer.from('hello from a guest') };

const guest = (name: string, target: string) => ({ name, type: 'vhost-user' as const, target });
const tap = (target: string, queues = 1) => ({ name: target, type: 'tap' as const, target, queues });
const up = (vswitch: Switch, name: string) =>
  until(() => vswitch.port(name).state === 'up' && vswitch.port(name).rings !== '', `${name} is up`);
const addressOf = (name: string): Buffer =>
  Buffer.from(/link\/ether (\S+)/.exec(ip(`link show ${name}`))![1]!.replaceAll(':', ''), 'hex');

/** Gives an interface the address that the frames go to, and lets the kernel know where they come from. */
function configure(name: string): void {
  ip(`addr add ${KERNEL}/8 dev ${name}`);
  ip(`neigh replace ${HERE} lladdr ${macText(here)} dev ${name}`);
}

async function listen(t: TestContext, port = 80): Promise<Socket> {
  const socket = createSocket('udp4');
  socket.bind(port, KERNEL);
  await once(socket, 'listening');
  t.after(() => socket.close());
  return socket;
}

/** The next frame of UDP; others are the kernel's own talk. */
async function receive(device: VirtioUser): Promise<{ frame: Buffer; offload: Offload | undefined }> {
  for (;;) {
    const bytes = device.receive();
    if (bytes === undefined) {
      assert.ok(await device.wait(20_000), 'a frame comes');
    } else if (bytes[12] === 8 && bytes[13] === 0 && bytes[23] === 17) {
      return { frame: Buffer.from(bytes), offload: device.received };
    }
  }
}

describe('a TAP port', { skip: ownNetwork() }, () => {
  for (const offloads of [false, true]) {
    test(`has datagrams both ways, the guest ${offloads ? 'leaves checksums to others' : 'does it all'}`, async (t) => {
      const path = sockets(t);
      await using vswitch = await createSwitch({ ports: [guest('a', path('a')), tap('vt0')] });
      await up(vswitch, 'vt0');
      configure('vt0');
      await using device = await VirtioUser.open({ path: path('a'), offloads });
      const socket = await listen(t);
      for (const length of [18, 1400]) {
        const segment = { ...DATAGRAM, payload: Buffer.alloc(length, 'abc') };
        const came = once(socket, 'message');
        const sent = frameOf(addressOf('vt0'), here, segment, offloads);
        device.send(sent, offloads ? { csumStart: 34, csumOffset: 6 } : undefined);
        const [message, { address }] = (await came) as [Buffer, { address: string }];
        assert.deepEqual([message, address], [segment.payload, HERE]);

        socket.send(segment.payload, 1234, HERE);
        const { frame, offload } = await receive(device);
        assert.deepEqual(frame.subarray(42), segment.payload);
        assert.equal(offload !== undefined, offloads, 'the kernel leaves the checksum to who takes that');
        if (!offloads) assert.deepEqual(faults(frame, segment), []);
      }
      assert.equal(vswitch.port('vt0').rxDrops + vswitch.port('vt0').txDrops, 0);
    });
  }

  test('takes a large frame of datagrams whole, which the kernel cuts', async (t) => {
    const path = sockets(t);
    await using vswitch = await createSwitch({ ports: [guest('a', path('a')), tap('vt0')] });
    await up(vswitch, 'vt0');
    if (!vswitch.port('vt0').features.acknowledged.includes('VIRTIO_NET_F_GUEST_USO4'))
      return t.skip('this kernel has no UDP segmentation for TAPs');
    configure('vt0');
    await using device = await VirtioUser.open({ path: path('a'), offloads: true });
    const socket = await listen(t);
    const messages: Buffer[] = [];
    socket.on('message', (message) => messages.push(message));
    const segment = { ...DATAGRAM, payload: Buffer.alloc(40 * 1000, 'abcdefg') };
    const gso = { type: 'udpL4' as const, size: 1000 };
    device.send(frameOf(addressOf('vt0'), here, segment, true), { csumStart: 34, csumOffset: 6, gso });
    await until(() => messages.length === 40, 'all datagrams of it have come');
    assert.deepEqual(Buffer.concat(messages), segment.payload);
    assert.equal(vswitch.port('vt0').queues[0]!.sizes.size1519ToMax, 1, 'it crossed as one frame');
  });

  test('follows the state of the interface, and an interface that is deleted and comes back', async (t) => {
    const path = sockets(t);
    await using vswitch = await createSwitch({
      workers: 2,
      ports: [guest('a', path('a')), guest('b', path('b')), guest('c', path('c')), tap('vt0')],
    });
    const events: string[] = [];
    vswitch.on('guestDown', ({ port, reason }) => events.push(`${port} down: ${reason}`));
    vswitch.on('portError', ({ port, error }) => events.push(`${port}: ${error}`));
    const traffic = await Traffic.start({ path: path('a') }, { path: path('b') });
    await using device = await VirtioUser.open({ path: path('c') });
    await up(vswitch, 'vt0');

    ip('link set vt0 down');
    await until(() => vswitch.port('vt0').state === 'down', 'the port is down');
    await until(() => !vswitch.port('vt0').queues[0]!.enabled, 'and takes no frames');
    ip('link set vt0 up');
    await up(vswitch, 'vt0');
    configure('vt0');
    const socket = await listen(t);

    // Frames in both directions while it goes; none for others, whose rings would fill.
    const kernel = addressOf('vt0');
    socket.send('x', 1234, HERE);
    await receive(device);
    const pouring = setInterval(() => {
      for (let i = 0; i < 32; i++) device.send(frameOf(kernel, here, DATAGRAM, false));
      while (device.receive());
      socket.send('x', 1234, HERE, () => {});
    }, 1);
    t.after(() => clearInterval(pouring));
    await until(() => vswitch.port('vt0').txPackets > 500, 'frames flow');
    ip('link del vt0');
    await until(() => vswitch.port('vt0').state === 'failed', 'the port has noticed');
    assert.match(vswitch.port('vt0').lastError!, /^interface vt0: it was deleted; the port goes on with it/);
    await traffic.flows();
    ip('tuntap add dev vt0 mode tap');
    ip('link set vt0 up');
    await until(() => vswitch.port('vt0').state === 'up', 'the port goes on with the new one');
    assert.equal(vswitch.port('vt0').lastError, null);
    assert.equal(vswitch.port('vt0').connections, 2);
    const before = vswitch.port('vt0').txPackets;
    await until(() => vswitch.port('vt0').txPackets > before + 500, 'frames flow again');
    clearInterval(pouring);
    await traffic.stop();
    assert.deepEqual(events.slice(0, 3), [
      'vt0 down: interface vt0 is down',
      'vt0: interface vt0: it was deleted; the port goes on with it when it is back',
      'vt0 down: interface vt0 is gone',
    ]);
    await vswitch.removePort('vt0');
    ip('link del vt0');
  });

  test('with several queues has each flow on one, and all of them in use', async (t) => {
    const path = sockets(t);
    await using vswitch = await createSwitch({ workers: 2, ports: [guest('a', path('a')), tap('vt0', 4)] });
    await up(vswitch, 'vt0');
    assert.match(ip('-d link show vt0'), /numtxqueues 4|multi_queue/);
    configure('vt0');
    await using device = await VirtioUser.open({ path: path('a') });
    const socket = await listen(t);
    const kernel = addressOf('vt0');
    const counts = new Map<number, string[]>();
    socket.on('message', (message, { port }) =>
      counts.set(port, [...(counts.get(port) ?? []), String(message)]),
    );
    for (let n = 0; n < 20; n++) {
      for (let port = 1; port <= 32; port++) {
        const bytes = frameOf(kernel, here, { ...DATAGRAM, payload: Buffer.from(`${n}`) }, true);
        bytes.writeUInt16BE(port, 34);
        bytes.writeUInt16BE(0, 40);
        assert.ok(device.send(bytes));
      }
      await until(() => counts.get(32)?.length === n + 1, 'a round has come');
    }
    await until(() => [...counts.values()].flat().length === 640, 'all have come');
    for (const messages of counts.values())
      assert.deepEqual(
        messages,
        Array.from({ length: 20 }, (_, n) => `${n}`),
        'in order',
      );
    const queues = vswitch.port('vt0').queues.filter(({ direction }) => direction === 'tx');
    assert.equal(queues.length, 4);
    for (const { packets } of queues) assert.ok(packets > 0);
    // The kernel answers a flow on the queue that it came from.
    for (let port = 1; port <= 32; port++) socket.send('back', port, HERE);
    for (let i = 0; i < 32; i++) await receive(device);
    const back = vswitch
      .port('vt0')
      .queues.filter(({ direction, packets }) => direction === 'rx' && packets > 0);
    assert.ok(back.length > 1, `${back.length} queues were answered on`);
  });

  test('comes and goes without leaving anything, and without a loss for others', async (t) => {
    const path = sockets(t);
    await using vswitch = await createSwitch({ ports: [guest('a', path('a')), guest('b', path('b'))] });
    const traffic = await Traffic.start({ path: path('a') }, { path: path('b') });
    const round = async (i: number) => {
      await vswitch.addPort(tap(`vt${i}`, 1 + (i % 3)));
      await vswitch.addPort({ name: 'sink', type: 'null', target: '' });
      if (i % 4 > 0) await up(vswitch, `vt${i}`);
      await Promise.all([vswitch.removePort(`vt${i}`), vswitch.removePort('sink')]);
    };
    await round(0);
    const before = openFds();
    const mapped = maps();
    for (let i = 1; i <= 25; i++) await round(i);
    await traffic.flows();
    assert.equal(openFds(), before);
    assert.equal(maps(), mapped);
    assert.doesNotMatch(ip('link show'), /vt\d/, 'what a port made is gone with it');
    await traffic.stop();
  });

  test('says which right is missing, and needs none for an interface that was made for its user', async () => {
    const user = ['--reuid', '65534', '--regid', '65534', '--clear-groups', '--'];
    const run = (...words: string[]) => {
      const control = `/tmp/vireo-tap-${process.pid}.sock`;
      return new Child('setpriv', [...user, process.execPath, program, 'up', '--control', control, ...words]);
    };
    const refused = run('--port', 'host=tap:vt9');
    assert.equal(await refused.exited, 1);
    assert.match(
      refused.output,
      /port host: .*vt9.* CAP_NET_ADMIN, or an interface made for this user before, "ip tuntap add dev vt9 mode tap/,
    );
    ip('tuntap add dev vt9 mode tap user 65534');
    ip('link set vt9 up');
    const accepted = run('--port', 'host=tap:vt9');
    await accepted.waitFor('its port', 20_000, () => accepted.output.includes('host: guest up') || undefined);
    assert.match(accepted.output, /ready: host is interface vt9/);
    await accepted.end();
    assert.match(ip('link show vt9'), /vt9/, 'a persistent interface stays');
    ip('link del vt9');
  });

  test('says what is wrong with an interface that it can not have', async () => {
    await using vswitch = await createSwitch({});
    await assert.rejects(vswitch.addPort(tap('lo')), /port lo: .*lo.*it isn't a TAP that suits/);
    ip('tuntap add dev vt8 mode tap');
    await assert.rejects(
      vswitch.addPort(tap('vt8', 2)),
      /vt8.*it isn't a TAP that suits: "ip tuntap add dev vt8 mode tap .* multi_queue"/,
    );
    await vswitch.addPort(tap('vt8'));
    await assert.rejects(vswitch.addPort({ ...tap('vt8'), name: 'other' }), {
      code: 'BAD_SPEC',
      message: /port vt8 has vt8 already/,
    });
    await using second = await createSwitch({});
    await assert.rejects(second.addPort(tap('vt8')), /vt8.*in use by another program/);
    await vswitch.removePort('vt8');
    ip('link del vt8');
  });
});

/** Mappings of the memory of rings in this process. */
function maps(): number {
  return [...readFileSync('/proc/self/maps', 'utf8').matchAll(/memfd:virtio-user/g)].length;
}
