/** Packet socket ports: a veth pair into a network namespace, whose kernel is the peer. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { createSwitch, type PortSpec, type Switch } from '../../src/index.ts';
import { openFds } from '../../src/sys/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { answer, cable, macOf, ping, plug } from '../support/cable.ts';
import { frame, mac } from '../support/ethernet.ts';
import { frameOf, layout, type Segment } from '../support/ip.ts';
import { ip, ownNetwork } from '../support/network.ts';
import { sockets } from '../support/sockets.ts';
import { crossWhole, endIn } from '../support/tcp.ts';
import { Traffic } from '../support/traffic.ts';
import { until } from '../support/until.ts';

const MEGABYTES = 20;

const uplink = (queues = 1): PortSpec => ({ name: 'up', type: 'af-packet', target: 'veth0', queues });
const isUp = (vswitch: Switch, name = 'up') =>
  until(() => vswitch.port(name).state === 'up' && vswitch.port(name).queues[0]!.enabled, `${name} is up`);

describe('a packet socket port', { skip: ownNetwork() }, () => {
  for (const queues of [1, 3]) {
    test(`pings the kernel behind the cable, with ${queues} sockets`, async (t) => {
      const there = await cable(t);
      const path = sockets(t);
      await using vswitch = await createSwitch({
        workers: 2,
        ports: [{ name: 'a', type: 'vhost-user', target: path('a') }, uplink(queues)],
      });
      await isUp(vswitch);
      await using device = await VirtioUser.open({ path: path('a') });
      for (const [i, bytes] of [18, 56, 1400].entries()) await answer(device, ping(macOf(there), i, bytes));
      assert.match(ip('-d link show veth0'), /promiscuity [1-9]/);
      ip('link del veth0');
    });
  }

  test('keeps VLAN tags, single and double, and what is left undone behind them', async (t) => {
    ip('link add veth0 type veth peer name veth1');
    for (const name of ['veth0', 'veth1']) ip(`link set ${name} up`);
    const path = sockets(t);
    const side = (name: string) =>
      createSwitch({
        ports: [
          { name: 'a', type: 'vhost-user', target: path(name) },
          { ...uplink(), target: name },
        ],
      });
    await using one = await side('veth0');
    await using other = await side('veth1');
    await Promise.all([isUp(one), isUp(other)]);
    await using here = await VirtioUser.open({ path: path('veth0'), offloads: true });
    await using there = await VirtioUser.open({ path: path('veth1'), offloads: true });
    const tags = [[], [0x81, 0, 0xe0, 7], [0x88, 0xa8, 0, 9], [0x88, 0xa8, 0, 9, 0x81, 0, 0, 7]];
    for (const [from, to] of [
      [here, there],
      [there, here],
    ] as const) {
      for (const [i, tag] of tags.entries()) {
        const plain = frame(mac(20 + i), mac(10 + i), 200);
        const tagged = Buffer.concat([plain.subarray(0, 12), Buffer.from(tag), plain.subarray(12)]);
        from.send(tagged);
        await until(() => {
          const came = to.receive();
          return came !== undefined && tagged.equals(came);
        }, `the frame comes, tagged with ${tag}`);
      }
      const segment: Segment = { version: 4, protocol: 'udp', vlan: 7, payload: Buffer.alloc(300, 'x') };
      const { transport, field } = layout(segment);
      const offload = { csumStart: transport, csumOffset: field };
      const partial = frameOf(mac(31), mac(30), segment, true);
      from.send(partial, offload);
      await until(() => {
        const came = to.receive();
        return came !== undefined && partial.equals(came);
      }, 'the frame with a partial checksum comes');
      assert.deepEqual(to.received, offload);
    }
    ip('link del veth0');
  });

  test('TCP crosses in large segments both ways', async (t) => {
    const there = await cable(t);
    await using vswitch = await createSwitch({
      ports: [uplink(), { name: 'host', type: 'tap', target: 'vt0' }],
    });
    await isUp(vswitch);
    await isUp(vswitch, 'host');
    const address = '10.0.0.3';
    ip(`addr add ${address}/24 dev vt0`);
    await crossWhole(t, address, MEGABYTES << 20, endIn(there, address, MEGABYTES << 20));
    for (const { sizes, direction } of vswitch.port('up').queues)
      assert.ok(sizes.size1519ToMax > 50, `${direction}: ${sizes.size1519ToMax} large segments`);
    ip('link del veth0');
  });

  test('an interface that goes away under traffic, and comes back', async (t) => {
    const there = await cable(t);
    const path = sockets(t);
    await using vswitch = await createSwitch({
      ports: [
        ...['a', 'b', 'c'].map((name) => ({ name, type: 'vhost-user' as const, target: path(name) })),
        uplink(),
      ],
    });
    const traffic = await Traffic.start({ path: path('a') }, { path: path('b') });
    await isUp(vswitch);
    await using device = await VirtioUser.open({ path: path('c') });
    await answer(device, ping(macOf(there), 1));
    const fds = openFds();
    const to = macOf(there);
    const pouring = setInterval(() => {
      for (let i = 0; i < 16; i++) device.send(ping(to, i));
      while (device.receive());
    }, 1);
    t.after(() => clearInterval(pouring));
    await until(() => vswitch.port('up').rxPackets > 500, 'frames flow');
    ip('link del veth0');
    await until(() => vswitch.port('up').state === 'failed', 'the port has noticed');
    assert.match(vswitch.port('up').lastError!, /^interface veth0: it is gone; the port goes on/);
    await traffic.flows();
    clearInterval(pouring);
    plug(there);
    await isUp(vswitch);
    assert.equal(vswitch.port('up').lastError, null);
    await answer(device, ping(macOf(there), 2));
    assert.equal(openFds(), fds);
    ip('link set veth0 down');
    await until(() => vswitch.port('up').state === 'down', 'the port is down');
    await traffic.stop();
    ip('link del veth0');
  });

  test('says that an interface is missing', async () => {
    await using vswitch = await createSwitch({});
    await assert.rejects(vswitch.addPort(uplink()), /port up: there is no interface veth0: `ip link` lists/);
  });
});
