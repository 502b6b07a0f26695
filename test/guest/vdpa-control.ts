/**
 * virtio-user over vDPA devices with a control queue: the kernel's simulator, which gives back the frames for its own
 * address, and QEMU's network cards by vp_vdpa, behind which the switch and the reflector of
 * test/peers/vdpa-control.test.ts are: it sends back the frame that is the payload of each frame, so that every frame
 * that should come, or should not, is asked for here.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { openFds } from '../../src/sys/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import type { VirtioUserOptions } from '../../src/virtio-user/options.ts';
import { BROADCAST, frame, mac, macText } from '../support/ethernet.ts';
import { frameOf } from '../support/ip.ts';
import { until } from '../support/until.ts';
import { sh } from './shell.ts';
import { receive } from './stack.ts';
import { addDevice, takeCard, takeSeveralQueues } from './vdpa.ts';

const REFLECTOR = mac(0x50);
const OTHER = mac(9);
const GROUP = Buffer.from('01005e010203', 'hex');
const PAIRS = 4;
/** Milliseconds for an answer on a busy machine. */
const PATIENCE = 60_000;

const bytesOf = (address: string) => Buffer.from(address.replaceAll(':', ''), 'hex');
const refused = (command: string) => ({
  code: 'BACKEND',
  message: `command ${command}: the back-end says no (1)`,
});

/** A frame that the reflector answers with `inner`. */
const asking = (from: Buffer, inner: Buffer) =>
  Buffer.concat([REFLECTOR, from, Buffer.from([0x88, 0xb5]), inner]);

describe("the kernel's simulator, one pair of queues", () => {
  const ADDRESS = '52:54:55:66:77:07';
  let path: string;
  before(async () => {
    path = await addDevice('sim', `vdpasim_net mac ${ADDRESS} mtu 1400`);
  });
  const open = (options: Partial<VirtioUserOptions> = {}) =>
    VirtioUser.open({ path, timeout: PATIENCE, ...options });

  test('frames for its address come back, each once and as it was; the address is what a command says', async () => {
    await using device = await open({ control: true, packed: true });
    for (const name of ['CTRL_VQ', 'CTRL_MAC_ADDR', 'MAC', 'MTU'])
      assert.ok(device.features.includes(`VIRTIO_NET_F_${name}`), name);
    assert.ok(!device.features.includes('VIRTIO_F_RING_PACKED'), 'the simulator has split rings only');
    assert.deepEqual([device.mac, device.mtu], [ADDRESS, 1400]);
    const control = device.control!;
    let salt = 0;
    // It compares addresses up to a byte that is zero: these have none.
    const [second, stranger] = [Buffer.from('525455667708', 'hex'), Buffer.from('525455667799', 'hex')];
    for (const own of [bytesOf(ADDRESS), second, bytesOf(ADDRESS)]) {
      await control.setMac(own);
      for (let i = 0; i < 50; i++) {
        // Those for others are dropped; the one that comes next tells that they are gone.
        const foreign = frame(stranger, REFLECTOR, 60, salt++);
        const ours = frame(own, REFLECTOR, 60 + ((i * 37) % 1400), salt++);
        assert.equal(device.sendBurst([foreign, ours]), 2);
        assert.deepEqual(await receive(device, `frame ${i}`, (bytes) => bytes), ours);
      }
    }
    assert.equal(device.receive(), undefined);
  });

  test('what it can not do is refused, and it goes on', async () => {
    await using device = await open({ control: true });
    const control = device.control!;
    // It knows its address alone.
    await assert.rejects(control.setPromiscuous(true), refused('0.0'));
    await assert.rejects(control.setMacTable([OTHER], []), refused('1.0'));
    await assert.rejects(control.setVlan(7, true), refused('2.0'));
    await assert.rejects(control.setPairs(1), refused('4.0'));
    await control.setMac(OTHER);
    device.send(frame(OTHER, REFLECTOR));
    await receive(device, 'a frame', (bytes) => bytes);
    await control.setMac(bytesOf(ADDRESS));
  });

  test('a device that was not asked for it has no control queue, and works', async () => {
    await using device = await open();
    assert.equal(device.control, undefined);
    assert.ok(!device.features.includes('VIRTIO_NET_F_CTRL_VQ'));
    const bytes = frame(bytesOf(ADDRESS), REFLECTOR);
    device.send(bytes);
    assert.deepEqual(await receive(device, 'the frame', (came) => came), bytes);
  });

  test('more queues than it has are told with what lacks', async () => {
    const descriptors = openFds();
    await assert.rejects(open({ queues: 2 }), {
      code: 'BACKEND',
      message: `queues 2: ${path} has 1 at most, without VIRTIO_NET_F_MQ`,
    });
    assert.equal(openFds(), descriptors, 'no descriptor is left behind');
  });
});

