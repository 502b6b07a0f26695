/**
 * An I/O thread that ends by itself: its ports say so, go on with another thread where they can, and can be removed.
 * What it sleeps in is taken from it, so that a system call of it fails.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { closeSync, openSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { describe, type TestContext, test } from 'node:test';
import { createSwitch, type PortSpec, type Switch } from '../../src/index.ts';
import { openFds } from '../../src/sys/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { cable, macOf, ping } from '../support/cable.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { ip, ownNetwork } from '../support/network.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

/** The descriptor of the epoll that an I/O thread of this process sleeps in: it watches its wake-up by this tag. */
function sleepsIn(): number {
  for (const name of readdirSync('/proc/self/fd')) {
    try {
      if (!readlinkSync(`/proc/self/fd/${name}`).includes('eventpoll')) continue;
      if (/data: +ffffffff/.test(readFileSync(`/proc/self/fdinfo/${name}`, 'utf8'))) return Number(name);
    } catch {
      // It was closed meanwhile: the directory's own.
    }
  }
  throw new Error('there is no I/O thread');
}

/** Ends an I/O thread: its next wait is for what is no epoll. */
function endThread(): void {
  const fd = sleepsIn();
  closeSync(fd);
  const opened: number[] = [];
  do opened.push(openSync('/dev/null', 'r'));
  while (opened.at(-1) !== fd);
  for (const other of opened) if (other !== fd) closeSync(other);
}

const upOf = (vswitch: Switch, name: string) => {
  const { state, queues } = vswitch.port(name);
  return state === 'up' && queues.every(({ enabled }) => enabled);
};

/** What a switch tells of its ports, in order. */
function listen(vswitch: Switch): string[] {
  const told: string[] = [];
  vswitch.on('portError', ({ port, error }) => void told.push(`${port} error: ${error}`));
  vswitch.on('guestDown', ({ port, reason }) => void told.push(`${port} down: ${reason}`));
  vswitch.on('guestUp', ({ port }) => void told.push(`${port} up`));
  return told;
}

async function dial(t: TestContext, path: string): Promise<Socket> {
  const socket = createConnection(path);
  t.after(() => socket.destroy());
  socket.on('error', () => {});
  await once(socket, 'connect');
  return socket;
}

const framed = (bytes: Buffer): Buffer => {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
};

