import assert from 'node:assert/strict';
import { closeSync, openSync } from 'node:fs';
import { test } from 'node:test';
import {
  closeFd,
  drain,
  EPOLLET,
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  EPOLLRDHUP,
  Epoll,
  epollWait,
  eventfd,
  openFds,
  signal,
  socketPair,
} from '../../src/sys/index.ts';
import { startThread } from './support.ts';

test('what is ready is told with its descriptor, events and tag', () => {
  const before = openFds();
  const epoll = new Epoll();
  const fds = [eventfd(), eventfd(), eventfd()];
  for (const [i, fd] of fds.entries()) epoll.add(fd, EPOLLIN, 0xfffffff0 + i);
  assert.equal(epoll.wait(0), 0);
  signal(fds[0]!);
  signal(fds[2]!);
  assert.equal(epoll.wait(0), 2);
  const found = [epoll.ready(0), epoll.ready(1)].sort((a, b) => a.tag - b.tag);
  assert.deepEqual(found, [
    { fd: fds[0], events: EPOLLIN, tag: 0xfffffff0 },
    { fd: fds[2], events: EPOLLIN, tag: 0xfffffff2 },
  ]);
  drain(fds[0]!);
  epoll.modify(fds[2]!, EPOLLOUT, 5);
  assert.equal(epoll.wait(0), 1);
  assert.deepEqual(epoll.ready(0), { fd: fds[2], events: EPOLLOUT, tag: 5 });
  epoll.remove(fds[2]!);
  assert.equal(epoll.wait(0), 0);
  epoll.close();
  for (const fd of fds) closeFd(fd);
  assert.equal(openFds(), before);
});

test('level-triggered tells again, edge-triggered once', () => {
  const epoll = new Epoll();
  const level = eventfd(1);
  const edge = eventfd(1);
  epoll.add(level, EPOLLIN);
  epoll.add(edge, EPOLLIN | EPOLLET);
  assert.equal(epoll.wait(0), 2);
  assert.equal(epoll.wait(0), 1);
  assert.equal(epoll.ready(0).fd, level);
  epoll.close();
  closeFd(level);
  closeFd(edge);
});

test('a peer that goes', () => {
  const epoll = new Epoll();
  const [a, b] = socketPair();
  epoll.add(a, EPOLLIN | EPOLLRDHUP);
  closeFd(b);
  assert.equal(epoll.wait(0), 1);
  assert.equal(epoll.ready(0).events, EPOLLIN | EPOLLRDHUP | EPOLLHUP);
  closeFd(a);
  epoll.close();
});

test('mistakes are refused by name', () => {
  const epoll = new Epoll();
  const fd = eventfd();
  const file = openSync('/proc/self/exe', 'r');
  const detail = `${epoll.fd}, ${fd}`;
  assert.throws(() => epoll.remove(fd), { call: 'epoll_ctl', code: 'ENOENT', detail });
  assert.throws(() => epoll.modify(fd, EPOLLIN), { code: 'ENOENT', detail });
  epoll.add(fd, EPOLLIN);
  assert.throws(() => epoll.add(fd, EPOLLIN), { code: 'EEXIST', detail });
  assert.throws(() => epoll.add(file, EPOLLIN), { code: 'EPERM' });
  assert.throws(() => epoll.add(-1, EPOLLIN), { code: 'EBADF' });
  closeFd(fd);
  closeSync(file);
  epoll.close();
  assert.throws(() => epollWait(epoll.fd, 0), { call: 'epoll_wait', code: 'EBADF' });
});

test('more than fit in one wait come in the next', () => {
  const epoll = new Epoll();
  const fds = Array.from({ length: 100 }, () => eventfd(1));
  for (const fd of fds) epoll.add(fd, EPOLLIN);
  const seen = new Set<number>();
  for (let count = epoll.wait(0); count > 0; count = epoll.wait(0)) {
    assert.ok(count <= 64);
    for (let i = 0; i < count; i++) {
      const { fd } = epoll.ready(i);
      seen.add(fd);
      drain(fd);
    }
  }
  assert.deepEqual(seen, new Set(fds));
  epoll.close();
  for (const fd of fds) closeFd(fd);
});

test('a worker thread sleeps on an epoll of another thread and is woken', async () => {
  const epoll = new Epoll();
  const event = eventfd();
  epoll.add(event, EPOLLIN);
  const thread = await startThread({ do: 'sleep', epollFd: epoll.fd, eventFd: event });
  signal(event);
  const outcome = await thread.outcome;
  assert.ok('threadId' in outcome);
  assert.notEqual(outcome.threadId, process.pid);
  assert.equal(outcome.ready, 1);
  assert.equal(outcome.drained, true);
  closeFd(event);
  epoll.close();
});
