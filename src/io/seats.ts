/** A thread of channels (channels.ts), whichever it is, seen from the control plane. */
import type { Arena, Range } from '../arena/index.ts';
import type { EndSetup, QueueSetup } from './channel.ts';
import type { ChannelCommand, ChannelReport } from './channels.ts';

export interface ChannelEvents {
  /** The channel can't go on: it is over, but for its close(). */
  onEnd(reason: string): void;
}

/** A place on a thread, for the queues of a pair. */
export interface Seat {
  /** Arena offset of `messages` times OVERFLOW bytes, for the length of a call. */
  readonly overflow: number;
  /** Moves frames between a queue pair and a descriptor from now on. Throws where the thread can't be had. */
  open(queue: QueueSetup, end: EndSetup, events: ChannelEvents): OpenChannel;
  leave(): void;
}

export interface OpenChannel {
  /** Resolves when the thread doesn't touch rings and descriptor any more; then they may be closed. */
  close(): Promise<void>;
}

/** Messages of a system call at most: what there is overflow for. */
export const MESSAGES = 32;

export class Seats {
  readonly #arena: Arena;
  readonly #tell: (command: ChannelCommand) => void;
  /** Where the thread's channels put what doesn't fit into a buffer. */
  readonly #overflow: Range;
  readonly #channels = new Map<number, ChannelEvents & { closed: () => void; closing: boolean }>();
  #nextId = 0;
  /** Queue pairs that have chosen the thread. */
  taken = 0;

  /** Throws an ArenaFullError. */
  constructor(arena: Arena, tell: (command: ChannelCommand) => void) {
    this.#arena = arena;
    this.#tell = tell;
    this.#overflow = arena.takeTable(MESSAGES * arena.dataplane.layout.OVERFLOW!);
  }

  take(): Seat {
    this.taken++;
    return {
      overflow: this.#overflow.start,
      open: (queue, end, events) => this.#open(queue, end, events),
      leave: () => {
        this.taken--;
      },
    };
  }

  #open(queue: QueueSetup, end: EndSetup, events: ChannelEvents): OpenChannel {
    this.#nextId = (this.#nextId % (2 ** 29 - 1)) + 1;
    const id = this.#nextId;
    let closed = () => {};
    const isClosed = new Promise<void>((resolve) => {
      closed = resolve;
    });
    const channel = { ...events, closed, closing: false };
    this.#tell({ kind: 'open', id, queue, end });
    this.#channels.set(id, channel);
    return {
      close: () => {
        if (!channel.closing && this.#channels.has(id)) this.#tell({ kind: 'close', id });
        channel.closing = true;
        return isClosed;
      },
    };
  }

  /** What the thread said. */
  heard(report: ChannelReport): void {
    const channel = this.#channels.get(report.id);
    if (report.kind === 'ended') {
      channel?.onEnd(report.reason);
      return;
    }
    this.#channels.delete(report.id);
    channel?.closed();
  }

  /** The thread has ended by itself: that is the end of its channels, and nobody is to wait for it any more. */
  ended(reason: string): void {
    const lost = [...this.#channels.values()];
    this.#channels.clear();
    for (const { closed, closing, onEnd } of lost) {
      closed();
      if (!closing) onEnd(reason);
    }
  }

  free(): void {
    this.#arena.freeTable(this.#overflow);
  }
}
