/**
 * The generator: virtio-user ports, and threads that send and receive on them, run after run.
 *
 * A run is laid out in the arena as the data plane reads it (src/dataplane/generator.ts): for each thread a Generator
 * with its tasks, for each task what it sends and where it counts. While it lasts, this side only looks at counters.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { clock, constant } from '../arena/dataplane.ts';
import { type Arena, fields, Struct } from '../arena/index.ts';
import { VirtioUser } from '../virtio-user/device.ts';
import { CAPTURE_BYTES, CAPTURE_FIELDS, CaptureFile, type CaptureStruct } from './capture-file.ts';
import { pattern } from './frames.ts';
import { padded, RunMemory } from './memory.ts';
import { collect, progress, TASK_FIELDS, type TaskStruct } from './results.ts';
import {
  examines, framesOf, macOf, modeOf, peerOf, plain, readReplay, recordedSchedule, type Scheduled, schedule, sends,
} from './settle.ts'; // biome-ignore format: a list
import { Threads } from './threads.ts';
import type { GenOptions, GenPort, GenResult, Mode, Progress, Trial } from './types.ts';

/** Task.kind, by the port's mode. */
const KINDS: Record<Mode, number> = {
  txonly: 1, rxonly: 2, flowgen: 2, latency: 2, io: 3, mac: 4, macswap: 5, icmpecho: 6,
}; // biome-ignore format: a table
const SEND = 1;

const MOST_STREAMS = 256;
const RING = 1024;
/** Nanoseconds until all threads of a run begin together. */
const RUN_UP = 20e6;
/** Milliseconds between two looks at the counters. */
const LOOK = 10;
/** What is missing at the end is waited for until nothing came for so many milliseconds, and so long at most. */
const QUIET = 1000;
const LONGEST_WAIT = 10_000;
/** The data plane reads 16 bytes at a time. */
const BEHIND = 64;

const FOREVER = 0xffff_ffff_ffff_ffffn;

export interface RunOptions {
  /** Ends the run; what was measured so far is its result. */
  signal?: AbortSignal;
  /** Called so often, in milliseconds. */
  interval?: number;
  onProgress?: (progress: Progress) => void;
}

/** A ring's task, and what belongs to it. */
export interface RunTask {
  struct: TaskStruct;
  port: number;
  queue: number;
  thread: number;
  mode: Mode;
  /** Number of the stream that it sends. */
  stream?: number;
}

/** A run as it lies in the arena. */
export interface Layout {
  arena: Arena;
  ports: readonly GenPort[];
  trial: Trial;
  tasks: RunTask[];
  captures: (CaptureFile | undefined)[];
  /** When it began, in nanoseconds of the clock. */
  begin: number;
}

export class Generator {
  readonly #options: GenOptions;
  readonly #devices: readonly VirtioUser[];
  readonly #threads: Threads;
  #runs = 0;

  private constructor(options: GenOptions, devices: readonly VirtioUser[], threads: Threads) {
    this.#options = options;
    this.#devices = devices;
    this.#threads = threads;
  }

  /** Opens the ports, together: each may wait for its back-end. Rejects with an Error that names the port. */
  static async open(options: GenOptions): Promise<Generator> {
    const opened = await Promise.allSettled(options.ports.map((port) => openPort(port)));
    const devices = opened.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
    try {
      const failed = opened.find((one) => one.status === 'rejected');
      if (failed) throw failed.reason;
      const { arena } = devices[0]!.driven;
      const threads = await Threads.start(arena, options.cpus?.length ? options.cpus : [null]);
      return new Generator(options, devices, threads);
    } catch (error) {
      await Promise.all(devices.map((device) => device.close()));
      throw error;
    }
  }

