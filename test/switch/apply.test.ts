/** A running switch brought to a configuration: what differs changes, and nobody else notices. */
import assert from 'node:assert/strict';
import { existsSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { createSwitch, type PortSpec, SwitchError, type SwitchOptions } from '../../src/index.ts';
import { openFds } from '../../src/sys/index.ts';
import { sockets } from '../support/sockets.ts';
import { Traffic } from '../support/traffic.ts';

const port = (name: string, target: string, more: Partial<PortSpec> = {}): PortSpec =>
  ({ name, type: 'vhost-user', target, ...more }) as PortSpec;

test('200 ports come and go under traffic, and the pair on the others loses nothing', async (t) => {
  const path = sockets(t);
  const pair = [port('a', path('a')), port('b', path('b'))];
  await using vswitch = await createSwitch({ ports: pair });
  const traffic = await Traffic.start({ path: path('a') }, { path: path('b') });
  const before = openFds();
  const many = Array.from({ length: 200 }, (_, i) => port(`p${i}`, path(`p${i}`)));
  const names = many.map(({ name }) => name);

  const there = await vswitch.apply({ ports: [...pair, ...many] });
  assert.deepEqual(there.added, names);
  assert.deepEqual(there.unchanged, ['a', 'b']);
  assert.ok(names.every((name) => existsSync(path(name))));

  const back = await vswitch.apply({ ports: pair });
  assert.deepEqual(back.removed, names);
  assert.deepEqual([...back.added, ...back.changed, ...back.failed], []);
  assert.ok(!names.some((name) => existsSync(path(name))));

  assert.equal(openFds(), before);
  // What is lost, doubled or out of order fails here.
  await traffic.stop();
});

test('a port whose options differ is made anew, even in the place of another', async (t) => {
  const path = sockets(t);
  await using vswitch = await createSwitch({
    ports: [port('a', path('one')), port('b', path('two')), port('c', path('c'))],
  });
  const applied = await vswitch.apply({
    ageing: 60,
    ports: [port('a', path('two')), port('b', path('one')), port('c', path('c')), port('d', path('d'))],
  });
  assert.deepEqual(applied, {
    added: ['d'],
    removed: [],
    changed: ['a', 'b'],
    unchanged: ['c'],
    bridges: { added: [], removed: [], changed: [] },
    fdb: { added: [], removed: [] },
    groups: { added: [], removed: [] },
    mirrors: { added: [], removed: [], changed: [], failed: [] },
    settings: ['ageing'],
    failed: [],
  });
  assert.equal(vswitch.port('a').target, path('two'));
  assert.equal(vswitch.status().fdb.ageing, 60);
  // What it is now is nothing to do.
  const again = await vswitch.apply(vswitch.config());
  assert.deepEqual(again.unchanged.sort(), ['a', 'b', 'c', 'd']);
  assert.deepEqual([...again.added, ...again.removed, ...again.changed, ...again.settings], []);
});

test('what a configuration has no word of stays', async (t) => {
  const path = sockets(t);
  await using vswitch = await createSwitch({ ageing: 77, ports: [port('a', path('a'))] });
  assert.deepEqual((await vswitch.apply({ maxAddressesPerPort: 9 })).settings, ['maxAddressesPerPort']);
  assert.equal(vswitch.port('a').addresses.limit, 9);
  assert.equal(vswitch.status().fdb.ageing, 77);
  assert.deepEqual((await vswitch.apply({ ports: [] })).removed, ['a']);
});

test('a port that fails is told and comes back as it was; the rest is done', async (t) => {
  const path = sockets(t);
  writeFileSync(path('taken'), '');
  writeFileSync(path('full'), '');
  await using vswitch = await createSwitch({ ports: [port('a', path('a')), port('b', path('b'))] });
  const applied = await vswitch.apply({
    ports: [port('a', path('taken')), port('b', path('other')), port('c', path('full'))],
  });
  assert.deepEqual(applied.changed, ['b']);
  assert.deepEqual(
    applied.failed.map((failure) => failure.port),
    ['a', 'c'],
  );
  for (const { error } of applied.failed) assert.match(error, /taken|full/);
  assert.equal(vswitch.port('a').target, path('a'));
  assert.ok(existsSync(path('a')));
  assert.throws(() => vswitch.port('c'), SwitchError);
});

test('what only a new start can change is refused before anything is done', async (t) => {
  const path = sockets(t);
  await using vswitch = await createSwitch({ ports: [port('a', path('a'))] });
  for (const [field, wanted] of [
    ['workers', { workers: 2 }],
    ['poll', { poll: 'busy' }],
    ['cpus', { cpus: [0] }],
    ['name', { name: 'other' }],
  ] as [string, SwitchOptions][]) {
    await assert.rejects(vswitch.apply({ ...wanted, ports: [] }), (error) => {
      assert.ok(error instanceof SwitchError);
      assert.equal(error.code, 'BAD_SPEC');
      assert.equal(error.field, field);
      return true;
    });
  }
  const lost = { ports: [port('a', path('a')), port('b', path('b'), { bridge: 'lba' })] };
  await assert.rejects(
    vswitch.apply(lost),
    /ports\[1\]\.bridge: expected a bridge that is there \(default\) for port b, found "lba": name it under `bridges`/,
  );
  await vswitch.addBridge({ name: 'lba' });
  assert.deepEqual((await vswitch.apply(lost)).added, ['b']);
  assert.deepEqual((await vswitch.apply({ ports: [port('a', path('a'))] })).removed, ['b']);
  assert.equal(vswitch.ports().length, 1);
  // The defaults are no change.
  assert.deepEqual((await vswitch.apply({ workers: 1, poll: 'adaptive' })).settings, []);
});

test('two configurations at once are worked on one after the other', async (t) => {
  const path = sockets(t);
  await using vswitch = await createSwitch();
  const first = vswitch.apply({ ports: ['a', 'b', 'c'].map((name) => port(name, path(name))) });
  const second = vswitch.apply({ ports: [port('c', path('c'))] });
  assert.deepEqual((await first).added, ['a', 'b', 'c']);
  assert.deepEqual((await second).removed, ['a', 'b']);
  await assert.rejects(vswitch.apply({ ports: [{ name: 'x' } as PortSpec] }), /ports\[0\]\.type/);
  assert.deepEqual((await vswitch.apply({})).unchanged, ['c']);
});
