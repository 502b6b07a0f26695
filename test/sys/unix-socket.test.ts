import assert from 'node:assert/strict';
import { readFileSync, rmSync, statSync, symlinkSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  acceptUnix,
  closeFd,
  connectUnix,
  drain,
  eventfd,
  isEventFd,
  listenUnix,
  MAX_SOCKET_PATH,
  openFds,
  peerCredentials,
  type Received,
  receive,
  send,
  shutdownUnix,
  signal,
  socketPair,
} from '../../src/sys/index.ts';
import { directory, runProcess } from './support.ts';

function closeAll(...fds: number[]): void {
  for (const fd of fds) closeFd(fd);
}

function received(fd: number, buffer: Uint8Array): Received {
  const result = receive(fd, buffer);
  assert.ok(typeof result === 'object', `received ${String(result)}`);
  return result;
}

const descriptorFlags = (fd: number) =>
  Number.parseInt(/flags:\s*(\d+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))![1]!, 8);

test('listen, connect, accept, talk, close', (t) => {
  const before = openFds();
  const path = join(directory(t), 'a.sock');
  const listener = listenUnix(path);
  assert.equal(acceptUnix(listener), undefined);
  const near = connectUnix(path);
  const far = acceptUnix(listener)!;
  assert.ok(far >= 0);
  const buffer = new Uint8Array(16);
  assert.equal(receive(far, buffer), 'again');
  assert.equal(send(near, Buffer.from('hello')), 5);
  assert.deepEqual(receive(far, buffer), { bytes: 5, fds: [], truncated: false });
  assert.equal(Buffer.from(buffer.subarray(0, 5)).toString(), 'hello');
  for (const fd of [listener, near, far]) assert.equal(descriptorFlags(fd) & 0o2004000, 0o2004000);
  assert.deepEqual(peerCredentials(far), {
    pid: process.pid,
    uid: process.getuid!(),
    gid: process.getgid!(),
  });
  closeFd(near);
  assert.equal(receive(far, buffer), 'closed');
  assert.throws(() => send(far, Buffer.from('x')), { call: 'sendmsg', code: 'EPIPE' });
  closeAll(far, listener);
  assert.equal(openFds(), before);
});

test('a peer that goes with unread bytes closes the connection', () => {
  const [a, b] = socketPair();
  send(a, Buffer.from('unread'));
  closeFd(b);
  assert.equal(receive(a, new Uint8Array(4)), 'closed');
  closeFd(a);
});

test('shutdown ends both directions', () => {
  const [a, b] = socketPair();
  shutdownUnix(a);
  assert.equal(receive(a, new Uint8Array(4)), 'closed');
  assert.equal(receive(b, new Uint8Array(4)), 'closed');
  closeFd(b);
  shutdownUnix(a);
  closeFd(a);
  assert.throws(() => shutdownUnix(a), { code: 'EBADF' });
});

test('the mode of the socket file', (t) => {
  const path = join(directory(t), 'a.sock');
  const listener = listenUnix(path, { mode: 0o600 });
  assert.equal(statSync(path).mode & 0o7777, 0o600);
  closeFd(listener);
});

test('a path that a live process uses is refused', (t) => {
  const before = openFds();
  const path = join(directory(t), 'a.sock');
  const listener = listenUnix(path);
  assert.throws(() => listenUnix(path), {
    call: 'bind',
    code: 'EADDRINUSE',
    detail: path,
    message: /another process uses this socket/,
  });
  closeFd(listener);
  assert.equal(openFds(), before);
});

test('a live process whose backlog is full still uses its path', (t) => {
  const path = join(directory(t), 'a.sock');
  const listener = listenUnix(path, { backlog: 0 });
  const waiting: number[] = [];
  assert.throws(
    () => {
      for (let i = 0; i < 10; i++) waiting.push(connectUnix(path));
    },
    { code: 'EAGAIN', call: 'connect', message: /too many connections waiting/ },
  );
  assert.throws(() => listenUnix(path), { code: 'EADDRINUSE' });
  closeAll(listener, ...waiting);
});

test('a stale socket is replaced', async (t) => {
  const path = join(directory(t), 'a.sock');
  const { code } = await runProcess(`
    sys.listenUnix(${JSON.stringify(path)});
    process.kill(process.pid, 'SIGKILL');
  `);
  assert.notEqual(code, 0);
  assert.ok(statSync(path).isSocket());
  assert.throws(() => connectUnix(path), {
    code: 'ECONNREFUSED',
    message: `connect(${path}): ECONNREFUSED, nobody listens there`,
  });
  const listener = listenUnix(path);
  const near = connectUnix(path);
  const far = acceptUnix(listener)!;
  closeAll(near, far, listener);
});

