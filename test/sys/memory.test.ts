import assert from 'node:assert/strict';
import { closeSync, ftruncateSync, openSync, readSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  addressOf,
  closeFd,
  dontDump,
  eventfd,
  fileInfo,
  mapFixed,
  memfd,
  sealAgainstShrink,
  seals,
  socketPair,
  systemPageSize,
} from '../../src/sys/index.ts';
import { libc } from '../../src/sys/libc.ts';
import { directory, startThread } from './support.ts';

const MiB = 1 << 20;
const none = { seal: false, shrink: false, grow: false, write: false, futureWrite: false };

/** A memory as the arena's, and an offset in it where the address is a multiple of 2 MiB. */
function arena() {
  const memory = new WebAssembly.Memory({ initial: 65536, maximum: 65536, shared: true });
  const bytes = new Uint8Array(memory.buffer);
  const base = addressOf(bytes);
  const align = BigInt(2 * MiB);
  const offset = Number(((base + align) / align) * align - base);
  return { memory, bytes, base, offset, address: base + BigInt(offset) };
}

test('addressOf follows a view through its buffer', () => {
  const bytes = new Uint8Array(1 << 16);
  const base = addressOf(bytes);
  assert.equal(addressOf(bytes.subarray(1000)), base + 1000n);
  assert.equal(addressOf(new Uint8Array(bytes.buffer, 5, 1)), base + 5n);
  const small = new Uint8Array(8);
  assert.equal(addressOf(small), addressOf(small));
  const { bytes: memory, base: start } = arena();
  assert.equal(start % 65536n, 0n);
  assert.equal(addressOf(memory.subarray(2 ** 32 - 1)), start + 0xffffffffn);
});

test('a memfd in a wasm memory: both sides see what the other writes', async () => {
  const { memory, bytes, offset, address } = arena();
  const fd = memfd('ram', 4 * MiB);
  mapFixed(address, 2 * MiB, { fd, offset: BigInt(2 * MiB) });

  bytes.set(Buffer.from('from memory'), offset + 100);
  const seen = Buffer.alloc(11);
  readSync(fd, seen, 0, 11, 2 * MiB + 100);
  assert.equal(seen.toString(), 'from memory');

  writeSync(fd, Buffer.from('from file'), 0, 9, 4 * MiB - 9);
  assert.equal(Buffer.from(bytes.slice(offset + 2 * MiB - 9, offset + 2 * MiB)).toString(), 'from file');

  const text = 'from a thread';
  const thread = await startThread({ do: 'write', memory, offset: offset + 5000, text });
  assert.deepEqual(await thread.outcome, { written: text.length });
  const threads = Buffer.alloc(text.length);
  readSync(fd, threads, 0, text.length, 2 * MiB + 5000);
  assert.equal(threads.toString(), text);

  // Anonymous memory over the half of it: zero there, the other half and the file untouched.
  mapFixed(address, MiB, 'anonymous');
  assert.equal(bytes[offset + 100], 0);
  assert.equal(bytes[offset + 2 * MiB - 1], 'e'.charCodeAt(0));
  bytes[offset + 100] = 1;
  readSync(fd, seen, 0, 11, 2 * MiB + 100);
  assert.equal(seen.toString(), 'from memory');
  mapFixed(address, 2 * MiB, 'anonymous');
  closeFd(fd);
});

test('a mapping outlives its descriptor', () => {
  const { bytes, offset, address } = arena();
  const fd = memfd('ram', 4096);
  writeSync(fd, Buffer.from('still here'));
  mapFixed(address, 4096, { fd, offset: 0n });
  closeFd(fd);
  assert.equal(Buffer.from(bytes.slice(offset, offset + 10)).toString(), 'still here');
  dontDump(address, 4096);
  mapFixed(address, 4096, 'anonymous');
});

test('a mapping that is impossible is refused by name', () => {
  const { bytes, offset, address } = arena();
  const fd = memfd('ram', 4096);
  const readOnly = openSync('/proc/self/exe', 'r');
  bytes[offset] = 7;
  const map = (at: bigint, source: { fd: number; offset: bigint }) => () => mapFixed(at, 4096, source);
  assert.throws(map(address + 1n, { fd, offset: 0n }), { code: 'EINVAL', call: 'mmap' });
  assert.throws(map(address, { fd, offset: 1n }), { code: 'EINVAL' });
  assert.throws(map(address, { fd: -1, offset: 0n }), { code: 'EBADF', detail: /fd -1 from offset 0, 4096/ });
  assert.throws(map(address, { fd: readOnly, offset: 0n }), { code: 'EACCES' });
  assert.throws(() => mapFixed(address, 0, 'anonymous'), { code: 'EINVAL' });
  assert.throws(() => dontDump(address + 1n, 4096), { code: 'EINVAL', call: 'madvise' });
  assert.equal(bytes[offset], 7);
  closeSync(readOnly);
  closeFd(fd);
});

