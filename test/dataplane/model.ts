/**
 * The device's side of a split virtqueue in plain TypeScript, written from the specification (virtio 1.3, 2.7 and
 * 5.1.6) for one frame after the other and with no thought for speed: the oracle for rings written by hand.
 *
 * It works on an image of guest memory and leaves there what the guest may find afterwards.
 */
import {
  type GuestMemory,
  type GuestRing,
  INDIRECT,
  MAX_FRAME,
  MERGEABLE,
  NEXT,
  type PlanePort,
  TABLE,
  WRITE,
} from '../support/plane.ts';

/** Vring.error */
export const FAULTS = {
  availJump: 1,
  headRange: 2,
  nextRange: 3,
  chainLong: 4,
  address: 5,
  writable: 6,
  readable: 7,
  indirectLength: 8,
  indirectNested: 9,
  indirectNext: 10,
  indirectRefused: 11,
  noRoom: 12,
} as const;

export type FaultName = keyof typeof FAULTS;

/** What the guest did wrong, and the value that was wrong. No Error: there are too many to keep a stack for each. */
export class Fault {
  readonly fault: FaultName;
  readonly value: bigint;

  constructor(fault: FaultName, value: number | bigint) {
    this.fault = fault;
    this.value = BigInt(value);
  }
}

/**
 * Do any of these bytes lie in the guest's own rings? What then comes first, a frame or an entry of a ring, nobody
 * has promised.
 */
export function inRings({ rx, free }: PlanePort, pieces: Chain['pieces']): boolean {
  const begin = rx.ring.desc;
  return pieces.some(({ address, length }) => address < free && address + BigInt(length) > begin);
}

interface Chain {
  /** Guest addresses of its bytes, pieces as they lie in memory. */
  pieces: { address: bigint; length: number }[];
  length: number;
}

export interface Expected {
  fault: Fault | undefined;
  drops: Record<string, number>;
}

/** A ring and the image of its guest's memory. */
export class ModelRing {
  readonly #memory: GuestMemory;
  readonly #ring: GuestRing;
  readonly #image: Buffer;
  readonly #flags: number;
  readonly #headerLength: number;
  lastAvail: number;
  usedIdx: number;
  fault: Fault | undefined;
  /** A frame was written into the guest's own rings: from then on the model knows nothing. */
  tangled = false;
  readonly drops: Record<string, number> = {};
  readonly #port: PlanePort;

  constructor(port: PlanePort, which: 'rx' | 'tx', image: Buffer) {
    const { ring, vring } = port[which];
    this.#port = port;
    this.#memory = port.memory;
    this.#ring = ring;
    this.#image = image;
    this.#flags = vring.get('flags');
    this.#headerLength = vring.get('headerLength');
    this.lastAvail = vring.get('lastAvail');
    this.usedIdx = vring.get('usedIdx');
  }

