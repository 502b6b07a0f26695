/**
 * A capture file as a port: its frames are played into the switch, or what the switch sends there is written to it.
 * Reading takes pcap and pcapng (src/gen/pcap.ts), writing makes pcap with nanoseconds.
 */
import { closeSync, constants, fstatSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import type { Range } from '../arena/index.ts';
import { pcapHeader, readCapture } from '../gen/pcap.ts';
import type { EndSetup, Framing } from '../io/index.ts';
import type { PortSpec, PortState } from '../switch/types.ts';
import type { End, Link } from './kernel-port.ts';
import type { PortContext } from './port.ts';

/** Bytes of frames and their records that are written at once. */
const BUFFER = 256 * 1024;
/** A file that is played is in memory as a whole. */
const LARGEST = 1 << 30;

export class PcapEnd implements End {
  readonly queues = 1;
  readonly framing: Framing = { prefix: 0, messages: 'one', offloads: 0n, file: true };
  readonly role = null;
  readonly connections = 0;
  readonly #path: string;
  readonly #arena: PortContext['arena'];
  readonly #buffer: Range;
  readonly #setup: EndSetup;
  #fd = -1;
  state: PortState = 'up';

  /** Reads the file, or begins it anew. Throws an Error that names the file, and the byte where it goes wrong. */
  constructor(spec: PortSpec, { arena }: PortContext) {
    this.#path = spec.target;
    this.#arena = arena;
    this.#buffer = arena.takeTable(BUFFER);
    const buffer = this.#buffer.start;
    try {
      if (spec.mode === 'write') {
        this.#fd = openToWrite(spec.target);
        writeSync(this.#fd, pcapHeader());
        this.#setup = { kind: 'record', fd: this.#fd, buffer, size: BUFFER };
      } else {
        const { timing = 'recorded', loop = 1 } = spec;
        const pace = timing === 'recorded' || timing === 'fast' ? timing : Number.parseInt(timing, 10);
        this.#setup = { kind: 'replay', ...load(spec.target), timing: pace, loop, buffer };
      }
    } catch (error) {
      this.#free();
      throw new Error(`${spec.target}: ${(error as Error).message}`, { cause: error });
    }
  }

  start(link: Link): void {
    // First: what a ring that isn't enabled takes is lost.
    link.set(true);
    link.open([this.#setup], (reason) => {
      this.state = 'failed';
      link.error(`${this.#path}: ${reason}`);
      link.set(false, 'the file takes no more');
    });
  }

  #free(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#arena.freeTable(this.#buffer);
  }

  async close(): Promise<void> {
    this.#free();
  }
}

/** Opens a path without waiting for anybody; a pipe or a device, which may be slow, is none for this. */
function openFile(path: string, flags: number): number {
  const fd = openSync(path, flags | constants.O_NONBLOCK, 0o666);
  if (fstatSync(fd).isFile()) return fd;
  closeSync(fd);
  throw new Error('expected a file');
}

function openToWrite(path: string): number {
  const fd = openFile(path, constants.O_WRONLY | constants.O_CREAT);
  ftruncateSync(fd);
  return fd;
}

/** The frames of a file, for the thread that plays them. */
function load(path: string) {
  const frames = readCapture(contents(path));
  if (frames.length === 0) throw new Error('there is no frame in it');
  const shared = {
    frames: new SharedArrayBuffer(frames.reduce((sum, { frame }) => sum + frame.length, 0)),
    ends: new SharedArrayBuffer(frames.length * 4),
    times: new SharedArrayBuffer(frames.length * 8),
  };
  const bytes = new Uint8Array(shared.frames);
  const ends = new Uint32Array(shared.ends);
  const times = new Float64Array(shared.times);
  const first = frames[0]!.time;
  let end = 0;
  for (const [i, { frame, time }] of frames.entries()) {
    bytes.set(frame, end);
    end += frame.length;
    ends[i] = end;
    times[i] = Number(time - first) / 1e6;
  }
  return shared;
}

function contents(path: string): Buffer {
  const fd = openFile(path, constants.O_RDONLY);
  try {
    const { size } = fstatSync(fd);
    if (size > LARGEST) throw new Error(`${size} bytes: at most ${LARGEST} expected`);
    const file = Buffer.alloc(size);
    let at = 0;
    for (let length = 1; length > 0 && at < size; at += length)
      length = readSync(fd, file, at, size - at, at);
    return file.subarray(0, at);
  } finally {
    closeSync(fd);
  }
}
