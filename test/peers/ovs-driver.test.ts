/** Open vSwitch with DPDK between two virtio-user devices of ours: frames byte for byte, ports that listen and that dial. */
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { happens } from '../support/link.ts';
import { skipWithout } from './available.ts';
import { frame, mac } from './frames.ts';
import { Ovs } from './ovs.ts';
import { until } from './process.ts';

const SIZES = [60, 64, 129, 512, 1500, 1518];

describe('Open vSwitch with DPDK', { skip: skipWithout('ovs') }, () => {
  // Those that dial are OVS's dpdkvhostuserclient ports, which alone offer large segments.
  for (const role of ['client', 'server'] as const) {
    test(`its ports ${role === 'client' ? 'listen' : 'dial'}: frames cross both ways, and after the devices came again`, async () => {
      await using ovs = await Ovs.start({ ports: ['a', 'b'], tso: role === 'server' });
      for (const options of [{}, { packed: true }, { offloads: role === 'server' }]) {
        const open = (port: string) =>
          VirtioUser.open({ ...options, role, path: join(ovs.directory, port), timeout: 60_000 });
        const [a, b] = await Promise.all([open('a'), open('b')]);
        await using first = a;
        await using second = b;
        for (const [from, to, n] of [
          [first, second, 1],
          [second, first, 2],
        ] as const) {
          for (const size of SIZES) {
            const sent = Buffer.from(frame(mac(3 - n), mac(n), size, n));
            // A port that has just come up drops, and of an address that it doesn't know OVS sends copies.
            await until(`frame of ${size} bytes`, 20_000, () => {
              from.send(sent);
              return to.receiveBurst(64).some((came) => sent.equals(came));
            });
            await until('the copies', 20_000, () => to.receiveBurst(1000).length === 0);
          }
        }
      }
    });
  }

  test('devices that connect again by themselves outlive it', async () => {
    await using ovs = await Ovs.start({ ports: ['a', 'b'], tso: true });
    const open = (port: string) =>
      VirtioUser.open({ role: 'server', path: join(ovs.directory, port), timeout: 60_000, reconnect: true });
    const [a, b] = await Promise.all([open('a'), open('b')]);
    await using first = a;
    await using second = b;
    const sent = Buffer.from(frame(mac(2), mac(1), 200));
    const crosses = () =>
      until('a frame', 30_000, () => {
        first.send(sent);
        return second.receiveBurst(64).some((came) => sent.equals(came));
      });
    await crosses();
    const down = Promise.all([happens(first, 'linkDown'), happens(second, 'linkDown')]);
    const up = Promise.all([happens(first, 'linkUp'), happens(second, 'linkUp')]);
    await ovs.restart();
    await down;
    await up;
    await crosses();
  });
});
