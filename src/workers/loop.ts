/**
 * A worker thread: polls the rings assigned to it, moves the frames of ports that are no guests between its bursts
 * (src/io), and sleeps in the kernel when nothing comes.
 *
 * It talks with the control plane through the arena alone (what to poll, when to stop) and is woken by an eventfd
 * in its epoll set; it never returns to its own event loop. Adaptive: after SPIN milliseconds without a packet it
 * asks the guests for kicks, looks once more, and sleeps until a kick, a wake-up, the
 * time of a frame that waits for it, or SLEEP.
 */
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { clock, constant, fields, instantiateDataplane } from '../arena/dataplane.ts';
import { type ChannelReport, Channels } from '../io/channels.ts';
import { Epoll, Notifier, setAffinity, threadId } from '../sys/index.ts';

export interface WorkerSetup {
  index: number;
  module: WebAssembly.Module;
  memory: WebAssembly.Memory;
  /** Holds the kick eventfds of this worker's rings, edge-triggered, and its wake-up eventfd. */
  epollFd: number;
  /** CPU to run on; null: any. */
  cpu: number | null;
  busy: boolean;
}

/** What a worker tells the control plane. */
export type WorkerMessage =
  | { kind: 'ready'; tid: number }
  | { kind: 'broken' }
  | { kind: 'frames' }
  | ChannelReport;

/** Milliseconds without a packet after which a worker sleeps. */
const SPIN = 0.2;
/** Bound of a sleep in nanoseconds, so that no lost wake-up is for ever. */
const SLEEP = 1e9;
/** A frame that waits for its time: nanoseconds before that at which a worker is awake, since waking takes time. */
const EARLY = 150_000;
/** Vring.callRound of a ring that is in no list of calls. */
const NO_ROUND = 0xffff_ffff;
/** Rounds between two looks at the clock. */
const ROUNDS = 64;
/**
 * Rounds between two bursts of channels that have frames: with each burst's system calls guests wait, and get so many
 * bursts for it, which is what the ring to a channel has room for.
 */
const FEW = 8;

function run(setup: WorkerSetup): void {
  const dataplane = instantiateDataplane(setup.module, setup.memory);
  const { functions, layout } = dataplane;
  const u32 = new Uint32Array(setup.memory.buffer);
  const u64 = new BigUint64Array(setup.memory.buffer);
  const i32 = new Int32Array(setup.memory.buffer);
  const at = constant(layout, 'WORKERS') + setup.index * constant(layout, 'WORKER_STRIDE');
  const worker = fields(layout, 'Worker', ['stop', 'callCount', 'brokenCount', 'cameCount', 'deadline']);
  const vring = fields(layout, 'Vring', ['callFd', 'callRound', 'callQueue']);
  const stop = (at + worker.stop) >>> 2;
  const callCount = (at + worker.callCount) >>> 2;
  const deadline = (at + worker.deadline) >>> 3;
  const brokenCount = (at + worker.brokenCount) >>> 2;
  const cameCount = (at + worker.cameCount) >>> 2;
  const calls = (at + constant(layout, 'CALLS_OFFSET')) >>> 2;

  const notifier = new Notifier();
  const channels = new Channels(dataplane, setup.memory, new Epoll(setup.epollFd), parentPort!);
  functions.start(setup.index);
  if (setup.cpu !== null) setAffinity([setup.cpu]);
  parentPort!.postMessage({ kind: 'ready', tid: threadId() } satisfies WorkerMessage);

  let idleSince = 0;
  for (;;) {
    // First: it may take the signal of what is looked for below.
    if (channels.count > 0) channels.wait(0);
    if (Atomics.load(u32, stop) !== 0) break;
    for (let m = receiveMessageOnPort(parentPort!); m; m = receiveMessageOnPort(parentPort!))
      channels.obey(m.message);
    const moved = channels.count > 0 && channels.run();
    const came = functions.poll(moved ? FEW : ROUNDS);
    const interrupts = u32[callCount]!;
    if (interrupts > 0) {
      for (let i = 0; i < interrupts; i++) {
        const ring = u32[calls + i]!;
        // The round's number comes again some day; the note that this ring was in its list must not.
        u32[(ring + vring.callRound) >>> 2] = NO_ROUND;
        const fd = i32[(ring + vring.callFd) >>> 2]!;
        if (fd < 0) continue;
        const queue = i32[(ring + vring.callQueue) >>> 2]!;
        if (queue < 0) notifier.signal(fd);
        else notifier.interrupt(fd, queue);
      }
      u32[callCount] = 0;
    }
    if (u32[brokenCount]! > 0) {
      u32[brokenCount] = 0;
      parentPort!.postMessage({ kind: 'broken' } satisfies WorkerMessage);
    }
    if (u32[cameCount]! > 0) {
      u32[cameCount] = 0;
      parentPort!.postMessage({ kind: 'frames' } satisfies WorkerMessage);
    }
    if (came > 0 || moved) {
      idleSince = 0;
      continue;
    }
    if (setup.busy) continue;
    const now = performance.now();
    if (idleSince === 0) idleSince = now;
    if (now - idleSince < SPIN) continue;
    let longest = SLEEP;
    if (u64[deadline] !== 0n) longest = Math.min(SLEEP, Number(u64[deadline]!) - EARLY - clock());
    if (longest <= 0) continue;
    if (functions.armAll()) {
      functions.disarmAll();
      continue;
    }
    functions.sleep();
    channels.wait(channels.due(longest));
    functions.wake();
    functions.disarmAll();
  }
  functions.sleep();
  notifier.close();
}

run(workerData as WorkerSetup);
