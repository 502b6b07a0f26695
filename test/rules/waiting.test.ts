/**
 * Frames that wait: shaping and link impairment. What is asserted holds on any machine: order, what was drawn from the
 * seed, nothing before its time, no more than the rate.
 */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { checkPortSpec } from '../../src/switch/spec.ts';
import type { PortSpec } from '../../src/switch/types.ts';
import type { VirtioUser } from '../../src/virtio-user/device.ts';
import { frame, mac } from '../support/ethernet.ts';
import { happens, splitMix } from '../support/split-mix.ts';
import { until } from '../support/until.ts';
import { lab } from './lab.ts';

const toB = (salt: number, length = 60) => frame(mac(2), mac(1), length, salt);
const many = (count: number, length = 60) => Array.from({ length: count }, (_, i) => toB(i, length));

function same(got: Buffer[], want: Buffer[]): void {
  const wrong = want.findIndex((bytes, i) => !got[i]?.equals(bytes));
  const show = (bytes?: Buffer) => bytes?.subarray(0, 24).toString('hex');
  assert.equal(wrong, -1, `frame ${wrong}: ${show(got[wrong])}, not ${show(want[wrong])}`);
  assert.equal(got.length, want.length);
}

/** A tagged frame of a priority. */
function tagged(priority: number, salt: number, length = 1000): Buffer {
  const bytes = toB(salt, length);
  bytes.writeUInt16BE(0x8100, 12);
  bytes.writeUInt16BE(priority << 13, 14);
  return bytes;
}

/** An IPv4 or IPv6 header's first bytes with a DSCP. */
function withDscp(version: 4 | 6, dscp: number, salt: number): Buffer {
  const bytes = toB(salt, 1000);
  bytes.writeUInt16BE(version === 4 ? 0x0800 : 0x86dd, 12);
  bytes.writeUInt16BE(version === 4 ? 0x4500 | (dscp << 2) : 0x6000 | (dscp << 6), 14);
  return bytes;
}

/** Two guests. `sendAll` doesn't wait for what arrives, `collect` waits for so many frames in all. */
async function pair(t: TestContext, ports: { a?: Partial<PortSpec>; b?: Partial<PortSpec> }, workers = 1) {
  const { vswitch, guests } = await lab(t, { a: {}, b: {}, ...ports }, { workers });
  const a = guests.a as VirtioUser;
  const b = guests.b as VirtioUser;
  const got: Buffer[] = [];
  const times: number[] = [];
  const look = () => {
    for (let came = b.receive(); came !== undefined; came = b.receive()) {
      got.push(Buffer.from(came));
      times.push(performance.now());
    }
    return got.length;
  };
  const sendAll = async (frames: Buffer[]) => {
    for (const bytes of frames) await until(() => a.send(bytes), 'the ring takes a frame');
    await until(() => a.pending() === 0, 'the switch has done with what was sent');
  };
  const collect = async (count: number) => {
    await until(() => look() >= count, `${count} frames are there`);
    return got;
  };
  /** What b's port turned away, with what it sent. */
  const drops = (name = 'b') => vswitch.port(name).drops;
  return { vswitch, guests, a, b, got, times, sendAll, collect, look, drops };
}

test('a port gets no more than its rate, in order, without loss while its queue has room', async (t) => {
  // 100 frames of 1000 bytes at 4 Mbit/s are 200 ms; the first 16 KiB go at once.
  const { times, sendAll, collect, drops } = await pair(t, { b: { rateOut: '4Mbit', burstOut: 5000 } });
  const start = performance.now();
  const sent = many(100, 1000);
  await sendAll(sent);
  same(await collect(100), sent);
  // What has come by any moment is at most burst + rate × time since the first could have been sent.
  for (const [i, time] of times.entries())
    assert.ok((i + 1) * 1000 <= 5000 + 500 * (time - start), `frame ${i} after ${time - start} ms`);
  assert.deepEqual(drops(), {});
});

test('a full queue drops what comes, counted, and the memory is its bound', async (t) => {
  const { vswitch, sendAll, collect, drops } = await pair(t, {
    b: { rateOut: '1kbit', burstOut: 1000, queueOut: '128KiB' },
  });
  const sent = many(300, 1000);
  await sendAll(sent);
  // One passes; 128 KiB hold 126 with the 32 bytes that each has before it.
  assert.equal(drops().queueOut, 300 - 1 - Math.floor(2 ** 17 / (Math.ceil(1032 / 32) * 32)));
  assert.equal(vswitch.port('b').txDrops, drops().queueOut);
  // What waits stays where the rate is set anew, and goes by the new one.
  await vswitch.setPort('b', { rateOut: '10Gbit', burstOut: null });
  const waiting = 300 - drops().queueOut!;
  same(await collect(waiting), sent.slice(0, waiting));
});

