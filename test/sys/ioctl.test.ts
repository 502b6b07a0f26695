import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { closeFd, eventfd, ioctl, send, socketPair } from '../../src/sys/index.ts';

test('a request fills the memory that it is given', () => {
  const FIONREAD = 0x541b;
  const [a, b] = socketPair();
  send(a, Buffer.from('seven b'));
  const count = new Uint8Array(4);
  assert.equal(ioctl(b, FIONREAD, count), 0);
  assert.equal(Buffer.from(count).readInt32LE(), 7);
  closeFd(a);
  closeFd(b);
});

test('a request takes a plain value', () => {
  const FIONCLEX = 0x5450;
  const FIOCLEX = 0x5451n;
  const fd = eventfd();
  const closesOnExec = () => /flags:\s*0?2\d{6}/.test(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'));
  assert.equal(closesOnExec(), true);
  ioctl(fd, FIONCLEX, 0);
  assert.equal(closesOnExec(), false);
  ioctl(fd, FIOCLEX, 0n);
  assert.equal(closesOnExec(), true);
  closeFd(fd);
});

test('a request that the file does not know is refused by name', () => {
  const fd = eventfd();
  assert.throws(() => ioctl(fd, 0x4008af00, new Uint8Array(8)), {
    call: 'ioctl',
    code: 'ENOTTY',
    detail: `${fd}, 0x4008af00`,
  });
  closeFd(fd);
});
