/**
 * Notifications are asked for and suppressed exactly as the specification says, in both directions: interrupts by
 * avail.flags or used_event (virtio 1.3, 2.7.7), kicks by used.flags or avail_event (2.7.10).
 */
import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import { Driver } from '../support/driver.ts';
import { BROADCAST, frame, mac, macKey } from '../support/ethernet.ts';
import { EVENT_IDX, Plane, type PlanePort, STOPPED, WRITE } from '../support/plane.ts';

const plane = new Plane();
afterEach(() => plane.clear());

const SIZE = 16;
const FRAME = Buffer.concat([Buffer.alloc(12), frame(BROADCAST, mac(1), 60)]);

/** A guest that offers frames and buffers by hand. */
function guest(flags: number, base = 0): PlanePort {
  const port = plane.port({ size: SIZE, flags, base });
  port.memory.write(port.free, FRAME);
  for (let i = 0; i < SIZE; i++) {
    port.tx.ring.describe(i, { address: port.free, length: FRAME.length });
    port.rx.ring.describe(i, { address: port.free + BigInt(1024 + 128 * i), length: 128, flags: WRITE });
    port.tx.ring.entry(i, i);
    port.rx.ring.entry(i, i);
  }
  return port;
}

const send = (port: PlanePort, count: number) => {
  port.tx.ring.availIdx += count;
};
const room = (port: PlanePort, count: number) => {
  port.rx.ring.availIdx += count;
};

/** Does the step from `old` to `now` pass `event`? As 2.7.10's example has it, without its arithmetic. */
function passes(event: number, old: number, now: number): boolean {
  for (let i = old; i !== now; i = (i + 1) & 0xffff) if (i === event) return true;
  return false;
}

describe('interrupts by avail.flags', () => {
  test('one a round for each ring that has something new, none without need', () => {
    const [a, b] = [guest(0), guest(0)];
    room(b, 16);
    send(a, 3);
    assert.deepEqual(plane.poll().calls.sort(), [a.tx.vring.at, b.rx.vring.at].sort());
    assert.deepEqual(plane.poll().calls, []);
    assert.equal(a.tx.vring.get64('notifications'), 1n);
    assert.equal(b.rx.vring.get64('notifications'), 1n);
    assert.equal(a.rx.vring.get64('notifications'), 0n);
  });

  test('none while the guest has set NO_INTERRUPT, and again when it clears it', () => {
    const [a, b] = [guest(0), guest(0)];
    room(b, 16);
    a.tx.ring.availFlags = 1;
    send(a, 1);
    assert.deepEqual(plane.poll().calls, [b.rx.vring.at]);
    b.rx.ring.availFlags = 1;
    send(a, 1);
    assert.deepEqual(plane.poll().calls, []);
    a.tx.ring.availFlags = 0;
    send(a, 1);
    assert.deepEqual(plane.poll().calls, [a.tx.vring.at]);
  });

  test('frames from several guests in one round are one interrupt for the one who gets them', () => {
    const [a, b, c] = [guest(0), guest(0), guest(0)];
    room(c, 16);
    for (const port of [a, b]) {
      port.tx.ring.availFlags = 1;
      send(port, 2);
    }
    assert.deepEqual(plane.poll().calls, [c.rx.vring.at]);
    assert.equal(c.rx.ring.usedIdx, 4);
  });

  test('a guest without a call descriptor gets none', () => {
    const a = guest(0);
    a.tx.vring.set('callFd', -1);
    send(a, 1);
    assert.deepEqual(plane.poll(), { packets: 1, calls: [], broken: 0 });
    assert.equal(a.tx.ring.usedIdx, 1);
  });

  test('frames that are dropped interrupt nobody but their sender', () => {
    const [a, b] = [guest(0), guest(0)];
    send(a, 1);
    assert.deepEqual(plane.poll().calls, [a.tx.vring.at]);
    assert.equal(b.rx.vring.get64('notifications'), 0n);
  });
});

