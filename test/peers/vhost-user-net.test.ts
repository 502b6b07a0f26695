/**
 * `vireo vhost-user-net` as a management tool starts it, a program for one card (QEMU's back-end conventions), with
 * DPDK's guests on it and on its peer.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { closeFd, listenUnix } from '../../src/sys/index.ts';
import { root, skipWithout } from './available.ts';
import { Testpmd, virtioUser } from './dpdk.ts';
import { scratch, until } from './process.ts';

const program = join(root, 'dist/src/cli/main.js');
const MACS = ['02:00:00:00:00:01', '02:00:00:00:00:02'] as const;

describe("vireo vhost-user-net with DPDK's guests", { skip: skipWithout('dpdk') }, () => {
  for (const given of ['--socket-path', '--fd'] as const) {
    test(`${given}: frames cross both ways, until SIGTERM`, async (t) => {
      using directory = scratch('net');
      const at = (name: string) => join(directory.path, name);
      const listening = given === '--fd' ? listenUnix(at('card')) : undefined;
      const own = given === '--fd' ? '--fd=3' : `--socket-path=${at('card')}`;
      const args = [program, 'vhost-user-net', own, `--peer=up=vhost-user:${at('peer')},role=client`];
      const back = spawn(process.execPath, args, { stdio: ['ignore', 'inherit', 'inherit', listening] });
      const exited = once(back, 'exit');
      t.after(() => back.kill('SIGKILL'));
      if (listening !== undefined) closeFd(listening);
      // A server of DPDK's waits for the program to dial; the card's socket must be there when DPDK dials it.
      if (given === '--socket-path') await until('its socket', 60_000, () => existsSync(at('card')));
      await using guests = await Testpmd.start({
        vdevs: [
          virtioUser(0, { path: at('card'), mac: MACS[0] }),
          virtioUser(1, { path: at('peer'), mac: MACS[1], server: true, packed: true }),
        ],
        args: ['--forward-mode=mac', `--eth-peer=0,${MACS[1]}`, `--eth-peer=1,${MACS[0]}`],
      });
      await guests.waitForLinks(60_000);
      await guests.command('start tx_first 4');
      await until('traffic both ways', 60_000, async () =>
        (await guests.stats()).every(({ rxPackets }) => rxPackets > 10_000),
      );
      await guests.command('stop');
      back.kill('SIGTERM');
      assert.deepEqual(await exited, [0, null]);
    });
  }
});
