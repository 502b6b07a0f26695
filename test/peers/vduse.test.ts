/**
 * VDUSE against a kernel that has it: in a guest with Linux 6.12 the project's own command makes vDPA devices, and the
 * kernel's drivers are the peers. virtio_vdpa makes network interfaces of them, which lie in namespaces of their own
 * and speak to each other through the switch; vhost_vdpa gives one to DPDK's virtio-user.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import type { PortDetail } from '../../src/switch/types.ts';
import { skipWithout } from './available.ts';
import { host, node, runInGuest, startDevicesGuest } from './devices-guest.ts';
import { until } from './process.ts';
import type { LinuxGuest } from './qemu.ts';

/** Milliseconds for a program of Node's in an emulated guest on a busy machine. */
const PATIENCE = 120_000;
const CLI = 'dist/src/cli/main.js';
const CONTROL = '--control /tmp/vireo.sock';
const MACS = ['52:54:00:00:00:01', '52:54:00:00:00:02'];
const PORTS = [
  `--port k1=vduse:vdpa0,mac=${MACS[0]},mtu=1400`,
  `--port k2=vduse:vdpa1,mac=${MACS[1]},features=-packed`,
];
const ADDRESSES = ['10.0.0.1', '10.0.0.2'];

describe('a VDUSE port', { skip: skipWithout('qemu', 'kernelDevices') }, () => {
  let guest: LinuxGuest;
  /** The processes that hold the interfaces' namespaces. */
  const holders: number[] = [];
  let switchPid = 0;

  before(async () => {
    // virtio_vdpa alone, so that what is attached becomes an interface.
    guest = await startDevicesGuest();
    await guest.ok('rmmod vhost_vdpa');
    await startSwitch(PORTS);
  });
  after(() => guest?.close());

  async function startSwitch(ports: string[]): Promise<void> {
    const up = node(`${CLI} up ${CONTROL} ${ports.join(' ')} > /tmp/up.log 2>&1 & echo $!`);
    switchPid = Number(await guest.ok(up, PATIENCE));
    await until('the switch', PATIENCE, async () => {
      const runs = (await guest.run(`test -d /proc/${switchPid}`)).status === 0;
      const log = await said();
      assert.ok(runs, `it ended: ${log}`);
      return log.includes('ready');
    });
  }

  const said = () => guest.ok('cat /host/tmp/up.log');
  const vireo = (words: string) => guest.run(node(`${CLI} ${words} ${CONTROL}`), PATIENCE);
  const show = async (port: string) => {
    const { output } = await vireo(`port show ${port} --json`);
    return JSON.parse(output) as PortDetail;
  };
  /** Runs a command where an interface is: 0 or 1. */
  const inside = (which: number, command: string) => `nsenter -t ${holders[which]} -n ${command}`;
  const waitFor = (command: string) =>
    until(command, PATIENCE, async () => (await guest.run(command)).status === 0);

  /** The interface of a device, as it is called in the namespace where it is made. */
  const interfaceOf = (device: string) =>
    until(
      `interface of ${device}`,
      PATIENCE,
      async () =>
        (await guest.run(`ls /sys/bus/vdpa/devices/${device}/virtio*/net`)).output.match(/^\w+$/m)?.[0],
    );

  /** Puts the interface of a device into its namespace, with its address. */
  async function place(which: number): Promise<void> {
    const name = await interfaceOf(`vdpa${which}`);
    const [address, other] = [ADDRESSES[which], ADDRESSES[1 - which]];
    await guest.ok(`ip link set ${name} netns ${holders[which]}`);
    await guest.ok(
      inside(
        which,
        `sh -c 'ip link set ${name} name vd && ip addr add ${address}/24 dev vd && ip link set vd up'`,
      ),
    );
    // Nobody has to ask for it again while the other end is away.
    await guest.run(inside(which, `ip neigh add ${other} lladdr ${MACS[1 - which]} dev vd nud permanent`));
  }

  const ping = async () =>
    assert.match(
      await guest.ok(inside(0, `ping -c 3 -w 60 ${ADDRESSES[1]}`), PATIENCE),
      /3 packets received/,
    );

  test('becomes an interface as the port describes it, and frames cross', async () => {
    for (let i = 0; i < 2; i++) {
      holders.push(Number(await guest.ok('unshare -n sleep 1000000 > /dev/null 2>&1 & echo $!')));
      await guest.ok(`vdpa dev add name vdpa${i} mgmtdev vduse`, PATIENCE);
      await place(i);
    }
    // /sys shows the interfaces of the first namespace only.
    assert.match(await guest.ok(inside(0, 'ip link show dev vd')), /mtu 1400 /);
    assert.ok((await guest.ok(inside(1, 'ip link show dev vd'))).includes(MACS[1]!));
    await ping();
    // A frame of the whole MTU, not in fragments.
    assert.match(
      await guest.ok(inside(0, `ping -c 2 -w 60 -s ${1400 - 28} ${ADDRESSES[1]}`), PATIENCE),
      /2 packets received/,
    );
    const port = await show('k1');
    assert.equal(port.state, 'up');
    assert.match(port.rings, /^packed 1024 mrg indirect event-idx/);
    assert.equal(port.mtu, 1400);
    assert.equal(port.driverStatus, 'ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK');
    // The kernel's bounce buffer, and the rings beside it.
    assert.deepEqual(port.memory[0], { guestAddress: '0x0', size: 64 << 20, pageSize: 4096, sealed: true, reached: 'mapped' }); // biome-ignore format: a record
    assert.ok(port.memory.length > 1);
    assert.ok(port.rxPackets >= 5 && port.txPackets >= 5);
    assert.ok(port.queues[0]!.notifications > 0);
    const mq = port.features.missing.find(({ name }) => name === 'VIRTIO_NET_F_MQ');
    assert.match(mq!.reason, /VDUSE gives a network device no control queue/);
  });

  test('carries a TCP transfer over the death of its switch, and goes on where it was', async () => {
    await guest.ok(inside(1, 'sh -c "nuttcp -S --nofork > /dev/null 2>&1 &"'));
    const transfer = inside(0, `nuttcp -fparse -n 60m ${ADDRESSES[1]} > /tmp/transfer 2>&1 &`);
    await guest.ok(transfer);
    // "  vd: " and eight counters of what was received, then the bytes that were sent.
    const counters = inside(0, "sed -n 's/^ *vd: *//p' /proc/self/net/dev");
    const sent = async () => Number((await guest.ok(counters)).trim().split(/\s+/)[8]);
    await until('traffic', PATIENCE, async () => (await sent()) > 2 << 20);
    await guest.ok(`kill -9 ${switchPid}`);
    await waitFor(`! test -d /proc/${switchPid}`);
    // The devices are still there, and who comes takes them over, one ring packed, the other split.
    await guest.ok('test -c /dev/vduse/vdpa0 -a -c /dev/vduse/vdpa1');
    await startSwitch(PORTS);
    await until('both interfaces up', PATIENCE, async () => (await said()).split('guest up').length === 3);
    await waitFor('grep -q megabytes= /tmp/transfer');
    assert.match(await guest.ok('cat /tmp/transfer'), /megabytes=60\.0000/);
    await ping();
  });

  test('stands an interface that goes down and up, and a driver that lets it go and takes it again', async () => {
    await guest.ok(
      inside(0, "sh -c 'for i in 1 2 3; do ip link set vd down && ip link set vd up || exit 1; done'"),
    );
    await ping();
    const device = (await guest.ok('ls -d /sys/bus/vdpa/devices/vdpa0/virtio*')).trim().split('/').at(-1);
    const driver = '/sys/bus/virtio/drivers/virtio_net';
    await guest.ok(`echo ${device} > ${driver}/unbind`, PATIENCE);
    await until('the reset', PATIENCE, async () =>
      (await said()).includes('k1: guest down: the driver reset the device'),
    );
    await guest.ok(`echo ${device} > ${driver}/bind`, PATIENCE);
    await place(0);
    await ping();
  });

  test('is not removed while the kernel uses it, and nobody else gets it', async () => {
    const refused = await vireo('port del k1');
    assert.equal(refused.status, 1);
    assert.match(refused.output, /port k1: the kernel uses its device: .*`vdpa dev del vdpa0`/);
    const second = await guest.run(
      node(`${CLI} up --name other --control /tmp/other.sock --port x=vduse:vdpa0`),
      PATIENCE,
    );
    assert.equal(second.status, 1);
    assert.match(second.output, /port x: another program has \/dev\/vduse\/vdpa0 open/);
    await ping();
  });

  test('leaves an interface without carrier behind when its switch ends, until the next one comes', async () => {
    const carrier = (there: boolean) =>
      waitFor(inside(1, `sh -c '${there ? '' : '! '}ip link show dev vd | grep -q LOWER_UP'`));
    await carrier(true);
    await guest.ok(`kill ${switchPid}`);
    await waitFor(`! test -d /proc/${switchPid}`);
    assert.match(await said(), /k2: \/dev\/vduse\/vdpa1 stays, since the kernel uses it/);
    await carrier(false);
    await startSwitch(PORTS);
    await carrier(true);
    await ping();
  });

  test('leaves nothing behind where it cannot begin', (t) =>
    runInGuest(t, guest, 'dist/test/guest/vduse.js'));

  test('is destroyed with its port once it is off the bus, and made again for DPDK through vhost_vdpa', async () => {
    await guest.ok('vdpa dev del vdpa1', PATIENCE);
    const removed = await vireo('port del k2');
    assert.equal(removed.status, 0, removed.output);
    await guest.ok('! test -e /dev/vduse/vdpa1');
    await guest.ok('insmod /modules/vhost_vdpa.ko');
    const added = await vireo('port add k2=vduse:vdpa1');
    assert.match(added.output, /port k2 is \/dev\/vduse\/vdpa1/);
    await guest.ok('vdpa dev add name vdpa1 mgmtdev vduse', PATIENCE);
    const bus = '/sys/bus/vdpa/drivers';
    await guest.run(`echo vdpa1 > ${bus}/virtio_vdpa/unbind`, PATIENCE);
    await guest.ok(`test -c /dev/vhost-vdpa-0 || echo vdpa1 > ${bus}/vhost_vdpa/bind`, PATIENCE);
  });

  test('has a program of DPDK for a driver, through vhost_vdpa', { skip: skipWithout('dpdk') }, async () => {
    await guest.ok('echo 64 > /proc/sys/vm/nr_hugepages');
    await guest.ok(host('mkdir -p /dev/hugepages && mount -t hugetlbfs hugetlbfs /dev/hugepages'));
    // Its rings have virtual addresses, whatever it gives the kernel: those must be the same.
    const pmd = [
      'sleep 1000000 | dpdk-testpmd --no-pci --file-prefix vduse --single-file-segments -m 64 --iova-mode=va',
      '--vdev net_virtio_user0,path=/dev/vhost-vdpa-0,queue_size=256',
      '-- --forward-mode=icmpecho --auto-start --total-num-mbufs=4096 > /tmp/pmd.log 2>&1 & echo $!',
    ];
    await guest.ok(host(`XDG_RUNTIME_DIR=/tmp; export XDG_RUNTIME_DIR; ${pmd.join(' ')}`), PATIENCE);
    // It answers for any address.
    await until('DPDK on the port', PATIENCE, async () => {
      const log = (await guest.run('cat /host/tmp/pmd.log')).output;
      assert.doesNotMatch(log, /EAL: Error|Cannot/, log);
      return (await guest.run(inside(0, 'ping -c 1 -W 2 10.0.0.77'))).status === 0;
    });
    assert.match(await guest.ok(inside(0, 'ping -c 3 -w 60 10.0.0.77'), PATIENCE), /3 packets received/);
    const port = await show('k2');
    assert.equal(port.state, 'up');
    // Memory of DPDK's, in a file.
    assert.ok(port.memory.some(({ pageSize }) => pageSize === 2 << 20));
  });
});
