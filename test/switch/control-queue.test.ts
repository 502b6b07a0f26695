/** Our driver's control queue against our device's, over a socket: commands, what comes of them, hashes and queues. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { createSwitch, type PortSpec } from '../../src/index.ts';
import { features as F } from '../../src/virtio/features.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { frameOf } from '../support/ip.ts';
import { Random } from '../support/random.ts';
import { expectedHash } from '../support/toeplitz.ts';
import { until } from '../support/until.ts';

const ME = mac(1);
const OTHER = mac(9);
const FROM = mac(2);
const GROUP = Buffer.from('01005e000001', 'hex');

for (const packed of [false, true]) {
  test(`${packed ? 'packed' : 'split'}: the driver commands the device`, async () => {
    const directory = mkdtempSync(join(tmpdir(), 'vireo-control-'));
    const at = (name: string) => join(directory, name);
    const vswitch = await createSwitch({
      workers: 2,
      ports: [
        {
          name: 'a',
          type: 'vhost-user',
          target: at('a'),
          queues: 4,
          mac: '02:00:00:00:00:01',
          features: '+ctrl-vq',
        },
        { name: 'b', type: 'vhost-user', target: at('b') },
      ],
    });
    const a = await VirtioUser.open({ path: at('a'), queues: 4, control: true, offloads: true, packed });
    const b = await VirtioUser.open({ path: at('b'), offloads: true });
    try {
      const { control } = a;
      assert.ok(control, 'the back-end has one');
      assert.equal(b.control, undefined, 'and no other');
      assert.ok(a.features.includes('VIRTIO_NET_F_HASH_REPORT'));
      await until(() => vswitch.port('a').rings.endsWith(', 4 pairs'), 'all pairs are in use');
      const port = () => vswitch.port('a');
      /** Sends a frame to `a`: the queue that it came on, or undefined where it was filtered. */
      const comes = async (bytes: Buffer): Promise<number | undefined> => {
        const filtered = port().filtered;
        b.send(bytes);
        return until(() => {
          for (let queue = 0; queue < 4; queue++) {
            const came = a.receive(queue);
            if (!came) continue;
            assert.deepEqual(Buffer.from(came), bytes);
            return { queue };
          }
          return port().filtered > filtered ? { queue: undefined } : undefined;
        }, 'it came, or was filtered').then(({ queue }) => queue);
      };
      const passes = async (...list: Buffer[]) => {
        const found: boolean[] = [];
        for (const to of list) found.push((await comes(frame(to, FROM, 80))) !== undefined);
        return found;
      };
      const all = [ME, OTHER, GROUP, BROADCAST];
      assert.deepEqual(await passes(...all), [true, true, true, true]);
      await control.setPromiscuous(false);
      const own = Uint8Array.from(a.mac.split(':'), (octet) => Number.parseInt(octet, 16));
      assert.deepEqual(Buffer.from(own), ME);
      assert.deepEqual(await passes(...all), [true, false, false, true]);
      await control.setAllMulticast(true);
      assert.deepEqual(await passes(...all), [true, false, true, true]);
      await control.setAllMulticast(false);
      await control.setMacTable([OTHER], [GROUP]);
      assert.deepEqual(await passes(...all), [true, true, true, true]);
      await control.setMacTable([], []);
      await control.setMac(OTHER);
      assert.deepEqual(await passes(...all), [false, true, false, true]);
      await control.setMac(ME);
      const tagged = frame(ME, FROM, 80);
      tagged.writeUInt32BE(0x8100_0007, 12);
      assert.equal(await comes(tagged), undefined);
      await control.setVlan(7, true);
      assert.notEqual(await comes(tagged), undefined);
      await control.setVlan(7, false);

      // Offloads: whole, or in pieces.
      const large = frameOf(ME, FROM, { version: 4, protocol: 'tcp', payload: Buffer.alloc(3000, 7) }, true);
      const pieces = async () => {
        const before = port().txPackets;
        b.send(large, { csumStart: 34, csumOffset: 16, gso: { type: 'tcp4', size: 1000 } });
        await until(() => port().txPackets > before, 'it came');
        while (a.receive());
        return port().txPackets - before;
      };
      assert.equal(await pieces(), 1);
      await control.setOffloads(0n);
      assert.equal(await pieces(), 3);
      await control.setOffloads(F.VIRTIO_NET_F_GUEST_CSUM | F.VIRTIO_NET_F_GUEST_TSO4);
      assert.equal(await pieces(), 1);

      // Queues and hashes.
      const random = new Random(3);
      const key = random.bytes(40);
      const table = Array.from({ length: 64 }, () => random.below(4));
      await control.setRss({ hashTypes: 0x3f, key, unclassified: 3, table, transmitQueues: 4 });
      for (let i = 0; i < 60; i++) {
        const version = random.pick([4, 6] as const);
        const bytes = frameOf(
          ME,
          FROM,
          { version, protocol: random.pick(['tcp', 'udp']), payload: random.bytes(40) },
          false,
        );
        const [network, length] = version === 4 ? [26, 4] : [22, 16];
        const transport = network + 2 * length;
        bytes.writeUInt16BE(random.below(65536), transport);
        const protocol = bytes[version === 4 ? 23 : 20] === 6 ? 'tcp' : 'udp';
        const expected = expectedHash(0x3f, key, {
          version, protocol, source: bytes.subarray(network, network + length),
          destination: bytes.subarray(network + length, transport), ports: bytes.subarray(transport, transport + 4),
        }); // biome-ignore format: a record
        assert.equal(await comes(bytes), table[expected.hash % 64]);
        assert.deepEqual(a.receivedHash, expected);
      }
      assert.equal(await comes(frame(ME, FROM, 80)), 3, 'what has no hash');
      assert.deepEqual(a.receivedHash, { hash: 0, report: 0 });
      await control.setPairs(1);
      for (let i = 0; i < 10; i++) {
        const bytes = frameOf(ME, FROM, { version: 4, protocol: 'udp', payload: random.bytes(20) }, false);
        bytes.writeUInt16BE(i, 34);
        assert.equal(await comes(bytes), 0);
      }

      // What the back-end refuses changes nothing, and the queue goes on.
      await assert.rejects(control.setPairs(5), /command 4\.0: the back-end says no \(1\)/);
      await assert.rejects(control.setOffloads(1n << 40n), /command 5\.0: the back-end says no/);
      await control.announced();
      assert.equal(port().lastError, null);
      assert.equal(port().queues.at(-1)!.direction, 'control');

      // A driver that begins anew finds all as at the beginning.
      await control.setPromiscuous(false);
      await a.reconnect();
      assert.deepEqual(await passes(...all), [true, true, true, true]);
      await a.control!.setPromiscuous(false);
      assert.deepEqual(await passes(...all), [true, false, false, true]);
    } finally {
      await a.close();
      await b.close();
      await vswitch.close();
      rmSync(directory, { recursive: true });
    }
  });
}

test('where nobody says how many pairs there are, the control queue has a number', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'vireo-control-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const target = join(directory, 'a');
  await using vswitch = await createSwitch({
    ports: [{ name: 'a', type: 'vhost-user', target, mac: '02:00:00:00:00:01', features: '+ctrl-vq' }],
  });
  await using a = await VirtioUser.open({ path: target, queues: 2, control: true });
  await a.control!.setMac(OTHER);
  await until(() => vswitch.port('a').rings.endsWith(', 2 pairs'), 'both pairs are in use');
  const many: PortSpec = { name: 'b', type: 'vhost-user', target: join(directory, 'b'), queues: 128 };
  await assert.rejects(vswitch.addPort({ ...many, features: '+ctrl-vq' }), /queues: expected 127 at most/);
  await vswitch.addPort(many);
});