  /**
   * One run. Its result tells what was measured also where it was interrupted or a back-end left or lied (`fault`).
   * Rejects for what can't be run at all. One at a time.
   */
  async run(trial: Trial, { signal, interval = 1000, onProgress }: RunOptions = {}): Promise<GenResult> {
    const run = this.#lay(trial);
    try {
      const threads = run.generators.map((generator, index) =>
        this.#threads.run(index, {
          generator: generator.at,
          tasks: run.layout.tasks.filter(({ thread }) => thread === index).map((task) => this.#kicks(task)),
        }),
      );
      const failed = new Promise<string>((resolve) => {
        for (const thread of threads)
          thread.catch((error: Error) => resolve(`a thread ended: ${error.message}`));
      });
      const { ended, fault } = await this.#watch(run.layout, failed, signal, interval, onProgress).finally(
        () => {
          for (const generator of run.generators) generator.set('stop', 1);
        },
      );
      await Promise.allSettled(threads);
      let problem = fault;
      try {
        for (const capture of run.layout.captures) capture?.drain();
      } catch (error) {
        problem ??= (error as Error).message;
      }
      return {
        ...collect(run.layout),
        ended: problem === undefined ? ended : 'fault',
        ...(problem === undefined ? {} : { fault: problem }),
      };
    } finally {
      for (const generator of run.generators) generator.set('stop', 1);
      for (const capture of run.layout.captures) capture?.close();
      run.memory.close();
    }
  }

  /** Closes the ports. */
  async close(): Promise<void> {
    await this.#threads.close();
    await Promise.all(this.#devices.map((device) => device.close()));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #kicks({ struct, port, queue }: RunTask) {
    const { kickReceive, kickSend } = this.#devices[port]!.driven.queues[queue]!;
    const peer = peerOf(port, this.#devices.length);
    // Who forwards sends on the ring of its peer.
    const send =
      struct.get('kind') >= 3 && struct.get('kind') <= 5 ? this.#devices[peer]!.driven.queues : undefined;
    return {
      at: struct.at,
      kickReceive,
      kickSend: send ? send[queue % send.length]!.kickSend : kickSend,
    };
  }

  /** Lays out the run's memory. */
  #lay(trial: Trial) {
    const { ports } = this.#options;
    const { arena } = this.#devices[0]!.driven;
    const layout = arena.dataplane.layout;
    const at = (name: string) => constant(layout, name);
    const offsets = {
      generator: fields(layout, 'Generator', [
        'stop',
        'taskCount',
        'tasks',
        'pattern',
        'run',
        'begin',
        'end',
      ]),
      task: fields(layout, 'Task', TASK_FIELDS),
      frame: fields(layout, 'Frame', ['at', 'length', 'stamp', 'checksum', 'sum', 'gapFraction', 'gap']),
      capture: fields(layout, 'Capture', CAPTURE_FIELDS),
    };
    const plans = planTasks(ports, this.#devices, trial, this.#threads.count);
    const streams = plans.filter(({ stream }) => stream !== undefined).length;
    if (streams > MOST_STREAMS)
      throw new RangeError(`${streams} sending queues: at most ${MOST_STREAMS} expected`);
    const scheduled = scheduleAll(ports, this.#devices, trial);
    /** Streams that may come from other programs are counted too. */
    const tracked = Math.max(streams, 16);

    const sizes = {
      generators: this.#threads.count * padded(offsetsEnd(offsets.generator)),
      tasks: plans.length * at('TASK_STRIDE'),
      pattern: padded(pattern.length),
      frames: scheduled.reduce(
        (sum, frames) =>
          sum +
          padded(frames.length * at('FRAME_STRIDE')) +
          frames.reduce((all, { bytes }) => all + padded(bytes.length), 0),
        0,
      ),
      notes: this.#devices.length * 0,
      counts: ports.length * (padded(tracked * at('TRACK_STRIDE')) + padded(histogramBytes(at))),
      captures: plans.length * (CAPTURE_BYTES + 64),
    };
    const notes = plans.reduce(
      (sum, { port }) => sum + padded((ports[port]!.queueSize ?? RING) * at('NOTE_STRIDE')),
      0,
    );
    const captured = ports.some(({ capture }) => capture !== undefined);
    const total =
      sizes.generators + sizes.tasks + sizes.pattern + sizes.frames + notes + sizes.counts +
      (captured ? sizes.captures : 0) + 64 * (plans.length + 8) + BEHIND; // biome-ignore format: a sum
    const memory = new RunMemory(arena, total);
    const captures: (CaptureFile | undefined)[] = [];
    try {
      const patternAt = memory.take(pattern.length);
      arena.u8.set(pattern, patternAt);
      const tables = scheduled.map((frames) =>
        layFrames(arena, memory, frames, offsets.frame, at('FRAME_STRIDE')),
      );
      const counts = ports.map((_, index) =>
        examines(modeOf(trial, index))
          ? { tracks: memory.take(tracked * at('TRACK_STRIDE')), histogram: memory.take(histogramBytes(at)) }
          : undefined,
      );
      const begin = Math.ceil(clock() + RUN_UP);
      const end =
        trial.seconds === undefined ? FOREVER : BigInt(begin) + BigInt(Math.round(trial.seconds * 1e9));
      const tasks: RunTask[] = [];
      const rings = ports.map((): CaptureStruct[] => []);
      const generators = Array.from({ length: this.#threads.count }, (_, thread) => {
        const mine = plans.filter((plan) => plan.thread === thread);
        const generator = new Struct(arena, memory.take(offsetsEnd(offsets.generator)), offsets.generator);
        const list = memory.take(mine.length * at('TASK_STRIDE'));
        generator.set('tasks', list);
        generator.set('taskCount', mine.length);
        generator.set('pattern', patternAt);
        generator.set('run', this.#runs & 0xff);
        generator.set64('begin', BigInt(begin));
        generator.set64('end', end);
        for (const [index, plan] of mine.entries()) {
          const struct: TaskStruct = new Struct(arena, list + index * at('TASK_STRIDE'), offsets.task);
          const { port, queue, kind, mode, stream } = plan;
          tasks.push({ struct, port, queue, thread, mode, ...(stream === undefined ? {} : { stream }) });
          const device = this.#devices[port]!.driven.queues[queue]!;
          const peer = peerOf(port, ports.length);
          struct.set('kind', kind);
          struct.set('train', trial.train ?? 1);
          struct.set64('source', wire(macOf(ports[peer], peer)));
          struct.set64('peer', wire(0x02_00_00_00_01_01n + BigInt(peer)));
          if (kind === SEND) {
            const { queues } = this.#devices[port]!;
            const table = tables[port]!;
            struct.set('send', device.send);
            struct.set('frames', table.at);
            struct.set('frameCount', table.count);
            struct.set('position', Math.floor((queue * table.count) / queues));
            struct.set('notes', memory.take((ports[port]!.queueSize ?? RING) * at('NOTE_STRIDE')));
            struct.set('stream', stream!);
            struct.set64('limit', share(limitOf(trial, table.count), queue, queues));
            // Queues take turns: the first frames are as far apart as all others.
            struct.set64('due', BigInt(Math.round((queue * (scheduled[port]![0]!.gap ?? 0)) / queues)));
            continue;
          }
          struct.set('receive', device.receive);
          const forwards = kind >= 3 && kind <= 5;
          const others = this.#devices[peer]!.driven.queues;
          if (forwards) struct.set('send', others[queue % others.length]!.send);
          else if (kind === 6) {
            struct.set('send', device.send);
            struct.set64('source', wire(macOf(ports[port], port)));
          }
          struct.set('tracks', counts[port]?.tracks ?? 0);
          struct.set('streams', tracked);
          struct.set('histogram', counts[port]?.histogram ?? 0);
          if (ports[port]!.capture !== undefined) {
            const capture: CaptureStruct = new Struct(arena, memory.take(64), offsets.capture);
            capture.set('at', memory.take(CAPTURE_BYTES));
            capture.set('size', CAPTURE_BYTES);
            capture.set64('epoch', BigInt(Math.round(Date.now() * 1e6 - clock())));
            struct.set('capture', capture.at);
            rings[port]!.push(capture);
          }
        }
        return generator;
      });
      for (const [index, { capture }] of ports.entries())
        captures.push(rings[index]!.length > 0 ? new CaptureFile(capture!, arena, rings[index]!) : undefined);
      this.#runs++;
      return { memory, generators, layout: { arena, ports, trial, tasks, captures, begin } satisfies Layout };
    } catch (error) {
      for (const capture of captures) capture?.close();
      memory.close();
      throw error;
    }
  }

  /** Looks at the counters until the run is over. */
  async #watch(
    layout: Layout,
    failed: Promise<string>,
    signal: AbortSignal | undefined,
    interval: number,
    onProgress: ((progress: Progress) => void) | undefined,
  ): Promise<{ ended: GenResult['ended']; fault?: string }> {
    const { tasks, trial, captures, ports } = layout;
    let gone: string | undefined;
    failed.then((reason) => (gone ??= reason));
    for (const [index, device] of this.#devices.entries())
      device.closed.then((reason) => (gone ??= `${ports[index]!.path}: the back-end is gone: ${reason}`));
    const senders = tasks.filter(({ stream }) => stream !== undefined);
    const receivers = tasks.filter(({ struct }) => struct.get('receive') !== 0);
    const received = () => receivers.reduce((sum, { struct }) => sum + Number(struct.get64('received')), 0);
    let told = clock();
    let quiet: { since: number; count: number; from: number } | undefined;
    let ended: GenResult['ended'] = 'count';
    for (;;) {
      await sleep(LOOK);
      const now = clock();
      try {
        for (const capture of captures) capture?.drain();
      } catch (error) {
        return { ended: 'fault', fault: (error as Error).message };
      }
      const lied = this.#devices.findIndex((device) => device.fault() !== undefined);
      if (lied >= 0)
        return { ended: 'fault', fault: `${ports[lied]!.path}: ${this.#devices[lied]!.fault()}` };
      if (gone !== undefined) return { ended: 'fault', fault: gone };
      if (onProgress && now - told >= interval * 1e6) {
        told = now;
        onProgress(progress(layout, now));
      }
      if (signal?.aborted) return { ended: 'interrupt' };
      if (quiet === undefined) {
        const time = trial.seconds !== undefined && now >= layout.begin + trial.seconds * 1e9;
        const count =
          senders.length > 0
            ? senders.every(({ struct }) => struct.get64('sequence') >= struct.get64('limit'))
            : trial.count !== undefined && reached(receivers, trial.count);
        if (!time && !count) continue;
        ended = count && !(time && senders.length > 0) ? 'count' : 'time';
        if (senders.length === 0 || receivers.length === 0) return { ended };
        quiet = { since: now, count: received(), from: now };
      } else {
        if (collect(layout).lost === 0) return { ended };
        const count = received();
        if (count !== quiet.count) quiet = { ...quiet, since: now, count };
        else if (now - quiet.since >= QUIET * 1e6) return { ended };
        if (now - quiet.from >= LONGEST_WAIT * 1e6) return { ended };
      }
    }
  }
}

async function openPort(port: GenPort): Promise<VirtioUser> {
  const { path, role, queues, packed, features, timeout } = port;
  const given = Object.entries({ role, queues, packed, features, timeout }).filter(
    ([, value]) => value !== undefined,
  );
  try {
    return await VirtioUser.open({ path, queueSize: port.queueSize ?? RING, ...Object.fromEntries(given) });
  } catch (error) {
    throw new Error(`${path}: ${(error as Error).message}`);
  }
}

interface Plan {
  port: number;
  queue: number;
  thread: number;
  kind: number;
  mode: Mode;
  stream?: number;
}

/** The tasks of all ports. Those of a port, and of two that forward to each other, share a thread. */
function planTasks(
  ports: readonly GenPort[],
  devices: readonly VirtioUser[],
  trial: Trial,
  threads: number,
): Plan[] {
  const plans: Plan[] = [];
  let streams = 0;
  for (const [port, spec] of ports.entries()) {
    const mode = modeOf(trial, port);
    const peer = peerOf(port, ports.length);
    // Whoever forwards uses its peer's ring to send: both are to be in one thread.
    const pair = KINDS[mode] >= 3 && KINDS[mode] <= 5 ? Math.min(port, peer) : port;
    const forwarded = KINDS[modeOf(trial, peer)];
    if (peer !== port && forwarded >= 3 && forwarded <= 5 && (sends(mode) || mode === 'icmpecho'))
      throw new RangeError(
        `${spec.path}: its peer ${ports[peer]!.path} forwards to it, so it can't send by itself`,
      );
    for (let queue = 0; queue < devices[port]!.queues; queue++) {
      const common = { port, queue, mode, thread: pair % threads };
      if (sends(mode)) plans.push({ ...common, kind: SEND, stream: streams++ });
      if (mode !== 'txonly') plans.push({ ...common, kind: KINDS[mode] });
    }
  }
  return plans;
}

/** What each port sends, and when; empty for those that don't. */
function scheduleAll(ports: readonly GenPort[], devices: readonly VirtioUser[], trial: Trial): Scheduled[][] {
  const recorded = trial.replay === undefined ? undefined : readReplay(trial.replay);
  const rate = trial.rate ?? (recorded ? 'recorded' : 'max');
  if (rate === 'recorded' && recorded === undefined)
    throw new RangeError('rate recorded: only with a file to replay');
  return ports.map((_, index) => {
    if (!sends(modeOf(trial, index))) return [];
    if (rate === 'recorded') return recordedSchedule(recorded!);
    return schedule(recorded?.map(plain) ?? framesOf(ports, index, trial), rate, 1 / devices[index]!.queues);
  });
}

function limitOf({ count, seconds, replay }: Trial, frames: number): bigint {
  if (count !== undefined) return BigInt(count);
  return replay !== undefined && seconds === undefined ? BigInt(frames) : FOREVER;
}

/** A queue's part of a port's number of frames. */
function share(limit: bigint, queue: number, queues: number): bigint {
  if (limit === FOREVER) return limit;
  const all = BigInt(queues);
  return limit / all + (BigInt(queue) < limit % all ? 1n : 0n);
}

function reached(receivers: RunTask[], count: number): boolean {
  const byPort = new Map<number, number>();
  for (const { port, struct } of receivers)
    byPort.set(port, (byPort.get(port) ?? 0) + Number(struct.get64('received')));
  return [...byPort.values()].every((received) => received >= count);
}

/** Writes a port's table of frames. */
function layFrames(
  arena: Arena,
  memory: RunMemory,
  frames: readonly Scheduled[],
  offsets: Readonly<Record<'at' | 'length' | 'stamp' | 'checksum' | 'sum' | 'gapFraction' | 'gap', number>>,
  stride: number,
): { at: number; count: number } {
  const table = memory.take(frames.length * stride);
  for (const [index, frame] of frames.entries()) {
    const struct = new Struct(arena, table + index * stride, offsets);
    const at = memory.take(frame.bytes.length);
    arena.u8.set(frame.bytes, at);
    struct.set('at', at);
    struct.set('length', frame.length);
    struct.set('stamp', frame.stamp);
    struct.set('checksum', frame.checksum);
    struct.set('sum', frame.sum);
    const whole = Math.floor(frame.gap);
    struct.set64('gap', BigInt(whole));
    struct.set('gapFraction', Math.floor((frame.gap - whole) * 2 ** 32));
  }
  return { at: table, count: frames.length };
}

/** A MAC address as the data plane loads it from a frame. */
function wire(mac: bigint): bigint {
  return Buffer.from(mac.toString(16).padStart(12, '0').padEnd(16, '0'), 'hex').readBigUInt64LE();
}

function histogramBytes(at: (name: string) => number): number {
  return at('HISTOGRAM_BASE') + 8 * at('HISTOGRAM_COUNTS');
}

/** Bytes of a structure whose last field has 8 at most. */
function offsetsEnd(offsets: Readonly<Record<string, number>>): number {
  return Math.max(...Object.values(offsets)) + 8;
}
