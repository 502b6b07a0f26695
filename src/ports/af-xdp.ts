/**
 * An interface of the host by AF_XDP: a program of ours hands the frames of each of its queues to a socket before the
 * kernel's stack has seen them, in memory that the two share. The rings and that memory (UMEM) are in the arena. The
 * program goes with the port, whatever becomes of the switch.
 */
import { Pool, type XdpQueueStruct } from '../arena/index.ts';
import type { EndSetup } from '../io/index.ts';
import type { PortSpec } from '../switch/types.ts';
import {
  attachProgram,
  bindXdpSocket,
  closeFd,
  holdPromiscuous,
  interfaceIndex,
  isSystemError,
  isZeroCopy,
  loadProgram,
  openXdpSocket,
  putSocket,
  receiveQueues,
  socketMap,
  xdpDrops,
  xdpRingRoom,
} from '../sys/index.ts';
import { noInterface, type Taken, type Way } from './interface.ts';
import type { PortContext } from './port.ts';

/** Entries of each ring, and bytes of a chunk: 256 before a frame are the kernel's. */
const SIZE = 1024;
const CHUNK = 4096;
const MAX_FRAME = 65_550;

/** Throws an Error where there is no such interface, or it has other queues. */
export function xdpSockets({ target: name, queues }: PortSpec, context: PortContext): Way {
  if (interfaceIndex(name) === undefined) throw new Error(noInterface(name));
  const count = queues ?? receiveQueues(name);
  return {
    queues: count,
    framing: { prefix: 0, messages: 'one', offloads: 0n },
    take: (index) => take(name, index, count, context),
  };
}

function take(name: string, index: number, queues: number, context: PortContext): Taken {
  const undo: (() => void)[] = [];
  const close = () => {
    for (const step of undo.splice(0).reverse()) step();
  };
  const keep = (fd: number): number => {
    undo.push(() => closeFd(fd));
    return fd;
  };
  try {
    const has = receiveQueues(name);
    if (has !== queues)
      throw new Error(
        `it receives by ${has} queues, and the port has ${queues}: give the port queues=${has}, or the interface others by \`ethtool -L ${name}\``,
      );
    const map = keep(socketMap(queues));
    const program = keep(loadProgram(map));
    keep(holdPromiscuous(index));
    const ends: EndSetup[] = [];
    const fds: number[] = [];
    for (let queue = 0; queue < queues; queue++) {
      const { fd, struct } = openQueue(context, undo);
      fds.push(fd);
      bindXdpSocket(fd, index, queue);
      putSocket(map, queue, fd);
      ends.push({ kind: 'xdp', fd, queue: struct.at });
    }
    const link = attachProgram(program, index);
    keep(link.fd);
    const way = link.mode === 'native' ? 'native XDP' : "generic XDP (slower: its driver doesn't have XDP)";
    return {
      ends,
      note: `${way}, ${fds.every(isZeroCopy) ? 'zero-copy' : 'copied by the kernel'}`,
      drops: () => sumDrops(fds),
      close,
    };
  } catch (error) {
    close();
    throw new Error(`interface ${name}: ${explain(name, error as Error)}`, { cause: error });
  }
}

/** A socket with its rings and memory in the arena, the kernel's chunks given to it; not bound as yet. */
function openQueue(
  { arena, structures }: PortContext,
  undo: (() => void)[],
): { fd: number; struct: XdpQueueStruct } {
  const { layout, functions } = arena.dataplane;
  const room = Math.ceil(layout.XDP_QUEUE_STRIDE! / 64) * 64;
  const table = arena.takeTable(room + SIZE * 4 + MAX_FRAME);
  undo.push(() => arena.freeTable(table));
  const umem = new Pool(arena, 'umem', 2 * SIZE * CHUNK);
  undo.push(() => umem.close());
  const mapped = arena.reserve(xdpRingRoom(SIZE));
  undo.push(() => arena.unmap(mapped));
  const { fd, rings } = openXdpSocket(
    { address: arena.base + BigInt(umem.range.start), length: 2 * SIZE * CHUNK, chunk: CHUNK },
    SIZE,
    arena.base + BigInt(mapped.start),
  );
  undo.push(() => closeFd(fd));
  const struct = structures.xdpQueue(table.start);
  struct.set('umem', umem.range.start);
  struct.set('chunk', CHUNK);
  struct.set('size', SIZE);
  struct.set('free', table.start + room);
  struct.set('scratch', table.start + room + SIZE * 4);
  for (const name of ['rx', 'tx', 'fill', 'done'] as const) {
    struct.set(`${name}Producer`, mapped.start + rings[name].producer);
    struct.set(`${name}Consumer`, mapped.start + rings[name].consumer);
    struct.set(`${name}Entries`, mapped.start + rings[name].entries);
  }
  struct.set('txFlags', mapped.start + rings.tx.flags);
  struct.set('fillFlags', mapped.start + rings.fill.flags);
  functions.prepareXdp(struct.at);
  return { fd, struct };
}

function sumDrops(fds: readonly number[]): Record<string, number> {
  const all = fds.map(xdpDrops);
  const sum = (field: 'full' | 'unfit') => all.reduce((total, drops) => total + drops[field], 0);
  const [ringFull, tooLong] = [sum('full'), sum('unfit')];
  return { ...(ringFull > 0 && { ringFull }), ...(tooLong > 0 && { tooLong }) };
}

function explain(name: string, error: Error): string {
  if (isSystemError(error, 'EPERM', 'EACCES'))
    return (
      `AF_XDP takes the capabilities CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF (CAP_SYS_ADMIN before Linux 5.8) in the host's user namespace: ` +
      'run the switch by `systemd-run -p AmbientCapabilities="CAP_NET_RAW CAP_NET_ADMIN CAP_BPF" ...`, or as root'
    );
  if (isSystemError(error, 'EBUSY', 'EEXIST'))
    return `it has an XDP program or an AF_XDP socket of somebody else already: \`ip link show ${name}\` names the program, \`ip link set ${name} xdp off\` takes it away`;
  if (isSystemError(error, 'ENOBUFS'))
    return 'its memory may not be locked: raise the limit (ulimit -l), 9 MiB a queue, or give the switch CAP_IPC_LOCK';
  if (isSystemError(error, 'EAFNOSUPPORT')) return 'this kernel is built without AF_XDP (CONFIG_XDP_SOCKETS)';
  return error.message;
}
