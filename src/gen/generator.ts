/**
 * The generator: virtio-user ports, and threads that send and receive on them, run after run. While a run lasts,
 * this side only looks at the counters of the data plane (layout.ts), and empties captures into their files.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { clock } from '../arena/index.ts';
import { VirtioUser } from '../virtio-user/device.ts';
import type { VirtioUserError } from '../virtio-user/errors.ts';
import { Layout, type RunTask } from './layout.ts';
import { RING } from './plan.ts';
import { collect, progress } from './results.ts';
import { Threads } from './threads.ts';
import type { GenOptions, GenPort, GenResult, Progress, Trial } from './types.ts';

/** Milliseconds between two looks at the counters. */
const LOOK = 10;
/** What is missing at the end is waited for until nothing came for so many milliseconds, and so long at most. */
const QUIET = 1000;
const LONGEST_WAIT = 10_000;

export interface RunOptions {
  /** Ends the run; what was measured so far is its result. */
  signal?: AbortSignal;
  /** Called so often, in milliseconds. */
  interval?: number;
  onProgress?: (progress: Progress) => void;
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
    const layout = new Layout({
      ports: this.#options.ports,
      devices: this.#devices,
      trial,
      threads: this.#threads.count,
      number: this.#runs++,
    });
    let threads: Promise<void>[] = [];
    try {
      threads = Array.from({ length: this.#threads.count }, (_, thread) =>
        this.#threads.run(thread, layout.of(thread)),
      );
      const failed = new Promise<string>((resolve) => {
        for (const thread of threads)
          thread.catch((error: Error) => resolve(`a thread ended: ${error.message}`));
      });
      const outcome = await this.#watch(layout, failed, signal, interval, onProgress);
      layout.stop();
      await Promise.allSettled(threads);
      const { ended, fault = drain(layout) } = outcome;
      return { ...collect(layout), ...(fault === undefined ? { ended } : { ended: 'fault', fault }) };
    } finally {
      layout.stop();
      await Promise.allSettled(threads);
      layout.close();
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

  /** Looks at the counters until the run is over. */
  async #watch(
    layout: Layout,
    failed: Promise<string>,
    signal: AbortSignal | undefined,
    interval: number,
    onProgress: ((progress: Progress) => void) | undefined,
  ): Promise<{ ended: GenResult['ended']; fault?: string }> {
    const { tasks, trial, ports } = layout;
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
      const full = drain(layout);
      if (full !== undefined) return { ended: 'fault', fault: full };
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

/** Writes what was captured; why that failed, or undefined. */
function drain({ captures }: Layout): string | undefined {
  try {
    for (const capture of captures) capture?.drain();
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

async function openPort(port: GenPort): Promise<VirtioUser> {
  const { path, role, interface: tap, queues, packed, features, timeout } = port;
  const given = Object.entries({ role, interface: tap, queues, packed, features, timeout }).filter(
    ([, value]) => value !== undefined,
  );
  try {
    return await VirtioUser.open({ path, queueSize: port.queueSize ?? RING, ...Object.fromEntries(given) });
  } catch (error) {
    const { code, message } = error as VirtioUserError;
    // Devices of the kernel say themselves what is missing.
    const dialled = code === 'NO_BACKEND' && role !== 'server' && !path.startsWith('/dev/');
    const advice = dialled ? '; start the back-end first, or wait for one that dials with role=server' : '';
    throw new Error(`${path}: ${message}${advice}`);
  }
}

function reached(receivers: RunTask[], count: number): boolean {
  const byPort = new Map<number, number>();
  for (const { port, struct } of receivers)
    byPort.set(port, (byPort.get(port) ?? 0) + Number(struct.get64('received')));
  return [...byPort.values()].every((received) => received >= count);
}
