/** The kernel's vDPA bus, for the programs of this folder: devices that are made there, and bound to vhost_vdpa. */
import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { features } from '../../src/virtio/features.ts';
import { start } from './shell.ts';

const BUS = '/sys/bus/vdpa';
const PCI = '/sys/bus/pci';

/** Makes a device by `vdpa dev add name NAME mgmtdev MAKER …`; resolves with the path of its /dev/vhost-vdpa-N. */
export async function addDevice(name: string, maker: string): Promise<string> {
  // What is in this very process may have to answer.
  const { output, status } = await start(`vdpa dev add name ${name} mgmtdev ${maker}`);
  if (status !== 0) throw new Error(`vdpa dev add name ${name} mgmtdev ${maker}: ${output}`);
  const device = `${BUS}/devices/${name}`;
  // Whichever driver came first has it.
  if (existsSync(`${device}/driver`) && !readlinkSync(`${device}/driver`).endsWith('/vhost_vdpa')) {
    writeFileSync(`${device}/driver/unbind`, name);
    writeFileSync(`${BUS}/drivers/vhost_vdpa/bind`, name);
  }
  return `/dev/${readdirSync(device).find((entry) => entry.startsWith('vhost-vdpa-'))}`;
}

/** Takes the virtio card with this Ethernet address from the kernel; vp_vdpa may make a vDPA device of it then. */
export function takeCard(address: string): string {
  const net = readdirSync('/sys/class/net').find(
    (name) => readFileSync(`/sys/class/net/${name}/address`, 'utf8').trim() === address,
  );
  if (net === undefined) throw new Error(`no card has the address ${address}`);
  // …/0000:00:02.0/virtio1/net/eth0
  const card = readlinkSync(`/sys/class/net/${net}`).split('/').at(-4)!;
  writeFileSync(`${PCI}/devices/${card}/driver/unbind`, card);
  writeFileSync(`${PCI}/devices/${card}/driver_override`, 'vp-vdpa');
  writeFileSync(`${PCI}/drivers_probe`, card);
  return card;
}

/**
 * Says to a card of QEMU that its driver takes several queues. It has as many as the features call for, and three after
 * a reset, where vp_vdpa counts those of a device that it makes. The registers are reached by the window that a virtio
 * card has in its configuration space (virtio 1.3, 4.1.4.9).
 */
export function takeSeveralQueues(card: string): void {
  const path = `${PCI}/devices/${card}/config`;
  const config = readFileSync(path);
  const [VENDOR, COMMON, WINDOW] = [0x09, 1, 5];
  let common = -1;
  let window = -1;
  for (let at = config[0x34]!; at !== 0; at = config[at + 1]!) {
    if (config[at] !== VENDOR) continue;
    if (config[at + 3] === COMMON) common = at;
    if (config[at + 3] === WINDOW) window = at;
  }
  const fd = openSync(path, 'r+');
  const put = (at: number, value: number, length: 1 | 4) => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value);
    writeSync(fd, bytes, 0, length, at);
  };
  /** driver_feature_select, driver_feature (4.1.4.3). */
  const [SELECT, FEATURES] = [8, 12];
  for (const [register, value] of [
    [SELECT, 0],
    [FEATURES, Number(features.VIRTIO_NET_F_MQ | features.VIRTIO_NET_F_CTRL_VQ)],
  ] as const) {
    put(window + 4, config[common + 4]!, 1);
    put(window + 8, config.readUInt32LE(common + 8) + register, 4);
    put(window + 12, 4, 4);
    put(window + 16, value, 4);
  }
  closeSync(fd);
}
