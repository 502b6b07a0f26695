/** A pcap file that a receiving port writes: emptied from the rings of bytes that the data plane fills (capture.ts there). */
import { closeSync, openSync, writeSync } from 'node:fs';
import type { Arena, Struct } from '../arena/index.ts';
import { pcapHeader } from './pcap.ts';

export const CAPTURE_FIELDS = ['at', 'size', 'written', 'taken', 'epoch', 'frames', 'lost'] as const;
export type CaptureStruct = Struct<(typeof CAPTURE_FIELDS)[number]>;
/** Bytes of a ring. */
export const CAPTURE_BYTES = 16 * 1024 * 1024;

export class CaptureFile {
  readonly path: string;
  readonly #arena: Arena;
  readonly #fd: number;
  readonly #rings: readonly CaptureStruct[];

  /** Throws an Error that names the file. */
  constructor(path: string, arena: Arena, rings: readonly CaptureStruct[]) {
    this.path = path;
    this.#arena = arena;
    this.#rings = rings;
    this.#fd = this.#tried(() => openSync(path, 'w'));
    this.#tried(() => this.#write(pcapHeader()));
  }

  /** Writes what has come. Throws an Error that names the file. */
  drain(): void {
    for (const ring of this.#rings) {
      const taken = ring.get('taken');
      const size = ring.get('size');
      let left = (ring.get('written') - taken) >>> 0;
      let from = taken;
      while (left > 0) {
        const offset = from % size;
        const length = Math.min(left, size - offset);
        const at = ring.get('at') + offset;
        this.#tried(() => this.#write(this.#arena.u8.subarray(at, at + length)));
        from += length;
        left -= length;
        ring.set('taken', from >>> 0);
      }
    }
  }

  get counts(): { file: string; frames: number; lost: number } {
    const sum = (field: 'frames' | 'lost') =>
      this.#rings.reduce((total, ring) => total + Number(ring.get64(field)), 0);
    return { file: this.path, frames: sum('frames'), lost: sum('lost') };
  }

  close(): void {
    closeSync(this.#fd);
  }

  #write(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) at += writeSync(this.#fd, bytes, at);
  }

  #tried<T>(act: () => T): T {
    try {
      return act();
    } catch (error) {
      throw new Error(`${this.path}: ${(error as Error).message}`);
    }
  }
}
