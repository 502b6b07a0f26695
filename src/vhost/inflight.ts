/**
 * Notes of the buffers in work (vhost-user, "Inflight I/O tracking"), control plane's side: the memory that the
 * front-end keeps for a back-end that may die, and what is done with it when a ring starts.
 *
 * The data plane notes and forgets (src/dataplane/inflight.ts). What is found here at a start was in work when a
 * predecessor died. Frames that the guest sent may have gone out or not, so their buffers are given back and
 * nothing is sent: none twice, none of the buffers lost. Buffers of a packed ring to receive into become available
 * again as they were; those of a split ring still are.
 *
 * Everything read from the memory is the front-end's word, and checked.
 */
import { constants, fstatSync, ftruncateSync, mkdirSync, openSync, rmSync } from 'node:fs';
import { dirname } from 'node:path';
import type { Arena, Range, VringStruct } from '../arena/index.ts';
import { closeFd, fileInfo, memfd } from '../sys/index.ts';
import { type InflightLayout, ProtocolError } from './messages.ts';
import { seal } from './sealed.ts';

const VERSION = 1;
const CACHE_LINE = 64;
const WRAP = 0x8000;
const AVAIL = 0x80;
const USED = 0x8000;

/** Bytes before the entries, and in each entry. */
const SPLIT = { header: 16, entry: 16 };
const PACKED = { header: 32, entry: 32 };

/** Bytes of one queue's notes. */
export function regionLength(queueSize: number, packed: boolean): number {
  const { header, entry } = packed ? PACKED : SPLIT;
  return Math.ceil((header + queueSize * entry) / CACHE_LINE) * CACHE_LINE;
}

/** A new file for the notes of so many queues, which nobody has used yet. The descriptor is the caller's. */
export function createInflight(
  queues: number,
  queueSize: number,
  packed: boolean,
): InflightLayout & { fd: number } {
  const size = queues * regionLength(queueSize, packed);
  return { fd: memfd('vireo-inflight', size), size: BigInt(size), offset: 0n, queues, queueSize };
}

/**
 * The same in a file that outlives this program: a new one, or (`keep`) the one that a predecessor left. Throws an
 * Error where that is gone and a packed ring's place with it; the place of a split one is in the ring.
 */
export function openInflight(
  path: string,
  queues: number,
  queueSize: number,
  packed: boolean,
  keep: boolean,
): InflightLayout & { fd: number } {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  if (!keep) rmSync(path, { force: true });
  const fd = openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600);
  const size = queues * regionLength(queueSize, packed);
  try {
    if (fstatSync(fd).size < size) {
      if (keep && packed)
        throw new Error(
          `${path} is gone, the notes of where the packed rings are: the driver has to start anew`,
        );
      ftruncateSync(fd, size);
    }
  } catch (error) {
    closeFd(fd);
    throw error;
  }
  return { fd, size: BigInt(size), offset: 0n, queues, queueSize };
}

/** Does the file hold what is said of it? Throws a ProtocolError. */
export function checkInflight(layout: InflightLayout, packed: boolean, fd: number): void {
  const { size, offset, queues, queueSize } = layout;
  const needed = BigInt(queues * regionLength(queueSize, packed));
  if (size < needed)
    throw new ProtocolError(`${size} bytes for ${queues} queues of ${queueSize} entries, ${needed} expected`);
  if (offset % 8n !== 0n) throw new ProtocolError(`offset ${offset} is no multiple of 8`);
  const file = fileInfo(fd);
  if (file.kind !== 'file') throw new ProtocolError('the descriptor is no memory file');
  if (file.size < offset + size)
    throw new ProtocolError(`file of ${file.size} bytes is shorter than offset + size, ${offset + size}`);
}

/** The notes of one connection's queues, mapped. */
export class Inflight {
  readonly packed: boolean;
  readonly queues: number;
  readonly queueSize: number;
  readonly #arena: Arena;
  readonly #range: Range;
  readonly #at: number;
  readonly #view: DataView;

  /** Maps the file and closes its descriptor, whatever the outcome. Throws an Error that names the reason. */
  constructor(arena: Arena, layout: InflightLayout & { fd: number }, packed: boolean, sealedOnly = false) {
    const { fd, offset, queues, queueSize } = layout;
    this.#arena = arena;
    this.packed = packed;
    this.queues = queues;
    this.queueSize = queueSize;
    try {
      seal(fd, sealedOnly);
      const { pageSize, size: fileSize } = fileInfo(fd);
      if (fileSize < offset + layout.size) throw new Error('the file of notes was made shorter');
      const page = BigInt(pageSize);
      const from = offset - (offset % page);
      const needed = offset - from + BigInt(queues * regionLength(queueSize, packed));
      this.#range = arena.map(fd, from, Number(((needed + page - 1n) / page) * page));
      this.#at = this.#range.start + Number(offset - from);
    } finally {
      closeFd(fd);
    }
    this.#view = new DataView(arena.memory.buffer);
  }

