import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import {
  closeFd,
  duplicateFd,
  eventfd,
  fdKind,
  ioctl,
  isEventFd,
  memfd,
  openFds,
  ownPipe,
  readNow,
  setNonBlocking,
  socketPair,
  writeNow,
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

test('a pipe or socket that a peer has made blocking keeps nobody waiting', (t) => {
  const FIONBIO = 0x5421;
  const path = join(mkdtempSync(join(tmpdir(), 'vireo-fd-')), 'pipe');
  execFileSync('mkfifo', [path]);
  const pipe = openSync(path, 'r+');
  rmSync(dirname(path), { recursive: true });
  const [a, b] = socketPair();
  t.after(() => {
    for (const fd of [pipe, a, ...ends]) closeFd(fd);
  });
  const ends = [ownPipe(duplicateFd(pipe), false), ownPipe(duplicateFd(pipe), true)] as const;
  for (const [reading, writing] of [ends, [a, b]] as const) {
    for (const fd of [pipe, a, b]) ioctl(fd, FIONBIO, new Uint8Array(4));
    const bytes = new Uint8Array(4096);
    assert.throws(() => readNow(reading, bytes), { code: 'EAGAIN', call: 'read' });
    assert.equal(writeNow(writing, Uint8Array.of(1, 2, 3)), 3);
    assert.equal(readNow(reading, bytes), 3);
    assert.deepEqual([...bytes.subarray(0, 3)], [1, 2, 3]);
    // It takes what it has room for, and then nothing.
    assert.throws(
      () => {
        for (;;) writeNow(writing, bytes);
      },
      { code: 'EAGAIN', call: 'write' },
    );
  }
  closeFd(b);
  const rest = new Uint8Array(1 << 20);
  while (readNow(a, rest) > 0);
  assert.equal(readNow(a, rest), 0, 'the end');
  assert.throws(() => writeNow(a, rest), { code: 'EPIPE' });
  assert.throws(() => readNow(b, rest), { code: 'EBADF' });
});
