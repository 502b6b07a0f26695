/** DPDK's guests on the first and the last of 1023 ports in one process (its test plan vhost_1024_ethports). */
import { join } from 'node:path';
import { test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { skipWithout } from './available.ts';
import { Testpmd, virtioUser } from './dpdk.ts';
import { scratch, until } from './process.ts';

const PORTS = 1023;
/** Every so many ports one of our own guests, which is quiet. */
const QUIET = 16;
const MACS = ['02:00:00:00:00:01', '02:00:00:00:00:02'] as const;

test(`DPDK's guests on two of ${PORTS} ports`, { skip: skipWithout('dpdk') }, async () => {
  using directory = scratch('many');
  const at = (port: number) => join(directory.path, `p${port}`);
  await using vswitch = await createSwitch();
  for (let i = 0; i < PORTS; i++) await vswitch.addPort({ name: `p${i}`, type: 'vhost-user', target: at(i) });
  const quiet: VirtioUser[] = [];
  try {
    for (let i = QUIET; i < PORTS - 1; i += QUIET) quiet.push(await VirtioUser.open({ path: at(i) }));
    const ends = [0, PORTS - 1];
    await using guests = await Testpmd.start({
      vdevs: ends.map((port, i) => virtioUser(i, { path: at(port), mac: MACS[i as 0 | 1] })),
      args: ['--forward-mode=mac', `--eth-peer=0,${MACS[1]}`, `--eth-peer=1,${MACS[0]}`],
    });
    await guests.waitForLinks(30_000);
    await guests.command('start tx_first 4');
    await until('traffic both ways', 60_000, () =>
      ends.every((port) => vswitch.port(`p${port}`).txPackets > 10_000),
    );
    await guests.command('stop');
  } finally {
    for (const guest of quiet) await guest.close();
  }
});