  #offset(address: bigint): number {
    return this.#memory.imageOffset(address);
  }

  #drop(reason: string): void {
    this.drops[reason] = (this.drops[reason] ?? 0) + 1;
  }

  get #waiting(): number {
    const idx = this.#image.readUInt16LE(this.#offset(this.#ring.avail) + 2);
    const waiting = (idx - this.lastAvail) & 0xffff;
    if (waiting > this.#ring.size) throw new Fault('availJump', waiting);
    return waiting;
  }

  /** Head of the avail entry `ahead` of the next one. */
  #head(ahead: number): number {
    const slot = (this.lastAvail + ahead) % this.#ring.size;
    const head = this.#image.readUInt16LE(this.#offset(this.#ring.avail) + 4 + 2 * slot);
    if (head >= this.#ring.size) throw new Fault('headRange', head);
    return head;
  }

  #use(heads: { head: number; length: number }[]): void {
    const used = this.#offset(this.#ring.used);
    for (const { head, length } of heads) {
      const at = used + 4 + 8 * (this.usedIdx % this.#ring.size);
      this.#image.writeUInt32LE(head, at);
      this.#image.writeUInt32LE(length, at + 4);
      this.usedIdx = (this.usedIdx + 1) & 0xffff;
      this.lastAvail = (this.lastAvail + 1) & 0xffff;
    }
    this.#image.writeUInt16LE(this.usedIdx, used + 2);
  }

  /** The chain at `head`, up to `limit` bytes of it. */
  #chain(head: number, direction: number, limit: number): Chain {
    const chain: Chain = { pieces: [], length: 0 };
    let table = this.#ring.desc;
    let bound = this.#ring.size;
    let inTable = false;
    let left = bound;
    for (let index = head; ; ) {
      if (left-- === 0) throw new Fault('chainLong', this.#ring.size);
      const d = this.#descriptor(table, index);
      if (d.flags & TABLE) {
        if (inTable) throw new Fault('indirectNested', index);
        if (!(this.#flags & INDIRECT)) throw new Fault('indirectRefused', index);
        if (d.flags & NEXT) throw new Fault('indirectNext', index);
        const entries = d.length / 16;
        if (entries === 0 || !Number.isInteger(entries) || entries > this.#ring.size)
          throw new Fault('indirectLength', d.length);
        if (!this.#memory.find(d.address)) throw new Fault('address', d.address);
        inTable = true;
        table = d.address;
        bound = entries;
        left = entries;
        index = 0;
        continue;
      }
      if ((d.flags & WRITE) !== direction)
        throw new Fault(direction === WRITE ? 'readable' : 'writable', index);
      let rest = Math.min(d.length, limit - chain.length);
      for (let address = d.address; rest > 0; ) {
        const place = this.#memory.find(address);
        if (!place) throw new Fault('address', address);
        const length = Math.min(rest, place.left);
        chain.pieces.push({ address, length });
        chain.length += length;
        rest -= length;
        address = BigInt.asUintN(64, address + BigInt(length));
      }
      if (chain.length >= limit || !(d.flags & NEXT)) return chain;
      if (d.next >= bound) throw new Fault('nextRange', d.next);
      index = d.next;
    }
  }

  #descriptor(table: bigint, index: number) {
    const at = table + BigInt(16 * index);
    const place = this.#memory.find(at);
    let bytes = this.#image.subarray(place && this.#offset(at));
    if (!place || place.left < 16) {
      // It may go on in the next region.
      bytes = Buffer.alloc(16);
      for (let i = 0; i < 16; i++) {
        const address = at + BigInt(i);
        if (!this.#memory.find(address)) throw new Fault('address', table);
        bytes[i] = this.#image[this.#offset(address)]!;
      }
    }
    return {
      address: bytes.readBigUInt64LE(0),
      length: bytes.readUInt32LE(8),
      flags: bytes.readUInt16LE(12),
      next: bytes.readUInt16LE(14),
    };
  }

  /** Runs `step` until it returns false or finds a fault. */
  #until(step: () => boolean): void {
    try {
      while (!this.fault && step());
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      this.fault = error;
    }
  }

  /** Takes what the guest transmits, at most `burst` chains; returns the frames. */
  take(burst = 64): Buffer[] {
    const frames: Buffer[] = [];
    const heads: { head: number; length: number }[] = [];
    this.#until(() => {
      if (heads.length === burst || heads.length === this.#waiting) return false;
      const head = this.#head(heads.length);
      const limit = this.#headerLength + MAX_FRAME;
      const chain = this.#chain(head, 0, limit + 1);
      heads.push({ head, length: 0 });
      if (chain.length > limit) this.#drop('oversize');
      else if (chain.length < this.#headerLength + 14) this.#drop('short');
      else {
        const bytes = chain.pieces.map(({ address, length }) => {
          const at = this.#offset(address);
          return this.#image.subarray(at, at + length);
        });
        frames.push(Buffer.concat(bytes).subarray(this.#headerLength));
      }
      return true;
    });
    this.#use(heads);
    return frames;
  }

  /** Writes frames for the guest to receive. */
  give(frames: readonly Buffer[]): void {
    const left = [...frames];
    this.#until(() => {
      if (left.length === 0) return false;
      if (this.#waiting === 0) {
        for (const _ of left) this.#drop('ringFull');
        return false;
      }
      const reason = this.#giveOne(left[0]!);
      if (reason) this.#drop(reason);
      left.shift();
      return true;
    });
    if (this.fault) for (const _ of left) this.#drop('broken');
  }

  /** Returns why the frame was dropped, if it was. */
  #giveOne(frame: Buffer): string | undefined {
    const bytes = Buffer.concat([Buffer.alloc(this.#headerLength), frame]);
    const heads: { head: number; length: number }[] = [];
    const pieces: Chain['pieces'] = [];
    for (let total = 0; total < bytes.length; ) {
      if (heads.length > 0 && !(this.#flags & MERGEABLE)) return 'tooBig';
      if (heads.length === this.#waiting) return 'ringFull';
      const head = this.#head(heads.length);
      const chain = this.#chain(head, WRITE, bytes.length - total);
      if (chain.length === 0 || (heads.length === 0 && chain.length < this.#headerLength))
        throw new Fault('noRoom', chain.length);
      pieces.push(...chain.pieces);
      this.tangled ||= inRings(this.#port, chain.pieces);
      total += chain.length;
      heads.push({ head, length: chain.length });
    }
    if (this.#headerLength === 12) bytes.writeUInt16LE(heads.length, 10);
    let done = 0;
    for (const { address, length } of pieces) {
      bytes.copy(this.#image, this.#offset(address), done, done + length);
      done += length;
    }
    this.#use(heads);
    return undefined;
  }

  /**
   * A device may have written used entries that it didn't show: takes those from memory as it is into the image,
   * so that the two can be compared.
   */
  forgiveUnseen(live: Buffer, shownSince: number): void {
    const used = this.#offset(this.#ring.used);
    const count = (this.usedIdx - shownSince) & 0xffff;
    for (let i = count; i < this.#ring.size; i++) {
      const at = used + 4 + 8 * ((shownSince + i) % this.#ring.size);
      live.copy(this.#image, at, at, at + 8);
    }
  }
}
