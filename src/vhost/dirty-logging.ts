/**
 * Whether the rings of a device log what they write, and where (vhost-user, "Migration"). dirty-log.ts has the log
 * itself, which stays mapped while VHOST_F_LOG_ALL comes and goes.
 */
import type { Arena, Structures, VringStruct } from '../arena/index.ts';
import { closeFd } from '../sys/index.ts';
import type { Workers } from '../workers/workers.ts';
import type { LogSetup } from './device.ts';
import { DirtyLog } from './dirty-log.ts';
import type { MemoryTable } from './memory-table.ts';
import type { Queue } from './queue.ts';

/** Milliseconds between two looks at whether something new is in the log. */
const LOG_PERIOD = 100;

export class DirtyLogging {
  readonly #arena: Arena;
  readonly #structures: Structures;
  readonly #workers: Workers;
  readonly #memory: MemoryTable;
  readonly #queues: readonly Queue[];
  #log: DirtyLog | null = null;
  /** VHOST_F_LOG_ALL is acknowledged. */
  #on = false;
  #fd = -1;
  #timer: NodeJS.Timeout | null = null;

  constructor(device: {
    arena: Arena;
    structures: Structures;
    workers: Workers;
    memory: MemoryTable;
    queues: readonly Queue[];
  }) {
    this.#arena = device.arena;
    this.#structures = device.structures;
    this.#workers = device.workers;
    this.#memory = device.memory;
    this.#queues = device.queues;
  }

  /** There is a log, whether it is used or not. */
  get mapped(): boolean {
    return this.#log !== null;
  }

  /** Lets every ring log, or none; true when that changed something, which counts once the workers have passed by. */
  use(on = this.#on): boolean {
    this.#on = on;
    const at = on ? (this.#log?.struct.at ?? 0) : 0;
    const changed = this.#queues.filter(({ vring }) => vring.get('log') !== at);
    for (const { vring } of changed) vring.set('log', at);
    return changed.length > 0;
  }

  /** Takes a log in place of the one before. Rejects with an Error that names what is wrong with it. */
  async set(setup: LogSetup): Promise<void> {
    const log = new DirtyLog(this.#arena, this.#structures, setup, this.#memory.sealedOnly);
    log.setRegions(this.#memory.places);
    const old = this.#log;
    this.#log = log;
    this.use();
    await this.#workers.quiesce();
    old?.close();
  }

  /** Memory or rings lie elsewhere now. Only while no ring is written to. */
  followMemory(): void {
    this.#log?.setRegions(this.#memory.places);
  }

  /** Signals an eventfd, which is its own from now on, when something new is in the log; -1: none. */
  signal(fd: number): void {
    if (this.#fd >= 0) closeFd(this.#fd);
    this.#fd = fd;
    if (this.#timer) clearInterval(this.#timer);
    this.#timer = null;
    if (fd < 0) return;
    let writes = 0n;
    this.#timer = setInterval(() => {
      const now = this.#log?.struct.get64('writes') ?? 0n;
      if (now !== writes) this.#workers.notify(fd);
      writes = now;
    }, LOG_PERIOD);
  }

  /** Only while no ring runs. */
  close(): void {
    this.use(false);
    this.signal(-1);
    this.#log?.close();
    this.#log = null;
  }
}

/** Writes to the used ring are logged under a guest address of its own; null: they aren't. */
export function logUsed(vring: VringStruct, address: bigint | null = null): void {
  vring.set('logUsed', 0);
  vring.set64('logUsedAddress', address ?? 0n);
  vring.set('logUsed', address === null ? 0 : 1);
}