describe('a card of QEMU, four pairs of queues', () => {
  const ADDRESS = '52:54:00:00:00:01';
  const ME = bytesOf(ADDRESS);
  let card: string;
  let path: string;
  before(async () => {
    card = takeCard(ADDRESS);
    takeSeveralQueues(card);
    path = await addDevice('card', `pci/${card}`);
  });
  const open = (options: Partial<VirtioUserOptions> = {}) =>
    VirtioUser.open({ path, timeout: PATIENCE, ...options });
  const flow = (i: number) => {
    const inner = frameOf(
      ME,
      REFLECTOR,
      { version: 4, protocol: 'udp', payload: Buffer.alloc(64, i) },
      false,
    );
    inner.writeUInt16BE(1000 + i, 34);
    return inner;
  };

  /** Sends so many flows by each of the pairs; resolves with how many came back on each queue. */
  async function exchange(device: VirtioUser, flows: number, pairs: number): Promise<number[]> {
    const counts = () => Array.from({ length: device.queues }, (_, queue) => device.counters(queue));
    const earlier = counts();
    const wanted = new Set<string>();
    for (let i = 0; i < flows; i++) {
      wanted.add(flow(i).toString('hex'));
      await until(() => device.send(asking(ME, flow(i)), undefined, i % pairs), 'the ring has room');
    }
    while (wanted.size > 0)
      await receive(device, `${wanted.size} frames more`, (bytes) =>
        wanted.delete(bytes.toString('hex')) ? true : undefined,
      );
    const now = counts();
    for (let queue = 0; queue < pairs; queue++)
      assert.equal(now[queue]!.txPackets - earlier[queue]!.txPackets, flows / pairs);
    return now.map((count, queue) => count.rxPackets - earlier[queue]!.rxPackets);
  }

  for (const [queues, packed] of [
    [PAIRS, true],
    [2, false],
    [1, true],
  ] as const) {
    const rings = packed ? 'packed' : 'split';
    test(`${queues} of ${PAIRS} pairs, ${rings} rings: flows go by each and come by each, as many as a command says`, async () => {
      await using device = await open({ queues, packed });
      assert.equal(device.queues, queues);
      assert.equal(device.features.includes('VIRTIO_F_RING_PACKED'), packed);
      assert.equal(device.features.includes('VIRTIO_NET_F_MQ'), queues > 1);
      assert.equal(device.control !== undefined, queues > 1, 'several take a control queue');
      const uses = async (pairs: number) => {
        const came = await exchange(device, 60, pairs);
        assert.deepEqual(came.map((count) => count > 0), came.map((_, queue) => queue < pairs), `${came}`); // biome-ignore format: a line
      };
      await uses(queues);
      for (let pairs = 1; pairs <= queues && queues > 1; pairs++) {
        await device.control!.setPairs(pairs);
        await uses(pairs);
      }
    });
  }

  test('more pairs than the card has are refused, and told by number', async () => {
    await assert.rejects(open({ queues: PAIRS + 1 }), {
      code: 'BACKEND',
      message: `queues ${PAIRS + 1}: ${path} has ${PAIRS} at most, "vdpa dev add" with "max_vqp" may give it more`,
    });
    await using device = await open({ queues: 2 });
    for (const pairs of [0, PAIRS + 1]) await assert.rejects(device.control!.setPairs(pairs), refused('4.0'));
    await exchange(device, 10, 2);
  });

  test('memory that this program may not lock is told with what to do', () => {
    const module = fileURLToPath(new URL('../../src/virtio-user/device.js', import.meta.url));
    const program = `import('${module}').then(({ VirtioUser }) =>
      VirtioUser.open({ path: '${path}' })).then((device) => device.close(), ({ message }) => console.log(message))`;
    const limited = ['-c', 'ulimit -l 64; exec "$@"', 'sh', process.execPath, '-e', program];
    const { stdout, stderr } = spawnSync('sh', limited, { encoding: 'utf8' });
    assert.match(
      stdout + stderr,
      /^IOTLB message\(\/dev\/vhost-vdpa-\d\): EFAULT, the kernel refuses .* \d+ KiB .* locked .*"ulimit -l"/,
    );
  });

  test('asks to be announced, and hears that it was', async () => {
    await using device = await open({ control: true });
    assert.ok(device.features.includes('VIRTIO_NET_F_GUEST_ANNOUNCE'));
    const asked = new Promise<void>((resolve) => {
      device.on('configChange', () => device.config!.announce && resolve());
    });
    const please = Buffer.alloc(60);
    Buffer.concat([REFLECTOR, ME, Buffer.from([0x88, 0xb6])]).copy(please);
    device.send(please);
    await asked;
    await device.control!.announced();
    assert.match(sh('vdpa dev config show card'), /link_announce false/);
  });

  test('a connection made anew has the same queues', async () => {
    await using device = await open({ queues: PAIRS });
    await device.reconnect();
    const came = await exchange(device, 60, PAIRS);
    assert.ok(came.every((count) => count > 0), `${came}`); // biome-ignore format: a line
  });

  test('rings that the kernel does not know of are told, and one pair goes without them', async () => {
    sh('vdpa dev del card');
    // After the reset that this brings, the card has three.
    path = await addDevice('card', `pci/${card}`);
    for (const options of [{ queues: 2 }, { queues: PAIRS }])
      await assert.rejects(open(options), {
        code: 'BACKEND',
        message: new RegExp(
          `^${path}: the device says that it has 4 pairs of queues, which take 9 rings .* the kernel knows of 3;`,
        ),
      });
    await using device = await open();
    await exchange(device, 10, 1);
  });
});

