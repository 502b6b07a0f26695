/** The learning bridge (IEEE 802.1D, 7.8 and 7.9) over real rings: who gets which frame, in which order. */
import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import { Driver, type DriverOptions } from '../support/driver.ts';
import { BROADCAST, frame, mac, macKey } from '../support/ethernet.ts';
import { BURST, MERGEABLE, Plane, STOPPED } from '../support/plane.ts';
import { Random } from '../support/random.ts';

const plane = new Plane();
const { header } = plane.structures;
afterEach(() => {
  plane.clear();
  header.set('now', 1000);
});

const MULTICAST = Buffer.from([1, 0, 0x5e, 0, 0, 1]);
const ZERO = Buffer.alloc(6);
const lookup = (address: Buffer) => plane.functions.lookup(macKey(address), 0) >>> 0;
const UNKNOWN = 0xffff_ffff;

function guests(count: number, options: DriverOptions = {}): Driver[] {
  return Array.from({ length: count }, () => new Driver(plane, { size: 64, tableEntries: 1, ...options }));
}

function receiveAll(driver: Driver): Buffer[] {
  const frames: Buffer[] = [];
  for (;;) {
    const came = driver.receive();
    if (came === undefined) return frames;
    assert.notEqual(came, -1);
    frames.push(came as Buffer);
  }
}

/** Sends frames as one burst and returns what each guest got. */
function switched(all: Driver[], from: Driver, ...frames: Buffer[]): Buffer[][] {
  for (const bytes of frames) assert.equal(from.send(bytes), 1);
  from.publish();
  assert.equal(plane.poll().packets, frames.length);
  return all.map(receiveAll);
}

