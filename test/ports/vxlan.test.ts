/** VXLAN ports against the kernel's own VXLAN, over a veth pair between namespaces. */
import assert from 'node:assert/strict';
import { describe, type TestContext, test } from 'node:test';
import { createSwitch, type PortSpec } from '../../src/index.ts';
import { completeChecksums, ip, Namespace, ownNetwork } from '../support/network.ts';
import { crossWhole, endIn } from '../support/tcp.ts';
import { until } from '../support/until.ts';

const MEGABYTES = 10;
const VNI = 0x123456;

/** A veth pair to a namespace whose kernel has a VXLAN interface, with this MTU inside, that leads back here. */
async function cable(t: TestContext, six: boolean): Promise<Namespace> {
  const there = await Namespace.open();
  t.after(() => there[Symbol.asyncDispose]());
  ip('link add veth0 type veth peer name veth1');
  completeChecksums('veth1');
  ip(`link set veth1 netns ${there.id}`);
  const [one, two] = six ? ['fd00::1', 'fd00::2'] : ['192.0.2.1', '192.0.2.2'];
  const more = (name: string) => (six ? `/64 dev ${name} nodad` : `/24 dev ${name}`);
  ip('link set veth0 up');
  there.ip('link set veth1 up');
  ip(`addr add ${one}${more('veth0')}`);
  there.ip(`addr add ${two}${more('veth1')}`);
  there.ip(`link add vx0 mtu 1400 type vxlan id ${VNI} dstport 4789 local ${two} remote ${one}`);
  there.ip('link set vx0 up');
  there.ip('addr add 10.0.0.2/24 dev vx0');
  return there;
}

describe('a VXLAN port', { skip: ownNetwork() }, () => {
  for (const six of [false, true]) {
    test(`leads to the kernel's, TCP both ways, over IPv${six ? 6 : 4}`, async (t) => {
      const there = await cable(t, six);
      const tunnel: PortSpec = {
        name: 'far',
        type: 'vxlan',
        target: six ? 'fd00::2' : '192.0.2.2',
        vni: VNI,
      };
      await using vswitch = await createSwitch({
        ports: [tunnel, { name: 'host', type: 'tap', target: 'vt0' }],
      });
      await until(
        () => vswitch.ports().every(({ state, rings }) => state === 'up' && rings !== ''),
        'both are up',
      );
      ip('link set vt0 mtu 1400');
      ip('addr add 10.0.0.1/24 dev vt0');
      await crossWhole(t, '10.0.0.1', MEGABYTES << 20, endIn(there, '10.0.0.1', MEGABYTES << 20));
      assert.equal(vswitch.port('far').drops.noFrame, undefined);

      // Of another network: dropped and counted.
      there.ip('link del vx0');
      const [one, two] = six ? ['fd00::1', 'fd00::2'] : ['192.0.2.1', '192.0.2.2'];
      there.ip(`link add vx1 type vxlan id 5 dstport 4789 local ${two} remote ${one}`);
      there.ip('link set vx1 up');
      there.ip('addr add 10.0.0.2/24 dev vx1');
      const before = vswitch.port('far').rxPackets;
      const other = there.start(
        process.execPath,
        '-e',
        "require('node:net').connect(5001, '10.0.0.1').on('error', () => {})",
      );
      await until(() => (vswitch.port('far').drops.noFrame ?? 0) > 0, 'its frames are dropped');
      assert.equal(vswitch.port('far').rxPackets, before);
      await other.end('SIGKILL');
      ip('link del veth0');
    });
  }

  test('says which address it can not have', async () => {
    await using vswitch = await createSwitch({});
    const port: PortSpec = { name: 'far', type: 'vxlan', target: '127.0.0.1', local: '192.0.2.99' };
    await assert.rejects(vswitch.addPort(port), /port far: bind\(192\.0\.2\.99, port 4789\): EADDRNOTAVAIL/);
  });
});
