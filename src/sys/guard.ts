/**
 * Survives files that are made shorter while they are mapped. Whoever touches a page that its file doesn't have any
 * more gets SIGBUS, which ends a process; JavaScript and WebAssembly can't catch it. In memory that is guarded here
 * the signal lays anonymous memory over the page in place of the file's, and the thread goes on with zeros.
 *
 * A handler has to be a C function, and the C library has none that would do. So this brings the few instructions
 * itself: they look the address up in a table, and call mmap. For x86-64; elsewhere nothing is guarded. One handler
 * serves the process, and its table must outlive every thread, so it is the main thread's.
 */
import { isMainThread } from 'node:worker_threads';
import { check } from './errors.ts';
import { libc, pinned } from './libc.ts';

const PROT_READ_WRITE = 1 | 2;
const PROT_READ_EXECUTE = 1 | 4;
const MAP_PRIVATE_ANONYMOUS = 0x02 | 0x20;
const CODE_SIZE = 4096;
const SIGBUS = 7;
const SA_SIGINFO = 4;
const SA_ONSTACK = 0x0800_0000;
const SA_RESTART = 0x1000_0000;
/** struct sigaction of the C library: handler, a mask of 128 bytes, flags, restorer. */
const ACTION_SIZE = 152;
const FLAGS_OFFSET = 136;

/** Entries of the table: start, bytes, bytes of a page, times that the signal came. One of 0 bytes is the end. */
const ENTRIES = 65_536;
const WORDS = 4;
const NOWHERE = 2n ** 64n - 1n;

/** The handler: rsi is the siginfo_t, `table` and `nothing` are put in. (Intel's notation; made with GNU as.) */
const CODE = `
  4c 8b 5e 10          mov    r11, [rsi+0x10]     si_addr
  48 b9 table          movabs rcx, table
  48 8b 51 08    next: mov    rdx, [rcx+0x8]
  48 85 d2             test   rdx, rdx
  74 45                je     die                 not in the table
  4c 89 d8             mov    rax, r11
  48 2b 01             sub    rax, [rcx]
  48 39 d0             cmp    rax, rdx
  72 06                jb     found
  48 83 c1 20          add    rcx, 0x20
  eb e6                jmp    next
  f0 48 ff 41 18 found: lock inc qword [rcx+0x18]
  48 8b 71 10          mov    rsi, [rcx+0x10]     length: a page
  48 89 f7             mov    rdi, rsi
  48 f7 df             neg    rdi
  4c 21 df             and    rdi, r11            address: where it begins
  ba 03 00 00 00       mov    edx, 3              PROT_READ | PROT_WRITE
  41 ba 32 40 00 00    mov    r10d, 0x4032        MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE
  49 c7 c0 ff ff ff ff mov    r8, -1
  45 31 c9             xor    r9d, r9d
  b8 09 00 00 00       mov    eax, 9              mmap
  0f 05                syscall
  48 39 f8             cmp    rax, rdi
  75 01                jne    die
  c3                   ret
  bf 07 00 00 00  die: mov    edi, 7              SIGBUS, as it was without a handler
  48 be nothing        movabs rsi, nothing
  31 d2                xor    edx, edx
  41 ba 08 00 00 00    mov    r10d, 8
  b8 0d 00 00 00       mov    eax, 13             rt_sigaction
  0f 05                syscall
  c3                   ret
`;

/** A range of memory whose file may be made shorter. */
export interface Guard {
  /** It was, and somebody touched what is missing. */
  readonly hit: boolean;
  /** Comes before something else is mapped there. */
  release(): void;
}

const UNGUARDED: Guard = { hit: false, release: () => {} };

let table: BigUint64Array | undefined;
let used = 0;
const free: number[] = [];

/** The bytes of CODE with two addresses in their places. */
function assemble(addresses: Readonly<Record<string, bigint>>): Buffer {
  const bytes: number[] = [];
  for (const line of CODE.trim().split('\n')) {
    for (const word of line.trim().split(' ')) {
      const address = addresses[word];
      if (address !== undefined) {
        const little = Buffer.alloc(8);
        little.writeBigUInt64LE(address);
        bytes.push(...little);
        // What follows an address are words for the reader.
        break;
      }
      if (!/^[0-9a-f]{2}$/.test(word)) break;
      bytes.push(Number.parseInt(word, 16));
    }
  }
  return Buffer.from(bytes);
}

function install(): BigUint64Array {
  const entries = pinned(8 * WORDS * (ENTRIES + 1));
  const nothing = pinned(32);
  const at = (memory: Buffer) => libc.memmove(memory, memory, 0);
  const code = assemble({ table: at(entries), nothing: at(nothing) });
  const place = BigInt(libc.mmap(0n, CODE_SIZE, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0n));
  check(Number(place), 'mmap', 'a signal handler');
  libc.memmove(place, code, code.length);
  check(libc.mprotect(place, CODE_SIZE, PROT_READ_EXECUTE), 'mprotect', 'a signal handler');
  const action = pinned(ACTION_SIZE);
  action.writeBigUInt64LE(place, 0);
  action.writeInt32LE(SA_SIGINFO | SA_ONSTACK | SA_RESTART, FLAGS_OFFSET);
  check(libc.sigaction(SIGBUS, action, null), 'sigaction', 'SIGBUS');
  keep.push(entries, nothing);
  return new BigUint64Array(entries.buffer);
}

/** What the handler reads for as long as the process lasts. */
const keep: Buffer[] = [];
let available = isMainThread && process.arch === 'x64';

/**
 * Guards [address, address + length): whole pages of `pageSize`, of a file that may be made shorter. Where that can't
 * be had (another machine, another thread, a system that lets nobody make code) nothing is guarded.
 */
export function guardMemory(address: bigint, length: bigint, pageSize: number): Guard {
  try {
    if (available) table ??= install();
  } catch {
    available = false;
  }
  const entry = free.pop() ?? used;
  if (!table || entry === ENTRIES) return UNGUARDED;
  if (entry === used) used++;
  const [start, bytes, page, hits] = [0, 1, 2, 3].map((field) => entry * WORDS + field) as [
    number,
    number,
    number,
    number,
  ];
  const words = table;
  // A handler may run in another thread at any moment: an entry that is half written is nowhere.
  words[start] = NOWHERE;
  words[page] = BigInt(pageSize);
  words[hits] = 0n;
  Atomics.store(words, bytes, length);
  Atomics.store(words, start, address);
  let held = true;
  return {
    get hit() {
      return held && Atomics.load(words, hits) > 0n;
    },
    release: () => {
      if (!held) return;
      held = false;
      Atomics.store(words, start, NOWHERE);
      free.push(entry);
    },
  };
}