describe('the bridge', () => {
  test('floods what it does not know, learns who sent it, and then sends to one port alone', () => {
    const all = guests(4);
    const [a, b] = all as [Driver, Driver];
    const hello = frame(mac(2), mac(1));
    assert.deepEqual(switched(all, a, hello), [[], [hello], [hello], [hello]]);
    assert.equal(lookup(mac(1)), 0);
    const answer = frame(mac(1), mac(2));
    assert.deepEqual(switched(all, b, answer), [[answer], [], [], []]);
    assert.deepEqual(switched(all, a, hello), [[], [hello], [], []]);
  });

  test('floods broadcast and multicast, always', () => {
    const all = guests(3);
    const [a, b] = all as [Driver, Driver];
    for (const to of [BROADCAST, MULTICAST]) {
      const bytes = frame(to, mac(1));
      assert.deepEqual(switched(all, a, bytes), [[], [bytes], [bytes]]);
      // A group address as a source is nobody's (7.8): the port isn't learned.
      switched(all, b, frame(mac(1), to));
      assert.equal(lookup(to), UNKNOWN);
      assert.deepEqual(switched(all, a, bytes), [[], [bytes], [bytes]]);
    }
  });

  test('an address of zeros is learned for nobody and flooded', () => {
    const all = guests(3);
    const [a, b] = all as [Driver, Driver];
    const fromZero = frame(mac(9), ZERO);
    assert.deepEqual(switched(all, b, fromZero), [[fromZero], [], [fromZero]]);
    for (const sender of [a, b]) {
      const toZero = frame(ZERO, mac(1));
      const others = all.map((driver) => (driver === sender ? [] : [toZero]));
      assert.deepEqual(switched(all, sender, toZero), others);
      // Behind a frame that is dropped, and behind another destination.
      assert.deepEqual(switched(all, sender, Buffer.alloc(13), toZero), others);
      assert.deepEqual(switched(all, sender, frame(BROADCAST, mac(1)), toZero).flat().length, 4);
    }
  });

  test('never sends a frame back to the port that it came from', () => {
    const all = guests(3);
    const [a] = all as [Driver];
    switched(all, a, frame(BROADCAST, mac(1)), frame(BROADCAST, mac(2)));
    const [one, two] = [frame(mac(2), mac(1)), frame(mac(77), mac(1))];
    assert.deepEqual(switched(all, a, one, two, one), [[], [two], [two]]);
    assert.deepEqual(plane.drops(a.port.tx.vring), { samePort: 2 });
    assert.deepEqual(switched(all, a, one), [[], [], []]);
    assert.deepEqual(plane.drops(a.port.tx.vring), { samePort: 3 });
  });

  test('follows an address that moves', () => {
    const all = guests(3);
    const [a, b, c] = all as [Driver, Driver, Driver];
    switched(all, a, frame(BROADCAST, mac(1)));
    switched(all, b, frame(BROADCAST, mac(1)));
    assert.equal(lookup(mac(1)), 1);
    assert.equal(a.port.struct.get('addresses'), 0);
    assert.equal(b.port.struct.get('addresses'), 1);
    const bytes = frame(mac(1), mac(3));
    assert.deepEqual(switched(all, c, bytes), [[], [bytes], []]);
  });

  test('forgets an address that was not seen for the ageing time, and not before', () => {
    const all = guests(3);
    const [a, b] = all as [Driver, Driver];
    const ageing = header.get('ageing');
    switched(all, a, frame(BROADCAST, mac(1)));
    const bytes = frame(mac(1), mac(2));
    header.set('now', 1000 + ageing);
    assert.deepEqual(switched(all, b, bytes), [[bytes], [], []]);
    assert.equal(plane.functions.flush(UNKNOWN, 1), 0);
    // Being spoken to isn't being seen.
    header.set('now', 1001 + ageing);
    assert.deepEqual(switched(all, b, bytes), [[bytes], [], [bytes]]);
    switched(all, a, frame(BROADCAST, mac(1)));
    assert.deepEqual(switched(all, b, bytes), [[bytes], [], []]);
    header.set('now', 1002 + 2 * ageing);
    assert.equal(plane.functions.flush(UNKNOWN, 1), 2);
    assert.equal(header.get('fdbEntries'), 0);
  });

  test('a guest that invents addresses can push out nobody, not even its own', () => {
    const all = guests(2, { addressLimit: 5 });
    const [a, b] = all as [Driver, Driver];
    switched(all, a, frame(BROADCAST, mac(1)));
    for (let i = 0; i < 1000; i++) switched(all, b, frame(BROADCAST, mac(100 + i)));
    assert.equal(b.port.struct.get('addresses'), 5);
    assert.equal(b.port.struct.get('notLearned'), 995);
    assert.equal(header.get('fdbEntries'), 6);
    assert.equal(lookup(mac(1)), 0);
    for (let i = 0; i < 5; i++) assert.equal(lookup(mac(100 + i)), 1);
    // Nor can it take over another's address when it has no room.
    switched(all, b, frame(BROADCAST, mac(1)));
    assert.equal(lookup(mac(1)), 0);
    // Its own stay fresh.
    header.set('now', 1300);
    switched(all, b, frame(BROADCAST, mac(102)));
    header.set('now', 1301);
    assert.equal(lookup(mac(102)), 1);
    assert.equal(lookup(mac(101)), UNKNOWN);
  });

  test('learns 4096 addresses of each of 16 ports from their frames', () => {
    const all = guests(16);
    const silent = guests(1, { flags: MERGEABLE });
    for (const [port, driver] of all.entries()) {
      driver.port.struct.set('pairs', 0);
      for (let i = 0; i < 4096; i += 64) {
        for (let j = i; j < i + 64; j++)
          assert.equal(driver.send(frame(mac(9_999_999), mac(port * 4096 + j), 14)), 1);
        driver.publish();
        plane.poll();
        silent[0]!.drain(64);
      }
    }
    assert.equal(header.get('fdbEntries'), 65_536);
    for (let i = 0; i < 65_536; i++) assert.equal(lookup(mac(i)), Math.floor(i / 4096));
    assert.equal(silent[0]!.rx.get64('packets'), 65_536n);
  });

  test('keeps the order of frames for each destination, whatever is mixed into one burst', () => {
    const random = new Random(7);
    const all = guests(4);
    const [a] = all as [Driver];
    for (const [i, driver] of all.entries()) switched(all, driver, frame(BROADCAST, mac(1 + i), 60));
    for (let turn = 0; turn < 300; turn++) {
      const count = 1 + random.below(60);
      const expected: Buffer[][] = all.map(() => []);
      const burst: Buffer[] = [];
      for (let i = 0; i < count; i++) {
        const to = random.pick([
          mac(1),
          mac(2),
          mac(2),
          mac(3),
          mac(4),
          BROADCAST,
          MULTICAST,
          mac(999),
          ZERO,
        ]);
        const length = random.below(20) === 0 ? 10 : 14 + random.below(300);
        const bytes = length < 14 ? Buffer.alloc(length) : frame(to, mac(1), length, turn * 61 + i);
        burst.push(bytes);
        if (length < 14) continue;
        const known = [1, 2, 3].find((n) => to.equals(mac(n + 1)));
        const targets = known ? [known] : to.equals(mac(1)) ? [] : [1, 2, 3];
        for (const target of targets) expected[target]!.push(bytes);
      }
      assert.deepEqual(switched(all, a, ...burst), expected, `turn ${turn}`);
    }
  });

  test('floods to 200 ports, the same frame to each', () => {
    const all = guests(200);
    const frames = Array.from({ length: 20 }, (_, i) => frame(BROADCAST, mac(1), 60 + 70 * i, i));
    const came = switched(all, all[77]!, ...frames);
    for (const [i, each] of came.entries()) assert.deepEqual(each, i === 77 ? [] : frames);
  });

  test('tells each receiver of a flooded frame its own number of buffers', () => {
    const kinds: DriverOptions[] = [
      {},
      { flags: MERGEABLE, bufferLength: 100 },
      { flags: MERGEABLE },
      { flags: MERGEABLE, bufferLength: 300 },
      {},
      { headerLength: 10 },
    ];
    const all = kinds.map((options) => new Driver(plane, { size: 64, tableEntries: 1, ...options }));
    const frames = [60, 500, 1500, 88, 89].map((length) => frame(BROADCAST, mac(1), length, length));
    const came = switched(all, all[0]!, ...frames);
    for (const [i, each] of came.entries()) assert.deepEqual(each, i === 0 ? [] : frames, `guest ${i}`);
    // The header's last field, at the start of the buffers (5.1.6): of one buffer unless there are more.
    for (const [i, count] of [
      [1, 1],
      [2, 1],
      [4, 1],
    ] as const) {
      const buffer = all[i]!.rx.get('buffers');
      assert.deepEqual([...plane.arena.u8.subarray(buffer, buffer + 12)], [...Array(10).fill(0), count, 0]);
    }
  });

  test('a port without a guest gets no copy of what is for everybody, and loses what is for it', () => {
    const all = guests(3);
    const [a, b] = all as [Driver, Driver];
    switched(all, b, frame(BROADCAST, mac(2)));
    b.port.struct.set('pairs', 0);
    b.port.rx.vring.set('state', STOPPED);
    const [everybody, one] = [frame(BROADCAST, mac(1)), frame(mac(2), mac(1))];
    assert.deepEqual(switched(all, a, everybody, one), [[], [], [everybody]]);
    assert.deepEqual(plane.drops(b.port.rx.vring), { noGuest: 1 });
    assert.deepEqual(plane.drops(a.port.tx.vring), {});
  });
});

