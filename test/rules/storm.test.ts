/** Storm control: what goes to all is bounded by kind, and what goes to one is not. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { lab } from './lab.ts';

const GROUP = Buffer.from([1, 0, 0x5e, 1, 2, 3]);

test('each kind has a bound of its own, and frames to somebody known have none', async (t) => {
  // So slow that nothing comes back while the test runs: a burst is one frame.
  const slow = { stormBroadcast: '1pps', stormMulticast: '1kbit' };
  const { vswitch, exchange } = await lab(t, { a: slow, b: {} });
  const many = (to: Buffer, n = 50) => Array.from({ length: n }, (_, i) => frame(to, mac(1), 1000, i));
  const count = async (...frames: Buffer[]) => (await exchange('a', ...frames)).b!.length;
  const drops = () => vswitch.port('a').drops;

  const broadcasts = await count(...many(BROADCAST));
  assert.ok(broadcasts >= 1 && broadcasts < 50);
  assert.equal(drops().stormBroadcast, 50 - broadcasts);
  const multicasts = await count(...many(GROUP));
  assert.ok(multicasts >= 1 && multicasts < 50);
  assert.equal(drops().stormMulticast, 50 - multicasts);
  // No bound for these, and one from now on.
  assert.equal(await count(...many(mac(9))), 50);
  await vswitch.setPort('a', { stormUnknown: '1pps' });
  const unknown = await count(...many(mac(9)));
  assert.ok(unknown >= 1 && unknown < 50);
  assert.equal(drops().stormUnknown, 50 - unknown);
  // One who is known gets all, also in one burst with what is too much.
  await exchange('b', frame(BROADCAST, mac(2)));
  const mixed = many(mac(2)).flatMap((one, i) => [one, frame(BROADCAST, mac(1), 60, i)]);
  const came = (await exchange('a', ...mixed)).b!;
  assert.deepEqual(
    came.filter((bytes) => bytes.subarray(0, 6).equals(mac(2))),
    many(mac(2)),
  );
  assert.ok(came.length < mixed.length);
  // As many as the bound allows pass.
  await vswitch.setPort('a', { stormBroadcast: '1Mpps', stormMulticast: '100Gbit', stormUnknown: null });
  assert.equal(await count(...many(BROADCAST), ...many(GROUP), ...many(mac(9))), 150);
});

test('bounds that are wrong are refused by name', async (t) => {
  const { vswitch } = await lab(t, { a: {} });
  const refused = (change: object, words: RegExp) => assert.rejects(vswitch.setPort('a', change), words);
  await refused({ stormBroadcast: 'few' }, /stormBroadcast: expected a rate such as .* found "few"/);
  await refused({ stormUnknown: '1kpps+1Mbit' }, /stormUnknown: expected packets or bits a second, not both/);
});
