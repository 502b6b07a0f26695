/**
 * A packet pool: zeroed memory in a memory file that is mapped into the arena, so that it can be shared with
 * another process by its descriptor, as virtio-user does with its rings and buffers.
 */
import { closeFd, memfd, sealAgainstShrink } from '../sys/index.ts';
import type { Arena, Range } from './arena.ts';

export class Pool {
  /** The memory file: sealed against truncation, `length` bytes. */
  readonly fd: number;
  readonly range: Range;
  /** Bytes asked for, rounded up to whole pages of 2 MiB. */
  readonly length: number;
  readonly #arena: Arena;

  /** Throws an ArenaFullError or a SystemError; nothing is left behind then. */
  constructor(arena: Arena, name: string, length: number) {
    const page = 2 * 1024 * 1024;
    this.#arena = arena;
    this.length = Math.ceil(length / page) * page;
    this.fd = memfd(name, this.length);
    try {
      sealAgainstShrink(this.fd);
      this.range = arena.map(this.fd, 0n, this.length);
    } catch (error) {
      closeFd(this.fd);
      throw error;
    }
  }

  /** Unmaps and closes it. Only while nobody uses the memory any more. */
  close(): void {
    this.#arena.unmap(this.range);
    closeFd(this.fd);
  }
}