describe('drops are counted by reason', () => {
  test('at the ring where they happen', () => {
    const all = guests(2, { size: 4, bufferLength: 300 });
    const [a, b] = all as [Driver, Driver];
    switched(all, b, frame(BROADCAST, mac(2), 60));
    const bytes = frame(mac(2), mac(1), 60);
    // Too short; too big for b's buffers; then more than b's ring takes.
    switched(all, a, Buffer.alloc(13), frame(mac(2), mac(1), 289));
    assert.deepEqual(plane.drops(a.port.tx.vring), { short: 1 });
    assert.deepEqual(plane.drops(b.port.rx.vring), { tooBig: 1 });
    for (let round = 0; round < 2; round++) {
      for (let i = 0; i < 4; i++) assert.equal(a.send(bytes), 1);
      a.publish();
      plane.poll();
    }
    assert.deepEqual(plane.drops(b.port.rx.vring), { tooBig: 1, ringFull: 4 });
    assert.equal(receiveAll(b).length, 4);
    // A guest that is there and has its ring disabled, from either side.
    b.port.rx.vring.set('enabled', 0);
    switched(all, a, bytes, bytes);
    assert.deepEqual(plane.drops(b.port.rx.vring), { tooBig: 1, ringFull: 4, noGuest: 2 });
    b.port.rx.vring.set('enabled', 1);
    a.port.tx.vring.set('enabled', 0);
    assert.deepEqual(switched(all, a, frame(mac(2), mac(55), 60), bytes), [[], []]);
    assert.deepEqual(plane.drops(a.port.tx.vring), { short: 1, disabled: 2 });
    assert.equal(lookup(mac(55)), UNKNOWN, 'a ring that is not enabled has no effect');
    assert.ok(plane.functions.reclaim(a.tx.at) > 0);
    assert.equal(a.tx.get('freeCount'), 4, 'its buffers come back');
    a.port.tx.vring.set('enabled', 1);
    assert.deepEqual(switched(all, a, bytes), [[], [bytes]]);
  });

  test('and what passes is counted in packets and bytes of frames', () => {
    const all = guests(3);
    const [a, b, c] = all as [Driver, Driver, Driver];
    switched(all, a, frame(BROADCAST, mac(1), 14), frame(BROADCAST, mac(1), 1500));
    const counts = (which: 'rx' | 'tx', d: Driver) =>
      ['packets', 'bytes'].map((name) => Number(d.port[which].vring.get64(name as 'packets')));
    assert.deepEqual(counts('tx', a), [2, 1514]);
    assert.deepEqual(counts('rx', a), [0, 0]);
    for (const d of [b, c]) assert.deepEqual(counts('rx', d), [2, 1514]);
  });
});

