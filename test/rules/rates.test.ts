/** Rate limits for what a guest sends: bits and packets, with bounds that no load of the machine moves. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { checkPortSpec } from '../../src/switch/spec.ts';
import { frame, mac } from '../support/ethernet.ts';
import { lab } from './lab.ts';

const TO_B = (length: number, salt: number) => frame(mac(2), mac(1), length, salt);
const many = (count: number, length = 60) => Array.from({ length: count }, (_, i) => TO_B(length, i));

test('a guest sends as many packets as it may, the first ones, and the others are counted', async (t) => {
  const start = performance.now();
  const { vswitch, exchange } = await lab(t, { a: { rateIn: '5pps' }, b: {} });
  const sent = many(200);
  const got = (await exchange('a', ...sent)).b!;
  const seconds = (performance.now() - start) / 1000;
  assert.ok(got.length >= 64 && got.length <= 64 + 5 * seconds, `${got.length} after ${seconds} s`);
  assert.deepEqual(got.slice(0, 64), sent.slice(0, 64));
  assert.equal(vswitch.port('a').drops.rateIn, 200 - got.length);
  assert.equal(vswitch.port('a').rxDrops, 200 - got.length);
  // The other one has no limit, and with the rule this one's goes.
  assert.equal((await exchange('b', ...sent)).a!.length, 200);
  await vswitch.setPort('a', { rateIn: null });
  assert.equal((await exchange('a', ...sent)).b!.length, 200);
});

test('bits and packets are limited by themselves, and together', async (t) => {
  const start = performance.now();
  const { vswitch, exchange } = await lab(t, { a: { rateIn: '1kbit', burstIn: 3000 }, b: {} });
  const most = (burst: number) => burst + (125 * (performance.now() - start)) / 1000;
  let bytes = 0;
  const send = async (...frames: Buffer[]) => {
    const got = (await exchange('a', ...frames)).b!;
    bytes += got.reduce((sum, { length }) => sum + length, 0);
    assert.ok(bytes <= most(3000), `${bytes} bytes`);
    return got;
  };
  // Those that are too long for what is left don't keep shorter ones back.
  const got = await send(TO_B(1000, 1), TO_B(1500, 2), TO_B(1500, 3), TO_B(400, 4));
  assert.ok(got.length >= 3);
  assert.deepEqual([got[0], got[1], got.at(-1)], [TO_B(1000, 1), TO_B(1500, 2), TO_B(400, 4)]);

  // A full burst at the change; both limits count, and neither pays for what the other turns away.
  await vswitch.setPort('a', { rateIn: '8Gbit+1pps', burstIn: 100_000 });
  const before = vswitch.port('a').drops.rateIn ?? 0;
  const both = (await exchange('a', ...many(100))).b!.length;
  assert.ok(both >= 64 && both <= 64 + (performance.now() - start) / 1000);
  assert.equal(vswitch.port('a').drops.rateIn, before + 100 - both);
});

test('a frame longer than the burst passes when the burst is full', async (t) => {
  const { exchange } = await lab(t, { a: { rateIn: '1kbit', burstIn: 100 }, b: {} });
  const got = (await exchange('a', TO_B(1500, 1), TO_B(1500, 2))).b!;
  assert.deepEqual(got, [TO_B(1500, 1)]);
});

test('the highest rates let everything through', async (t) => {
  const fields = { rateIn: '1000Gbit+1Gpps', rateOut: '1000Gbit' };
  const { exchange, vswitch } = await lab(t, { a: fields, b: fields });
  const sent = many(200);
  assert.deepEqual((await exchange('a', ...sent)).b, sent);
  await vswitch.setPort('a', { burstIn: '1024MiB', burstOut: '1024MiB' });
  assert.deepEqual((await exchange('a', ...sent)).b, sent);
});

test('what is no rate is told by its field', () => {
  const refused = (fields: object, words: RegExp) =>
    assert.throws(() => checkPortSpec({ name: 'a', type: 'null', target: '', ...fields }), words);
  for (const rateIn of ['', 'fast', '10', '0bit', '999bit', '1Tbit', '10kpps+20kpps', '-1Mbit', '1e9bit', 5])
    refused({ rateIn }, /^SwitchError: rateIn: expected a rate such as "100Mbit" or "10kpps", .*, found /);
  for (const burstIn of ['', 0, -1, 1.5e12, '2GiB', '1 KiB', 'x'])
    refused({ rateIn: '1Mbit', burstIn }, /burstIn: expected bytes such as "64KiB", 1 to 1024MiB, found /);
  refused({ burstIn: '64KiB' }, /burstIn: expected none without a rateIn of bits, found "64KiB"/);
  refused({ rateIn: '1kpps', burstIn: '64KiB' }, /burstIn: expected none without a rateIn of bits/);
  for (const rateIn of ['1.5Mbit', '100mbit', '10kpps', '1kpps+2Gbit'])
    assert.equal(checkPortSpec(`a=null:,rate-in=${rateIn}`).rateIn, rateIn);
});
