/**
 * virtio-user over the kernel's vhost-vdpa: our driver on one side, and on the other a VDUSE device of a switch of
 * ours, in this very process, which the kernel takes for two strangers. Run by test/peers/vhost-vdpa.test.ts.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync } from 'node:fs';
import { before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { createSwitch, type Switch } from '../../src/index.ts';
import { openFds } from '../../src/sys/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import type { VirtioUserOptions } from '../../src/virtio-user/options.ts';
import { mac } from '../support/ethernet.ts';
import { numbered } from '../support/raw-guest.ts';
import { sh, start } from './shell.ts';
import { receive } from './stack.ts';
import { addDevice } from './vdpa.ts';

const ADDRESS = '52:54:00:00:00:07';
let path: string;

const makeSwitch = (): Promise<Switch> =>
  createSwitch({
    ports: [
      { name: 'kernel', type: 'vduse', target: 'vdpa0', mac: ADDRESS, mtu: 1400 },
      { name: 'user', type: 'vhost-user', target: '/tmp/user.sock' },
    ],
  });

const open = (options: Partial<VirtioUserOptions> = {}) => VirtioUser.open({ path, ...options });

let vswitch: Switch;

before(async () => {
  vswitch = await makeSwitch();
  path = await addDevice('vdpa0', 'vduse');
});

for (const packed of [false, true]) {
  test(`frames go both ways over ${packed ? 'packed' : 'split'} rings, each once and as it was`, async () => {
    await using device = await open({ packed });
    assert.equal(device.features.includes('VIRTIO_F_RING_PACKED'), packed);
    assert.ok(device.features.includes('VIRTIO_F_ACCESS_PLATFORM'));
    assert.deepEqual([device.mac, device.mtu, device.linkUp], [ADDRESS, 1400, true]);
    await using other = await VirtioUser.open({ path: '/tmp/user.sock' });
    for (const [from, to, number] of [
      [device, other, 1],
      [other, device, 2],
    ] as const) {
      const [source, target] = [mac(number), mac(3 - number)];
      // So that the switch knows where both are.
      to.send(numbered(source, target, 0));
      await receive(from, 'the first frame', () => true);
      const COUNT = 300;
      let sent = 0;
      for (let came = 0; came < COUNT; came++) {
        while (sent < COUNT && sent < came + 100) {
          if (!from.send(numbered(target, source, sent, 60 + ((sent * 37) % 1400)))) break;
          sent += 1;
        }
        const frame = await receive(to, `frame ${came}`, (bytes) =>
          bytes.subarray(6, 12).equals(source) ? bytes : undefined,
        );
        assert.deepEqual(frame, Buffer.from(numbered(target, source, came, 60 + ((came * 37) % 1400))));
      }
    }
    assert.equal(device.receive(), undefined);
  });
}

test('what a device is not, and who may not have it, is said with what to do', async () => {
  {
    await using device = await open();
    assert.equal(device.queues, 1);
    await assert.rejects(device.enable(0, false), {
      code: 'BACKEND',
      message: /^\/dev\/vhost-vdpa-\d: a queue of a vDPA device can't be disabled/,
    });
    const before = openFds();
    await assert.rejects(open(), {
      code: 'NO_BACKEND',
      message: /^open\(\/dev\/vhost-vdpa-\d\): EBUSY, another program has it open/,
    });
    assert.equal(openFds(), before);
  }
  const before = openFds();
  await assert.rejects(open({ queues: 2 }), {
    code: 'BACKEND',
    message: `queues 2: ${path} has 1 at most, without VIRTIO_NET_F_CTRL_VQ and VIRTIO_NET_F_MQ`,
  });
  await assert.rejects(
    open({ queueSize: 4096 }),
    /^VirtioUserError: queueSize 4096: the rings of .* have 1024 at most$/,
  );
  await assert.rejects(
    open({ path: '/dev/vhost-vdpa-99' }),
    /ENOENT, no such vDPA device: "vdpa dev show" lists them/,
  );
  assert.equal(openFds(), before, 'no descriptor is left behind');
  const module = fileURLToPath(new URL('../../src/virtio-user/device.js', import.meta.url));
  const program = `import('${module}').then(({ VirtioUser }) =>
    VirtioUser.open({ path: '${path}' })).catch((error) => console.log(error.message))`;
  const run = spawnSync(process.execPath, ['-e', program], { uid: 65534, gid: 65534, encoding: 'utf8' });
  assert.match(
    run.stdout + run.stderr,
    /^open\(.*\): EACCES, permission denied: give it a group with a udev rule/,
  );
});

test('who may not make a VDUSE device is told what it takes', async () => {
  const refused = async (message: RegExp) => {
    process.seteuid!(65534);
    try {
      await assert.rejects(vswitch.addPort({ name: 'k', type: 'vduse', target: 'vdpa9' }), { message });
    } finally {
      process.seteuid!(0);
    }
  };
  await refused(
    /^port k: no permission for \/dev\/vduse\/control: run as root, or give this user access to it$/,
  );
  chmodSync('/dev/vduse/control', 0o666);
  await refused(/^port k: a VDUSE network device takes the right CAP_NET_ADMIN: run as root$/);
  chmodSync('/dev/vduse/control', 0o600);
});

test('a device that nobody answers for is given up in time, and works again when somebody does', async () => {
  const device = await open({ timeout: 2000 });
  await vswitch.close();
  // Stopping it takes an answer, which doesn't come.
  await device.close();
  await assert.rejects(open({ timeout: 1000 }), {
    code: 'NO_BACKEND',
    message: /^open\(\/dev\/vhost-vdpa-\d\): (no answer within 1000 ms|EBUSY, .*)$/,
  });
  vswitch = await makeSwitch();
  await using again = await open({ timeout: 30_000, reconnect: true });
  await using other = await VirtioUser.open({ path: '/tmp/user.sock' });
  again.send(numbered(mac(2), mac(1), 7));
  const frame = await receive(other, 'a frame', (bytes) =>
    bytes.subarray(6, 12).equals(mac(1)) ? bytes : undefined,
  );
  assert.deepEqual(frame, Buffer.from(numbered(mac(2), mac(1), 7)));
});

test('the device leaves the bus, and the switch', async () => {
  const { output, status } = await start('vdpa dev del vdpa0');
  assert.equal(status, 0, output);
  assert.ok(!existsSync(path));
  await vswitch.close();
  assert.equal(sh('vdpa dev show').trim(), '');
});
