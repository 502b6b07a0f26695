/**
 * Random commands of a control queue (virtio 1.3, 5.1.6.5), nearly right ones and bytes, to the device's own handling
 * of them, and frames for the driver after each: a command is answered with one of two bytes, and what comes is what
 * was sent, never more.
 */
import assert from 'node:assert/strict';
import { DeviceControl } from '../../src/vhost/device-control.ts';
import { executeControl } from '../../src/virtio/control-queue.ts';
import { features as F } from '../../src/virtio/features.ts';
import { Driver } from '../support/driver.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import type { Random } from '../support/random.ts';
import type { MakePlane } from './targets.ts';

const ALL =
  F.VIRTIO_NET_F_CTRL_VQ | F.VIRTIO_NET_F_CTRL_RX | F.VIRTIO_NET_F_CTRL_RX_EXTRA | F.VIRTIO_NET_F_CTRL_VLAN |
  F.VIRTIO_NET_F_CTRL_MAC_ADDR | F.VIRTIO_NET_F_GUEST_ANNOUNCE | F.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS |
  F.VIRTIO_NET_F_MQ | F.VIRTIO_NET_F_RSS | F.VIRTIO_NET_F_HASH_REPORT | F.VIRTIO_NET_F_GUEST_CSUM; // biome-ignore format: a list

/** No command that is nearly right makes this the driver's own address. */
const FROM = Buffer.from([6, 9, 9, 9, 9, 9]);

export function commands(makePlane: MakePlane): (random: Random) => Promise<void> {
  const plane = makePlane();
  const from = new Driver(plane, { size: 64 });
  const to = new Driver(plane, { size: 64, headerLength: 20 });
  let address: Uint8Array = mac(1);
  const control = new DeviceControl({
    arena: plane.arena,
    structures: plane.structures,
    port: to.port.struct,
    queuePairs: 4,
    device: {
      respread: () => {},
      applyOffloads: () => {},
      mac: () => address,
      setMac: (given) => {
        address = given;
      },
      announced: () => {},
      quiesce: async () => {},
    },
  });
  const step = async (random: Random): Promise<void> => {
    const answer = await executeControl(command(random), control.limits, control);
    assert.ok(answer === 0 || answer === 1);
    const group = Buffer.from([1, 0, 0x5e, 0, 0, random.below(3)]);
    const target = random.pick([BROADCAST, Buffer.from(address), mac(random.below(4)), group]);
    const sent = frame(target, FROM, 60 + random.below(100), random.below(1000));
    if (random.below(2)) random.bytes(40).copy(sent, 12);
    if (random.below(2)) sent.writeUInt16BE(random.pick([0x0800, 0x86dd, 0x8100]), 12);
    if (random.below(2)) sent[14] = random.pick([0x45, 0x46, 0x60]);
    assert.equal(from.send(sent), 1);
    from.publish();
    const filtered = to.port.struct.get64('filtered');
    assert.equal(plane.poll().broken, 0);
    const came = to.receive();
    if (came === undefined) assert.equal(to.port.struct.get64('filtered'), filtered + 1n);
    else assert.ok(came instanceof Buffer && came.equals(sent));
    if (came !== undefined) assert.ok(to.hash.report <= 9);
  };
  return async (random) => {
    address = mac(1);
    plane.functions.flush(0xffff_ffff, 0);
    control.reset(ALL);
    for (let steps = 1 + random.below(8); steps > 0; steps--) await step(random);
  };
}

/** A command as a driver would give it, some of its bytes changed, cut off or more than they should be. */
function command(random: Random): Uint8Array {
  const u16 = (value: number) => [value & 255, value >>> 8];
  const u32 = (value: number) => [...u16(value & 0xffff), ...u16(value >>> 16)];
  const key = [40, ...random.bytes(40)];
  const list = (group: number) => {
    const count = random.below(80);
    return [
      ...u32(count),
      ...Array.from({ length: count }, () => [2 | group, 0, 0, 0, 0, random.below(4)]).flat(),
    ];
  };
  const queues = (count: number) => Array.from({ length: count }, () => u16(random.below(4))).flat();
  const length = 1 << random.below(8);
  const bytes = random.pick([
    () => [0, random.below(6), random.below(2)],
    () => [1, 0, ...list(0), ...list(1)],
    () => [1, 1, 2, 0, 0, 0, 0, random.below(4)],
    () => [2, random.below(2), ...u16(random.below(4096))],
    () => [3, 0],
    () => [4, 0, ...u16(1 + random.below(4))],
    () => [4, 1, ...u32(random.below(0x200)), ...u16(length - 1), ...queues(1 + length), ...u16(4), ...key],
    () => [4, 2, ...u32(random.below(0x200)), ...Array<number>(8).fill(0), ...key],
    () => [5, 0, 2 * random.below(2), ...Array<number>(7).fill(0)],
    () => [...random.bytes(random.below(100))],
  ])(); // biome-ignore format: a table
  for (let changes = random.below(3); changes > 0 && bytes.length > 0; changes--)
    bytes[random.below(bytes.length)] = random.below(256);
  if (random.below(8) === 0) bytes.length = random.below(bytes.length + 1);
  if (random.below(8) === 0) bytes.push(0);
  return Uint8Array.from(bytes);
}
