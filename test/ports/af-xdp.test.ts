/** AF_XDP ports: a veth pair into a network namespace, whose kernel is the peer. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { createSwitch, type PortSpec, type Switch } from '../../src/index.ts';
import {
  attachProgram,
  closeFd,
  interfaceIndex,
  loadProgram,
  openFds,
  socketMap,
} from '../../src/sys/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { answer, cable, macOf, ping, plug } from '../support/cable.ts';
import { frame, mac } from '../support/ethernet.ts';
import { ip, ownNetwork } from '../support/network.ts';
import { sockets } from '../support/sockets.ts';
import { crossWhole, endIn } from '../support/tcp.ts';
import { Traffic } from '../support/traffic.ts';
import { until } from '../support/until.ts';

const MEGABYTES = 10;
const uplink: PortSpec = { name: 'up', type: 'af-xdp', target: 'veth0' };
const isUp = (vswitch: Switch, name = 'up') =>
  until(() => vswitch.port(name).state === 'up' && vswitch.port(name).queues[0]!.enabled, `${name} is up`);

describe('an AF_XDP port', { skip: ownNetwork() }, () => {
  test('pings the kernel behind the cable, by the driver', async (t) => {
    const there = await cable(t);
    const path = sockets(t);
    await using vswitch = await createSwitch({
      ports: [{ name: 'a', type: 'vhost-user', target: path('a') }, uplink],
    });
    await isUp(vswitch);
    await using device = await VirtioUser.open({ path: path('a') });
    for (const [i, bytes] of [18, 56, 1472].entries()) await answer(device, ping(macOf(there), i, bytes));
    assert.match(vswitch.port('up').note!, /^interface veth0, native XDP, copied by the kernel$/);
    assert.match(ip('-d link show veth0'), /promiscuity [1-9]/);
    assert.match(ip('-d link show veth0'), /prog\/xdp/);
    await vswitch.removePort('up');
    assert.doesNotMatch(ip('-d link show veth0'), /prog\/xdp/);
    ip('link del veth0');
  });

  for (const queues of [1, 3]) {
    test(`frames of all sizes cross as they are, tagged and not, by ${queues} queues`, async (t) => {
      const numbers = `numrxqueues ${queues} numtxqueues ${queues}`;
      ip(`link add veth0 ${numbers} type veth peer name veth1 ${numbers}`);
      // Room for two tags.
      for (const name of ['veth0', 'veth1']) ip(`link set ${name} up mtu 1508`);
      const path = sockets(t);
      const side = (name: string) =>
        createSwitch({
          ports: [
            { name: 'a', type: 'vhost-user', target: path(name) },
            { ...uplink, target: name },
          ],
        });
      await using one = await side('veth0');
      await using other = await side('veth1');
      await Promise.all([isUp(one), isUp(other)]);
      assert.equal(one.port('up').queues.length, 2 * queues);
      await using here = await VirtioUser.open({ path: path('veth0') });
      await using there = await VirtioUser.open({ path: path('veth1') });
      const tags = [[], [0x81, 0, 0xe0, 7], [0x88, 0xa8, 0, 9, 0x81, 0, 0, 7]];
      for (const [from, to] of [
        [here, there],
        [there, here],
      ] as const) {
        const sent = Array.from({ length: 260 }, (_, i) => {
          const size = Math.min(60 + i * 6, 1514);
          const plain = frame(mac(20), mac(from === here ? 10 : 11), size, size);
          return Buffer.concat([plain.subarray(0, 12), Buffer.from(tags[i % 3]!), plain.subarray(12)]);
        });
        const arrived = new Set<number>();
        for (let i = 0, came = 0; came < sent.length; came++) {
          while (i < sent.length && i < came + 64 && from.send(sent[i]!)) i++;
          const bytes = await until(() => {
            const bytes = to.receive();
            // The kernel sends some of its own by a veth.
            return bytes && mac(20).equals(bytes.subarray(0, 6)) ? bytes : undefined;
          }, `frame ${came} of ${sent.length} comes`);
          // Those with the same tags are a flow, and keep their order.
          const next = sent.findIndex(
            (frame, n) => !arrived.has(n) && frame[12] === bytes[12] && frame[13] === bytes[13],
          );
          assert.ok(sent[next]?.equals(bytes), `frame ${next} is as it was sent`);
          arrived.add(next);
        }
      }
      const drops = [one, other].map((vswitch) => vswitch.port('up').drops);
      assert.deepEqual(drops, [{}, {}]);
      ip('link del veth0');
    });
  }

  test('TCP crosses both ways', async (t) => {
    const there = await cable(t, { checksums: true });
    await using vswitch = await createSwitch({
      ports: [uplink, { name: 'host', type: 'tap', target: 'vt0' }],
    });
    await isUp(vswitch);
    await isUp(vswitch, 'host');
    ip('addr add 10.0.0.3/24 dev vt0');
    await crossWhole(t, '10.0.0.3', MEGABYTES << 20, endIn(there, '10.0.0.3', MEGABYTES << 20));
    ip('link del veth0');
  });

  test('an interface that goes away under traffic, and comes back; its carrier', async (t) => {
    const there = await cable(t);
    const path = sockets(t);
    await using vswitch = await createSwitch({
      ports: [
        ...['a', 'b', 'c'].map((name) => ({ name, type: 'vhost-user' as const, target: path(name) })),
        uplink,
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
    await traffic.flows();
    clearInterval(pouring);
    plug(there);
    await isUp(vswitch);
    assert.equal(vswitch.port('up').lastError, null);
    await answer(device, ping(macOf(there), 2));
    assert.equal(openFds(), fds);

    const told: string[] = [];
    vswitch.on('guestDown', ({ port, reason }) => told.push(`${port}: ${reason}`));
    there.ip('link set veth1 down');
    await until(() => vswitch.port('up').state === 'down', 'the port is down');
    assert.match(vswitch.port('up').note!, /^interface veth0 has no carrier, /);
    await until(() => told.includes('up: interface veth0 has no carrier'), 'it is told');
    there.ip('link set veth1 up');
    await isUp(vswitch);
    await traffic.stop();
    ip('link del veth0');
  });

  test('falls back to the generic way, and says so', async (t) => {
    // A bridge's driver has no XDP.
    ip('link add veth0 type bridge');
    ip('link set veth0 up');
    t.after(() => ip('link del veth0'));
    await using vswitch = await createSwitch({ ports: [uplink] });
    assert.match(vswitch.port('up').note!, /generic XDP \(slower/);
  });

  test('says what is in its way', async () => {
    await using vswitch = await createSwitch({});
    await assert.rejects(vswitch.addPort(uplink), /port up: there is no interface veth0: `ip link` lists/);
    ip('link add veth0 type veth peer name veth1');
    await assert.rejects(
      vswitch.addPort({ ...uplink, queues: 2 }),
      /interface veth0: it receives by 1 queues, and the port has 2: give the port queues=1, or .* `ethtool -L veth0`/,
    );
    const map = socketMap(1);
    const program = loadProgram(map);
    const link = attachProgram(program, interfaceIndex('veth0')!);
    const fds = openFds();
    const taken = /interface veth0: it has an XDP program .* already: .*`ip link set veth0 xdp off`/;
    await assert.rejects(vswitch.addPort(uplink), taken);
    await assert.rejects(vswitch.addPort(uplink), taken);
    assert.ok(openFds() <= fds + 3, 'nothing is left of what failed but an I/O thread');
    for (const fd of [link.fd, program, map]) closeFd(fd);
    await vswitch.addPort(uplink);
    ip('link del veth0');
  });
});