const GONE = /^I\/O thread 0 has ended: epoll_wait\(/;

test('the ports of a thread that ends say so, go on with another one, and can be removed', async (t) => {
  const path = sockets(t);
  const before = openFds();
  await using vswitch = await createSwitch({
    bridges: [{ name: 'two' }],
    ports: [
      { name: 'a', type: 'vhost-user', target: path('a') },
      { name: 'b', type: 'vhost-user', target: path('b'), bridge: 'two' },
      { name: 'p1', type: 'patch', target: 'p2' },
      { name: 'p2', type: 'patch', target: 'p1', bridge: 'two' },
      { name: 's', type: 'stream', target: path('s') },
      { name: 'c', type: 'pcap', target: path('c'), mode: 'write' },
    ],
  });
  vswitch.on('error', (error) => assert.fail(error));
  const told = listen(vswitch);
  await using a = await VirtioUser.open({ path: path('a') });
  await using b = await VirtioUser.open({ path: path('b') });
  let peer = await dial(t, path('s'));
  const ports = ['p1', 'p2', 's', 'c'];
  await until(() => ports.every((name) => upOf(vswitch, name)), 'all ports are up');
  const crosses = async (number: number) => {
    const bytes = frame(BROADCAST, mac(1), 60, number);
    assert.equal(a.send(bytes), true);
    await until(() => {
      const came = b.receive();
      return came !== undefined && bytes.equals(came);
    }, 'a frame crosses the patch');
  };
  await crosses(1);
  told.length = 0;

  endThread();
  const ended = once(peer, 'close');
  peer.resume();
  await until(() => told.filter((line) => line.includes('down:')).length === 4, 'all ports are down');
  for (const name of ports) {
    const [, reason] = told.find((line) => line.startsWith(`${name} down: `))!.split('down: ');
    assert.match(reason!, name === 'c' ? /the file takes no more/ : GONE);
    const [, error] = told.find((line) => line.startsWith(`${name} error: `))!.split('error: ');
    assert.match(name === 'c' ? error!.replace(`${path('c')}: `, '') : error!, GONE);
  }
  assert.match(vswitch.port('p1').lastError!, GONE);
  await ended;
  await until(() => upOf(vswitch, 'p1') && upOf(vswitch, 'p2'), 'the patch is up again');
  assert.deepEqual(
    ['p1', 'p2'].map((name) => vswitch.port(name).lastError),
    [null, null],
  );
  await crosses(2);
  peer = await dial(t, path('s'));
  await until(() => upOf(vswitch, 's'), 'the stream is up again');
  const sent = frame(BROADCAST, mac(2), 60, 3);
  peer.write(framed(sent));
  assert.ok(sent.equals(await until(() => a.receive(), 'a frame comes by the stream')));
  assert.equal(vswitch.port('c').state, 'failed');

  // While they are down, and while nobody has noticed.
  endThread();
  await until(() => vswitch.port('p1').state === 'down', 'the patch is down');
  await vswitch.removePort('p1');
  await vswitch.addPort({ name: 'p1', type: 'patch', target: 'p2' });
  await until(() => upOf(vswitch, 'p1') && upOf(vswitch, 'p2'), 'the patch is up again');
  await crosses(4);
  endThread();
  for (const name of ports) await vswitch.removePort(name);
  peer.destroy();
  await a.close();
  await b.close();
  await vswitch.close();
  await until(() => openFds() <= before + 1, 'descriptors are as many as before');
});

/** Pings are answered, more in all than the rings of the kernel have slots: some that are lost would stop them. */
async function answers(device: VirtioUser, to: Buffer, count = 1500, window = 32): Promise<void> {
  let sent = 0;
  for (let came = 0; came < count; ) {
    for (; sent < count && sent - came < window; sent++) device.send(ping(to, sent));
    came += await until(() => {
      const burst = device.receiveBurst();
      return burst.length > 0 && burst.filter((bytes) => bytes[23] === 1 && bytes[34] === 0).length;
    }, `answer ${came} comes`);
  }
}

describe('with the kernel at the other end', { skip: ownNetwork() }, () => {
  const uplinks: [string, Partial<PortSpec>][] = [
    ['a packet socket', { type: 'af-packet' }],
    ['AF_XDP', { type: 'af-xdp' }],
  ];
  for (const [name, fields] of uplinks) {
    test(`${name} and a TAP go on where they were`, async (t) => {
      const there = await cable(t);
      const path = sockets(t);
      await using vswitch = await createSwitch({
        ports: [
          { name: 'a', type: 'vhost-user', target: path('a') },
          { name: 'up', target: 'veth0', ...fields } as PortSpec,
          { name: 'host', type: 'tap', target: 'vt0' },
        ],
      });
      const told = listen(vswitch);
      const ready = () => until(() => upOf(vswitch, 'up') && upOf(vswitch, 'host'), 'both are up');
      await ready();
      await using device = await VirtioUser.open({ path: path('a') });
      const index = ip('link show vt0').split(':')[0];
      for (let round = 0; round < 3; round++) {
        await answers(device, macOf(there));
        if (round === 2) break;
        told.length = 0;
        endThread();
        await until(() => told.filter((line) => line.includes('down:')).length === 2, 'both are down');
        await ready();
      }
      assert.equal(ip('link show vt0').split(':')[0], index, 'the TAP is the same');
      assert.equal(vswitch.port('up').connections, 1);
      await vswitch.removePort('up');
      ip('link del veth0');
    });
  }
});
