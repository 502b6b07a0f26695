/**
 * An I/O thread that ends by itself: its ports say so and can be removed, and the next port has another thread. What
 * it sleeps in is taken from it, so that a system call of it fails.
 */
import assert from 'node:assert/strict';
import { closeSync, openSync, readdirSync, readlinkSync, statSync } from 'node:fs';
import { test } from 'node:test';
import { createSwitch, type PortSpec, type Switch } from '../../src/index.ts';
import { openFds } from '../../src/sys/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

/** The descriptors of this process's epolls. */
function epolls(): number[] {
  return readdirSync('/proc/self/fd').flatMap((name) => {
    try {
      return readlinkSync(`/proc/self/fd/${name}`).includes('eventpoll') ? [Number(name)] : [];
    } catch {
      // It was closed meanwhile: the directory's own.
      return [];
    }
  });
}

/** Ends the thread that sleeps in it: its next wait is for what is no epoll. */
function endThread(epoll: number): void {
  closeSync(epoll);
  const opened: number[] = [];
  do opened.push(openSync('/dev/null', 'r'));
  while (opened.at(-1) !== epoll);
  for (const other of opened) if (other !== epoll) closeSync(other);
}

/** What a switch tells of its ports, in order. */
function listen(vswitch: Switch): string[] {
  const told: string[] = [];
  vswitch.on('portError', ({ port, error }) => void told.push(`${port} error: ${error}`));
  vswitch.on('guestDown', ({ port, reason }) => void told.push(`${port} down: ${reason}`));
  vswitch.on('guestUp', ({ port }) => void told.push(`${port} up`));
  return told;
}

const GONE = /^I\/O thread 0 has ended: epoll_/;

test('the ports of a thread that ends say so, others go on, and the next one has another thread', async (t) => {
  const path = sockets(t);
  const before = openFds();
  await using vswitch = await createSwitch({
    bridges: [{ name: 'two' }],
    ports: [
      { name: 'a', type: 'vhost-user', target: path('a') },
      { name: 'b', type: 'vhost-user', target: path('b'), bridge: 'two' },
      { name: 'p1', type: 'patch', target: 'p2' },
      { name: 'p2', type: 'patch', target: 'p1', bridge: 'two' },
    ],
  });
  vswitch.on('error', (error) => assert.fail(error));
  const told = listen(vswitch);
  await using a = await VirtioUser.open({ path: path('a') });
  await using b = await VirtioUser.open({ path: path('b') });
  const crosses = async (number: number) => {
    const bytes = frame(BROADCAST, mac(1), 60, number);
    assert.equal(a.send(bytes), true);
    await until(() => {
      const came = b.receive();
      return came !== undefined && bytes.equals(came);
    }, 'a frame crosses the patch');
  };
  const size = () => statSync(path('c')).size;
  const file: PortSpec = { name: 'c', type: 'pcap', target: path('c'), mode: 'write' };
  const addFile = async () => {
    await vswitch.addPort(file);
    await until(() => vswitch.port('c').queues.every(({ enabled }) => enabled), 'the file takes frames');
  };
  const others = epolls();
  await addFile();
  await crosses(1);
  await until(() => size() > 60, 'the frame is in the file');
  told.length = 0;

  for (let round = 2; round < 5; round++) {
    const [epoll] = epolls().filter((fd) => !others.includes(fd));
    endThread(epoll!);
    await until(() => vswitch.port('c').state === 'failed', 'the port of the file has failed');
    assert.match(vswitch.port('c').lastError!.replace(`${path('c')}: `, ''), GONE);
    assert.match(told.shift()!.replace(`${path('c')}: `, ''), /^c error: I\/O thread 0 has ended: epoll_/);
    await until(() => told.shift(), 'its link is down');
    await crosses(round);
    await vswitch.removePort('c');
    await addFile();
    await crosses(round + 100);
    await until(() => size() > 60, 'the frame is in the file of the next one');
    told.length = 0;
  }
  // While nobody has noticed.
  endThread(epolls().find((fd) => !others.includes(fd))!);
  await vswitch.removePort('c');
  await a.close();
  await b.close();
  await vswitch.close();
  await until(() => openFds() <= before + 1, 'descriptors are as many as before');
});