test('what is not a socket is refused and left alone', (t) => {
  const folder = directory(t);
  const path = join(folder, 'file');
  writeFileSync(path, 'precious');
  assert.throws(() => listenUnix(path), { code: 'ENOTSOCK', message: /exists and is not a socket/ });
  assert.equal(readFileSync(path, 'utf8'), 'precious');
  assert.throws(() => connectUnix(path), { code: 'ECONNREFUSED' });
  const link = join(folder, 'link');
  symlinkSync(path, link);
  assert.throws(() => listenUnix(link), { code: 'ENOTSOCK' });
  assert.throws(() => listenUnix(folder), { code: 'ENOTSOCK' });
});

test('a path that no socket can have is refused', (t) => {
  const folder = directory(t);
  const longest = join(folder, 'x'.repeat(MAX_SOCKET_PATH - folder.length - 1));
  assert.equal(longest.length, 107);
  const listener = listenUnix(longest);
  closeFd(connectUnix(longest));
  closeFd(listener);
  const before = openFds();
  for (const use of [listenUnix, connectUnix]) {
    assert.throws(() => use(`${longest}x`), { code: 'ENAMETOOLONG', message: /has 108 bytes .* 107/ });
    // Bytes count, not characters.
    assert.throws(() => use(`${longest.slice(0, -1)}é`), { code: 'ENAMETOOLONG' });
    assert.throws(() => use(''), { code: 'EINVAL', message: /the path is empty/ });
    assert.throws(() => use('/tmp/a\0b'), { code: 'EINVAL', message: /contains a NUL/ });
  }
  assert.throws(() => listenUnix(join(folder, 'no', 'a.sock')), {
    code: 'ENOENT',
    message: /the directory does not exist/,
  });
  assert.equal(openFds(), before);
});

for (const count of [0, 1, 8, 253]) {
  test(`${count} descriptors arrive in order and are the same files`, () => {
    const before = openFds();
    const [a, b] = socketPair();
    const sent = Array.from({ length: count }, () => eventfd());
    assert.equal(send(a, Buffer.from('take these'), sent), 10);
    const { bytes, fds, truncated } = received(b, new Uint8Array(100));
    assert.equal(bytes, 10);
    assert.equal(fds.length, count);
    assert.equal(truncated, false);
    for (const [i, fd] of fds.entries()) {
      assert.ok(isEventFd(fd));
      assert.ok(!sent.includes(fd));
      assert.ok(descriptorFlags(fd) & 0o2000000);
      signal(fd);
      assert.equal(drain(sent[i]!), true);
    }
    closeAll(...fds, ...sent, a, b);
    assert.equal(openFds(), before);
  });
}

test('descriptors stay with the bytes that they were sent with', () => {
  const [a, b] = socketPair();
  const event = eventfd();
  send(a, Buffer.from('first'));
  send(a, Buffer.from('second'), [event]);
  send(a, Buffer.from('third'));
  const buffer = new Uint8Array(100);
  const counts: number[] = [];
  const words: string[] = [];
  for (let got = receive(b, buffer); typeof got === 'object'; got = receive(b, buffer)) {
    counts.push(...got.fds);
    words.push(Buffer.from(buffer.subarray(0, got.bytes)).toString());
    closeAll(...got.fds);
  }
  assert.equal(counts.length, 1);
  // The kernel joins no bytes from after descriptors to those before them.
  assert.equal(words.join(''), 'firstsecondthird');
  assert.ok(words.length >= 2);
  closeAll(event, a, b);
});

test('a message read byte by byte gives its descriptors with the first', () => {
  const [a, b] = socketPair();
  const event = eventfd();
  send(a, Buffer.from('abc'), [event]);
  const one = new Uint8Array(1);
  const first = received(b, one);
  assert.equal(first.fds.length, 1);
  assert.deepEqual(received(b, one), { bytes: 1, fds: [], truncated: false });
  assert.deepEqual(received(b, one), { bytes: 1, fds: [], truncated: false });
  assert.equal(receive(b, one), 'again');
  closeAll(...first.fds, event, a, b);
});

test('a send that can not be', () => {
  const [a, b] = socketPair();
  const event = eventfd();
  assert.throws(() => send(a, new Uint8Array(1), new Array(254).fill(event)), /at most 253 descriptors/);
  assert.throws(() => send(a, new Uint8Array(0), [event]), /at least one byte/);
  assert.throws(() => send(a, new Uint8Array(1), [-1]), { code: 'EBADF' });
  assert.throws(() => receive(b, new Uint8Array(0)), /at least one byte/);
  assert.equal(send(a, new Uint8Array(0)), 0);
  assert.equal(receive(b, new Uint8Array(1)), 'again');
  assert.throws(() => receive(event, new Uint8Array(1)), { code: 'ENOTSOCK', call: 'recvmsg' });
  closeAll(event, a, b);
});

