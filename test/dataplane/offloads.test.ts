/**
 * Frames with work left undone (virtio 1.3, 5.1.6.2), from a guest that may send them to guests that take them, or
 * some of them, or none: what arrives is held against checksums and lengths computed in plain TypeScript.
 */
import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import { Driver } from '../support/driver.ts';
import { BROADCAST, mac, macKey } from '../support/ethernet.ts';
import { faults, frameOf, layout, type Segment, sum } from '../support/ip.ts';
import {
  CSUM,
  ECN,
  MAX_FRAME,
  MERGEABLE,
  OFFLOADS,
  PACKED,
  Plane,
  TSO4,
  TSO6,
  UFO,
  USO4,
  USO6,
} from '../support/plane.ts';

const plane = new Plane();
afterEach(() => plane.clear());

const ALL = CSUM | TSO4 | TSO6 | ECN | UFO | USO4 | USO6;
const A = mac(1);
const B = mac(2);
const NEEDS_CSUM = 1;
const GSO = { tcp4: 1, udp: 3, tcp6: 4, udpL4: 5 } as const;
const ECN_BIT = 0x80;

interface Header {
  flags?: number;
  gso?: number;
  hdrLen?: number;
  size?: number;
  start?: number;
  offset?: number;
}

function guest(format: number, accepts: number, may = ALL): Driver {
  const size = 256;
  return new Driver(plane, { flags: OFFLOADS | MERGEABLE | format, size, may, accepts, tableEntries: 1 });
}

function setHeader(driver: Driver, header: Header): void {
  const view = Buffer.from(driver.header.buffer, driver.header.byteOffset, 12);
  view[0] = header.flags ?? 0;
  view[1] = header.gso ?? 0;
  view.writeUInt16LE(header.hdrLen ?? 0, 2);
  view.writeUInt16LE(header.size ?? 0, 4);
  view.writeUInt16LE(header.start ?? 0, 6);
  view.writeUInt16LE(header.offset ?? 0, 8);
}

function getHeader(driver: Driver): Required<Header> {
  const view = Buffer.from(driver.header.buffer, driver.header.byteOffset, 12);
  return {
    flags: view[0]!,
    gso: view[1]!,
    hdrLen: view.readUInt16LE(2),
    size: view.readUInt16LE(4),
    start: view.readUInt16LE(6),
    offset: view.readUInt16LE(8),
  };
}

interface Arrived {
  frame: Buffer;
  header: Required<Header>;
}

function arrived(driver: Driver): Arrived[] {
  const all: Arrived[] = [];
  for (;;) {
    const frame = driver.receive();
    assert.notEqual(frame, -1);
    if (frame === undefined) return all;
    all.push({ frame: frame as Buffer, header: getHeader(driver) });
  }
}

function send(driver: Driver, frame: Buffer, header: Header): void {
  setHeader(driver, header);
  assert.equal(driver.send(frame), 1);
  driver.publish();
}

/** Sends one frame from a guest that may leave anything undone to one that takes `accepts`. */
function crossed(format: number, accepts: number, frame: Buffer, header: Header): Arrived[] {
  const a = guest(format, ALL);
  const b = guest(format, accepts);
  plane.functions.learn(macKey(B), 0, b.port.slot);
  send(a, frame, header);
  assert.deepEqual(plane.poll(), { packets: 1, calls: [b.port.rx.vring.at, a.port.tx.vring.at], broken: 0 });
  return arrived(b);
}

function payload(length: number): Buffer {
  return Buffer.from(Array.from({ length }, (_, i) => i * 31 + (i >>> 8) * 7));
}

const FORMATS = [
  ['split', 0],
  ['packed', PACKED],
] as const;
const KINDS: (Omit<Segment, 'payload'> & { name: string; gso: number; accept: number })[] = [
  { name: 'TCP over IPv4', version: 4, protocol: 'tcp', gso: GSO.tcp4, accept: TSO4 },
  { name: 'TCP over IPv4, options', version: 4, protocol: 'tcp', options: 12, gso: GSO.tcp4, accept: TSO4 },
  { name: 'TCP over IPv6', version: 6, protocol: 'tcp', gso: GSO.tcp6, accept: TSO6 },
  { name: 'TCP over IPv6 in a VLAN', version: 6, protocol: 'tcp', vlan: 5, gso: GSO.tcp6, accept: TSO6 },
  { name: 'TCP over IPv4 in a VLAN', version: 4, protocol: 'tcp', vlan: 5, gso: GSO.tcp4, accept: TSO4 },
  { name: 'UDP over IPv4', version: 4, protocol: 'udp', gso: GSO.udpL4, accept: USO4 },
  { name: 'UDP over IPv6', version: 6, protocol: 'udp', gso: GSO.udpL4, accept: USO6 },
];

