/** Two Linux guests in QEMU on one switch: the kernel's virtio_net driver, and everything that ends and comes back. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { PortStatus, Role } from '../../src/index.ts';
import { root, skipWithout } from './available.ts';
import { Child, scratch, until } from './process.ts';
import { LinuxGuest, tcpTransfer } from './qemu.ts';

const MEGABYTES = 100;
const program = join(root, 'dist/src/cli/main.js');

for (const role of ['server', 'client'] as const) {
  describe(`two Linux guests, Vireo as ${role}`, { skip: skipWithout('qemu', 'guestKernel') }, () => {
    const directory = scratch('linux');
    const at = (name: string) => join(directory.path, name);
    let vswitch: Child;
    let guests: LinuxGuest[] = [];

    /** The switch as a person starts it, in a process that can be killed. */
    const startSwitch = async () => {
      vswitch = new Child(process.execPath, [
        ...[program, 'up', '--control', at('control')],
        ...['a', 'b'].flatMap((name) => ['--port', `${name}=vhost-user:${at(name)},role=${role}`]),
      ]);
      await vswitch.waitFor('its ready line', 20_000, () => vswitch.output.includes('ready') || undefined);
    };
    const bothUp = () =>
      until('both guests up', 60_000, async () => {
        const ports = await ask<PortStatus[]>(at('control'), 'ports');
        return ports.every((port) => port.state === 'up');
      });
    /** Pings until it works once: the switch and the guests may still be finding one another. Then ten in a row. */
    const ping = async () => {
      await until('first ping', 60_000, async () => {
        return (await guests[0]!.run('ping -c 1 -W 2 10.0.0.2')).status === 0;
      });
      assert.match(await guests[0]!.ok('ping -c 10 -i 0.1 10.0.0.2'), /10 packets received/);
    };

    before(async () => {
      const opposite: Role = role === 'server' ? 'client' : 'server';
      if (role === 'server') await startSwitch();
      const started = ['a', 'b'].map((name, i) =>
        LinuxGuest.start({ path: at(name), role: opposite, mac: `52:54:00:00:00:0${i + 1}` }),
      );
      if (role === 'client') await startSwitch();
      guests = await Promise.all(started);
      await Promise.all(guests.map((guest, i) => guest.configure(`10.0.0.${i + 1}/24`)));
    });
    after(async () => {
      await Promise.all(guests.map((guest) => guest.close()));
      await vswitch?.end();
      directory.remove();
    });

    test('ping', async () => {
      await bothUp();
      await ping();
    });

    test(`${MEGABYTES} MB over TCP arrive whole`, async () => {
      const { sent, received } = await tcpTransfer(
        guests[0]!,
        { guest: guests[1]!, address: '10.0.0.2' },
        MEGABYTES,
      );
      assert.equal(received, sent);
    });

    test('a guest restarts its kernel', async () => {
      await guests[1]!.reboot();
      await guests[1]!.configure('10.0.0.2/24');
      await ping();
    });

    test('a guest is killed and started again on the same port', async () => {
      await guests[1]!.kill();
      await until('port down', 20_000, async () => {
        const ports = await ask<PortStatus[]>(at('control'), 'ports');
        return ports.find((port) => port.name === 'b')!.state !== 'up';
      });
      await guests[1]!.powerOn();
      await guests[1]!.configure('10.0.0.2/24');
      await ping();
    });

    test('the switch is killed and started again while both guests run', async () => {
      await vswitch.end('SIGKILL');
      await startSwitch();
      await bothUp();
      await ping();
      const { sent, received } = await tcpTransfer(
        guests[1]!,
        { guest: guests[0]!, address: '10.0.0.1' },
        10,
      );
      assert.equal(received, sent);
    });
  });
}

/** What a command of the program prints with --json. */
async function ask<T>(control: string, ...command: string[]): Promise<T> {
  const child = new Child(process.execPath, [program, ...command, '--json', '--control', control]);
  const code = await child.exited;
  assert.equal(code, 0, child.output);
  return JSON.parse(child.output) as T;
}
