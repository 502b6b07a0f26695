/** Datagram ports against sockets of the kernel, of UDP and of the unix domain. */
import assert from 'node:assert/strict';
import { existsSync, rmSync } from 'node:fs';
import { test } from 'node:test';
import { createSwitch, type PortSpec, parsePortSpec, type Switch } from '../../src/index.ts';
import {
  closeFd,
  connectDatagrams,
  openFds,
  readNow,
  udpSocket,
  unixDatagramSocket,
  writeNow,
} from '../../src/sys/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

const dgram = (target: string, remote?: string): PortSpec => ({
  ...{ name: 'd', type: 'dgram', target },
  ...(remote !== undefined && { remote }),
});
const up = (vswitch: Switch) =>
  until(() => vswitch.port('d').state === 'up' && vswitch.port('d').queues[0]!.enabled, 'it is up');

/** What waits on a socket; undefined: nothing. */
function receive(fd: number): Buffer | undefined {
  const bytes = Buffer.alloc(65_536);
  try {
    return bytes.subarray(0, readNow(fd, bytes));
  } catch {
    return undefined;
  }
}

/** Frames of many sizes, one after the other, both ways. */
async function exchange(device: VirtioUser, fd: number, largest: number): Promise<void> {
  while (receive(fd));
  while (device.receive());
  for (let size = 14; size <= largest; size += size < 1500 ? 93 : 8000) {
    const [out, back] = [frame(mac(2), mac(1), size, 1), frame(mac(1), mac(2), size, 2)];
    device.send(out);
    await until(() => receive(fd)?.equals(out), `${size} bytes come from the switch`);
    writeNow(fd, back);
    await until(() => {
      const came = device.receive();
      return came !== undefined && back.equals(came);
    }, `${size} bytes come from the socket`);
  }
}

test('frames cross both ways between two addresses, over IPv4 and IPv6', async (t) => {
  const path = sockets(t);
  for (const host of ['127.0.0.1', '::1']) {
    const at = (port: number) => (host === '::1' ? `[::1]:${port}` : `127.0.0.1:${port}`);
    await using vswitch = await createSwitch({
      ports: [{ name: 'a', type: 'vhost-user', target: path('a') }, dgram(at(41_801), at(41_802))],
    });
    const fd = udpSocket({ address: host, port: 41_802 }, { address: host, port: 41_801 });
    await up(vswitch);
    await using device = await VirtioUser.open({ path: path('a') });
    await exchange(device, fd, 1514);
    // Somebody else's: the kernel keeps them.
    const other = udpSocket({ address: host, port: 41_803 }, { address: host, port: 41_801 });
    const before = vswitch.port('d').rxPackets;
    writeNow(other, frame(BROADCAST, mac(9)));
    await exchange(device, fd, 14);
    assert.equal(vswitch.port('d').rxPackets, before + 1);
    closeFd(other);
    closeFd(fd);
  }
});

test('a unix socket: finds the other end, and again when it is back', async (t) => {
  const path = sockets(t);
  await using vswitch = await createSwitch({
    ports: [{ name: 'a', type: 'vhost-user', target: path('a') }, dgram(path('ours'), path('theirs'))],
  });
  assert.equal(vswitch.port('d').state, 'dialing');
  await using device = await VirtioUser.open({ path: path('a') });
  let fds = 0;
  for (let time = 1; time <= 2; time++) {
    const fd = unixDatagramSocket(path('theirs'));
    connectDatagrams(fd, path('ours'));
    await up(vswitch);
    assert.equal(vswitch.port('d').connections, time);
    await exchange(device, fd, 65_550);
    // No frames: dropped and counted.
    writeNow(fd, Buffer.alloc(13));
    await until(() => vswitch.port('d').drops.noFrame === time, 'what is none is counted');
    closeFd(fd);
    rmSync(path('theirs'));
    await until(() => vswitch.port('d').state === 'dialing', 'it notices that nobody is there');
    if (time === 1) fds = openFds();
    else assert.equal(openFds(), fds);
  }
  await vswitch.removePort('d');
  assert.ok(!existsSync(path('ours')));
});

test('without a remote the first that sends is the other end, and another one after it', async (t) => {
  const path = sockets(t);
  await using vswitch = await createSwitch({
    ports: [{ name: 'a', type: 'vhost-user', target: path('a') }, dgram(path('ours'))],
  });
  await using device = await VirtioUser.open({ path: path('a') });
  for (const name of ['one', 'two']) {
    await until(() => vswitch.port('d').state === 'listening', 'it waits');
    const fd = unixDatagramSocket(path(name));
    connectDatagrams(fd, path('ours'));
    // As vfkit and libkrun begin.
    writeNow(fd, Buffer.from('VFKT'));
    await up(vswitch);
    await exchange(device, fd, 1514);
    closeFd(fd);
    rmSync(path(name));
  }
});

test('says what is wrong with its addresses', async (t) => {
  const path = sockets(t);
  for (const [line, error] of [
    ['d=dgram:127.0.0.1:5000', /remote: expected the address and port of the other side/],
    ['d=dgram:127.0.0.1:5000,remote=/tmp/x', /remote: expected a socket of the same family/],
    ['d=dgram:127.0.0.1:5000,remote=[::1]:5000', /remote: expected a socket of the same family/],
    ['d=dgram:127.0.0.1', /target: expected the path of a unix socket, or an IP address and a port/],
    ['d=dgram:', /target: expected the path of a unix socket/],
  ] as const)
    assert.throws(() => parsePortSpec(line), error);
  await using vswitch = await createSwitch({ ports: [dgram(path('ours'))] });
  await assert.rejects(
    vswitch.addPort({ ...dgram(path('ours')), name: 'e' }),
    /port d has .*ours\.sock already/,
  );
});
