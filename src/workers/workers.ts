/**
 * The worker threads seen from the control plane: which ring is polled by whom, and when nobody can still be
 * looking at what was changed (quiescence, see src/dataplane/poll.ts).
 */
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import type { Arena, Structures, WorkerStruct } from '../arena/index.ts';
import { type Seat, Seats } from '../io/seats.ts';
import {
  closeFd,
  EPOLLET,
  EPOLLIN,
  Epoll,
  eventfd,
  sharedNotifier,
  signal,
  threadCpuTime,
} from '../sys/index.ts';
import type { WorkerMessage, WorkerSetup } from './loop.ts';

export interface WorkersOptions {
  count: number;
  /** CPUs to pin to, one each; empty: not pinned. */
  cpus: readonly number[];
  /** Never sleep. */
  busy: boolean;
  /** Some ring was found broken; the vrings tell which. */
  onBroken(): void;
  /** A frame for the control plane came from the port in `slot`; of a longer one the first 128 bytes. */
  onFrame(slot: number, frame: Buffer): void;
  /** A worker ended that was not asked to: the switch can't go on. */
  onFailure(error: Error): void;
}

interface Thread {
  readonly index: number;
  readonly cpu: number | null;
  readonly shared: WorkerStruct;
  readonly epoll: Epoll;
  readonly wakeFd: number;
  readonly thread: Worker;
  readonly exit: Promise<unknown>;
  /** Of channels that it runs between its bursts; made for the first. */
  seats?: Seats;
  tid: number;
  /** CPU time and clock at the last look, both in nanoseconds. */
  lastCpu: number;
  lastLook: number;
}

/** A frame that a worker is to send. */
interface Outgoing {
  /** Of the port, in the data plane. */
  slot: number;
  frame: Uint8Array;
  as: 'to' | 'from';
}

const SLEEPING = 0xffff_ffff;
/** Looks without giving the event loop a turn; a round of a worker is shorter than that. */
const EAGER_LOOKS = 200;
/** Looks after which a worker must be waiting for a page of a guest that migrates by postcopy. */
const PATIENT_LOOKS = 10_000;

export class Workers {
  readonly #arena: Arena;
  readonly #structures: Structures;
  readonly #options: WorkersOptions;
  readonly #threads: Thread[] = [];
  #closing = false;
  /** Frames to send that found no room yet. */
  #unsent: Outgoing[] = [];
  #sending: Promise<void> | undefined;

  constructor(arena: Arena, structures: Structures, options: WorkersOptions) {
    this.#arena = arena;
    this.#structures = structures;
    this.#options = options;
  }