test('higher priorities go first: of a tag, else of the DSCP', async (t) => {
  const { vswitch, sendAll, collect } = await pair(t, { b: { rateOut: '1kbit', burstOut: 100 } });
  const first = toB(0, 1000);
  // In the order in which they are to go: ranks 7 to 0, two kinds of each where there are.
  const inOrder = [
    [tagged(7, 1), withDscp(4, 56, 2)],
    [tagged(6, 3), withDscp(4, 46, 4), withDscp(6, 46, 5), withDscp(4, 48, 6)],
    [tagged(5, 7), withDscp(6, 40, 8)],
    [tagged(4, 9), withDscp(4, 34, 10)],
    [tagged(3, 11), withDscp(4, 26, 12)],
    [tagged(2, 13), withDscp(4, 18, 14)],
    [tagged(0, 15), toB(16, 1000), withDscp(4, 0, 17), withDscp(4, 10, 18)],
    [tagged(1, 19), withDscp(4, 8, 20), withDscp(6, 1, 21)],
  ];
  await sendAll([first, ...inOrder.toReversed().flat()]);
  await vswitch.setPort('b', { rateOut: '10Gbit' });
  same(await collect(1 + inOrder.flat().length), [first, ...inOrder.flat()]);
});

test('the priority is the one that a frame came with, whatever tag it loses or gets on its way', async (t) => {
  const tag = (bytes: Buffer, tci: number, type = 0x8100) =>
    Buffer.concat([
      bytes.subarray(0, 12),
      Buffer.from([type >> 8, type & 255, tci >> 8, tci & 255]),
      bytes.subarray(12),
    ]);
  const inVlan = (priority: number, vlan: number, bytes: Buffer) => tag(bytes, (priority << 13) | vlan);
  const slow = { rateOut: '1kbit', burstOut: 100 };
  const [urgent, idle] = [46, 8];
  const cases: {
    what: string;
    a: Partial<PortSpec>;
    b: Partial<PortSpec>;
    /** From the lowest to the highest: what is sent, and what arrives. */
    frames: [Buffer, Buffer][];
    /** Only copies go from a to b. */
    copies?: string;
  }[] = [
    {
      what: 'from a trunk to an access port, against what the DSCP says',
      a: { trunk: '10' },
      b: { vlan: 10 },
      frames: [1, 0, 2, 5, 7].map((priority, i) => {
        const inner = withDscp(4, priority < 2 ? urgent : idle, i);
        return [inVlan(priority, 10, inner), inner];
      }),
    },
    {
      what: 'of a tag that has a priority alone',
      a: { vlan: 10 },
      b: { vlan: 10 },
      frames: [1, 0, 3, 6].map((priority, i) => [inVlan(priority, 0, toB(i, 1000)), toB(i, 1000)]),
    },
    {
      what: 'from an access port to a trunk: the DSCP behind the new tag',
      a: { vlan: 10 },
      b: { trunk: '10' },
      frames: [idle, 0, 26, urgent].map((dscp, i) => {
        const inner = withDscp(i % 2 ? 4 : 6, dscp, i);
        return [inner, inVlan(0, 10, inner)];
      }),
    },
    {
      what: "of a customer's tag, with and without the provider's",
      a: { qinq: 10 },
      b: { trunk: '10', tags: '802.1ad' },
      frames: [1, 0, 4, 7].map((priority, i) => {
        const inner = inVlan(priority, 20, toB(i, 1000));
        return [inner, tag(inner, 10, 0x88a8)];
      }),
    },
    {
      what: "of a mirror's copies, the DSCP behind the tag of its VLAN",
      a: { vlan: 10 },
      b: { trunk: '99' },
      copies: 'vlan:99',
      frames: [idle, 0, 26, urgent].map((dscp, i) => {
        const inner = withDscp(4, dscp, i);
        return [inner, inVlan(0, 99, inner)];
      }),
    },
    {
      what: "of a mirror's copies, the tag that its VLAN takes the place of",
      a: { trunk: '10' },
      b: { trunk: '99' },
      copies: 'vlan:99',
      frames: [1, 0, 3, 6].map((priority, i) => {
        const inner = withDscp(4, idle, i);
        return [inVlan(priority, 10, inner), inVlan(priority, 99, inner)];
      }),
    },
  ];
  for (const { what, a, b, frames, copies } of cases) {
    await t.test(what, async (t) => {
      const { vswitch, sendAll, collect } = await pair(t, { a, b: { ...b, ...slow } });
      if (copies) await vswitch.addMirror({ name: 'm', from: 'a', direction: 'in', to: copies });
      const [first, ...rest] = frames;
      await sendAll([first![0], ...frames.map(([sent]) => sent)]);
      await vswitch.setPort('b', { rateOut: '10Gbit' });
      // One passes before any waits.
      const inOrder = [first!, ...rest.toReversed(), first!];
      same(
        await collect(inOrder.length),
        inOrder.map(([, there]) => there),
      );
    });
  }
});

