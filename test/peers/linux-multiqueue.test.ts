/**
 * Two Linux guests with four queue pairs: `ethtool -L` changes how many are used while they talk. And one with as many
 * as a port may have.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { mac } from '../support/ethernet.ts';
import { flowFrame } from '../support/flows.ts';
import { skipWithout } from './available.ts';
import { scratch, until } from './process.ts';
import { LinuxGuest, tcpTransfer } from './qemu.ts';

const QUEUES = 4;
/** Senders of pings: each address is another flow. */
const FLOWS = 40;

test('Linux guests change the number of their queues at run time', {
  skip: skipWithout('qemu', 'guestKernel'),
}, async () => {
  using directory = scratch('linux');
  const at = (name: string) => join(directory.path, name);
  await using vswitch = await createSwitch({
    workers: 2,
    ports: ['a', 'b'].map((name) => ({ name, type: 'vhost-user', target: at(name) })),
  });
  const [a, b] = await Promise.all(
    ['a', 'b'].map((name, i) =>
      LinuxGuest.start({ path: at(name), mac: `52:54:00:00:00:0${i + 1}`, queues: QUEUES, cpus: 2 }),
    ),
  );
  await using from = a!;
  await using to = b!;
  await from.configure('10.0.0.1/24');
  await to.configure('10.0.0.2/24');
  await from.ok(`for i in $(seq 1 ${FLOWS}); do ip addr add 10.0.0.$((100 + i))/24 dev eth0; done`);
  await until('first ping', 60_000, async () => (await from.run('ping -c 1 -W 2 10.0.0.2')).status === 0);

  const choose = async (guest: LinuxGuest, port: string, pairs: number) => {
    // The same number again is an error for some versions of ethtool.
    await guest.run(`ethtool -L eth0 combined ${pairs}`);
    const words = pairs === QUEUES ? `, ${QUEUES} pairs` : `, ${pairs} of ${QUEUES} pairs`;
    await until(`${pairs} queues on port ${port}`, 20_000, () => vswitch.port(port).rings.endsWith(words));
    assert.match(
      await guest.ok('ethtool -l eth0'),
      new RegExp(`Current hardware settings:[^]*Combined:\\s+${pairs}\\b`),
    );
  };
  const toGuest = (port: string) =>
    vswitch
      .port(port)
      .queues.filter((queue) => queue.direction === 'tx')
      .map((queue) => queue.packets);

  for (const pairs of [4, 1, 3, 2, 4]) {
    await choose(from, 'a', pairs);
    await choose(to, 'b', pairs);
    const before = ['a', 'b'].map(toGuest);
    // One after the other: all at once they would fight for the two processors of a slow guest.
    const pings = await from.ok(
      `for i in $(seq 1 ${FLOWS}); do ping -c 2 -i 0.1 -I 10.0.0.$((100 + i)) 10.0.0.2 | grep -q ' 0% packet loss' && echo "ok $i"; done; true`,
      120_000,
    );
    const lossless = new Set([...pings.matchAll(/^ok (\d+)/gm)].map((match) => match[1]));
    assert.equal(lossless.size, FLOWS, pings);
    for (const [i, port] of ['a', 'b'].entries()) {
      const more = toGuest(port).map((packets, queue) => packets - before[i]![queue]!);
      assert.ok(
        more.slice(0, pairs).every((n) => n > 0),
        `each queue of ${port} carries some: ${more}`,
      );
      assert.ok(
        more.slice(pairs).every((n) => n === 0),
        `and no other: ${more}`,
      );
    }
  }

  // A transfer survives changes under way.
  const transfer = tcpTransfer(from, { guest: to, address: '10.0.0.2' }, 20);
  let running = true;
  void transfer
    .finally(() => {
      running = false;
    })
    .catch(() => {});
  await until('the transfer under way', 60_000, () => vswitch.port('a').rxBytes > 2_000_000);
  for (const pairs of [1, 4, 2, 3, 4]) await choose(to, 'b', pairs);
  assert.ok(running || vswitch.port('a').rxBytes > 20_000_000);
  const { sent, received } = await transfer;
  assert.equal(received, sent);
  assert.deepEqual(
    vswitch.ports().map((port) => port.lastError),
    [null, null],
  );
});

/** Pairs that a port may have. */
const MOST = 128;

test(`a Linux guest uses ${MOST} queue pairs, one, and ${MOST} again`, {
  skip: skipWithout('qemu', 'guestKernel'),
}, async () => {
  using directory = scratch('linux');
  const at = (name: string) => join(directory.path, name);
  await using vswitch = await createSwitch({
    workers: 2,
    ports: ['vm', 'peer'].map((name) => ({ name, type: 'vhost-user', target: at(name) })),
  });
  await using guest = await LinuxGuest.start({ path: at('vm'), mac: '52:54:00:00:00:01', queues: MOST });
  await using peer = await VirtioUser.open({ path: at('peer'), queueSize: 1024 });
  await guest.configure('10.0.0.1/24');
  assert.match(await guest.ok('ethtool -l eth0'), new RegExp(`maximums:[^]*Combined:\\s+${MOST}\\b`));
  const me = Buffer.from('525400000001', 'hex');
  // So many that none of the queues is left out by chance.
  const flows = Array.from({ length: 16 * MOST }, (_, i) => flowFrame({
    to: me, from: mac(9), source: '10.0.0.9', destination: '10.0.0.1', protocol: 17, sourcePort: 1000 + i, destinationPort: 9, length: 60,
  })); // biome-ignore format: a table
  const given = () =>
    vswitch
      .port('vm')
      .queues.filter((queue) => queue.direction === 'tx')
      .map((queue) => queue.packets);
  for (const pairs of [MOST, 1, MOST]) {
    await guest.run(`ethtool -L eth0 combined ${pairs}`);
    const words = pairs === MOST ? `, ${MOST} pairs` : `, ${pairs} of ${MOST} pairs`;
    await until(`${pairs} queues`, 120_000, () => vswitch.port('vm').rings.endsWith(words));
    const before = given();
    const drops = vswitch.port('vm').txDrops;
    for (const bytes of flows) await until('room', 60_000, () => peer.send(bytes) || undefined);
    const more = () => given().map((packets, queue) => packets - (before[queue] ?? 0));
    const sum = () => more().reduce((a, b) => a + b, 0) + vswitch.port('vm').txDrops - drops;
    await until('all frames at the guest', 60_000, () => sum() >= flows.length);
    assert.deepEqual(
      more().map((packets) => packets > 0),
      Array.from({ length: MOST }, (_, queue) => queue < pairs),
      `${more()}`,
    );
  }
  assert.equal(vswitch.port('vm').lastError, null);
});
