import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import {
  closeFd,
  eventfd,
  fdKind,
  ioctl,
  isEventFd,
  memfd,
  openFds,
  setNonBlocking,
  socketPair,
} from '../../src/sys/index.ts';

/** The open flags of a descriptor as the kernel shows them. */
const flags = (fd: number) =>
  Number.parseInt(/flags:\s*(\d+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))![1]!, 8);

test('what a descriptor is', () => {
  const event = eventfd();
  const [a, b] = socketPair();
  const file = memfd('ram', 4096);
  const nothing = openSync('/dev/null', 'r');
  assert.equal(fdKind(event), 'anon_inode:[eventfd]');
  assert.match(fdKind(a), /^socket:\[\d+\]$/);
  assert.match(fdKind(file), /^\/memfd:ram/);
  assert.equal(fdKind(nothing), '/dev/null');
  assert.deepEqual([event, a, file, nothing].map(isEventFd), [true, false, false, false]);
  for (const fd of [event, a, b, file]) closeFd(fd);
  closeSync(nothing);
});

test('a descriptor that is not open', () => {
  const fd = eventfd();
  closeFd(fd);
  assert.throws(() => closeFd(fd), { code: 'EBADF', call: 'close', detail: String(fd) });
  assert.throws(() => fdKind(fd), { code: 'EBADF' });
  assert.throws(() => setNonBlocking(fd), { code: 'EBADF' });
  assert.equal(isEventFd(fd), false);
  assert.equal(isEventFd(-1), false);
});

test('openFds counts', () => {
  const before = openFds();
  const fd = eventfd();
  assert.equal(openFds(), before + 1);
  closeFd(fd);
  assert.equal(openFds(), before);
});

test('setNonBlocking sets the flag and keeps the others', () => {
  const O_NONBLOCK = 0o4000;
  const FIONBIO = 0x5421;
  const fd = eventfd();
  const before = flags(fd);
  assert.ok(before & O_NONBLOCK);
  ioctl(fd, FIONBIO, new Uint8Array(4));
  assert.equal(flags(fd), before & ~O_NONBLOCK);
  setNonBlocking(fd);
  assert.equal(flags(fd), before);
  setNonBlocking(fd);
  assert.equal(flags(fd), before);
  closeFd(fd);
});
