import assert from 'node:assert/strict';
import { test } from 'node:test';
import { check, closeFd, connectUnix, errnoName, isSystemError, SystemError } from '../../src/sys/index.ts';

test('an error carries the call, the errno by name and number, and the argument', () => {
  assert.throws(
    () => connectUnix('/nonexistent/a.sock'),
    (error) => {
      assert.ok(error instanceof SystemError);
      assert.ok(error instanceof Error);
      assert.equal(error.call, 'connect');
      assert.equal(error.code, 'ENOENT');
      assert.equal(error.errno, 2);
      assert.equal(error.detail, '/nonexistent/a.sock');
      assert.equal(error.message, 'connect(/nonexistent/a.sock): ENOENT, there is no such socket');
      return true;
    },
  );
});

test('check passes results on and throws for -1 alone', () => {
  assert.equal(check(0, 'call', ''), 0);
  assert.equal(check(7, 'call', ''), 7);
  assert.throws(() => closeFd(-1), { name: 'SystemError', code: 'EBADF', call: 'close', detail: '-1' });
});

test('words come from the call, else the errno, else the C library, else the caller', () => {
  assert.match(new SystemError('connect', 'ECONNREFUSED', 'a').message, /nobody listens there$/);
  assert.match(new SystemError('send', 'ECONNREFUSED', 'a').message, /connection refused$/);
  assert.match(new SystemError('rename', 'EXDEV', 'a').message, /^rename\(a\): EXDEV, \w+/);
  assert.equal(
    new SystemError('open', 'EINVAL', 'a', 'not like this').message,
    'open(a): EINVAL, not like this',
  );
});

test('an errno has its usual name', () => {
  assert.equal(errnoName(11), 'EAGAIN');
  assert.equal(errnoName(35), 'EDEADLK');
  assert.equal(errnoName(95), 'EOPNOTSUPP');
  assert.equal(errnoName(98), 'EADDRINUSE');
  assert.equal(errnoName(9999), 'E9999');
});

test('isSystemError looks at the codes where any are given', () => {
  const error = new SystemError('open', 'ENOENT', 'a');
  assert.ok(isSystemError(error));
  assert.ok(isSystemError(error, 'EACCES', 'ENOENT'));
  assert.ok(!isSystemError(error, 'EACCES'));
  assert.ok(!isSystemError(new Error('x'), 'ENOENT'));
});
