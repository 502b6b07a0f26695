/**
 * A run laid out in the arena as the data plane reads it (src/dataplane/generator.ts): for each thread a Generator
 * with its tasks, for each task what it sends and where it counts.
 */
import { type Arena, clock, constant, fields, Struct } from '../arena/index.ts';
import type { VirtioUser } from '../virtio-user/device.ts';
import { CAPTURE_BYTES, CAPTURE_FIELDS, CaptureFile, type CaptureStruct } from './capture-file.ts';
import { pattern } from './frames.ts';
import type { LoopRun } from './loop.ts';
import { RunMemory } from './memory.ts';
import { FORWARDS, KINDS, type Plan, planTasks, RING, scheduleAll } from './plan.ts';
import { TASK_FIELDS, type TaskStruct } from './results.ts';
import { examines, macOf, modeOf, peerOf, type Scheduled } from './settle.ts';
import type { GenPort, Trial } from './types.ts';

/** Nanoseconds until all threads of a run begin together. */
const RUN_UP = 20e6;
/** Senders whose frames are told apart, at least: they may be those of other programs. */
const STREAMS = 16;
const FOREVER = 0xffff_ffff_ffff_ffffn;
const GENERATOR_FIELDS = ['stop', 'taskCount', 'tasks', 'pattern', 'compare', 'run', 'begin', 'end'] as const;
const FRAME_FIELDS = ['at', 'length', 'stamp', 'checksum', 'sum', 'gapFraction', 'gap'] as const;

/** A task, and where it lies. */
export interface RunTask extends Plan {
  struct: TaskStruct;
}

/** What a run is made of. */
export interface RunParts {
  ports: readonly GenPort[];
  devices: readonly VirtioUser[];
  trial: Trial;
  threads: number;
  /** Of the stamps: frames of earlier runs have another one. */
  number: number;
}

/** A run as it lies in the arena. */
export class Layout {
  readonly arena: Arena;
  readonly ports: readonly GenPort[];
  readonly trial: Trial;
  readonly tasks: RunTask[] = [];
  readonly captures: (CaptureFile | undefined)[] = [];
  /** When it begins, in nanoseconds of the clock. */
  readonly begin = Math.ceil(clock() + RUN_UP);
  readonly #devices: readonly VirtioUser[];
  readonly #generators: Struct<(typeof GENERATOR_FIELDS)[number]>[] = [];
  readonly #memory: RunMemory;