test('a socket that is full takes what fits, then nothing, and loses nothing', () => {
  const [a, b] = socketPair();
  const out = Buffer.from(Array.from({ length: 100_000 }, (_, i) => i % 251));
  let sent = 0;
  for (let n = send(a, out); n !== 'again'; n = send(a, out.subarray(sent % out.length))) sent += n;
  assert.ok(sent > 65536);
  let got = 0;
  const buffer = new Uint8Array(200_000);
  for (let r = receive(b, buffer); typeof r === 'object'; r = receive(b, buffer)) {
    for (let i = 0; i < r.bytes; i++) assert.equal(buffer[i], out[(got + i) % out.length]);
    got += r.bytes;
  }
  assert.equal(got, sent);
  closeAll(a, b);
});

test('descriptors that find no room are told as truncated, and the rest arrives', async () => {
  const { stdout, stderr } = await runProcess(
    `
    const [a, b] = sys.socketPair();
    const events = Array.from({ length: 8 }, () => sys.eventfd());
    const fillers = [];
    try { for (;;) fillers.push(sys.eventfd()); } catch (error) { console.log(error.code); }
    for (let i = 0; i < 3; i++) sys.closeFd(fillers.pop());
    sys.send(a, Buffer.from('eight'), events);
    const got = sys.receive(b, new Uint8Array(10));
    console.log(got.bytes, got.fds.length, got.truncated, got.fds.every(sys.isEventFd));
    for (const fd of got.fds) sys.closeFd(fd);
    sys.send(a, Buffer.from('two'), events.slice(0, 2));
    const next = sys.receive(b, new Uint8Array(10));
    console.log(next.bytes, next.fds.length, next.truncated);
    process.exit(0);
  `,
    128,
  );
  // isEventFd reads a link and needs no descriptor.
  assert.equal(stdout, 'EMFILE\n5 3 true true\n3 2 false\n', stderr);
});

test('an accept without a free descriptor is refused by name and works later', async (t) => {
  const path = join(directory(t), 'a.sock');
  const { stdout, stderr } = await runProcess(
    `
    const listener = sys.listenUnix(${JSON.stringify(path)});
    sys.connectUnix(${JSON.stringify(path)});
    const fillers = [];
    try { for (;;) fillers.push(sys.eventfd()); } catch {}
    try { sys.acceptUnix(listener); } catch (error) { console.log(error.call, error.code); }
    sys.closeFd(fillers.pop());
    console.log(sys.acceptUnix(listener) >= 0);
    process.exit(0);
  `,
    128,
  );
  assert.equal(stdout, 'accept4 EMFILE\ntrue\n', stderr);
});

test('10,000 rounds with descriptors leak none', () => {
  const before = openFds();
  const [a, b] = socketPair();
  const events = [eventfd(), eventfd(), eventfd()];
  const buffer = new Uint8Array(64);
  const word = Buffer.alloc(20);
  for (let round = 0; round < 10_000; round++) {
    word.writeUInt32LE(round, 4);
    assert.equal(send(a, word, events.slice(0, round % 4)), 20);
    const got = received(b, buffer);
    assert.equal(got.bytes, 20);
    assert.equal(got.fds.length, round % 4);
    assert.deepEqual(buffer.subarray(0, 20), new Uint8Array(word));
    closeAll(...got.fds);
  }
  // Passed, but never received: the kernel closes them with the socket.
  send(a, word, events);
  closeAll(a, b, ...events);
  assert.equal(openFds(), before);
});

test('10,000 connections leak no descriptor', (t) => {
  const path = join(directory(t), 'a.sock');
  const before = openFds();
  const listener = listenUnix(path);
  for (let i = 0; i < 10_000; i++) {
    const near = connectUnix(path);
    const far = acceptUnix(listener)!;
    closeAll(near, far);
  }
  closeFd(listener);
  rmSync(path);
  for (let i = 0; i < 1000; i++) assert.throws(() => connectUnix(path), { code: 'ENOENT' });
  assert.equal(openFds(), before);
});

test('bytes written by others arrive as they are', () => {
  const [a, b] = socketPair();
  writeSync(a, Buffer.from('plain write'));
  assert.equal(received(b, new Uint8Array(64)).bytes, 11);
  closeAll(a, b);
});