describe('interrupts by used_event', () => {
  for (const start of [0, 100, 65530]) {
    test(`exactly when the used index passes it, from ${start}`, () => {
      const a = guest(EVENT_IDX, start);
      const { ring, vring } = a.tx;
      let count = 0n;
      for (let batch = 1; batch <= 5; batch++) {
        for (let distance = -3; distance <= 8; distance++) {
          const old = ring.usedIdx;
          const first = count === 0n;
          ring.usedEvent = old + distance;
          send(a, batch);
          const wanted = first || passes((old + distance) & 0xffff, old, (old + batch) & 0xffff);
          const { calls } = plane.poll();
          assert.deepEqual(
            calls,
            wanted ? [vring.at] : [],
            `${batch} used from ${old}, event at ${distance}`,
          );
          if (wanted) count++;
          assert.equal(vring.get64('notifications'), count);
        }
      }
    });
  }

  test('counts what was used since the last look, and not since the last interrupt', () => {
    const a = guest(EVENT_IDX);
    send(a, 1);
    assert.equal(plane.poll().calls.length, 1, 'the first is always told');
    a.tx.ring.usedEvent = 20;
    send(a, 5);
    assert.equal(plane.poll().calls.length, 0);
    // 6 used, and the driver asks for an interrupt at an index that has passed: it has seen that one itself.
    a.tx.ring.usedEvent = 3;
    send(a, 2);
    assert.equal(plane.poll().calls.length, 0);
    a.tx.ring.usedEvent = 8;
    send(a, 1);
    assert.equal(plane.poll().calls.length, 1);
  });

  test('on the receiving side, with several bursts in one round', () => {
    const [a, b, c] = [guest(EVENT_IDX), guest(EVENT_IDX), guest(EVENT_IDX)];
    room(c, 16);
    send(a, 1);
    plane.poll();
    // The second burst of the round passes the event, the first does not; then the first, and not the second.
    for (const event of [4, 6]) {
      c.rx.ring.usedEvent = event;
      send(a, 2);
      send(b, 2);
      const calls = plane.poll().calls.filter((at) => at === c.rx.vring.at);
      assert.deepEqual(calls, [c.rx.vring.at], `event ${event}`);
    }
    c.rx.ring.usedEvent = 20;
    send(a, 2);
    send(b, 2);
    assert.ok(!plane.poll().calls.includes(c.rx.vring.at));
    assert.equal(c.rx.ring.usedIdx, 13);
  });

  test('avail.flags says nothing then (2.7.7.2)', () => {
    const a = guest(EVENT_IDX);
    a.tx.ring.availFlags = 1;
    send(a, 1);
    plane.poll();
    a.tx.ring.usedEvent = 1;
    send(a, 1);
    assert.equal(plane.poll().calls.length, 1);
  });

  test('any event costs at most one interrupt', () => {
    const a = guest(EVENT_IDX);
    let calls = 0;
    for (let event = 0; event < 65536; event += 257) {
      a.tx.ring.usedEvent = event;
      send(a, 1);
      calls += plane.poll().calls.length;
    }
    assert.ok(calls >= 1 && calls <= 3, `${calls}`);
  });
});