for (const [format, bits] of FORMATS) {
  describe(`a partial checksum, ${format}`, () => {
    for (const kind of KINDS) {
      for (const length of [0, 1, 2, 15, 64, 75, 1400, 1401, 8000]) {
        const segment: Segment = { ...kind, payload: payload(length) };
        const { transport, field } = layout(segment);
        const header = { flags: NEEDS_CSUM, start: transport, offset: field };
        const partial = frameOf(B, A, segment, true);

        test(`${kind.name}, ${length} bytes: completed for a guest that wants it so`, () => {
          const [one, ...more] = crossed(bits, 0, partial, header);
          assert.deepEqual(more, []);
          assert.equal(one!.header.flags, 0);
          assert.deepEqual(faults(one!.frame, segment), []);
          assert.deepEqual(one!.frame, frameOf(B, A, segment, false));
        });

        test(`${kind.name}, ${length} bytes: left to a guest that takes it`, () => {
          const [one] = crossed(bits, CSUM, partial, { ...header, hdrLen: 9999 });
          const expected = { flags: NEEDS_CSUM, gso: 0, hdrLen: 0, size: 0, start: transport, offset: field };
          assert.deepEqual(one, { frame: partial, header: expected });
        });
      }
    }
  });

  describe(`a large frame, ${format}`, () => {
    for (const kind of KINDS) {
      for (const length of [
        1449,
        2896,
        10_000,
        MAX_FRAME - layout({ ...kind, payload: Buffer.alloc(0) }).headers,
      ]) {
        const segment: Segment = { ...kind, payload: payload(length), flags: 0x99, sequence: 0xffff_f000 };
        const { transport, field, headers } = layout(segment);
        const whole = frameOf(B, A, segment, true);
        const size = 1448;
        const header = { flags: NEEDS_CSUM, gso: kind.gso, hdrLen: 0, size, start: transport, offset: field };

        test(`${kind.name}, ${length} bytes: whole to a guest that takes it`, () => {
          const [one, ...more] = crossed(bits, CSUM | kind.accept, whole, header);
          assert.deepEqual(more, []);
          assert.deepEqual(one, { frame: whole, header: { ...header, hdrLen: headers } });
        });

        for (const accepts of [0, CSUM]) {
          test(`${kind.name}, ${length} bytes: cut, checksums ${accepts ? 'left' : 'completed'}`, () => {
            const pieces = crossed(bits, accepts, whole, header);
            assert.equal(pieces.length, Math.ceil(length / size));
            assert.deepEqual(Buffer.concat(pieces.map((p) => p.frame.subarray(headers))), segment.payload);
            for (const [i, { frame, header: got }] of pieces.entries()) {
              const last = i === pieces.length - 1;
              const own: Segment = {
                ...segment,
                payload: segment.payload.subarray(i * size, (i + 1) * size),
                sequence: (segment.sequence! + i * size) >>> 0,
                identification: 7 + i,
                // CWR in the first alone; PSH and FIN in the last alone.
                flags: 0x10 | (i === 0 ? 0x80 : 0) | (last ? 0x09 : 0),
              };
              assert.equal(got.gso, 0);
              assert.deepEqual(frame, frameOf(B, A, own, accepts !== 0), `piece ${i}`);
              if (accepts) {
                assert.deepEqual(got, { ...header, gso: 0, size: 0 });
              } else {
                assert.equal(got.flags, 0);
                assert.deepEqual(faults(frame, own), []);
              }
            }
          });
        }
      }
    }

    test('TCP with ECN is whole only for a guest that knows ECN', () => {
      const segment: Segment = { version: 4, protocol: 'tcp', payload: payload(3000), flags: 0x90 };
      const { transport, field } = layout(segment);
      const header = { flags: 1, gso: GSO.tcp4 | ECN_BIT, size: 1000, start: transport, offset: field };
      const whole = frameOf(B, A, segment, true);
      assert.equal(crossed(bits, CSUM | TSO4 | ECN, whole, header).length, 1);
      plane.clear();
      assert.equal(crossed(bits, CSUM | TSO4, whole, header).length, 3);
    });

    for (const version of [4, 6] as const) {
      test(`a datagram over IPv${version} is fragmented`, () => {
        const segment: Segment = { version, protocol: 'udp', payload: payload(5001) };
        const { network, transport, field } = layout(segment);
        const header = { flags: NEEDS_CSUM, gso: GSO.udp, size: 1480, start: transport, offset: field };
        const whole = frameOf(B, A, segment, true);
        const [one] = crossed(bits, CSUM | UFO, whole, header);
        assert.deepEqual(one?.frame, whole);
        plane.clear();
        const pieces = crossed(bits, CSUM, whole, header).map((p) => p.frame);
        assert.equal(pieces.length, 4);
        let offset = 0;
        const data: Buffer[] = [];
        const identifications = new Set<number>();
        for (const [i, piece] of pieces.entries()) {
          const at = transport + (version === 6 ? 8 : 0);
          const more = i < 3 ? 1 : 0;
          if (version === 4) {
            assert.equal(piece.readUInt16BE(network + 6), (offset >> 3) | (more << 13));
            assert.equal(sum(piece.subarray(network, transport)), 0xffff);
            assert.equal(piece.readUInt16BE(network + 2), piece.length - network);
            identifications.add(piece.readUInt16BE(network + 4));
          } else {
            assert.equal(piece[network + 6], 44);
            assert.equal(piece.readUInt16BE(network + 4), piece.length - transport);
            assert.equal(piece[transport], 17);
            assert.equal(piece.readUInt16BE(transport + 2), offset | more);
            identifications.add(piece.readUInt32BE(transport + 4));
          }
          data.push(piece.subarray(at));
          offset += piece.length - at;
        }
        assert.equal(identifications.size, 1);
        assert.deepEqual(Buffer.concat(data), frameOf(B, A, segment, false).subarray(transport));
      });
    }

    test('goes out to everybody as each one takes it', () => {
      const segment: Segment = { version: 4, protocol: 'tcp', payload: payload(20_000) };
      const { transport, field } = layout(segment);
      const a = guest(bits, ALL);
      const others = [guest(bits, ALL), guest(bits, 0), guest(bits, CSUM)];
      send(a, frameOf(BROADCAST, A, segment, true), {
        flags: 1, gso: GSO.tcp4, size: 1448, start: transport, offset: field,
      }); // biome-ignore format: a table
      plane.poll();
      assert.deepEqual(
        others.map((driver) => arrived(driver).length),
        [1, 14, 14],
      );
    });

    test('a ring that fills up takes what has room', () => {
      const segment: Segment = { version: 4, protocol: 'tcp', payload: payload(60_000) };
      const { transport, field } = layout(segment);
      const a = guest(bits, ALL);
      const b = new Driver(plane, { flags: OFFLOADS | MERGEABLE | bits, size: 16, tableEntries: 1 });
      plane.functions.learn(macKey(B), 0, b.port.slot);
      send(a, frameOf(B, A, segment, true), {
        flags: 1, gso: GSO.tcp4, size: 1000, start: transport, offset: field,
      }); // biome-ignore format: a table
      plane.poll();
      assert.equal(arrived(b).length, 16);
      assert.deepEqual(plane.drops(b.port.rx.vring), { ringFull: 44 });
    });
  });

  describe(`a header that doesn't fit its frame, ${format}`, () => {
    const segment: Segment = { version: 4, protocol: 'tcp', payload: payload(3000) };
    const { network, transport, field } = layout(segment);
    const whole = frameOf(B, A, segment, true);
    const good = { flags: NEEDS_CSUM, gso: GSO.tcp4, size: 1000, start: transport, offset: field };
    const udp = frameOf(B, A, { ...segment, protocol: 'udp' }, true);
    const changed = (change: (frame: Buffer) => void) => {
      const frame = Buffer.from(whole);
      change(frame);
      return frame;
    };
    const cases: [string, Header, Buffer?, number?][] = [
      ['checksum start beyond the frame', { ...good, gso: 0, start: 4000 }],
      ['checksum field beyond the frame', { ...good, gso: 0, offset: 0xffff }],
      ['checksum field across the end', { ...good, gso: 0, start: whole.length - 1, offset: 0 }],
      ['checksum over the Ethernet header', { ...good, gso: 0, start: 0, offset: 0 }],
      ['checksum over the IP header', { ...good, gso: 0, start: network, offset: 12 }],
      ['a large frame without a checksum to complete', { ...good, flags: 0 }],
      ['segment size 0', { ...good, size: 0 }],
      ['segments without number', { ...good, size: 3 }],
      ['a kind that is none', { ...good, gso: 2 }],
      ['ECN alone', { ...good, gso: ECN_BIT }],
      ['every bit', { flags: 0xff, gso: 0xff, hdrLen: 0xffff, size: 0xffff, start: 0xffff, offset: 0xffff }],
      ['the other version of IP', { ...good, gso: GSO.tcp6 }],
      ['the other protocol', { ...good, gso: GSO.udpL4 }],
      ['a TCP kind on UDP', good, udp],
      ['a checksum that is not that of TCP', { ...good, offset: 6 }],
      ['a checksum that starts behind the TCP header', { ...good, start: transport + 20 }],
      ['no payload', good, whole.subarray(0, transport + 20)],
      ['a TCP header of 16 bytes', good, changed((f) => f.fill(0x40, transport + 12, transport + 13))],
      ['a TCP header beyond the frame', good, whole.subarray(0, transport + 19)],
      ['an IP header of 16 bytes', good, changed((f) => f.fill(0x44, network, network + 1))],
      [
        'an IP header beyond the frame',
        good,
        changed((f) => f.fill(0x4f, network, network + 1)).subarray(0, 60),
      ],
      ['version 5 of IP', good, changed((f) => f.fill(0x55, network, network + 1))],
      ['a fragment', good, changed((f) => f.fill(0x20, network + 6, network + 7))],
      ['not IP', good, changed((f) => f.fill(0x77, 12, 13))],
      ['a kind that was not negotiated', good, whole, CSUM | TSO6],
      ['ECN that was not negotiated', { ...good, gso: GSO.tcp4 | ECN_BIT }, whole, CSUM | TSO4],
      ['a fragment size below 8', { ...good, gso: GSO.udp, offset: 6, size: 7 }, udp],
    ];
    for (const [name, header, frame = whole, may = ALL] of cases) {
      test(`${name}: dropped, and the next one passes`, () => {
        const a = guest(bits, ALL, may);
        const b = guest(bits, ALL);
        plane.functions.learn(macKey(B), 0, b.port.slot);
        send(a, frame, header);
        send(a, whole, {});
        plane.poll();
        assert.deepEqual(
          arrived(b).map((one) => one.frame),
          [whole],
        );
        assert.deepEqual(plane.drops(a.port.tx.vring), { badOffload: 1 });
        assert.equal(a.port.tx.vring.get64('packets'), 1n);
        assert.equal(a.port.tx.vring.get64('bytes'), BigInt(whole.length));
        assert.ok(plane.functions.reclaim(a.tx.at) >= 0);
        assert.equal(a.tx.get('freeCount'), a.tx.get('size'));
      });
    }

    test('of a guest that negotiated nothing is not looked at', () => {
      const a = new Driver(plane, { flags: MERGEABLE | bits, size: 256, tableEntries: 1 });
      const b = guest(bits, ALL);
      plane.functions.learn(macKey(B), 0, b.port.slot);
      a.tx.set('flags', a.tx.get('flags') | OFFLOADS);
      send(a, whole, { flags: 0xff, gso: 0xff, size: 1, start: 0xffff, offset: 0xffff });
      plane.poll();
      assert.deepEqual(arrived(b), [
        { frame: whole, header: { flags: 0, gso: 0, hdrLen: 0, size: 0, start: 0, offset: 0 } },
      ]);
    });
  });
}
