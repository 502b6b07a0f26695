/**
 * The device's side of a packed virtqueue in plain TypeScript, written from the specification (virtio 1.3, 2.8 and
 * 5.1.6) as model.ts is for the split one: the oracle for packed rings written by hand.
 */
import { type GuestMemory, type GuestRing, IN_ORDER, INDIRECT, MAX_FRAME, MERGEABLE, NEXT, type PlanePort, TABLE, WRITE } from '../support/plane.ts'; // biome-ignore format: an import
import { Fault, inRings } from './model.ts';

/** Descriptor flags (2.8.1). */
export const AVAIL = 0x80;
export const USED = 0x8000;

/** A position: the descriptor's number in the low 15 bits, the wrap counter above. */
const WRAP = 0x8000;
const placeOf = (position: number) => position & 0x7fff;

interface Entry {
  address: bigint;
  length: number;
  id: number;
  flags: number;
}

/** What a buffer is made of: guest addresses in pieces as they lie in memory. */
interface Bytes {
  pieces: { address: bigint; length: number }[];
  length: number;
  slots: number;
  id: number;
}

export class PackedModelRing {
  readonly #memory: GuestMemory;
  readonly #ring: GuestRing;
  readonly #image: Buffer;
  readonly #flags: number;
  readonly #headerLength: number;
  /** Used descriptors of the burst, which the driver sees all at once. */
  readonly #pending: { position: number; word: Entry }[] = [];
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

