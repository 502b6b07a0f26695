/** VXLAN ports against the kernel's own VXLAN, over a veth pair between namespaces. */
import assert from 'node:assert/strict';
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { describe, type TestContext, test } from 'node:test';
import { createSwitch, type PortSpec } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { completeChecksums, ip, Namespace, ownNetwork } from '../support/network.ts';
import { Random } from '../support/random.ts';
import { sockets } from '../support/sockets.ts';
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

  test('takes nothing from datagrams that are none of its tunnel, whatever they have in them', async (t) => {
    const path = sockets(t);
    const local = '127.0.0.1:41800';
    await using vswitch = await createSwitch({
      ports: [
        { name: 'far', type: 'vxlan', target: '127.0.1.1', vni: VNI, local },
        { name: 'a', type: 'vhost-user', target: path('a') },
      ],
    });
    await using device = await VirtioUser.open({ path: path('a') });
    await until(
      () => vswitch.ports().every(({ state, rings }) => state === 'up' && rings !== ''),
      'both are up',
    );
    const [there, stranger] = [createSocket('udp4'), createSocket('udp4')];
    for (const [socket, address] of [
      [there, '127.0.1.1'],
      [stranger, '127.0.1.2'],
    ] as const) {
      t.after(() => socket.close());
      socket.bind(0, address);
      await once(socket, 'listening');
    }
    const say = (socket: Socket, bytes: Buffer) =>
      new Promise((said) => socket.send(bytes, 41_800, '127.0.0.1', said));
    const random = new Random(4789);
    const got: Buffer[] = [];
    const want: Buffer[] = [];
    let wrong = 0;
    for (let i = 0; i < 2000; i++) {
      // RFC 7348, 5: flags, of which one counts, reserved bytes, 24 bits of number, and a reserved byte.
      const header = random.bytes(8);
      header[0] = random.pick([8, 8, 8, 0xff, 0xf7, random.below(256)]);
      header.writeUIntBE(random.pick([VNI, VNI, VNI, 0, VNI + 1, random.below(1 << 24)]), 4, 3);
      const inner = frame(BROADCAST, mac(2), random.pick([60, 200, 1400, 14 + random.below(50)]), i);
      const whole = Buffer.concat([header, inner]);
      const bytes = random.below(5) === 0 ? whole.subarray(0, random.below(40)) : whole;
      const isRight = (bytes[0] ?? 0) & 8 && bytes.length >= 8 + 14 && bytes.readUIntBE(4, 3) === VNI;
      if (isRight) want.push(bytes.subarray(8));
      else wrong++;
      await say(there, bytes);
      if (i % 8 === 0) await say(stranger, whole);
      if (i % 20 < 19) continue;
      await until(() => {
        for (let came = device.receive(); came; came = device.receive()) got.push(Buffer.from(came));
        return got.length >= want.length && vswitch.port('far').drops.noFrame === wrong;
      }, 'what is right has come, what is wrong is counted');
    }
    assert.ok(want.length > 500 && wrong > 500, `${want.length} and ${wrong}`);
    assert.deepEqual(got, want);
  });

  test('says which address it can not have', async () => {
    await using vswitch = await createSwitch({});
    const port: PortSpec = { name: 'far', type: 'vxlan', target: '127.0.0.1', local: '192.0.2.99' };
    await assert.rejects(vswitch.addPort(port), /port far: bind\(192\.0\.2\.99, port 4789\): EADDRNOTAVAIL/);
  });
});
