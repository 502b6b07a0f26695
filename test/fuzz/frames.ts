/**
 * Random frames with random virtio-net headers through classification, checksums and segmentation, to guests that
 * take all offloads, some, or none. Whatever comes in, what goes out is a frame that its receiver agreed to.
 */
import assert from 'node:assert/strict';
import { Driver } from '../support/driver.ts';
import { BROADCAST, mac } from '../support/ethernet.ts';
import {
  CSUM,
  ECN,
  MERGEABLE,
  OFFLOADS,
  PACKED,
  type Plane,
  TSO4,
  TSO6,
  UFO,
  USO4,
  USO6,
} from '../support/plane.ts';
import type { Random } from '../support/random.ts';

const ALL = CSUM | TSO4 | TSO6 | ECN | UFO | USO4 | USO6;
const LONGEST = 65550;

/** Something like a frame: Ethernet, perhaps a tag, IPv4 or IPv6, TCP or UDP, and then some bytes are wrong. */
function frameOf(random: Random): Buffer {
  const length = random.pick([14, 20, 40, 60, 200, 1500, 4000, 9000]) + random.below(50);
  const bytes = Buffer.concat([BROADCAST, mac(1), random.bytes(length - 12)]);
  let at = 12;
  for (let tags = random.pick([0, 0, 0, 1, 2]); tags > 0 && at + 6 < length; tags--, at += 4)
    bytes.writeUInt16BE(random.pick([0x8100, 0x88a8]), at);
  if (at + 60 < length && random.below(8) > 0) {
    const six = random.below(2) === 1;
    bytes.writeUInt16BE(six ? 0x86dd : 0x0800, at);
    const ip = at + 2;
    bytes[ip] = six ? 0x60 : 0x45;
    if (six) {
      bytes.writeUInt16BE(length - ip - 40, ip + 4);
      bytes[ip + 6] = random.pick([6, 17, 0, 43, 44]);
    } else {
      bytes.writeUInt16BE(length - ip, ip + 2);
      bytes.writeUInt16BE(random.pick([0, 0x4000, 0x2000]), ip + 6);
      bytes[ip + 9] = random.pick([6, 17, 1]);
    }
    const l4 = ip + (six ? 40 : 20);
    if (l4 + 20 < length) bytes[l4 + 12] = 0x50;
    for (let wrong = random.below(4) === 0 ? 1 + random.below(3) : 0; wrong > 0; wrong--)
      bytes[12 + random.below(Math.min(length - 12, 80))] = random.u32();
  }
  return bytes;
}

function header(random: Random, view: Uint8Array): void {
  const bytes = Buffer.from(view.buffer, view.byteOffset, 12);
  bytes[0] = random.pick([0, 1, 1, 1, 2, 3, random.u32() & 0xff]);
  bytes[1] = random.pick([0, 0, 1, 3, 4, 5, 0x81, 0x84, random.u32() & 0xff]);
  const word = () => random.pick([0, 14, 34, 54, 74, 1448, 65535, random.u32() & 0xffff]);
  bytes.writeUInt16LE(word(), 2);
  bytes.writeUInt16LE(random.pick([0, 1, 8, 536, 1448, 9000, 65535]), 4);
  bytes.writeUInt16LE(random.pick([34, 54, 38, word()]), 6);
  bytes.writeUInt16LE(random.pick([6, 16, word()]), 8);
}

const GSO_NEEDS: Record<number, number> = { 1: TSO4, 3: UFO, 4: TSO6, 5: USO4 | USO6 };

/** One execution: a burst of a few frames. */
export function frames(makePlane: () => Plane): (random: Random) => void {
  const plane = makePlane();
  const options = { size: 1024, bufferLength: 2048, tableEntries: 1 };
  const guest = (format: number, accepts: number) =>
    new Driver(plane, { ...options, flags: OFFLOADS | MERGEABLE | format, may: ALL, accepts });
  const [sender, packed] = [guest(0, ALL), guest(PACKED, ALL)];
  const all = [
    sender,
    packed,
    guest(0, 0),
    guest(PACKED, CSUM),
    guest(0, CSUM | TSO4),
    guest(0, CSUM | TSO6 | USO6),
  ];
  const accepted = new Map([[sender, ALL], [packed, ALL], [all[2]!, 0], [all[3]!, CSUM], [all[4]!, CSUM | TSO4], [all[5]!, CSUM | TSO6 | USO6]]); // biome-ignore format: a table
  return (random) => {
    const from = random.pick([sender, packed]);
    let sent = 0;
    for (let i = 1 + random.below(4); i > 0; i--) {
      header(random, from.header);
      if (from.send(frameOf(random)) === 1) sent++;
    }
    from.publish();
    assert.equal(plane.poll().packets, sent);
    for (const to of all) {
      for (let came = to.receive(); came !== undefined; came = to.receive()) {
        assert.ok(came instanceof Buffer, 'nobody lies here');
        assert.ok(came.length >= 14 && came.length <= LONGEST, `a frame of ${came.length} bytes`);
        const accepts = accepted.get(to)!;
        const [flags, gso] = [to.header[0]!, to.header[1]!];
        if (flags & 1) {
          assert.ok(accepts & CSUM, 'a checksum is left undone for one who takes that');
          const start = to.header[6]! | (to.header[7]! << 8);
          const offset = to.header[8]! | (to.header[9]! << 8);
          assert.ok(start + offset + 2 <= came.length, 'the checksum lies in the frame');
        }
        if (gso)
          assert.ok(accepts & (GSO_NEEDS[gso & 0x7f] ?? 0), `segmentation ${gso} for one who takes that`);
      }
      assert.equal(to.port.rx.vring.get('error'), 0);
      assert.equal(to.port.tx.vring.get('error'), 0);
    }
  };
}