  #advance(position: number, by: number): number {
    const place = placeOf(position) + by;
    const wrap = position & WRAP;
    return place >= this.#ring.size ? (place - this.#ring.size) | (wrap ^ WRAP) : place | wrap;
  }

  #entry(table: bigint, index: number): Entry {
    const bytes = Buffer.alloc(16);
    for (let i = 0; i < 16; i++) {
      const address = table + BigInt(16 * index + i);
      if (!this.#memory.find(address)) throw new Fault('address', table + BigInt(16 * index));
      bytes[i] = this.#image[this.#offset(address)]!;
    }
    return {
      address: bytes.readBigUInt64LE(0),
      length: bytes.readUInt32LE(8),
      id: bytes.readUInt16LE(12),
      flags: bytes.readUInt16LE(14),
    };
  }

  #available(position: number): boolean {
    const { flags } = this.#entry(this.#ring.desc, placeOf(position));
    return (flags & (AVAIL | USED)) === (position & WRAP ? AVAIL : USED);
  }

  /** Appends what a descriptor names, up to `limit` bytes in all. */
  #append(buffer: Bytes, { address, length }: Entry, limit: number): void {
    let rest = Math.min(length, limit - buffer.length);
    for (let at = address; rest > 0; ) {
      const place = this.#memory.find(at);
      if (!place) throw new Fault('address', at);
      const part = Math.min(rest, place.left);
      buffer.pieces.push({ address: at, length: part });
      buffer.length += part;
      rest -= part;
      at = BigInt.asUintN(64, at + BigInt(part));
    }
  }

  /** The buffer that begins at `position` (2.8.5 to 2.8.7); throws a Fault. */
  #buffer(start: number, direction: number, limit: number): Bytes {
    const buffer: Bytes = { pieces: [], length: 0, slots: 0, id: 0 };
    for (let position = start; buffer.slots < this.#ring.size; position = this.#advance(position, 1)) {
      const entry = this.#entry(this.#ring.desc, placeOf(position));
      buffer.slots++;
      buffer.id = entry.id;
      if (entry.flags & TABLE) {
        if (entry.flags & NEXT || buffer.slots > 1) throw new Fault('indirectNext', placeOf(position));
        this.#table(buffer, entry, direction, limit);
        return buffer;
      }
      if ((entry.flags & WRITE) !== direction)
        throw new Fault(direction ? 'readable' : 'writable', placeOf(position));
      this.#append(buffer, entry, limit);
      if (!(entry.flags & NEXT)) return buffer;
    }
    throw new Fault('chainLong', this.#ring.size);
  }

  #table(buffer: Bytes, { address, length }: Entry, direction: number, limit: number): void {
    if (!(this.#flags & INDIRECT)) throw new Fault('indirectRefused', address);
    const entries = length / 16;
    if (entries === 0 || !Number.isInteger(entries) || entries > this.#ring.size)
      throw new Fault('indirectLength', length);
    const place = this.#memory.find(address);
    if (!place) throw new Fault('address', address);
    for (let i = 0; i < entries && buffer.length < limit; i++) {
      let entry: Entry;
      try {
        entry = this.#entry(address, i);
      } catch {
        throw new Fault('address', address);
      }
      if (direction === WRITE && !(entry.flags & WRITE)) throw new Fault('readable', i);
      this.#append(buffer, entry, limit);
    }
  }

  /** Notes that the buffer at `position` is used; the first of a burst is shown last (2.8.9). */
  #use(position: number, id: number, length: number, flags: number): void {
    const wrap = position & WRAP ? AVAIL | USED : 0;
    this.#pending.push({ position, word: { address: 0n, length, id, flags: flags | wrap } });
  }

  #store({ position, word }: { position: number; word: Entry }): void {
    const at = this.#offset(this.#ring.desc) + 16 * placeOf(position);
    this.#image.writeUInt32LE(word.length, at + 8);
    this.#image.writeUInt16LE(word.id, at + 12);
    this.#image.writeUInt16LE(word.flags, at + 14);
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

  /** Takes what the guest transmits, at most `burst` buffers; returns the frames. */
  take(burst = 64): Buffer[] {
    const frames: Buffer[] = [];
    const used: { slots: number; id: number }[] = [];
    let taken = 0;
    this.#until(() => {
      if (used.length === burst || taken >= this.#ring.size || !this.#available(this.lastAvail)) return false;
      const limit = this.#headerLength + MAX_FRAME;
      const buffer = this.#buffer(this.lastAvail, 0, limit + 1);
      if (taken + buffer.slots > this.#ring.size) throw new Fault('chainLong', this.#ring.size);
      used.push(buffer);
      taken += buffer.slots;
      this.lastAvail = this.#advance(this.lastAvail, buffer.slots);
      if (buffer.length > limit) this.#drop('oversize');
      else if (buffer.length < this.#headerLength + 14) this.#drop('short');
      else frames.push(this.#read(buffer).subarray(this.#headerLength));
      return true;
    });
    // In order, one used descriptor with the id of the last buffer stands for all (2.8.8).
    const shown = this.#flags & IN_ORDER && used.length > 0 ? [{ slots: taken, id: used.at(-1)!.id }] : used;
    for (const { slots, id } of shown) {
      this.#use(this.usedIdx, id, 0, 0);
      this.usedIdx = this.#advance(this.usedIdx, slots);
    }
    this.#publish();
    return frames;
  }

  #read({ pieces }: Bytes): Buffer {
    return Buffer.concat(
      pieces.map(({ address, length }) => {
        const at = this.#offset(address);
        return this.#image.subarray(at, at + length);
      }),
    );
  }

  /** The first one last, as the device does: until then its place holds what the driver wrote. */
  #publish(): void {
    const [first, ...others] = this.#pending.splice(0);
    for (const each of others) this.#store(each);
    if (first) this.#store(first);
  }

  /** Writes frames for the guest to receive. */
  give(frames: readonly Buffer[]): void {
    const left = [...frames];
    this.#until(() => {
      if (left.length === 0) return false;
      if (!this.#available(this.lastAvail)) {
        for (const _ of left) this.#drop('ringFull');
        return false;
      }
      const reason = this.#giveOne(left[0]!);
      if (reason) this.#drop(reason);
      left.shift();
      return true;
    });
    if (this.fault) for (const _ of left) this.#drop('broken');
    this.#publish();
  }

  /** Returns why the frame was dropped, if it was. */
  #giveOne(frame: Buffer): string | undefined {
    const bytes = Buffer.concat([Buffer.alloc(this.#headerLength), frame]);
    const buffers: (Bytes & { position: number })[] = [];
    let position = this.lastAvail;
    let slots = 0;
    for (let total = 0; total < bytes.length; ) {
      if (buffers.length > 0 && !(this.#flags & MERGEABLE)) return 'tooBig';
      if (slots >= this.#ring.size || !this.#available(position)) return 'ringFull';
      const buffer = this.#buffer(position, WRITE, bytes.length - total);
      if (slots + buffer.slots > this.#ring.size) throw new Fault('chainLong', this.#ring.size);
      if (buffer.length === 0 || (buffers.length === 0 && buffer.length < this.#headerLength))
        throw new Fault('noRoom', buffer.length);
      buffers.push({ ...buffer, position });
      this.tangled ||= inRings(this.#port, buffer.pieces);
      total += buffer.length;
      slots += buffer.slots;
      position = this.#advance(position, buffer.slots);
    }
    if (this.#headerLength === 12) bytes.writeUInt16LE(buffers.length, 10);
    let done = 0;
    for (const { pieces } of buffers) {
      for (const { address, length } of pieces) {
        bytes.copy(this.#image, this.#offset(address), done, done + length);
        done += length;
      }
    }
    // All but the first of a frame lie there at once, and the next frame's buffers are read behind them.
    for (const [i, { position: at, id, length }] of buffers.entries()) {
      this.#use(at, id, length, WRITE);
      if (i > 0) this.#store(this.#pending.pop()!);
    }
    this.lastAvail = position;
    this.usedIdx = position;
    return undefined;
  }

  /** A packed ring has nothing that is written and not shown. */
  forgiveUnseen(): void {}
}
