/** `vireo vhost-user-net`: the back-end program conventions, with real guests on its sockets. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { closeFd, isSystemError, listenUnix, sharedPoller, socketPair } from '../../src/sys/index.ts';
import { FrontendSession } from '../../src/vhost/frontend.ts';
import { features } from '../../src/virtio/features.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { root } from '../peers/available.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';
import { MAIN, vireo } from './support.ts';

/** The program beside the test, with descriptor 3 where it is given one; ended with the test. */
function start(t: TestContext, args: string[], fd?: number) {
  const child = spawn(process.execPath, [MAIN, 'vhost-user-net', ...args], {
    stdio: ['ignore', 'inherit', 'pipe', ...(fd === undefined ? [] : [fd])],
  });
  let errors = '';
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    errors += text;
  });
  const exited = once(child, 'exit').then(([code]) => code as number | null);
  t.after(() => {
    child.kill('SIGKILL');
    return exited;
  });
  return { child, exited, errors: () => errors };
}

/**
 * A device on a program that may have just begun: its socket is there a moment before it listens. Waits as long as a
 * busy machine may take to start a program.
 */
async function device(path: string): Promise<VirtioUser> {
  for (let tries = 0; ; tries++) {
    try {
      return await VirtioUser.open({ path, timeout: 60_000 });
    } catch (error) {
      if (tries === 1000 || !isSystemError(error, 'ECONNREFUSED')) throw error;
      await sleep(20);
    }
  }
}

test('prints what it can do, whatever else it is told', async () => {
  for (const more of [[], ['--socket-path=/nowhere/a.sock'], ['--fd=99', '--socket-path=/a', '--peer=x']]) {
    const { code, stdout, stderr } = await vireo(['vhost-user-net', '--print-capabilities', ...more]);
    assert.deepEqual([code, stderr], [0, '']);
    assert.deepEqual(JSON.parse(stdout), { type: 'net' });
  }
});

test('the descriptor file for management tools is what their schema says', () => {
  const file = JSON.parse(readFileSync(join(root, 'docs/vhost-user/50-vireo-net.json'), 'utf8'));
  assert.deepEqual(Object.keys(file).sort(), ['binary', 'description', 'tags', 'type']);
  assert.equal(file.type, 'net');
  assert.match(file.binary, /^\//);
});

test('a guest on --socket-path and one on --peer have a cable between them, until SIGTERM', async (t) => {
  const path = sockets(t);
  const options = 'features=-packed,-in-order,queues=2';
  const args = [`--socket-path=${path('a')}`, `--peer=b=vhost-user:${path('b')}`, `--options=${options}`];
  const program = start(t, args);
  await until(() => existsSync(path('b')), 'it listens');
  const [a, b] = await Promise.all([device(path('a')), device(path('b'))]);
  assert.ok(!a.features.includes('VIRTIO_F_IN_ORDER'));
  assert.ok(b.features.includes('VIRTIO_F_IN_ORDER'));
  a.send(frame(BROADCAST, mac(1), 60, 7));
  const came = await until(() => b.receive(), 'b hears of a');
  assert.equal(came.length, 60);
  // A guest may leave and come back.
  await a.close();
  const again = await device(path('a'));
  b.send(frame(mac(1), mac(2)));
  await until(() => again.receive(), 'a is back');
  await again.close();
  await b.close();
  program.child.kill('SIGTERM');
  assert.equal(await program.exited, 0);
  assert.equal(program.errors(), '');
  for (const name of ['a', 'b']) assert.ok(!existsSync(path(name)), 'its sockets are gone');
});

test('--fd takes a socket that listens, and leaves its file alone', async (t) => {
  const path = sockets(t);
  const listening = listenUnix(path('a'));
  const program = start(t, ['--fd=3'], listening);
  closeFd(listening);
  for (let turn = 0; turn < 2; turn++) {
    const guest = await device(path('a'));
    await guest.close();
  }
  program.child.kill('SIGTERM');
  assert.equal(await program.exited, 0);
  assert.ok(existsSync(path('a')), "the socket's file is its owner's");
});

test('--fd takes a connection, and the program ends with it', async (t) => {
  const lease = sharedPoller();
  const [ours, theirs] = socketPair();
  const program = start(t, ['--fd=3'], theirs);
  closeFd(theirs);
  const session = new FrontendSession({ fd: ours, poller: lease.poller, timeout: 60_000 });
  const { features: agreed } = await session.negotiate(features.VIRTIO_F_VERSION_1);
  assert.ok(agreed & features.VIRTIO_F_VERSION_1);
  await session.close();
  assert.equal(await program.exited, 0);
  assert.match(program.errors(), /^vireo: guest: the connection that this port was given has ended: /);
  await lease.release();
});

test('what it cannot do it says at once, and exits with a failure', async (t) => {
  const path = sockets(t);
  const cases: [args: string[], code: number, words: RegExp][] = [
    [[], 2, /^vireo: give --socket-path or --fd, one of them$/m],
    [['--fd=3', '--socket-path=/a'], 2, /one of them/],
    [['--fd=x'], 2, /Expected the number of an open descriptor/],
    [[`--socket-path=${path('none')}/a`], 1, /^vireo: port guest: .*ENOENT/m],
    [[`--socket-path=${path('a')}`, '--options=features=-x'], 2, /no feature is called "x"/],
    [[`--socket-path=${path('a')}`, '--options=role=client'], 2, /role=client is for a --peer/],
    [[`--socket-path=${path('a')}`, '--peer=b'], 2, /expected NAME=TYPE:TARGET/],
    [['--fd=0'], 1, /descriptor 0 is no socket/],
    [['--fd=999'], 1, /EBADF/],
  ];
  for (const [args, code, words] of cases) {
    const run = await vireo(['vhost-user-net', ...args]);
    assert.equal(run.code, code, `${args}: ${run.stderr}`);
    assert.match(run.stderr, words);
    assert.ok(!existsSync(path('a')));
  }
});
