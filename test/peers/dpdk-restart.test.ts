/**
 * A port that stops and starts again: DPDK's test plan loopback_multi_paths_port_restart, with both ends DPDK's. The
 * forwarding end stops its port as that plan stops the vhost port, then single packets go round.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { skipWithout } from './available.ts';
import { Testpmd, virtioUser } from './dpdk.ts';
import { assertPath, everything, lacking, paths, type RingPath } from './paths.ts';
import { scratch, until } from './process.ts';

const SIZES = everything ? [64, 128, 256, 512, 1024, 1518] : [64, 1518];
const MACS = ['02:00:00:00:00:01', '02:00:00:00:00:02'] as const;
/** Packets that show that it runs: more than are on their way at first. */
const BURSTS = 8;
const MANY = 2 * BURSTS * 32;
/** A single one goes round: with three threads on two CPUs each hop may take a turn of the scheduler's. */
const FEW = 20;

describe('a stopped port carries nothing, a started one again', { skip: skipWithout('dpdk') }, () => {
  for (const path of paths) test(path.name, { skip: lacking(path) }, () => run(path));
});

async function run(path: RingPath): Promise<void> {
  using directory = scratch('restart');
  const at = (name: string) => join(directory.path, name);
  await using vswitch = await createSwitch({
    ports: ['a', 'b'].map((name) => ({ name, type: 'vhost-user', target: at(name) })),
  });
  const guest = (name: string, own: 0 | 1) =>
    Testpmd.start({
      cpu: own,
      vdevs: [virtioUser(0, { ...path.options, path: at(name), mac: MACS[own], queueSize: 1024 })],
      ...(path.eal ? { eal: path.eal } : {}),
      args: [
        '--forward-mode=mac',
        `--eth-peer=0,${MACS[1 - own]}`,
        '--rxd=1024',
        '--txd=1024',
        '--no-flush-rx',
      ],
    });
  await using a = await guest('a', 0);
  await using b = await guest('b', 1);
  await assertPath(a, path);
  await assertPath(b, path);
  const counts = () => vswitch.ports().map((port) => port.rxPackets);
  const flows = async (size: number, wanted: number) => {
    const before = counts();
    await until(`frames of ${size} B both ways`, 60_000, () =>
      counts().every((count, i) => count > before[i]! + wanted),
    );
  };
  await a.command('start');
  for (const size of SIZES) {
    await b.command(`set txpkts ${size}`);
    await b.command(`start tx_first ${BURSTS}`);
    await flows(size, MANY);

    await b.command('stop');
    await b.command('port stop 0');
    // What was on its way is in the rings of the stopped port soon: then nothing moves.
    let last = counts();
    await until('silence', 20_000, () => {
      const now = counts();
      const quiet = now.every((count, i) => count === last[i]);
      last = now;
      return quiet;
    });

    await b.command('port start 0');
    await b.command('set burst 1');
    await b.command('start tx_first 1');
    // The vectorised function receives nothing when it is asked for less than four (virtio_rxtx_simple_sse.c).
    await b.command('stop');
    await b.command('set burst 32');
    await b.command('start');
    await flows(size, FEW);
    await b.command('stop');
  }
  assert.deepEqual(
    vswitch.ports().map((port) => port.lastError),
    [null, null],
  );
}
