/** Memory: addresses, mappings, memfds and their seals, and what a descriptor that should be mapped is. */
import { fstatSync } from 'node:fs';
import { check, SystemError } from './errors.ts';
import { errnoByName, lastErrno, libc, type Pointer, pinned } from './libc.ts';

const PROT_READ_WRITE = 1 | 2;
const MAP_SHARED = 0x01;
const MAP_PRIVATE = 0x02;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;
const MADV_DONTDUMP = 16;
const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;
const F_ADD_SEALS = 1033;
const F_GET_SEALS = 1034;
const F_SEAL_SEAL = 0x01;
const F_SEAL_SHRINK = 0x02;
const F_SEAL_GROW = 0x04;
const F_SEAL_WRITE = 0x08;
const F_SEAL_FUTURE_WRITE = 0x10;
const HUGETLBFS_MAGIC = 0x958458f6;
const SC_PAGESIZE = 30;

/** The size of the system's ordinary page in bytes. */
export const systemPageSize: number = libc.sysconf(SC_PAGESIZE);

/** Where the first byte of a view lies. Valid for as long as its ArrayBuffer lives. */
export function addressOf(view: Uint8Array): bigint {
  // Small arrays live in the moving heap until somebody asks for their buffer.
  void view.buffer;
  return libc.memmove(view, view, 0);
}

/**
 * Maps over [address, address + length), readable and writable: a file from `offset` on (shared), or anonymous
 * zero pages (private, not reserved), which is also how a mapping is taken away from the arena.
 *
 * Address and offset are multiples of the file's page size (see fileInfo), and the range is one that the caller
 * owns: whatever was mapped there is gone. Throws a SystemError.
 */
export function mapFixed(
  address: bigint,
  length: number,
  source: { fd: number; offset: bigint } | 'anonymous',
): void {
  const result =
    source === 'anonymous'
      ? libc.mmap(
          address,
          length,
          PROT_READ_WRITE,
          MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
          -1,
          0n,
        )
      : libc.mmap(address, length, PROT_READ_WRITE, MAP_FIXED | MAP_SHARED, source.fd, source.offset);
  if (Number(result) !== -1) return;
  const what = source === 'anonymous' ? 'anonymous' : `fd ${source.fd} from offset ${source.offset}`;
  throw new SystemError('mmap', lastErrno(), `${what}, ${length} bytes at 0x${address.toString(16)}`);
}

/**
 * Maps a file from `offset` on wherever the kernel finds room for `length` bytes, shared, readable and writable,
 * without reserving anything. Both are multiples of the file's page size. Returns the address. Throws a SystemError.
 */
export function mapAnywhere(fd: number, offset: bigint, length: bigint): bigint {
  const result = libc.mmap(0n, length, PROT_READ_WRITE, MAP_SHARED | MAP_NORESERVE, fd, offset);
  if (Number(result) === -1) {
    throw new SystemError('mmap', lastErrno(), `fd ${fd} from offset ${offset}, ${length} bytes`);
  }
  return BigInt(result);
}

/** Takes away what mapAnywhere() mapped. */
export function unmapAnywhere(address: bigint, length: bigint): void {
  check(libc.munmap(address, length), 'munmap', `0x${address.toString(16)}`);
}

/** Copies bytes between two addresses of this process, neither of which the caller has to own for longer. */
export function copyMemory(to: bigint, from: bigint, length: number): void {
  libc.memmove(to, from, length);
}

/**
 * Reads bytes at an address of this process on another thread: where a page may be long in coming (userfault.ts).
 * Takes up a thread of libuv's pool, of which there are few, until it is done.
 */
export function readAside(address: bigint, length: number): Promise<Buffer> {
  const bytes = pinned(length);
  return moveAside(bytes, address, length).then(() => bytes);
}

/** Writes bytes to an address of this process, as readAside reads them. */
export function writeAside(address: bigint, bytes: Uint8Array): Promise<void> {
  const copy = pinned(bytes.length);
  copy.set(bytes);
  return moveAside(address, copy, copy.length);
}