  /**
   * Takes up a ring where its notes say, or begins them: sets the vring's places, gives back or restores what was
   * in work, and lets the data plane go on with the notes. `vring` has its parts, `lastAvail` and `usedIdx`.
   * Throws an Error that names what is wrong with the notes; then nothing has changed.
   */
  start(index: number, vring: VringStruct, packed: boolean): void {
    vring.set('inflight', 0);
    if (index >= this.queues) return;
    if (packed !== this.packed)
      throw new Error(`the notes of buffers in work are of ${this.packed ? 'packed' : 'split'} rings`);
    if (vring.get('size') > this.queueSize)
      throw new Error(
        `the notes of buffers in work reach ${this.queueSize} entries, the ring has ${vring.get('size')}`,
      );
    const at = this.#at + index * regionLength(this.queueSize, packed);
    const version = this.#view.getUint16(at + 8, true);
    if (version > VERSION)
      throw new Error(`the notes of buffers in work have version ${version}, at most ${VERSION} expected`);
    if (version === 0) this.#begin(at, vring);
    else if (packed) this.#recoverPacked(at, vring, index % 2 === 1);
    else this.#recoverSplit(at, vring, index % 2 === 1);
    vring.set64('inflightCounter', 0n);
    vring.set('inflightTaken', 0);
    vring.set('inflight', at);
  }