  /** Starts the threads; resolves when all of them poll. */
  async start(): Promise<void> {
    const { count, cpus, busy } = this.#options;
    this.#structures.header.set('workerCount', count);
    for (let index = 0; index < count; index++) {
      const epoll = new Epoll();
      const wakeFd = eventfd();
      epoll.add(wakeFd, EPOLLIN | EPOLLET);
      const cpu = cpus.length > 0 ? cpus[index % cpus.length]! : null;
      const shared = this.#structures.worker(index);
      shared.set('seen', SLEEPING);
      const setup: WorkerSetup = {
        index,
        module: this.#arena.module,
        memory: this.#arena.memory,
        epollFd: epoll.fd,
        cpu,
        busy,
      };
      const thread = new Worker(new URL('./loop.js', import.meta.url), { workerData: setup });
      const exit = new Promise((resolve) => thread.on('exit', resolve));
      this.#threads.push({
        index, cpu, shared, epoll, wakeFd, thread, exit, tid: 0, lastCpu: 0, lastLook: 0,
      }); // biome-ignore format: a record
    }
    // Node can't end a thread that sleeps in the kernel: whoever ends the process waits for it.
    process.on('exit', this.#stop);
    await Promise.all(this.#threads.map((t) => this.#ready(t)));
  }

  #stop = (): void => {
    for (const t of this.#threads) {
      t.shared.set('stop', 1);
      signal(t.wakeFd);
    }
  };

  #ready(t: Thread): Promise<void> {
    return new Promise((resolve, reject) => {
      // What goes wrong before a worker polls is the start's failure, and later the switch's.
      const failed = (error: Error) => (t.tid === 0 ? reject(error) : this.#options.onFailure(error));
      t.thread.on('error', failed);
      t.thread.on('exit', () => {
        // Nobody is to wait for it any more.
        t.shared.set('seen', SLEEPING);
        const reason = `worker ${t.index} ended unexpectedly`;
        t.seats?.ended(reason);
        if (!this.#closing) failed(new Error(reason));
      });
      t.thread.on('message', (message: WorkerMessage) => {
        if (message.kind === 'broken') return this.#options.onBroken();
        if (message.kind === 'frames') return this.#takeFrames(t);
        if (message.kind !== 'ready') return t.seats?.heard(message);
        t.tid = message.tid;
        t.lastCpu = threadCpuTime(t.tid);
        t.lastLook = performance.now() * 1e6;
        resolve();
      });
    });
  }

  get count(): number {
    return this.#threads.length;
  }

  /**
   * The worker for another ring of a guest: one with the fewest of the guest's rings, which are polled by `others`,
   * of those one with the fewest at all, of equals the one whose `turn` it is, so that the first rings of several
   * guests, which are all that some use, don't meet at one worker. Throws where no worker takes more.
   */
  place(others: readonly number[], turn: number): number {
    const limit = this.#structures.constant('MAX_QUEUES');
    const count = this.#threads.length;
    const open = this.#threads
      .map(({ index, shared }) => ({
        index,
        own: others.filter((worker) => worker === index).length,
        all: shared.get('queueCount'),
        turn: (index - turn + count * turn) % count,
      }))
      .filter(({ all }) => all < limit)
      .sort((a, b) => a.own - b.own || a.all - b.all || a.turn - b.turn);
    if (open.length === 0)
      throw new Error(`every worker polls ${limit} queues, which is its limit: more workers take more`);
    return open[0]!.index;
  }

  /** Gives a ring to a worker (see place) to poll. */
  assign(vring: number, worker: number): void {
    const t = this.#threads[worker]!;
    const count = t.shared.get('queueCount');
    this.#arena.u32[this.#slot(t, count)] = vring;
    t.shared.set('queueCount', count + 1);
    signal(t.wakeFd);
  }

  /** Takes a ring from its worker. The worker may look at it until quiesce() resolves. */
  unassign(vring: number, worker: number): void {
    const t = this.#threads[worker]!;
    const last = t.shared.get('queueCount') - 1;
    for (let i = 0; i <= last; i++) {
      if (this.#arena.u32[this.#slot(t, i)] !== vring) continue;
      this.#arena.u32[this.#slot(t, i)] = this.#arena.u32[this.#slot(t, last)]!;
      t.shared.set('queueCount', last);
      return;
    }
  }

  #slot(t: Thread, index: number): number {
    return (t.shared.at + this.#structures.constant('QUEUES_OFFSET') + index * 4) >>> 2;
  }

  /** A place for a channel on the worker that has the fewest. Throws an ArenaFullError. */
  seat(): Seat {
    const least = [...this.#threads].sort((a, b) => (a.seats?.taken ?? 0) - (b.seats?.taken ?? 0))[0]!;
    least.seats ??= new Seats(this.#arena, (command) => {
      if (least.thread.threadId < 0) throw new Error(`worker ${least.index} has ended`);
      least.thread.postMessage(command);
      signal(least.wakeFd);
    });
    return least.seats.take();
  }

  /** Lets a kick eventfd wake the worker. */
  watch(kickFd: number, worker: number): void {
    this.#threads[worker]!.epoll.add(kickFd, EPOLLIN | EPOLLET);
  }

  /** Must come before the descriptor is closed: the front-end holds the same eventfd, which would stay watched. */
  unwatch(kickFd: number, worker: number): void {
    this.#threads[worker]!.epoll.remove(kickFd);
  }

  /** Signals an eventfd that a peer shares with us; or interrupts a queue of a VDUSE device, which `fd` then is. */
  notify(fd: number, queue = -1): void {
    if (queue < 0) sharedNotifier().signal(fd);
    else sharedNotifier().interrupt(fd, queue);
  }

  wake(worker: number): void {
    signal(this.#threads[worker]!.wakeFd);
  }

  /** Resolves when every worker has begun a round, or sleeps, after this call. */
  async quiesce(): Promise<void> {
    const header = this.#structures.header;
    const generation = Atomics.add(this.#arena.u32, (header.at + header.offsets.generation) >>> 2, 1) + 1;
    for (const t of this.#threads) {
      for (let looks = 0; !this.#passed(t, generation); looks++) {
        if (looks >= PATIENT_LOOKS) await sleep(1);
        else if (looks >= EAGER_LOOKS) await turn();
      }
    }
  }

  #passed(t: Thread, generation: number): boolean {
    const seen = t.shared.get('seen');
    return seen === SLEEPING || ((seen - generation) | 0) >= 0;
  }

  /** Frames that a worker has for the control plane. */
  #takeFrames({ shared }: Thread): void {
    const { u8, u32 } = this.#arena;
    const written = shared.get('cameWritten');
    const frames: [slot: number, frame: Buffer][] = [];
    for (let taken = shared.get('cameTaken'); taken !== written; taken = (taken + 1) >>> 0) {
      const at = this.#controlSlot(shared, 'CAME', taken);
      const length = Math.min(u32[(at + 4) >>> 2]!, this.#structures.constant('SNAPSHOT'));
      frames.push([u32[at >>> 2]!, Buffer.from(u8.slice(at + 8, at + 8 + length))]);
    }
    shared.set('cameTaken', written);
    for (const [slot, frame] of frames) this.#options.onFrame(slot, frame);
  }

  #controlSlot(shared: WorkerStruct, ring: 'CAME' | 'SENDS', index: number): number {
    const constant = (name: string) => this.#structures.constant(name);
    const place = index & (constant(`${ring}_SLOTS`) - 1);
    return shared.at + constant(`WORKER_${ring}`) + place * constant('CONTROL_SLOT_STRIDE');
  }

  /**
   * Has a worker send a frame of at most 128 bytes by the port in `slot`, or, `as` from it, switch it as if the port
   * had sent it. Resolves when that is done.
   */
  send(slot: number, frame: Uint8Array, as: 'to' | 'from' = 'to'): Promise<void> {
    if (frame.length > this.#structures.constant('SNAPSHOT')) throw new Error(`${frame.length} bytes`);
    if (this.#closing) return Promise.resolve();
    this.#unsent.push({ slot, frame, as });
    return this.sent();
  }

  /** Resolves when all is done that was to be sent. */
  sent(): Promise<void> {
    this.#sending ??= this.#sendAll().finally(() => {
      this.#sending = undefined;
    });
    return this.#sending;
  }

  async #sendAll(): Promise<void> {
    const { shared, wakeFd } = this.#threads[0]!;
    const written = () => shared.get('sendsWritten');
    const waiting = () => (written() - shared.get('sendsTaken')) >>> 0;
    while ((this.#unsent.length > 0 || waiting() > 0) && !this.#closing) {
      const room = this.#structures.constant('SENDS_SLOTS') - waiting();
      for (const { slot, frame, as } of this.#unsent.splice(0, room)) {
        const at = this.#controlSlot(shared, 'SENDS', written());
        const flag = as === 'from' ? this.#structures.constant('AS_FROM') : 0;
        this.#arena.u32[at >>> 2] = slot | flag;
        this.#arena.u32[(at + 4) >>> 2] = frame.length;
        this.#arena.u8.set(frame, at + 8);
        shared.set('sendsWritten', (written() + 1) >>> 0);
        signal(wakeFd);
      }
      if (waiting() > 0) await turn();
    }
  }

  /** CPU share of each worker since the last call, in percent of one core. */
  usage(): { id: number; cpu: number | null; cpuPercent: number; queues: number }[] {
    return this.#threads.map((t) => {
      const cpuTime = threadCpuTime(t.tid);
      const now = performance.now() * 1e6;
      const cpuPercent = now > t.lastLook ? (100 * (cpuTime - t.lastCpu)) / (now - t.lastLook) : 0;
      t.lastCpu = cpuTime;
      t.lastLook = now;
      return { id: t.index, cpu: t.cpu, cpuPercent, queues: t.shared.get('queueCount') };
    });
  }

  /** Stops the threads; resolves when they are gone. */
  async close(): Promise<void> {
    this.#closing = true;
    process.off('exit', this.#stop);
    this.#stop();
    for (const t of this.#threads) {
      await t.exit;
      t.epoll.close();
      closeFd(t.wakeFd);
      t.seats?.free();
    }
    this.#threads.length = 0;
  }
}
