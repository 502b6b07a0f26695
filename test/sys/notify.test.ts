import assert from 'node:assert/strict';
import { readFileSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { closeFd, drain, eventfd, ioctl, Notifier, openFds } from '../../src/sys/index.ts';

const FIONBIO = 0x5421;
const full = Buffer.from('feffffffffffffff', 'hex');
const blocking = (fd: number) => ioctl(fd, FIONBIO, new Uint8Array(4));
const count = (fd: number) =>
  /eventfd-count:\s*([0-9a-f]+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))![1];

test('signals add up, more of them than the kernel keeps notes of', () => {
  const notifier = new Notifier();
  const [a, b] = [eventfd(), eventfd()];
  for (let i = 0; i < 10_000; i++) assert.equal(notifier.signal(i % 2 ? a : b), true);
  assert.equal(count(a), (5000).toString(16));
  assert.equal(count(b), (5000).toString(16));
  assert.equal(drain(a), true);
  assert.equal(notifier.signal(a), true);
  assert.equal(count(a), '1');
  notifier.close();
  for (const fd of [a, b]) closeFd(fd);
});

test('a full eventfd that a peer made blocking blocks nobody', () => {
  const notifier = new Notifier();
  assert.ok(notifier.neverBlocks);
  const fd = eventfd();
  blocking(fd);
  writeSync(fd, full);
  for (let i = 0; i < 1000; i++) notifier.signal(fd);
  assert.equal(drain(fd), true);
  notifier.close();
  closeFd(fd);
});

test('what is no eventfd says so and throws nothing', () => {
  const notifier = new Notifier();
  const fd = eventfd();
  closeFd(fd);
  for (let i = 0; i < 300; i++) assert.equal(notifier.signal(fd), false);
  assert.equal(notifier.signal(-1), false);
  assert.equal(notifier.signal(0), false);
  notifier.close();
});

test('nothing is left behind', () => {
  const fds = openFds();
  for (let i = 0; i < 10; i++) {
    const notifier = new Notifier();
    const fd = eventfd();
    assert.equal(notifier.signal(fd), true);
    notifier.close();
    closeFd(fd);
  }
  assert.equal(openFds(), fds);
});
