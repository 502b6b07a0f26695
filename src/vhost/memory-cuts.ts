/**
 * Guest memory whose file is made shorter while it is in use: a file that takes no seal may be. Whoever touches what is
 * missing finds zeros (src/sys/guard.ts), and the port is told, once for a memory table.
 */
import type { MemoryTable } from './memory-table.ts';
import type { Queue } from './queue.ts';

/** Milliseconds between two looks. */
const PERIOD = 200;

export class MemoryCuts {
  readonly #memory: MemoryTable;
  readonly #queues: readonly Queue[];
  readonly #onLost: (reason: string) => void;
  /** Runs while there is such memory. */
  #timer: NodeJS.Timeout | undefined;

  constructor(memory: MemoryTable, queues: readonly Queue[], onLost: (reason: string) => void) {
    this.#memory = memory;
    this.#queues = queues;
    this.#onLost = onLost;
  }

  /** The memory table is another one. */
  watch(): void {
    clearInterval(this.#timer);
    if (this.#memory.regions.every(({ sealed }) => sealed)) return;
    this.#timer = setInterval(() => this.#look(), PERIOD);
  }

  #look(): void {
    const { cut } = this.#memory;
    if (cut === undefined && !this.#queues.some(({ windows }) => windows?.cut)) return;
    clearInterval(this.#timer);
    const region = cut === undefined ? '' : `region at guest address 0x${cut.toString(16)}: `;
    this.#onLost(`${region}the file of guest memory was made shorter while it was in use`);
  }
}
