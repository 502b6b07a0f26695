/** A Linux guest and what passt brings it: DHCP, DNS, and the host's loopback, both ways; and a passt that ends. */
import assert from 'node:assert/strict';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { ip, ownNetwork } from '../support/network.ts';
import { sockets } from '../support/sockets.ts';
import { crossWhole } from '../support/tcp.ts';
import { until } from '../support/until.ts';
import { passtFolder, skipWithout } from './available.ts';
import { scratch } from './process.ts';
import { LinuxGuest } from './qemu.ts';

const MEGABYTES = 5;
const skip = ownNetwork() || skipWithout('qemu', 'guestKernel', 'passt');

/** What udhcpc calls with what it was given. */
const SCRIPT = `#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip route add default via $router
`;

/** Puts passt, on its own C library, where programs are looked for. */
function install(folder: string): void {
  const loader = join(passtFolder, 'ld-linux-x86-64.so.2');
  const program = `#!/bin/sh\nexec ${loader} --library-path ${passtFolder} ${join(passtFolder, 'passt')} "$@"\n`;
  writeFileSync(join(folder, 'passt'), program, { mode: 0o755 });
  process.env.PATH = `${folder}:${process.env.PATH}`;
}

/** Answers each question for an address with 192.0.2.77, on the loopback. */
async function answerNames() {
  const socket = createSocket('udp4', (query, from) => {
    const answer = Buffer.concat([
      query.subarray(0, query.indexOf(0, 12) + 5),
      Buffer.from([0xc0, 12, 0, 1, 0, 1]),
    ]);
    answer.writeUInt16BE(0x8180, 2);
    answer.writeUInt16BE(1, 6);
    answer.fill(0, 8, 12);
    socket.send(
      Buffer.concat([answer, Buffer.from([0, 0, 0, 60, 0, 4, 192, 0, 2, 77])]),
      from.port,
      from.address,
    );
  });
  socket.bind(53, '127.0.0.1');
  await once(socket, 'listening');
  return socket;
}

describe('a user port', { skip }, () => {
  test('gives a guest an address, names and the host, as far as this user reaches', async (t) => {
    const folder = scratch('passt');
    t.after(folder.remove);
    install(folder.path);
    ip('link add veth0 type veth peer name veth1');
    for (const name of ['veth0', 'veth1']) ip(`link set ${name} up`);
    ip('address add 192.0.2.1/24 dev veth0');
    ip('route add default via 192.0.2.254');
    const names = await answerNames();
    t.after(() => names.close());
    const path = sockets(t);
    const options = '--ipv4-only --interface veth0 --dns-forward 192.0.2.253 --dns-host 127.0.0.1';
    await using vswitch = await createSwitch({
      ports: [
        { name: 'vm', type: 'vhost-user', target: path('vm') },
        { name: 'net', type: 'user', target: '', options },
      ],
    });
    const up = () =>
      until(() => vswitch.port('net').state === 'up', `passt is there: ${vswitch.port('net').lastError}`);
    await up();
    await using guest = await LinuxGuest.start({ path: path('vm'), mac: '52:54:00:00:00:01' });
    await guest.ok('ip link set eth0 up');
    await guest.ok(
      `echo ${Buffer.from(SCRIPT).toString('base64')} | base64 -d > /tmp/script; chmod +x /tmp/script`,
    );
    await guest.ok('udhcpc -i eth0 -q -n -t 10 -s /tmp/script');
    assert.match(await guest.ok('ip addr show eth0'), /inet 192\.0\.2\.1\/24/);
    assert.match(await guest.ok('nslookup host.test 192.0.2.253'), /192\.0\.2\.77/);

    await crossWhole(t, '127.0.0.1', MEGABYTES << 20, guest.endTo('192.0.2.254', MEGABYTES));

    const children = readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8').trim().split(' ');
    const passt = children
      .map(Number)
      .find((pid) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('passt'))!;
    process.kill(passt, 'SIGKILL');
    await until(() => vswitch.port('net').connections === 2, 'another passt is there');
    await up();
    await guest.ok('udhcpc -i eth0 -q -n -t 10 -s /bin/true');
    await vswitch.removePort('net');
    assert.doesNotMatch(
      readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8'),
      new RegExp(`\\b${passt}\\b`),
    );
  });

  test('says that passt is missing, and where it can be had', async (t) => {
    const before = process.env.PATH;
    t.after(() => {
      process.env.PATH = before;
    });
    process.env.PATH = '/nowhere';
    await using vswitch = await createSwitch({ ports: [{ name: 'net', type: 'user', target: '' }] });
    await until(() => vswitch.port('net').state === 'failed', 'it has failed');
    assert.equal(vswitch.port('net').lastError, 'passt is not installed: package passt');
  });
});
