import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { closeFd, drain, eventfd, ioctl, signal } from '../../src/sys/index.ts';
import { startThread } from './support.ts';

const FIONBIO = 0x5421;
const full = Buffer.from('feffffffffffffff', 'hex');
const blocking = (fd: number) => ioctl(fd, FIONBIO, new Uint8Array(4));
const count = (fd: number) =>
  /eventfd-count:\s*([0-9a-f]+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))![1];

test('signals add up and are drained at once', () => {
  const fd = eventfd();
  assert.equal(drain(fd), false);
  for (let i = 0; i < 5; i++) assert.equal(signal(fd), true);
  const counter = Buffer.alloc(8);
  assert.equal(readSync(fd, counter), 8);
  assert.equal(counter.readBigUInt64LE(), 5n);
  assert.equal(signal(fd), true);
  assert.equal(drain(fd), true);
  assert.equal(drain(fd), false);
  closeFd(fd);
});

test('the initial value', () => {
  const fd = eventfd(0xffffffff);
  assert.equal(count(fd), 'ffffffff');
  assert.equal(drain(fd), true);
  closeFd(fd);
});

test('a full counter counts as signalled', () => {
  const fd = eventfd();
  writeSync(fd, full);
  assert.equal(signal(fd), true);
  assert.equal(count(fd), 'fffffffffffffffe');
  closeFd(fd);
});

test('what can not be signalled says so and throws nothing', () => {
  const fd = eventfd();
  closeFd(fd);
  assert.equal(signal(fd), false);
  assert.equal(drain(fd), false);
  assert.equal(signal(-1), false);
  const readOnly = openSync('/dev/zero', 'r');
  assert.equal(signal(readOnly), false);
  closeSync(readOnly);
});

test('drain does not block on an eventfd that a peer made blocking', () => {
  const fd = eventfd();
  blocking(fd);
  assert.equal(drain(fd), false);
  signal(fd);
  assert.equal(drain(fd), true);
  assert.equal(drain(fd), false);
  closeFd(fd);
});

test('a signal that a peer made block goes on when another thread drains', async () => {
  const fd = eventfd();
  writeSync(fd, full);
  blocking(fd);
  const thread = await startThread({ do: 'signal', eventFd: fd });
  let done = false;
  const outcome = thread.outcome.finally(() => {
    done = true;
  });
  let drained = 0;
  while (!done) {
    if (drain(fd)) drained++;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  assert.deepEqual(await outcome, { signalled: true });
  assert.ok(drained >= 1);
  closeFd(fd);
});
