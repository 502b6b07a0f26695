/**
 * The windows of one ring over a guest that doesn't lie in the arena as a whole: room in the arena, and the list
 * by which the data plane moves them (src/dataplane/windows.ts).
 */
import { type Arena, ArenaFullError, type Range, type Structures, type VringStruct } from '../arena/index.ts';

/** Bytes of windows for one ring: a share of what is left of the arena, between these two. */
const MOST = 256 << 20;
const LEAST = 16 << 20;
const SHARE = 8;

export class Windows {
  readonly #arena: Arena;
  readonly #room: Range;
  readonly #list: Range;

  private constructor(arena: Arena, room: Range, list: Range) {
    this.#arena = arena;
    this.#room = room;
    this.#list = list;
  }

  /**
   * Takes windows for a ring that doesn't run; null where there is no room for any: the ring then does without,
   * at the price of copies and system calls.
   */
  static open(arena: Arena, structures: Structures, vring: VringStruct): Windows | null {
    let size = MOST;
    while (size > LEAST && size * SHARE > arena.largestFree) size /= 2;
    const chunk = structures.constant('CHUNK');
    const count = size / chunk;
    const list = arena.takeTable(count * structures.constant('WINDOW_STRIDE'));
    let room: Range;
    try {
      room = arena.reserve(size);
    } catch (error) {
      arena.freeTable(list);
      if (error instanceof ArenaFullError) return null;
      throw error;
    }
    for (let i = 0; i < count; i++) structures.window(list.start, i).set('arena', room.start + i * chunk);
    vring.set('windows', list.start);
    vring.set('windowMask', count / structures.constant('WAYS') - 1);
    return new Windows(arena, room, list);
  }

  /** A file that was looked at through one of them was made shorter. */
  get cut(): boolean {
    return this.#arena.isCut(this.#room);
  }

  /** Gives everything back. Only while nobody works on the ring. */
  close(vring: VringStruct): void {
    vring.set('windows', 0);
    vring.set64('cacheSize', 0n);
    this.#arena.unmap(this.#room);
    this.#arena.freeTable(this.#list);
  }
}