  #begin(at: number, vring: VringStruct): void {
    const { header, entry } = this.packed ? PACKED : SPLIT;
    this.#arena.u8.fill(0, at, at + header + this.queueSize * entry);
    this.#view.setUint16(at + 10, this.queueSize, true);
    if (this.packed) {
      for (let i = 0; i < this.queueSize; i++)
        this.#view.setUint16(at + PACKED.header + i * PACKED.entry + 2, i + 1, true);
      this.#setPackedUsed(at, vring.get('usedIdx'));
    } else {
      this.#view.setUint16(at + 14, vring.get('usedIdx'), true);
    }
    // Last: notes that were begun half are begun again.
    this.#view.setUint16(at + 8, VERSION, true);
  }

  #recoverSplit(at: number, vring: VringStruct, sends: boolean): void {
    const view = this.#view;
    const size = vring.get('size');
    const entry = (head: number) => at + SPLIT.header + head * SPLIT.entry;
    const used = vring.get('used');
    let usedIdx = view.getUint16(used + 2, true);
    // The last batch was shown to the guest, and its notes may not have been cleared.
    const batch = (usedIdx - view.getUint16(at + 14, true)) & 0xffff;
    if (batch > size)
      throw new Error(`the notes of buffers in work lag ${batch} entries behind a ring of ${size}`);
    const shown = new Set<number>();
    for (let i = 0, head = view.getUint16(at + 12, true); sends && i < batch; i++) {
      if (head >= size) throw new Error(`the notes of buffers in work list descriptor ${head} of ${size}`);
      shown.add(head);
      head = view.getUint16(entry(head) + 6, true);
    }
    const waiting = (view.getUint16(vring.get('avail') + 2, true) - usedIdx) & 0xffff;
    const heads: { head: number; counter: bigint }[] = [];
    for (let head = 0; head < size; head++)
      if (view.getUint8(entry(head)) === 1 && !shown.has(head))
        heads.push({ head, counter: view.getBigUint64(entry(head) + 8, true) });
    if (sends && heads.length > waiting)
      throw new Error(
        `the notes have ${heads.length} buffers in work, of ${waiting} that the guest has given`,
      );
    for (const head of shown) view.setUint8(entry(head), 0);
    view.setUint16(at + 14, usedIdx, true);
    heads.sort((a, b) => (a.counter < b.counter ? -1 : 1));
    // As the data plane does it, so that this may be cut short as well.
    let last = 0;
    for (const [i, { head }] of sends ? heads.entries() : []) {
      const slot = used + 4 + 8 * ((usedIdx + i) & (size - 1));
      view.setUint32(slot, head, true);
      view.setUint32(slot + 4, 0, true);
      view.setUint16(entry(head) + 6, last, true);
      last = head;
    }
    if (sends && heads.length > 0) {
      view.setUint16(at + 12, last, true);
      usedIdx = (usedIdx + heads.length) & 0xffff;
      view.setUint16(used + 2, usedIdx, true);
    }
    for (const { head } of heads) view.setUint8(entry(head), 0);
    view.setUint16(at + 14, usedIdx, true);
    vring.set('lastAvail', usedIdx);
    vring.set('usedIdx', usedIdx);
  }

  #recoverPacked(at: number, vring: VringStruct, sends: boolean): void {
    const view = this.#view;
    const size = vring.get('size');
    const desc = vring.get('desc');
    const entry = (index: number) => at + PACKED.header + index * PACKED.entry;
    const place = (offset: number, wrap: number) =>
      view.getUint16(at + offset, true) | (view.getUint8(at + wrap) ? WRAP : 0);
    let position = place(18, 21);
    const next = place(16, 20);
    let free = view.getUint16(at + 14, true);
    for (const place of [position, next])
      if ((place & ~WRAP) >= size)
        throw new Error(`the notes of buffers in work go on at descriptor ${place & ~WRAP} of ${size}`);
    if (next !== position) {
      // Was the last batch shown? Its first descriptor tells.
      const flags = view.getUint16(desc + 16 * (position & ~WRAP) + 14, true);
      if ((flags & (AVAIL | USED)) !== (position & WRAP ? AVAIL : USED)) {
        position = next;
        free = view.getUint16(at + 12, true);
      }
    }
    // Entries in the list of free ones are not in work, whatever they say.
    const idle = new Set<number>();
    for (
      let index = free;
      index < this.queueSize && !idle.has(index);
      index = view.getUint16(entry(index) + 2, true)
    )
      idle.add(index);
    const taken: { index: number; num: number; counter: bigint; id: number }[] = [];
    let slots = 0;
    for (let index = 0; index < this.queueSize; index++) {
      if (view.getUint8(entry(index)) !== 1 || idle.has(index)) continue;
      const num = view.getUint16(entry(index) + 6, true);
      const last = view.getUint16(entry(index) + 4, true);
      slots += num;
      if (num === 0 || slots > size || last >= this.queueSize || index + num > this.queueSize)
        throw new Error(`the notes of buffers in work have one of ${num} descriptors, the ring has ${size}`);
      const counter = view.getBigUint64(entry(index) + 8, true);
      taken.push({ index, num, counter, id: view.getUint16(entry(last) + 16, true) });
    }
    taken.sort((a, b) => (a.counter < b.counter ? -1 : 1));
    const start = position;
    const step = (by: number) => {
      const to = (position & ~WRAP) + by;
      position = to >= size ? (to - size) | ((position & WRAP) ^ WRAP) : to | (position & WRAP);
    };
    const writes: (() => void)[] = [];
    for (const { index, num, id } of taken) {
      if (sends) {
        const [slot, flags] = [desc + 16 * (position & ~WRAP), position & WRAP ? AVAIL | USED : 0];
        writes.push(() => {
          view.setUint32(slot + 8, 0, true);
          view.setUint16(slot + 12, id, true);
          view.setUint16(slot + 14, flags, true);
        });
        step(num);
        continue;
      }
      for (let i = 0; i < num; i++) {
        const [slot, from] = [desc + 16 * (position & ~WRAP), entry(index + i)];
        view.setBigUint64(slot, view.getBigUint64(from + 24, true), true);
        view.setUint32(slot + 8, view.getUint32(from + 20, true), true);
        view.setUint16(slot + 12, view.getUint16(from + 16, true), true);
        view.setUint16(slot + 14, view.getUint16(from + 18, true), true);
        step(1);
      }
    }
    if (!sends) position = start;
    if (writes.length > 0) {
      view.setUint16(at + 16, position & ~WRAP, true);
      view.setUint8(at + 20, position & WRAP ? 1 : 0);
      // The first one last: the guest sees all or none.
      for (const write of writes.slice(1)) write();
      Atomics.load(this.#arena.u32, 0);
      writes[0]!();
    }
    for (let index = 0; index < this.queueSize; index++) {
      view.setUint8(entry(index), 0);
      view.setUint16(entry(index) + 2, index + 1, true);
    }
    this.#setPackedUsed(at, position);
    vring.set('lastAvail', position);
    vring.set('usedIdx', position);
  }

  /** Nothing is in work, and the next used descriptor stands at `position`. In one store, as the data plane does it. */
  #setPackedUsed(at: number, position: number): void {
    this.#view.setUint16(at + 12, 0, true);
    this.#view.setUint16(at + 14, 0, true);
    const [index, wrap] = [BigInt(position & ~WRAP), position & WRAP ? 0x101n : 0n];
    this.#view.setBigUint64(at + 16, index | (index << 16n) | (wrap << 32n), true);
  }

  /** Only when no ring notes anything any more (quiescence). */
  close(): void {
    this.#arena.unmap(this.#range);
  }
}
