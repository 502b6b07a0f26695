/** A switch inside a program: two ports, their events and counters, until a guest leaves. */
import { once } from 'node:events';
import { join } from 'node:path';
import { createSwitch, parsePortSpec } from 'vireo';

const [directory = '/tmp'] = process.argv.slice(2);

await using vswitch = await createSwitch({ name: 'example', maxAddressesPerPort: 16 });

vswitch.on('guestUp', ({ port }) => console.log(`${port}: a guest runs`));
vswitch.on('guestDown', ({ port, reason }) => console.log(`${port}: its guest is gone: ${reason}`));
vswitch.on('queueBroken', ({ port, queue, reason }) => console.log(`${port}: queue ${queue}: ${reason}`));
vswitch.on('portError', ({ port, error }) => console.log(`${port}: ${error}`));

// A port is an object, or its form in one line.
await vswitch.addPort({ name: 'vm1', type: 'vhost-user', target: join(directory, 'vm1.sock') });
await vswitch.addPort(parsePortSpec(`vm2=vhost-user:${join(directory, 'vm2.sock')},max-addresses=4`));
const sockets = vswitch.ports().map(({ target }) => target);
console.log(`plug guests into ${sockets.join(' and ')}`);

await once(vswitch, 'guestDown');

for (const { name, rxPackets, txPackets, rxDrops, txDrops } of vswitch.ports()) {
  console.log(
    `${name}: ${rxPackets} packets from the guest, ${txPackets} to it, ${rxDrops + txDrops} dropped`,
  );
}
for (const { mac, port } of vswitch.fdb()) console.log(`${mac} is behind ${port}`);
