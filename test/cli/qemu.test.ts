import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { cloudHypervisorPlug, libvirtPlug, macOf, qemuPlug } from '../../src/cli/qemu.ts';
import { qemuProgram, skipWithout } from '../peers/available.ts';
import { Child, scratch, sleep } from '../peers/process.ts';
import { Up } from './support.ts';

const directory = scratch('plug');
after(directory.remove);

const guest = { memory: 512, mac: '52:54:00:00:00:01' };
const server = { name: 'vm1', target: '/tmp/a.sock', role: 'server' } as const;
const client = { name: 'vm2', target: '/tmp/b,c.sock', role: 'client' } as const;

test('QEMU dials a port that listens, and listens for one that dials', () => {
  assert.deepEqual(qemuPlug(server, guest).options, [
    ['-object', 'memory-backend-memfd,id=mem,size=512M,share=on'],
    ['-machine', 'memory-backend=mem'],
    ['-m', '512M'],
    ['-chardev', 'socket,id=chr-vm1,path=/tmp/a.sock,reconnect=1'],
    ['-netdev', 'vhost-user,id=net-vm1,chardev=chr-vm1'],
    ['-device', 'virtio-net-pci,netdev=net-vm1,mac=52:54:00:00:00:01'],
  ]);
  assert.deepEqual(qemuPlug(client, guest).options?.[3], [
    '-chardev',
    'socket,id=chr-vm2,path=/tmp/b,,c.sock,server=on,wait=off',
  ]);
});

test("libvirt's mode is that of its QEMU", () => {
  const dials = libvirtPlug(server, guest).xml?.join('\n') ?? '';
  assert.match(dials, /<source type='unix' path='\/tmp\/a\.sock' mode='client'>\n +<reconnect enabled='yes'/);
  assert.match(
    dials,
    /<memoryBacking>\n +<source type='memfd'\/>\n +<access mode='shared'\/>\n<\/memoryBacking>/,
  );
  assert.match(dials, /<memory unit='MiB'>512<\/memory>/);
  const listens = libvirtPlug({ ...client, target: "/tmp/<&'.sock" }, guest).xml?.join('\n') ?? '';
  assert.match(listens, /<source type='unix' path='\/tmp\/&#60;&#38;&#39;\.sock' mode='server'\/>/);
  assert.doesNotMatch(listens, /reconnect/);
});

test('Cloud Hypervisor takes the other role', () => {
  assert.deepEqual(cloudHypervisorPlug(server, guest).options, [
    ['--memory', 'size=512M,shared=on'],
    [
      '--net',
      'vhost_user=true,socket=/tmp/a.sock,vhost_mode=client,num_queues=2,queue_size=256,mac=52:54:00:00:00:01',
    ],
  ]);
  assert.match(
    cloudHypervisorPlug(client, guest).options?.[1]?.[1] ?? '',
    /socket="\/tmp\/b,c\.sock",vhost_mode=server/,
  );
});

test('several queues: pairs for QEMU and libvirt, both directions for Cloud Hypervisor', () => {
  const several = { ...guest, queues: 4 };
  assert.deepEqual(qemuPlug(server, several).options?.slice(4), [
    ['-netdev', 'vhost-user,id=net-vm1,chardev=chr-vm1,queues=4'],
    ['-device', 'virtio-net-pci,netdev=net-vm1,mac=52:54:00:00:00:01,mq=on,vectors=10'],
  ]);
  assert.match(libvirtPlug(server, several).xml?.join('\n') ?? '', /<driver queues='4'\/>/);
  assert.match(cloudHypervisorPlug(server, several).options?.[1]?.[1] ?? '', /,num_queues=8,/);
});

test('a port has one MAC address, its own, locally administered', () => {
  const addresses = Array.from({ length: 300 }, (_, index) => macOf(`vm${index}`));
  assert.equal(new Set(addresses).size, 300);
  for (const address of addresses) assert.match(address, /^[0-9a-f][26ae](:[0-9a-f]{2}){5}$/);
  assert.equal(macOf('vm1'), '7a:11:e3:d1:b4:ef');
});

test('QEMU with these options plugs into the port, in both roles', {
  skip: skipWithout('qemu'),
}, async () => {
  const control = join(directory.path, 'control.sock');
  const port = (name: string, more = '') => [
    '--port',
    `${name}=vhost-user:${join(directory.path, name)}${more}`,
  ];
  await using up = await Up.start(control, ...port('vm1'), ...port('vm2', ',role=client'));
  for (const name of ['vm1', 'vm2']) {
    const { arguments: words } = await up.json('qemu', name, '--memory', '64M', '--queues', '4');
    const qemu = new Child(qemuProgram, ['-S', '-nodefaults', '-display', 'none', '-accel', 'tcg', ...words]);
    try {
      while ((await up.client.port(name)).connections === 0) {
        assert.ok(qemu.running, qemu.output);
        await sleep(50);
      }
    } finally {
      await qemu.end();
    }
  }
});
