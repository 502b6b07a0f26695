/** What a person sees of a queue that its guest has broken: a line of `vireo up`, and the commands that show ports. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { sharedPoller } from '../../src/sys/index.ts';
import { scratch } from '../peers/process.ts';
import { RawGuest } from '../support/raw-guest.ts';
import { Up } from './support.ts';

test('a broken queue is shown with what broke it, beside one that runs', async () => {
  using directory = scratch('broken');
  const [at, control] = ['vm.sock', 'control.sock'].map((name) => join(directory.path, name)) as [string, string]; // biome-ignore format: one line
  await using up = await Up.start(control, '--port', `vm=vhost-user:${at}`);
  const lease = sharedPoller();
  const guest = new RawGuest(at, lease.poller, { size: 64 });
  try {
    await guest.start();
    guest.describe(1, 0, { address: 0x9999_0000n, length: 100 });
    guest.offer(1, 0);
    const why = 'guest address 0x99990000 is in no region';
    assert.match(await up.line(/0x99990000/), new RegExp(`vm.*queue 1.*${why}`));
    const shown = await up.run('port', 'show', 'vm');
    assert.match(shown, /^state +broken$/m);
    assert.match(shown, new RegExp(`^last error +.*${why}`, 'm'));
    assert.match(shown, /^ +0 +tx +split +64 +running +yes /m);
    assert.match(shown, new RegExp(`^ +1 +rx +split +64 +broken +yes .* ${why}`, 'm'));
    const { state, queues } = await up.json('port', 'show', 'vm');
    assert.equal(state, 'broken');
    assert.deepEqual([queues[0].error, queues[1].state], [null, 'broken']);
    assert.match(queues[1].error, new RegExp(why));
    const ports = await up.run('ports');
    assert.match(ports, /^vm +vhost-user +broken /m);
    assert.match(ports, new RegExp(why));

    await guest.restart(1);
    assert.match(await up.run('port', 'show', 'vm'), /^ +1 +rx +split +64 +running +yes /m);
  } finally {
    await guest.close();
    await lease.release();
  }
});