  /** Throws a RangeError or an Error for what can't be run; nothing is left behind then. */
  constructor({ ports, devices, trial, threads, number }: RunParts) {
    this.arena = devices[0]!.driven.arena;
    this.ports = ports;
    this.trial = trial;
    this.#devices = devices;
    const plans = planTasks(ports, devices, trial, threads);
    const scheduled = scheduleAll(ports, devices, trial);
    this.#memory = new RunMemory(this.arena);
    try {
      this.#lay(plans, scheduled, threads, number);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** What a thread is told of its tasks. */
  of(thread: number): LoopRun {
    return {
      generator: this.#generators[thread]!.at,
      tasks: this.tasks
        .filter((task) => task.thread === thread)
        .map((task) => ({
          at: task.struct.at,
          kickReceive: this.#devices[task.port]!.driven.queues[task.queue]!.kickReceive,
          kickSend: this.#out(task).kickSend,
        })),
    };
  }

  /** Lets the threads leave the run. */
  stop(): void {
    for (const generator of this.#generators) generator.set('stop', 1);
  }

  /** Frees the memory. Only once no thread runs in it any more. */
  close(): void {
    for (const capture of this.captures) capture?.close();
    this.#memory.close();
  }

  /** The queue that a task sends on: forwarded frames leave by the peer. */
  #out({ port, queue, kind }: Plan) {
    const device = this.#devices[FORWARDS.includes(kind) ? peerOf(port, this.ports.length) : port]!;
    return device.driven.queues[queue % device.queues]!;
  }

  #lay(plans: Plan[], scheduled: Scheduled[][], threads: number, number: number): void {
    const { arena, ports, trial, begin } = this;
    const memory = this.#memory;
    const plane = arena.dataplane.layout;
    const at = (name: string) => constant(plane, name);
    const patternAt = memory.take(pattern.length);
    arena.u8.set(pattern, patternAt);
    const tables = scheduled.map((frames) => this.#layFrames(frames));
    const streams = Math.max(plans.filter(({ stream }) => stream !== undefined).length, STREAMS);
    const histogram = at('HISTOGRAM_BASE') + 8 * at('HISTOGRAM_COUNTS');
    const counts = ports.map((_, index) => {
      if (!examines(modeOf(trial, index))) return { tracks: 0, histogram: 0 };
      return { tracks: memory.take(streams * at('TRACK_STRIDE')), histogram: memory.take(histogram) };
    });
    const rings = ports.map((): CaptureStruct[] => []);
    const taskFields = fields(plane, 'Task', TASK_FIELDS);
    for (let thread = 0; thread < threads; thread++) {
      const mine = plans.filter((plan) => plan.thread === thread);
      const list = memory.take(mine.length * at('TASK_STRIDE'));
      for (const [index, plan] of mine.entries()) {
        const struct: TaskStruct = new Struct(arena, list + index * at('TASK_STRIDE'), taskFields);
        this.tasks.push({ ...plan, struct });
        struct.set('kind', plan.kind);
        if (plan.stream !== undefined) {
          this.#laySender(struct, plan, tables[plan.port]!, scheduled[plan.port]!);
          continue;
        }
        const { tracks, histogram: durations } = counts[plan.port]!;
        struct.set('tracks', tracks);
        struct.set('streams', streams);
        struct.set('histogram', durations);
        this.#layReceiver(struct, plan);
        if (ports[plan.port]!.capture !== undefined) rings[plan.port]!.push(this.#layCapture(struct));
      }
      const generator = new Struct(arena, memory.take(64), fields(plane, 'Generator', GENERATOR_FIELDS));
      generator.set('tasks', list);
      generator.set('taskCount', mine.length);
      generator.set('pattern', patternAt);
      generator.set('compare', trial.check === 'stamp' ? 0 : 1);
      generator.set('run', number & 0xff);
      generator.set64('begin', BigInt(begin));
      const { seconds } = trial;
      generator.set64('end', seconds === undefined ? FOREVER : BigInt(Math.round(begin + seconds * 1e9)));
      this.#generators.push(generator);
    }
    for (const [index, { capture }] of ports.entries())
      this.captures.push(
        rings[index]!.length > 0 ? new CaptureFile(capture!, arena, rings[index]!) : undefined,
      );
  }

  #laySender(
    struct: TaskStruct,
    plan: Plan,
    table: { at: number; count: number },
    frames: Scheduled[],
  ): void {
    const { port, queue, stream } = plan;
    const { queues } = this.#devices[port]!;
    struct.set('send', this.#out(plan).send);
    struct.set('frames', table.at);
    struct.set('frameCount', table.count);
    struct.set('position', Math.floor((queue * table.count) / queues));
    const size = this.ports[port]!.queueSize ?? RING;
    struct.set('notes', this.#memory.take(size * constant(this.arena.dataplane.layout, 'NOTE_STRIDE')));
    struct.set('stream', stream!);
    struct.set('train', this.trial.train ?? 1);
    struct.set64('limit', share(limitOf(this.trial, table.count), queue, queues));
    // Queues take turns: their first frames are as far apart as all others.
    struct.set64('due', BigInt(Math.round((queue * frames[0]!.gap) / queues)));
  }

  #layReceiver(struct: TaskStruct, plan: Plan): void {
    const { port, queue, kind } = plan;
    struct.set('receive', this.#devices[port]!.driven.queues[queue]!.receive);
    if (kind === KINDS.rxonly) return;
    struct.set('send', this.#out(plan).send);
    const peer = peerOf(port, this.ports.length);
    const out = kind === KINDS.icmpecho ? port : peer;
    struct.set64('source', wire(macOf(this.ports[out], out)));
    struct.set64('peer', wire(0x02_00_00_00_01_01n + BigInt(peer)));
  }

  #layCapture(struct: TaskStruct): CaptureStruct {
    const offsets = fields(this.arena.dataplane.layout, 'Capture', CAPTURE_FIELDS);
    const capture: CaptureStruct = new Struct(this.arena, this.#memory.take(64), offsets);
    capture.set('at', this.#memory.take(CAPTURE_BYTES));
    capture.set('size', CAPTURE_BYTES);
    capture.set64('epoch', BigInt(Math.round(Date.now() * 1e6 - clock())));
    struct.set('capture', capture.at);
    return capture;
  }

  /** Writes a port's table of frames. */
  #layFrames(frames: readonly Scheduled[]): { at: number; count: number } {
    const { arena } = this;
    const stride = constant(arena.dataplane.layout, 'FRAME_STRIDE');
    const offsets = fields(arena.dataplane.layout, 'Frame', FRAME_FIELDS);
    const table = this.#memory.take(frames.length * stride);
    for (const [index, frame] of frames.entries()) {
      const struct = new Struct(arena, table + index * stride, offsets);
      const at = this.#memory.take(frame.bytes.length);
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
}

/** Frames of a port. */
function limitOf({ count, seconds, replay }: Trial, frames: number): bigint {
  if (count !== undefined) return BigInt(count);
  return replay !== undefined && seconds === undefined ? BigInt(frames) : FOREVER;
}

/** A queue's part of them. */
function share(limit: bigint, queue: number, queues: number): bigint {
  if (limit === FOREVER) return limit;
  const all = BigInt(queues);
  return limit / all + (BigInt(queue) < limit % all ? 1n : 0n);
}

/** A MAC address as the data plane loads it from a frame. */
function wire(mac: bigint): bigint {
  return Buffer.from(`${mac.toString(16).padStart(12, '0')}0000`, 'hex').readBigUInt64LE();
}