test('others lose nothing while a port waits, nor when it goes, and its guest may stop', async (t) => {
  const { vswitch, guests } = await lab(t, { a: {}, b: { rateOut: '1kbit', burstOut: 100 }, c: {} });
  const a = guests.a!;
  const toC = (salt: number) => frame(mac(3), mac(1), 200, salt);
  const come = async (count: number) => {
    const got: Buffer[] = [];
    await until(() => {
      for (let came = guests.c!.receive(); came; came = guests.c!.receive()) got.push(Buffer.from(came));
      return got.length >= count;
    }, 'c has all');
    return got;
  };
  for (const name of ['b', 'c'] as const) {
    guests[name]!.send(frame(mac(1), mac(name === 'b' ? 2 : 3)));
    await until(() => vswitch.fdb().some(({ port }) => port === name), `${name} is known`);
  }
  const send = async (bytes: Buffer) => void (await until(() => a.send(bytes), 'the ring takes a frame'));
  for (let i = 0; i < 50; i++) {
    await send(toB(i, 500));
    await send(toC(i));
  }
  const want = Array.from({ length: 50 }, (_, i) => toC(i));
  assert.deepEqual(
    (await come(50)).filter((bytes) => bytes[5] === 3),
    want,
  );
  // The guest goes while frames wait: they are its port's loss when their time comes.
  guests.b!.close();
  await until(() => vswitch.port('b').state !== 'up', 'the guest is gone');
  await vswitch.setPort('b', { rateOut: '1Gbit' });
  await until(() => (vswitch.port('b').drops.noGuest ?? 0) > 0, 'what waited found no guest');
  await vswitch.setPort('b', { rateOut: '1kbit' });
  for (let i = 0; i < 50; i++) await send(toB(i, 500));
  await until(() => a.pending() === 0, 'all are with the switch');
  await vswitch.removePort('b');
  for (let i = 0; i < 50; i++) await send(toC(i));
  same(await come(50), want);
});

test('nothing arrives before its delay, in either direction, whatever the jitter, and in order', async (t) => {
  const { times, sendAll, collect, vswitch } = await pair(t, {
    a: { delayIn: '20ms' },
    b: { delayOut: '30ms', jitterOut: '10ms', seed: 7 },
  });
  const starts: number[] = [];
  const sent = many(60);
  for (const bytes of sent) {
    starts.push(performance.now());
    await sendAll([bytes]);
  }
  same(await collect(60), sent);
  for (const [i, time] of times.entries())
    assert.ok(time - starts[i]! >= 40, `${i}: ${time - starts[i]!} ms`);
  assert.deepEqual(vswitch.port('b').drops, {});
  assert.deepEqual(vswitch.port('a').drops, {});
  // Without the rules frames go as before.
  await vswitch.setPort('a', { delayIn: null });
  await vswitch.setPort('b', { delayOut: null, jitterOut: null, seed: null });
  await sendAll([toB(99)]);
  assert.deepEqual((await collect(61))[60], toB(99));
});

test('losses and doubles are those of the seed', async (t) => {
  const { sendAll, collect, drops, look } = await pair(t, {
    b: { lossOut: '10%', duplicateOut: '20%', seed: 42 },
  });
  const draw = splitMix(42n);
  let lost = 0;
  const sent = many(200);
  const want = sent.flatMap((bytes) =>
    Array.from({ length: happens(draw, 0.2) ? 2 : 1 }, () => bytes).filter(() => {
      const gone = happens(draw, 0.1);
      if (gone) lost++;
      return !gone;
    }),
  );
  for (let i = 0; i < 200; i += 20) await sendAll(sent.slice(i, i + 20));
  same(await collect(want.length), want);
  assert.equal(drops().lossOut, lost);
  assert.ok(lost > 0 && want.length > 200 - lost);
  assert.equal(look(), want.length);
});