describe('kicks asked of the guest', () => {
  const { functions } = plane;

  test('by used.flags: off while the worker polls, on when it wants to sleep', () => {
    const a = guest(0);
    functions.disarmAll();
    assert.equal(a.tx.ring.usedFlags, 1);
    assert.ok(!functions.armAll());
    assert.equal(a.tx.ring.usedFlags, 0);
    functions.disarmAll();
    assert.equal(a.tx.ring.usedFlags, 1);
    assert.equal(
      a.rx.ring.usedFlags,
      0,
      'buffers to receive into need no kick: nobody touches that ring here',
    );
  });

  test('by avail_event: the next index; disarming leaves it behind', () => {
    for (const base of [0, 65535]) {
      const a = guest(EVENT_IDX, base);
      send(a, 3);
      plane.poll();
      a.tx.ring.availEvent = 12345;
      assert.ok(!functions.armAll());
      assert.equal(a.tx.ring.availEvent, (base + 3) & 0xffff);
      functions.disarmAll();
      assert.equal(a.tx.ring.availEvent, (base + 3) & 0xffff);
      assert.equal(a.tx.ring.usedFlags, 0, 'used.flags stays 0 (2.7.10.1)');
      plane.clear();
    }
  });

  test('arming tells that frames came before it', () => {
    for (const flags of [0, EVENT_IDX]) {
      const [, b] = [guest(flags), guest(flags)];
      assert.ok(!functions.armAll());
      send(b, 1);
      assert.ok(functions.armAll());
      plane.poll();
      assert.ok(!functions.armAll());
      plane.clear();
    }
  });

  test('a ring that does not run is left alone', () => {
    const a = guest(0);
    functions.disarmAll();
    a.tx.vring.set('state', STOPPED);
    send(a, 1);
    assert.ok(!functions.armAll());
    assert.equal(a.tx.ring.usedFlags, 1);
    assert.equal(plane.poll().packets, 0);
    assert.equal(a.tx.ring.usedIdx, 0);
  });
});

describe('the driver', () => {
  const bytes = frame(BROADCAST, mac(1), 60);

  test('kicks by used.flags, and only for something new', () => {
    const a = new Driver(plane, { size: SIZE });
    const { ring } = a.port.tx;
    assert.ok(!a.publish());
    a.send(bytes);
    assert.equal(ring.availIdx, 0, 'nothing is shown before publishDriver()');
    assert.ok(a.publish());
    assert.equal(ring.availIdx, 1);
    assert.ok(!a.publish());
    ring.usedFlags = 1;
    a.send(bytes);
    assert.ok(!a.publish());
    assert.equal(ring.availIdx, 2);
  });

  for (const base of [0, 65534]) {
    test(`kicks exactly when the avail index passes avail_event, from ${base}`, () => {
      const a = new Driver(plane, { size: SIZE, flags: EVENT_IDX, base });
      const { ring } = a.port.tx;
      // used.flags says nothing then (2.7.10.2).
      ring.usedFlags = 1;
      for (let batch = 1; batch <= 4; batch++) {
        for (let distance = -3; distance <= 6; distance++) {
          const old = ring.availIdx;
          ring.availEvent = old + distance;
          for (let i = 0; i < batch; i++) assert.equal(a.send(bytes), 1);
          const wanted = passes((old + distance) & 0xffff, old, (old + batch) & 0xffff);
          assert.equal(a.publish(), wanted, `${batch} from ${old}, event at ${distance}`);
          plane.poll();
        }
      }
    });
  }

  for (const flags of [0, EVENT_IDX]) {
    test(`asks for interrupts only while it is armed, ${flags ? 'used_event' : 'avail.flags'}`, () => {
      const { functions } = plane;
      const [a, b] = [new Driver(plane, { size: SIZE, flags }), new Driver(plane, { size: SIZE, flags })];
      functions.learn(macKey(mac(2)), 0, b.port.slot);
      const at = b.port.rx.vring.at;
      const toB = frame(mac(2), mac(1), 60);
      const exchange = (count: number) => {
        assert.equal(a.flood(toB, count), count);
        return plane.poll().calls.filter((call) => call === at).length;
      };
      exchange(1);
      b.drain(SIZE);
      functions.disarmDriver(b.rx.at);
      for (let i = 0; i < 1000; i++) {
        assert.equal(exchange(3), 0);
        assert.equal(b.drain(SIZE), 3);
      }
      for (let i = 0; i < 10; i++) {
        assert.ok(!functions.armDriver(b.rx.at), 'nothing has come');
        assert.equal(exchange(2), 1, 'armed');
        assert.ok(functions.armDriver(b.rx.at), 'something has come');
        functions.disarmDriver(b.rx.at);
        b.drain(SIZE);
        functions.disarmDriver(b.rx.at);
        assert.equal(exchange(2), 0, 'disarmed');
        b.drain(SIZE);
      }
      assert.equal(b.rx.get('error'), 0);
    });
  }
});
