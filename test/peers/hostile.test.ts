/**
 * Every attack of test/hostile on one port, while two DPDK guests on two others exchange frames: they keep their
 * links, and the switch drops none of their frames.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { closeFd, memfd } from '../../src/sys/index.ts';
import { Attacker } from '../hostile/attacker.ts';
import * as attacks from '../hostile/bad-messages.ts';
import { count } from '../hostile/stage.ts';
import { skipWithout } from './available.ts';
import { Testpmd, virtioUser } from './dpdk.ts';
import { scratch, until } from './process.ts';

test('DPDK guests go on while a third port is attacked', { skip: skipWithout('dpdk') }, async () => {
  using directory = scratch('hostile');
  const at = (name: string) => join(directory.path, name);
  await using vswitch = await createSwitch({
    workers: 2,
    ports: ['a', 'b', 'bad'].map((name) => ({
      ...{ name, type: 'vhost-user', target: at(name) },
      // All that a port may offer, to the attacker.
      ...(name === 'bad' ? { features: '+config,+in-band,+postcopy' } : {}),
    })),
  });
  await using guests = await Testpmd.start({
    vdevs: ['a', 'b'].map((name, i) => virtioUser(i, { path: at(name), mac: `02:00:00:00:00:0${i + 1}` })),
    args: ['--forward-mode=mac', '--eth-peer=0,02:00:00:00:00:02', '--eth-peer=1,02:00:00:00:00:01'],
  });
  await until('guests', 20_000, () => ['a', 'b'].every((name) => vswitch.port(name).state === 'up'));
  await guests.command('start tx_first 1');
  const came = () => vswitch.port('a').txPackets + vswitch.port('b').txPackets;
  await until('traffic both ways', 20_000, () => came() > 10_000);

  const ram = memfd('ram', 1 << 20);
  const before = count();
  const drops = () => ['a', 'b'].map((name) => vswitch.port(name).drops);
  const dropsBefore = drops();
  let wrong = 0;
  vswitch.on('portError', ({ port }) => {
    assert.equal(port, 'bad');
    wrong++;
  });
  const all = Object.values(attacks).flat();
  for (const { act } of all) {
    const { connections } = vswitch.port('bad');
    const a = new Attacker(at('bad'), ram);
    await act(a);
    a.close();
    await until('the port free again', 20_000, () => {
      const port = vswitch.port('bad');
      return port.connections > connections && port.state === 'listening';
    });
  }
  assert.ok(wrong >= all.length - attacks.POISONED.length, `${wrong} of ${all.length} were told`);
  assert.deepEqual(count(), before);
  assert.deepEqual(drops(), dropsBefore, 'no frame of the healthy pair was dropped');
  const flowed = came();
  await until('traffic as before', 20_000, () => came() > flowed + 10_000);
  assert.deepEqual(
    ['a', 'b'].map((name) => vswitch.port(name).lastError),
    [null, null],
  );
  closeFd(ram);
});
