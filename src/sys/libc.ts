/**
 * The C library's functions that Vireo calls, declared once.
 *
 * Internal to sys. Each thread that imports this module loads its own declarations. Layouts and constants are
 * those of 64-bit little-endian Linux (x86-64, arm64), glibc and musl. Functions that C declares variadic
 * (fcntl, ioctl) are declared with the arguments that they are given here: on both machines Linux passes these
 * in the same registers.
 */
import koffi, { type KoffiFunc } from 'koffi';

const library = koffi.load(null);

/** A pointer argument: memory that stays where it is for the call, an address, or NULL. */
export type Pointer = Uint8Array | bigint | null;

function declare<F extends (...args: never[]) => unknown>(
  name: string,
  result: string,
  parameters: string[],
): F {
  return library.func(name, result, parameters) as unknown as F;
}

export const libc = {
  close: declare<(fd: number) => number>('close', 'int', ['int']),
  fcntl: declare<(fd: number, command: number, argument: number) => number>('fcntl', 'int', [
    'int',
    'int',
    'long',
  ]),
  strerror: declare<(errno: number) => string>('strerror', 'str', ['int']),
  sysconf: declare<(name: number) => number>('sysconf', 'long', ['int']),

  memmove: declare<KoffiFunc<(to: Pointer, from: Pointer, length: number) => bigint>>('memmove', 'void *', [
    'void *',
    'void *',
    'size_t',
  ]),
  mmap: declare<
    (
      address: bigint,
      length: number | bigint,
      protection: number,
      flags: number,
      fd: number,
      offset: bigint,
    ) => number | bigint
  >('mmap', 'int64', ['uint64', 'size_t', 'int', 'int', 'int', 'int64']),
  munmap: declare<(address: bigint, length: number | bigint) => number>('munmap', 'int', [
    'uint64',
    'size_t',
  ]),
  mprotect: declare<(address: bigint, length: number, protection: number) => number>('mprotect', 'int', [
    'uint64',
    'size_t',
    'int',
  ]),
  sigaction: declare<(signal: number, action: Pointer, before: null) => number>('sigaction', 'int', [
    'int',
    'void *',
    'void *',
  ]),
  madvise: declare<(address: bigint, length: number | bigint, advice: number) => number>('madvise', 'int', [
    'uint64',
    'size_t',
    'int',
  ]),
  memfdCreate: declare<(name: string, flags: number) => number>('memfd_create', 'int', ['str', 'uint']),
  ftruncate: declare<(fd: number, size: number) => number>('ftruncate', 'int', ['int', 'int64']),
  fstatfs: declare<(fd: number, result: Pointer) => number>('fstatfs', 'int', ['int', 'void *']),

  eventfd: declare<(initial: number, flags: number) => number>('eventfd', 'int', ['uint', 'int']),
  eventfdWrite: declare<(fd: number, value: number) => number>('eventfd_write', 'int', ['int', 'uint64']),
  read: declare<(fd: number, to: Pointer, length: number) => number>('read', 'long', [
    'int',
    'void *',
    'size_t',
  ]),
  preadv2: declare<(fd: number, vector: Pointer, count: number, offset: number, flags: number) => number>(
    'preadv2',
    'long',
    ['int', 'void *', 'int', 'int64', 'int'],
  ),
  pwritev2: declare<(fd: number, vector: Pointer, count: number, offset: number, flags: number) => number>(
    'pwritev2',
    'long',
    ['int', 'void *', 'int', 'int64', 'int'],
  ),

  // Memory by its address in the process: what a data plane has lists of.
  readAt: declare<(fd: number, to: number, length: number) => number>('read', 'long', [
    'int',
    'int64',
    'size_t',
  ]),
  writeAt: declare<(fd: number, from: number, length: number) => number>('write', 'long', [
    'int',
    'int64',
    'size_t',
  ]),
  readv: declare<(fd: number, vectors: number, count: number) => number>('readv', 'long', [
    'int',
    'int64',
    'int',
  ]),
  writev: declare<(fd: number, vectors: number, count: number) => number>('writev', 'long', [
    'int',
    'int64',
    'int',
  ]),
  recvmmsg: declare<(fd: number, messages: number, count: number, flags: number, timeout: null) => number>(
    'recvmmsg',
    'int',
    ['int', 'int64', 'uint', 'int', 'void *'],
  ),
  sendmmsg: declare<(fd: number, messages: number, count: number, flags: number) => number>(
    'sendmmsg',
    'int',
    ['int', 'int64', 'uint', 'int'],
  ),

  epollCreate: declare<(flags: number) => number>('epoll_create1', 'int', ['int']),
  epollControl: declare<(epollFd: number, operation: number, fd: number, event: Pointer) => number>(
    'epoll_ctl',
    'int',
    ['int', 'int', 'int', 'void *'],
  ),
  epollWait: declare<
    KoffiFunc<(epollFd: number, events: Pointer, maximum: number, timeoutMs: number) => number>
  >('epoll_wait', 'int', ['int', 'void *', 'int', 'int']),

  socket: declare<(domain: number, type: number, protocol: number) => number>('socket', 'int', [
    'int',
    'int',
    'int',
  ]),
  socketpair: declare<(domain: number, type: number, protocol: number, pair: Pointer) => number>(
    'socketpair',
    'int',
    ['int', 'int', 'int', 'void *'],
  ),
  bind: declare<(fd: number, address: Pointer, length: number) => number>('bind', 'int', [
    'int',
    'void *',
    'uint',
  ]),
  listen: declare<(fd: number, backlog: number) => number>('listen', 'int', ['int', 'int']),
  connect: declare<(fd: number, address: Pointer, length: number) => number>('connect', 'int', [
    'int',
    'void *',
    'uint',
  ]),
  accept4: declare<(fd: number, address: null, length: null, flags: number) => number>('accept4', 'int', [
    'int',
    'void *',
    'void *',
    'int',
  ]),
  recvmsg: declare<(fd: number, message: Pointer, flags: number) => number>('recvmsg', 'long', [
    'int',
    'void *',
    'int',
  ]),
  sendmsg: declare<(fd: number, message: Pointer, flags: number) => number>('sendmsg', 'long', [
    'int',
    'void *',
    'int',
  ]),
  send: declare<(fd: number, bytes: null, length: number, flags: number) => number>('send', 'long', [
    'int',
    'void *',
    'size_t',
    'int',
  ]),
  recv: declare<(fd: number, bytes: null, length: number, flags: number) => number>('recv', 'long', [
    'int',
    'void *',
    'size_t',
    'int',
  ]),
  shutdown: declare<(fd: number, how: number) => number>('shutdown', 'int', ['int', 'int']),
  getsockopt: declare<(fd: number, level: number, name: number, value: Pointer, length: Pointer) => number>(
    'getsockopt',
    'int',
    ['int', 'int', 'int', 'void *', 'void *'],
  ),

  setsockopt: declare<(fd: number, level: number, name: number, value: Pointer, length: number) => number>(
    'setsockopt',
    'int',
    ['int', 'int', 'int', 'void *', 'uint'],
  ),

  gettid: declare<() => number>('gettid', 'int', []),
  schedGetAffinity: declare<(tid: number, size: number, mask: Pointer) => number>(
    'sched_getaffinity',
    'int',
    ['int', 'size_t', 'void *'],
  ),
  schedSetAffinity: declare<(tid: number, size: number, mask: Pointer) => number>(
    'sched_setaffinity',
    'int',
    ['int', 'size_t', 'void *'],
  ),
  clockGetTime: declare<(clock: number, result: Pointer) => number>('clock_gettime', 'int', [
    'int',
    'void *',
  ]),

  ioctlPointer: declare<KoffiFunc<(fd: number, request: number | bigint, argument: Uint8Array) => number>>(
    'ioctl',
    'int',
    ['int', 'uint64', 'void *'],
  ),
  ioctlValue: declare<(fd: number, request: number | bigint, argument: number | bigint) => number>(
    'ioctl',
    'int',
    ['int', 'uint64', 'int64'],
  ),
};