test('a sealed memfd can not be shortened', () => {
  const fd = memfd('ram', MiB);
  assert.deepEqual(seals(fd), none);
  assert.equal(sealAgainstShrink(fd), true);
  assert.equal(sealAgainstShrink(fd), true);
  assert.deepEqual(seals(fd), { ...none, shrink: true });
  assert.throws(() => ftruncateSync(fd, 4096), { code: 'EPERM' });
  ftruncateSync(fd, 2 * MiB);
  assert.equal(fileInfo(fd).size, BigInt(2 * MiB));
  closeFd(fd);
});

test('a file that takes no seal says so', (t) => {
  const plain = memfd('plain', 4096, { sealable: false });
  assert.equal(sealAgainstShrink(plain), false);
  assert.deepEqual(seals(plain), { ...none, seal: true });
  ftruncateSync(plain, 0);
  closeFd(plain);

  const path = join(directory(t), 'file');
  writeFileSync(path, 'x');
  const file = openSync(path, 'r+');
  assert.equal(sealAgainstShrink(file), false);
  assert.equal(seals(file).shrink, false);
  closeSync(file);
  rmSync(path);

  const [a, b] = socketPair();
  assert.equal(sealAgainstShrink(a), false);
  assert.deepEqual(seals(a), none);
  closeFd(a);
  closeFd(b);
  assert.throws(() => sealAgainstShrink(-1), { code: 'EBADF' });
  assert.throws(() => seals(-1), { code: 'EBADF' });
});

test('a file that was sealed against shrinking and against seals still counts as sealed', () => {
  const F_ADD_SEALS = 1033;
  const fd = memfd('ram', 4096);
  assert.equal(libc.fcntl(fd, F_ADD_SEALS, 1 | 2), 0);
  assert.equal(sealAgainstShrink(fd), true);
  assert.deepEqual(seals(fd), { ...none, seal: true, shrink: true });
  closeFd(fd);
});

test('what a descriptor is', (t) => {
  const path = join(directory(t), 'file');
  writeFileSync(path, 'five!');
  const [a, b] = socketPair();
  const event = eventfd();
  const ram = memfd('ram', 6 * 2 ** 30);
  const file = openSync(path, 'r');
  const device = openSync('/dev/null', 'r');
  const folder = openSync('/', 'r');
  const pageSize = systemPageSize;
  assert.deepEqual(fileInfo(ram), { kind: 'file', size: 6n << 30n, pageSize, hugetlb: false });
  assert.deepEqual(fileInfo(file), { kind: 'file', size: 5n, pageSize, hugetlb: false });
  assert.equal(fileInfo(a).kind, 'socket');
  assert.equal(fileInfo(event).kind, 'anonymous');
  assert.equal(fileInfo(device).kind, 'device');
  assert.equal(fileInfo(folder).kind, 'directory');
  for (const fd of [a, b, event, ram]) closeFd(fd);
  for (const fd of [file, device, folder]) closeSync(fd);
  assert.throws(() => fileInfo(event), { code: 'EBADF' });
});

test('a hugetlb file tells its page size', (t) => {
  const MFD_CLOEXEC_HUGETLB = 1 | 4;
  const fd = libc.memfdCreate('huge', MFD_CLOEXEC_HUGETLB);
  if (fd === -1) return t.skip('this kernel has no hugetlb memory files');
  const info = fileInfo(fd);
  assert.equal(info.hugetlb, true);
  assert.equal(info.kind, 'file');
  assert.ok(info.pageSize >= 16 * systemPageSize);
  assert.equal(info.pageSize & (info.pageSize - 1), 0);
  closeFd(fd);
});

test('a memfd that can not be had is refused by name', () => {
  assert.throws(() => memfd('x'.repeat(300), 4096), { code: 'EINVAL', call: 'memfd_create' });
  assert.throws(() => memfd('x', -1), { code: 'EINVAL', call: 'ftruncate', detail: 'x, -1 bytes' });
});