describe('a round', () => {
  test('takes one burst from each ring, in turn', () => {
    const all = guests(3, { size: 256 });
    const [a, b, c] = all as [Driver, Driver, Driver];
    plane.functions.learn(macKey(mac(3)), 0, c.port.slot);
    a.port.tx.vring.set('callFd', -1);
    b.port.tx.vring.set('callFd', -1);
    c.port.rx.vring.set('callFd', -1);
    const bytes = frame(mac(3), mac(1), 60);
    for (const d of [a, b]) assert.equal(d.flood(bytes, 100), 100);
    assert.equal(plane.poll().packets, 2 * BURST);
    assert.equal(plane.poll().packets, 2 * (100 - BURST));
    assert.equal(plane.poll(5).packets, 0);
    assert.equal(c.drain(256), 200);
  });

  test('ends early when guests are to be interrupted, so that none waits for a long poll', () => {
    const all = guests(2, { size: 256 });
    const [a, b] = all as [Driver, Driver];
    plane.functions.learn(macKey(mac(3)), 0, b.port.slot);
    a.flood(frame(mac(3), mac(1), 60), 200);
    assert.equal(plane.poll(100).packets, BURST);
  });

  test('notes the generation that it has seen', () => {
    guests(1);
    header.set('generation', 41);
    plane.poll();
    assert.equal(plane.worker.get('seen'), 41);
    plane.functions.sleep();
    assert.equal(plane.worker.get('seen'), 0xffff_ffff);
    plane.functions.wake();
    assert.equal(plane.worker.get('seen'), 41);
  });
});