describe('a card of QEMU that filters', () => {
  const ADDRESS = '52:54:00:00:00:02';
  const ME = bytesOf(ADDRESS);
  let path: string;
  before(async () => {
    path = await addDevice('filter', `pci/${takeCard(ADDRESS)}`);
  });

  test('receive modes, addresses and VLANs are what commands say', async () => {
    await using device = await VirtioUser.open({ path, timeout: PATIENCE, control: true });
    for (const name of ['CTRL_RX', 'CTRL_VLAN', 'CTRL_MAC_ADDR'])
      assert.ok(device.features.includes(`VIRTIO_NET_F_${name}`), name);
    const control = device.control!;
    let salt = 0;
    /** Which of these frames come, told by one behind them that always does. */
    const comes = async (...frames: Buffer[]): Promise<boolean[]> => {
      const last = frame(BROADCAST, REFLECTOR, 60, ++salt);
      for (const inner of [...frames, last])
        await until(() => device.send(asking(ME, inner)), 'the ring has room');
      const came: string[] = [];
      await receive(device, 'the last frame', (bytes) => {
        if (bytes.equals(last)) return true;
        came.push(bytes.toString('hex'));
        return undefined;
      });
      return frames.map((inner) => came.includes(inner.toString('hex')));
    };
    const to = (address: Buffer, length = 60) => frame(address, REFLECTOR, length, ++salt);
    const tagged = () => {
      const bytes = to(ME, 80);
      bytes.writeUInt32BE(0x8100_0007, 12);
      return bytes;
    };

    await control.setPromiscuous(true);
    assert.deepEqual(await comes(to(ME), to(OTHER), to(GROUP)), [true, true, true]);
    await control.setPromiscuous(false);
    assert.deepEqual(await comes(to(ME), to(OTHER), to(GROUP)), [true, false, false]);
    await control.setAllMulticast(true);
    assert.deepEqual(await comes(to(OTHER), to(GROUP)), [false, true]);
    await control.setAllMulticast(false);
    await control.setMacTable([OTHER], [GROUP]);
    assert.deepEqual(await comes(to(ME), to(OTHER), to(mac(10)), to(GROUP)), [true, true, false, true]);
    await control.setMacTable([], []);
    assert.deepEqual(await comes(to(ME), to(OTHER), to(GROUP)), [true, false, false]);
    await control.setMac(OTHER);
    assert.deepEqual(await comes(to(ME), to(OTHER)), [false, true]);
    await control.setMac(ME);
    assert.deepEqual(await comes(to(ME), to(OTHER), tagged()), [true, false, false]);
    await control.setVlan(7, true);
    assert.deepEqual(await comes(tagged(), to(ME)), [true, true]);
    await control.setVlan(7, false);
    assert.deepEqual(await comes(tagged(), to(ME)), [false, true]);
    await assert.rejects(control.setPairs(1), refused('4.0'));
    assert.deepEqual(await comes(to(ME)), [true]);
    assert.equal(device.mac, macText(ME));
  });
});
