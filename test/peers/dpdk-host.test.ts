/**
 * A DPDK guest and the host's kernel across the switch, behind a TAP and behind a packet socket on a cable: what a
 * socket sends comes back from testpmd as it was, what testpmd sends comes to a socket, as many as were sent.
 */
import assert from 'node:assert/strict';
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { describe, type TestContext, test } from 'node:test';
import { createSwitch, type Switch } from '../../src/index.ts';
import { ip, ownNetwork } from '../support/network.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';
import { skipWithout } from './available.ts';
import { Testpmd, virtioUser } from './dpdk.ts';
import { sleep } from './process.ts';

const [KERNEL, GUEST] = ['10.0.0.1', '10.0.0.2'];
const GUEST_MAC = '02:00:00:00:00:02';
/** Of IPv4 and UDP; and with Ethernet's. */
const HEADERS = 28;
const MTU = 9000;
/** Ports of UDP: that testpmd sends to, and that it sends from. */
const [SINK, SOURCE] = [5001, 4000];
/** Frames under way at a time, usual ones and long ones: no queue on the way is as short, nor a socket's buffer. */
const [WINDOW, LONG_WINDOW] = [32, 8];

/** The interface that the kernel has as its end, and what is to be there before the switch. */
const HOSTS = {
  tap: { interface: 'vt0', target: 'vt0', cable: false },
  'af-packet': { interface: 'veth1', target: 'veth0', cable: true },
} as const;

describe('a DPDK guest and the kernel', { skip: ownNetwork() || skipWithout('dpdk') }, () => {
  for (const type of ['tap', 'af-packet'] as const) {
    const host = HOSTS[type];
    test(`behind a port of ${type}: each datagram comes back as it was, and all that are sent come`, async (t) => {
      const path = sockets(t);
      if (host.cable) {
        ip('link add veth0 type veth peer name veth1');
        t.after(() => ip('link del veth0'));
        for (const name of ['veth0', 'veth1']) {
          quieten(name);
          ip(`link set ${name} mtu ${MTU} up`);
        }
      }
      await using vswitch = await createSwitch({
        ports: [
          { name: 'guest', type: 'vhost-user', target: path('guest') },
          { name: 'host', type, target: host.target },
        ],
      });
      await until(() => vswitch.port('host').state === 'up', 'the interface is up');
      if (!host.cable) {
        quieten(host.interface);
        ip(`link set ${host.interface} mtu ${MTU}`);
      }
      ip(`addr add ${KERNEL}/24 dev ${host.interface}`);
      ip(`neigh replace ${GUEST} lladdr ${GUEST_MAC} dev ${host.interface}`);
      await using pmd = await Testpmd.start({
        vdevs: [virtioUser(0, { path: path('guest'), mac: GUEST_MAC })],
        args: [
          ...['--forward-mode=5tswap', '--port-topology=loop', `--tx-ip=${GUEST},${KERNEL}`],
          ...[`--tx-udp=${SOURCE},${SINK}`, `--eth-peer=0,${macOf(host.interface)}`],
        ],
      });
      await until(() => vswitch.port('guest').state === 'up', 'the guest is up');
      await pmd.command('start');
      // From the shortest frame to the longest, and the longest beyond a usual wire's.
      await echo(t, vswitch, { count: 2000, least: 18, most: 1500 - HEADERS, window: WINDOW });
      const longer = { least: 1500 - HEADERS + 1, most: MTU - HEADERS };
      await echo(t, vswitch, { count: 500, ...longer, window: LONG_WINDOW });
      await pmd.command('stop');
      await sendMany(t, pmd, vswitch);
    });
  }
});

/** The kernel says nothing there by itself. */
function quieten(name: string): void {
  writeFileSync(`/proc/sys/net/ipv6/conf/${name}/disable_ipv6`, '1');
}

const macOf = (name: string) => /link\/ether (\S+)/.exec(ip(`link show ${name}`))![1];

async function listen(t: TestContext, port: number): Promise<Socket> {
  const socket = createSocket('udp4');
  t.after(() => socket.close());
  socket.bind(port, KERNEL);
  await once(socket, 'listening');
  socket.setRecvBufferSize(1 << 20);
  return socket;
}

/** A datagram that tells its number, and each place in it. */
function numbered(number: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let i = 4; i < length; i++) bytes[i] = (i * 31 + (i >>> 8) * 7 + number * 101) & 255;
  bytes.writeUInt32BE(number, 0);
  return bytes;
}

/** Sends datagrams with as many bytes, and gets each back once. The switch counts as many, each way. */
async function echo(
  t: TestContext,
  vswitch: Switch,
  { count, least, most, window }: { count: number; least: number; most: number; window: number },
): Promise<void> {
  const socket = await listen(t, 0);
  const lengthOf = (number: number) => least + Math.floor((number * (most - least)) / (count - 1));
  const missing = new Set(Array(count).keys());
  const wrong: string[] = [];
  socket.on('message', (bytes, { address, port }) => {
    const number = bytes.readUInt32BE(0);
    const right = bytes.equals(numbered(number, lengthOf(number))) && address === GUEST && port === 7;
    if (!right || !missing.delete(number)) wrong.push(`${number} of ${bytes.length} bytes`);
  });
  const before = counts(vswitch);
  for (let sent = 0; sent < count; sent++) {
    if (sent - (count - missing.size) >= window)
      await until(() => sent - (count - missing.size) < window, `${missing.size} come back`);
    socket.send(numbered(sent, lengthOf(sent)), 7, GUEST);
  }
  await until(() => missing.size === 0, 'all come back');
  // One that comes twice would come now.
  await sleep(50);
  assert.deepEqual(wrong, []);
  assert.deepEqual(counts(vswitch), { host: before.host + count, guest: before.guest + count });
  for (const name of ['host', 'guest']) assert.deepEqual(vswitch.port(name).drops, {});
}

/** Frames for one station that came from each port. */
function counts(vswitch: Switch): { host: number; guest: number } {
  const of = (name: string) =>
    vswitch.port(name).queues.find(({ direction }) => direction === 'rx')!.casts.unicast;
  return { host: of('host'), guest: of('guest') };
}

/** Bursts of testpmd's own frames: a socket gets as many as it has sent, as long as they were. */
async function sendMany(t: TestContext, pmd: Testpmd, vswitch: Switch): Promise<void> {
  const socket = await listen(t, SINK);
  let lengths: number[] = [];
  socket.on('message', ({ length }, { port }) => lengths.push(port === SOURCE ? length : 0));
  await pmd.command('clear port stats all');
  const before = counts(vswitch).guest;
  let total = 0;
  // Lengths of the pieces that a frame is made of.
  for (const [pieces, burst, times] of [
    [[64], WINDOW, 8],
    [[1514], WINDOW, 4],
    [[2000, 2000, 2000, 2000], LONG_WINDOW, 8],
  ] as const) {
    await pmd.command(`set burst ${burst}`);
    await pmd.command(`set txpkts ${pieces}`);
    for (let i = 0; i < times; i++) {
      lengths = [];
      await pmd.command('start tx_first 1');
      await until(() => lengths.length >= burst, `${burst} frames of ${pieces}`);
      await pmd.command('stop');
      const whole = pieces.reduce((sum, length) => sum + length, 0);
      assert.deepEqual(lengths, Array(burst).fill(whole - 14 - HEADERS));
      total += burst;
    }
  }
  assert.equal((await pmd.stats())[0]!.txPackets, total);
  assert.equal(counts(vswitch).guest - before, total);
}