/** Numbers of io_setup, io_destroy, io_submit and io_getevents, by Node's name of the machine. */
const AIO: Readonly<Record<string, readonly [number, number, number, number]>> = {
  x64: [206, 207, 209, 208],
  arm64: [0, 1, 2, 4],
};

function declareAio([setup, destroy, submit, collect]: readonly [number, number, number, number]) {
  const call = (...parameters: string[]) => library.func('syscall', 'long', ['long', ...parameters]);
  const [doSetup, doDestroy] = [call('uint', 'void *'), call('int64')];
  const [doSubmit, doCollect] = [
    call('int64', 'long', 'int64'),
    call('int64', 'long', 'long', 'int64', 'int64'),
  ];
  return {
    setup: (events: number, context: Pointer): number => doSetup(setup, events, context),
    destroy: (context: number): number => doDestroy(destroy, context),
    submit: (context: number, count: number, list: number): number => doSubmit(submit, context, count, list),
    /** Takes what is done, without waiting. */
    collect: (context: number, most: number, to: number): number =>
      doCollect(collect, context, 0, most, to, 0),
  };
}

/** Linux's asynchronous operations, which the C library has no functions for; undefined on other machines. */
export const aio = AIO[process.arch] && declareAio(AIO[process.arch]!);

/** The number of epoll_pwait2 on every machine that has it. */
const EPOLL_PWAIT2 = 441;

/** epoll_pwait2(2), which older C libraries have no function for; -1 with ENOSYS where the kernel has none. */
export const epollPwait2: (epollFd: number, events: Pointer, maximum: number, timeout: Pointer) => number =
  (() => {
    const parameters = ['long', 'int', 'void *', 'int', 'void *', 'void *', 'size_t'];
    const call = library.func('syscall', 'long', parameters);
    return (epollFd, events, maximum, timeout) =>
      call(EPOLL_PWAIT2, epollFd, events, maximum, timeout, null, 0);
  })();

/** The number of userfaultfd, by Node's name of the machine. */
const USERFAULTFD: Readonly<Record<string, number>> = { x64: 323, arm64: 282 };

function declareUserfault(number: number) {
  const call = library.func('syscall', 'long', ['long', 'int']);
  return (flags: number): number => call(number, flags);
}

/** userfaultfd(2), which the C library has no function for; undefined on other machines. */
export const userfault = USERFAULTFD[process.arch] && declareUserfault(USERFAULTFD[process.arch]!);

/** The number of bpf, by Node's name of the machine. */
const BPF: Readonly<Record<string, number>> = { x64: 321, arm64: 280 };

function declareBpf(number: number) {
  const call = library.func('syscall', 'long', ['long', 'int', 'void *', 'uint']);
  return (command: number, attributes: Uint8Array): number =>
    call(number, command, attributes, attributes.length);
}

/** bpf(2), which the C library has no function for; undefined on other machines. */
export const bpf = BPF[process.arch] && declareBpf(BPF[process.arch]!);

/** errno as the last call of this thread left it. */
export const lastErrno: () => number = () => koffi.errno();

/** Every errno by its name. */
export const errnoByName: Readonly<Record<string, number>> = koffi.os.errno;

/** Zeroed memory of its own that never moves: a pointer to it may be kept. */
export function pinned(length: number): Buffer {
  return Buffer.from(new ArrayBuffer(length));
}
