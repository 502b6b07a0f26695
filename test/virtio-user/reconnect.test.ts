/** virtio-user whose back-end goes and comes back: split and packed, as client and as server. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { createSwitch, type Switch } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { count } from '../hostile/stage.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { happens } from '../support/link.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

const DELAYS = { initialDelay: 5, maxDelay: 40 };

/** A switch of two ports. */
function start(path: (name: string) => string, role: 'client' | 'server'): Promise<Switch> {
  const port = (name: string) => ({ name, type: 'vhost-user' as const, target: path(name), role });
  return createSwitch({ ports: [port('a'), port('b')] });
}

/** Frames of each size cross, each way. */
async function cross(a: VirtioUser, b: VirtioUser, salt: number): Promise<void> {
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const) {
    for (const length of [60, 1500, 9000]) {
      const bytes = frame(BROADCAST, mac(1), length, salt);
      await until(() => {
        // The switch may not have the other's rings yet, and drops it then.
        from.send(bytes);
        return to.receiveBurst().some((came) => bytes.equals(came));
      }, `${length} bytes come`);
      await until(() => to.receiveBurst(1000).length === 0, 'the copies are read');
    }
  }
}

for (const role of ['client', 'server'] as const) {
  for (const packed of [false, true]) {
    for (const inflight of [false, true]) {
      const name = `${role}, ${packed ? 'packed' : 'split'}${inflight ? ', INFLIGHT' : ''}`;
      test(`connects again by itself: ${name}`, async (t) => {
        const path = sockets(t);
        const theirs = role === 'client' ? 'server' : 'client';
        const options = { role, packed, inflight, queueSize: 64, timeout: 20_000, reconnect: DELAYS };
        const open = (which: string) => VirtioUser.open({ ...options, path: path(which) });
        const before = count();
        // Opened before anybody is there to answer.
        const opening = Promise.all([open('a'), open('b')]);
        let vswitch = await start(path, theirs);
        const [a, b] = await opening;
        await cross(a, b, 0);
        const { rxPackets } = b.counters();
        for (let round = 1; round <= 2; round++) {
          const downs = [a, b].map((device) => happens(device, 'linkDown'));
          const closed = a.closed;
          await vswitch.close();
          for (const { reason } of await Promise.all(downs)) assert.ok(reason.length > 0);
          assert.equal(a.linkUp, false);
          assert.equal(typeof (await closed), 'string');
          // What lies in a ring that has no back-end is lost or sent later, but never breaks it.
          a.sendBurst(Array.from({ length: 100 }, () => frame(BROADCAST, mac(1))));
          const ups = [a, b].map((device) => happens(device, 'linkUp'));
          vswitch = await start(path, theirs);
          await Promise.all(ups);
          assert.equal(a.linkUp, true);
          await cross(a, b, round);
        }
        assert.ok(b.counters().rxPackets > rxPackets, 'counters go on');
        await a.close();
        await b.close();
        await vswitch.close();
        assert.deepEqual(count(), before, 'descriptors and mappings are as many as before');
      });
    }
  }
}

test('tells why it can not connect again, once, and close() ends the trying', async (t) => {
  const path = sockets(t);
  const vswitch = await start(path, 'server');
  const a = await VirtioUser.open({ path: path('a'), reconnect: DELAYS });
  const errors: string[] = [];
  a.on('error', ({ code, message }) => errors.push(`${code} ${message}`));
  await vswitch.close();
  await until(() => errors.length > 0, 'an error');
  await new Promise((resolve) => setTimeout(resolve, 200));
  assert.equal(errors.length, 1);
  assert.match(errors[0]!, /^NO_BACKEND connect\(.*a\.sock\): ENOENT, there is no such socket/);
  await a.close();
});

test('close() of a server that waits takes its socket away', async (t) => {
  const path = sockets(t);
  const opening = VirtioUser.open({ path: path('a'), role: 'server', timeout: 20_000, reconnect: DELAYS });
  const vswitch = await start(path, 'client');
  const a = await opening;
  await vswitch.close();
  await until(() => existsSync(path('a')), 'it listens again');
  await a.close();
  assert.equal(existsSync(path('a')), false);
});

test('a back-end that came back with less is refused by name, one that is as before is taken', async (t) => {
  const path = sockets(t);
  const port = (features?: string) => ({
    name: 'a',
    type: 'vhost-user' as const,
    target: path('a'),
    ...(features ? { features } : {}),
  });
  let vswitch = await createSwitch({ ports: [port()] });
  await using a = await VirtioUser.open({ path: path('a'), reconnect: DELAYS });
  const failed = happens(a, 'error');
  await vswitch.close();
  await failed;
  const refused = happens(a, 'error');
  vswitch = await createSwitch({ ports: [port('-in-order')] });
  const error = await refused;
  assert.equal(error.message, 'the back-end that came back does not offer VIRTIO_F_IN_ORDER');
  await vswitch.close();
  const up = happens(a, 'linkUp');
  vswitch = await createSwitch({ ports: [port()] });
  await up;
  await vswitch.close();
});
