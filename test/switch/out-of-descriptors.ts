/**
 * A switch in a process without descriptors left: says how often it failed to accept a guest, then makes room, and
 * ends when the guest has come and gone. Run with the port's socket as argument and a low `ulimit -n`.
 */
import { closeSync, openSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { createSwitch } from '../../src/index.ts';

const target = process.argv[2]!;
const vswitch = await createSwitch({ ports: [{ name: 'a', type: 'vhost-user', target }] });
const errors: string[] = [];
vswitch.on('portError', ({ error }) => void errors.push(error));
const down = new Promise((resolve) => vswitch.once('guestDown', resolve));

const hoard: number[] = [];
try {
  for (;;) hoard.push(openSync('/dev/null', 'r'));
} catch {
  process.stdout.write('full\n');
}
while (errors.length === 0) await sleep(1);
await sleep(200);
process.stdout.write(`${JSON.stringify(errors)}\n`);
for (const fd of hoard) closeSync(fd);
await down;
await vswitch.close();
process.stdout.write('done\n');