function moveAside(to: Pointer, from: Pointer, length: number): Promise<void> {
  return new Promise((resolve, reject) => {
    libc.memmove.async(to, from, length, (error: unknown) => (error ? reject(error) : resolve()));
  });
}

/** Leaves [address, address + length) out of core dumps. */
export function dontDump(address: bigint, length: number | bigint): void {
  check(libc.madvise(address, length, MADV_DONTDUMP), 'madvise', `0x${address.toString(16)}`);
}

/** A new memory file of `size` bytes, all zero; close-on-exec; one that takes seals unless `sealable` is false. */
export function memfd(name: string, size: number, options: { sealable?: boolean } = {}): number {
  const flags = MFD_CLOEXEC | (options.sealable === false ? 0 : MFD_ALLOW_SEALING);
  const fd = check(libc.memfdCreate(name, flags), 'memfd_create', name);
  if (libc.ftruncate(fd, size) === -1) {
    const error = new SystemError('ftruncate', lastErrno(), `${name}, ${size} bytes`);
    libc.close(fd);
    throw error;
  }
  return fd;
}

/** What a file's seals forbid. */
export interface Seals {
  /** Adding seals. True also for a shared memory file that doesn't take any. */
  seal: boolean;
  shrink: boolean;
  grow: boolean;
  write: boolean;
  futureWrite: boolean;
}

/** The seals of a file; all false for a file of a kind that has none. */
export function seals(fd: number): Seals {
  const bits = libc.fcntl(fd, F_GET_SEALS, 0);
  if (bits === -1 && lastErrno() !== errnoByName.EINVAL) check(bits, 'fcntl', fd);
  const has = (bit: number) => bits !== -1 && (bits & bit) !== 0;
  return {
    seal: has(F_SEAL_SEAL),
    shrink: has(F_SEAL_SHRINK),
    grow: has(F_SEAL_GROW),
    write: has(F_SEAL_WRITE),
    futureWrite: has(F_SEAL_FUTURE_WRITE),
  };
}

/**
 * Makes sure that nobody can shorten the file, so that touching its mapping can't raise SIGBUS.
 * False where the file can't promise that: it takes no seals, no more seals, or isn't open for writing.
 */
export function sealAgainstShrink(fd: number): boolean {
  if (libc.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) === 0) return true;
  const errno = lastErrno();
  if (errno !== errnoByName.EPERM && errno !== errnoByName.EINVAL)
    throw new SystemError('fcntl', errno, String(fd));
  return seals(fd).shrink;
}

/** What a descriptor stands for. Eventfds and their like are 'anonymous'. */
export type FileKind = 'file' | 'directory' | 'socket' | 'pipe' | 'device' | 'anonymous';

export interface FileInfo {
  kind: FileKind;
  /** Bytes. */
  size: bigint;
  /** Mappings of this file are aligned to this many bytes. */
  pageSize: number;
  hugetlb: boolean;
}

/** What a descriptor is, from fstat and fstatfs. Throws a SystemError when it isn't open. */
export function fileInfo(fd: number): FileInfo {
  const statfs = pinned(256);
  check(libc.fstatfs(fd, statfs), 'fstatfs', fd);
  const hugetlb = Number(statfs.readBigUInt64LE(0)) === HUGETLBFS_MAGIC;
  const stat = fstatSync(fd, { bigint: true });
  let kind: FileKind = 'anonymous';
  if (stat.isFile()) kind = 'file';
  else if (stat.isDirectory()) kind = 'directory';
  else if (stat.isSocket()) kind = 'socket';
  else if (stat.isFIFO()) kind = 'pipe';
  else if (stat.isCharacterDevice() || stat.isBlockDevice()) kind = 'device';
  return {
    kind,
    size: stat.size,
    pageSize: hugetlb ? Number(statfs.readBigUInt64LE(8)) : systemPageSize,
    hugetlb,
  };
}