test('frames to be reordered arrive before those that were sent earlier', async (t) => {
  const { sendAll, collect, vswitch } = await pair(t, { b: { delayOut: '10s', reorderOut: '25%', seed: 1 } });
  const draw = splitMix(1n);
  const sent = many(80);
  const ahead = sent.map(() => happens(draw, 0.25));
  await sendAll(sent);
  const early = sent.filter((_, i) => ahead[i]);
  assert.ok(early.length > 5);
  same(await collect(early.length), early);
  // They wait on when it is only the delay that changes; a rule that goes takes them with it, counted.
  await vswitch.setPort('b', { delayOut: null, reorderOut: null, seed: null });
  assert.equal(vswitch.port('b').drops.limitOut, sent.length - early.length);
});

test('one bit is flipped in a frame that is damaged', async (t) => {
  const { sendAll, collect, vswitch } = await pair(t, { a: { corruptIn: '50%', seed: 5 } });
  // Not in the addresses: these decide where a frame goes, and a damaged one may go nowhere.
  const sent = many(100, 1400);
  const draw = splitMix(5n + (1n << 32n));
  const below = (bound: bigint) => ((draw() >> 32n) * bound) >> 32n;
  const want = sent.map((bytes) => {
    const copy = Buffer.from(bytes);
    if (!happens(draw, 0.5)) return copy;
    below(1n);
    const bit = Number(below(1400n * 8n));
    copy[bit >> 3]! ^= 1 << (bit & 7);
    return copy;
  });
  for (let i = 0; i < 100; i += 20) await sendAll(sent.slice(i, i + 20));
  const damaged = want.filter((bytes, i) => !bytes.equals(sent[i]!)).length;
  assert.ok(damaged > 20 && damaged < 80);
  same(await collect(100), want);
  assert.deepEqual(vswitch.port('a').drops, {});
});

test('the limit of frames under way holds', async (t) => {
  const { sendAll, drops, vswitch } = await pair(t, { b: { delayOut: '60s', limitOut: 10 } });
  await sendAll(many(50));
  assert.equal(drops().limitOut, 40);
  assert.equal(vswitch.port('b').txPackets, 0);
  await vswitch.setPort('b', { delayOut: '1ns', limitOut: 10 });
  await sendAll([toB(99)]);
  assert.equal(drops().limitOut, 41);
});

test('a rate and a delay of one port work one behind the other', async (t) => {
  const { sendAll, collect, times } = await pair(
    t,
    { b: { rateOut: '4Mbit', burstOut: 2000, delayOut: '20ms' } },
    2,
  );
  const start = performance.now();
  const sent = many(40, 1000);
  await sendAll(sent);
  same(await collect(40), sent);
  for (const [i, time] of times.entries()) {
    const after = time - start - 20;
    assert.ok(after >= 0 && (i + 1) * 1000 <= 2000 + 500 * after, `frame ${i} after ${after} ms`);
  }
});

test('settings that contradict themselves are told by their field', () => {
  const refused = (fields: object, words: RegExp) =>
    assert.throws(() => checkPortSpec({ name: 'a', type: 'null', target: '', ...fields }), words);
  refused({ rateOut: '10kpps' }, /rateOut: expected a rate of bits such as "100Mbit"/);
  refused({ rateOut: '1Mbit+1kpps' }, /rateOut: expected a rate of bits/);
  refused({ burstOut: '64KiB' }, /burstOut: expected none without a rateOut, found "64KiB"/);
  refused(
    { rateOut: '1Mbit', queueOut: '64KiB' },
    /queueOut: expected bytes such as "64KiB", 128KiB to 4MiB/,
  );
  refused({ delayOut: '10' }, /delayOut: expected a duration such as "10ms", 0ns to 60s, found "10"/);
  refused({ delayIn: '61s' }, /delayIn: expected a duration/);
  refused({ delayIn: 10 }, /delayIn: expected a duration such as "10ms", .*, found 10/);
  refused({ jitterOut: '1ms' }, /jitterOut: expected no more than delayOut, found "1ms"/);
  refused({ reorderIn: '1%' }, /reorderIn: expected none without a delayIn, found "1%"/);
  for (const lossIn of ['1', '101%', '-1%', '', 'x%', 0.5])
    refused({ lossIn }, /lossIn: expected a share such as "1%", 0% to 100%, found/);
  refused(
    { limitIn: 5 },
    /limitIn: expected none without something that the link does, such as delayIn, found 5/,
  );
  refused({ seed: 5 }, /seed: expected none without something that the link does by chance/);
  refused({ delayIn: '1ms', limitIn: 9000 }, /limitIn: expected a whole number from 1 to 8192, found 9000/);
  const port = checkPortSpec('a=null:,rate-out=1.5Gbit,delay-in=100us,jitter-in=10us,loss-out=0.1%,seed=1');
  assert.equal(port.lossOut, '0.1%');
});
