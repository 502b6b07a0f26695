/**
 * A guest that does what it is told to: a front-end with memory of its own and rings written by hand, behind a
 * real vhost-user socket. Its memory is a file and is written as one.
 */
import { readSync, writeSync } from 'node:fs';
import { closeFd, connectUnix, drain, eventfd, memfd, type Poller, signal } from '../../src/sys/index.ts';
import type { MemoryRegion } from '../../src/vhost/device.ts';
import { FrontendSession } from '../../src/vhost/frontend.ts';
import { features } from '../../src/virtio/features.ts';
import { type RingLayout, splitLayout } from '../../src/virtio/split-ring.ts';
import { frame } from './ethernet.ts';
import type { Descriptor } from './plane.ts';

/** Where its memory lies for the guest, and for the front-end. */
export const GUEST = 0x4000_0000n;
export const USER = 0x7f00_0000_0000n;

const DEFAULT_FEATURES =
  features.VIRTIO_F_VERSION_1 | features.VIRTIO_F_INDIRECT_DESC | features.VIRTIO_NET_F_MRG_RXBUF;

export interface RawGuestOptions {
  size?: number;
  megabytes?: number;
  features?: bigint;
  /** Its memory file takes seals; default true. */
  sealable?: boolean;
  /** Bytes from one buffer to the next; default 2048. */
  stride?: number;
  /** Rings that it has; default 2: one to receive on, one to send on. A third one is for commands. */
  rings?: number;
}

export class RawGuest {
  readonly session: FrontendSession;
  readonly size: number;
  readonly bytes: number;
  readonly fd: number;
  readonly kicks: readonly number[];
  readonly calls: readonly number[];
  readonly errs: readonly number[];
  readonly wanted: bigint;
  /** Where the parts of each ring lie in its memory. */
  protected readonly rings: readonly { desc: number; avail: number; used: number }[];
  readonly #buffers: number;
  readonly #stride: number;
  #closed = false;
  /** Entries offered and entries seen, by ring. */
  readonly offered: number[];
  readonly seen: number[];

  constructor(path: string, poller: Poller, options: RawGuestOptions = {}) {
    this.size = options.size ?? 64;
    this.bytes = (options.megabytes ?? 1) * 2 ** 20;
    this.#stride = options.stride ?? 2048;
    this.wanted = options.features ?? DEFAULT_FEATURES;
    this.fd = memfd('raw-guest', this.bytes, { sealable: options.sealable ?? true });
    const parts = this.parts();
    const length = Math.ceil(parts.length / 4096) * 4096;
    const count = options.rings ?? 2;
    const eventfds = () => Array.from({ length: count }, () => eventfd());
    [this.kicks, this.calls, this.errs] = [eventfds(), eventfds(), eventfds()];
    this.offered = Array<number>(count).fill(0);
    this.seen = [...this.offered];
    this.rings = this.offered.map((_, i) => ({
      desc: i * length + parts.desc,
      avail: i * length + parts.avail,
      used: i * length + parts.used,
    }));
    this.#buffers = count * length;
    this.session = new FrontendSession({ fd: connectUnix(path), poller });
  }

  protected parts(): RingLayout {
    return splitLayout(this.size);
  }

  /** The whole memory as one region. */
  get region(): MemoryRegion {
    return {
      guestAddress: GUEST,
      userAddress: USER,
      size: BigInt(this.bytes),
      mmapOffset: 0n,
      fd: this.fd,
    };
  }

  /** Negotiates, shares its memory, and starts both rings. */
  async start(): Promise<void> {
    await this.negotiate();
    await this.session.setMemoryTable([this.region]);
    for (const index of this.rings.keys()) await this.startRing(index);
  }

  async negotiate(): Promise<void> {
    await this.session.negotiate(this.wanted);
  }

  async startRing(index: number, base = 0): Promise<void> {
    await this.session.setVring(index, this.layout(index, base));
    const fds = { kickFd: this.kicks[index]!, callFd: this.calls[index]!, errFd: this.errs[index]! };
    await this.session.startVring(index, fds);
    await this.session.enable(index, true);
  }

  layout(index: number, base = 0) {
    const ring = this.rings[index]!;
    return {
      size: this.size,
      base,
      descUser: USER + BigInt(ring.desc),
      availUser: USER + BigInt(ring.avail),
      usedUser: USER + BigInt(ring.used),
    };
  }

  /** Guest address of buffer `i`: 2048 bytes, or as many as lie between two. */
  buffer(i: number): bigint {
    return GUEST + BigInt(this.#buffers + i * this.#stride);
  }

  write(address: bigint, bytes: Uint8Array): void {
    writeSync(this.fd, bytes, 0, bytes.length, Number(address - GUEST));
  }

  read(address: bigint, length: number): Buffer {
    const bytes = Buffer.alloc(length);
    readSync(this.fd, bytes, 0, length, Number(address - GUEST));
    return bytes;
  }

  protected at(index: number, part: 'desc' | 'avail' | 'used', offset: number): bigint {
    return GUEST + BigInt(this.rings[index]![part] + offset);
  }

  describe(index: number, at: number, d: Descriptor): void {
    this.describeAt(this.at(index, 'desc', 16 * at), d);
  }

  describeAt(address: bigint, d: Descriptor): void {
    const bytes = Buffer.alloc(16);
    bytes.writeBigUInt64LE(BigInt.asUintN(64, d.address), 0);
    bytes.writeUInt32LE(d.length, 8);
    bytes.writeUInt16LE(d.flags ?? 0, 12);
    bytes.writeUInt16LE(d.next ?? 0, 14);
    this.write(address, bytes);
  }

  offer(index: number, ...heads: number[]): void {
    for (const head of heads) {
      const slot = this.offered[index]! % this.size;
      this.write(this.at(index, 'avail', 4 + 2 * slot), Uint8Array.of(head, head >> 8));
      this.offered[index] = (this.offered[index]! + 1) & 0xffff;
    }
    this.setAvailIdx(index, this.offered[index]!);
  }

  setAvailIdx(index: number, value: number): void {
    this.write(this.at(index, 'avail', 2), Uint8Array.of(value, value >> 8));
    signal(this.kicks[index]!);
  }

  /** Asks for an interrupt when this entry is used (used_event, virtio 1.3, 2.7.10). */
  askForEvent(index: number, event: number): void {
    this.write(this.at(index, 'avail', 4 + 2 * this.size), Uint8Array.of(event, event >> 8));
  }

  usedIdx(index: number): number {
    return this.read(this.at(index, 'used', 2), 2).readUInt16LE();
  }

  /** Does the switch want a kick for this ring (used.flags)? */
  kickWanted(index: number): boolean {
    return (this.read(this.at(index, 'used', 0), 1)[0]! & 1) === 0;
  }

  /** A ring as it was at the start, for one that starts anew. */
  clear(index: number): void {
    this.offered[index] = 0;
    this.seen[index] = 0;
    for (const part of ['avail', 'used'] as const) this.write(this.at(index, part, 0), new Uint8Array(4));
  }

  /** Lends buffers 0 to `count` - 1 to receive into. */
  lend(count = this.size): void {
    for (let i = 0; i < count; i++) this.describe(0, i, { address: this.buffer(i), length: 2048, flags: 2 });
    this.offer(0, ...Array(count).keys());
  }

  /** Sends frames, each in a descriptor of its own; no more at once than the ring holds. */
  send(...frames: Uint8Array[]): void {
    const heads = frames.map((bytes, i) => {
      const slot = (this.offered[1]! + i) % this.size;
      const address = this.buffer(this.size + slot);
      this.write(address, Buffer.concat([Buffer.alloc(12), bytes]));
      this.describe(1, slot, { address, length: 12 + bytes.length });
      return slot;
    });
    this.offer(1, ...heads);
  }

  /** Frames received since the last call; their buffers are lent again. */
  received(): Buffer[] {
    const frames: Buffer[] = [];
    const idx = this.usedIdx(0);
    for (; this.seen[0] !== idx; this.seen[0] = (this.seen[0]! + 1) & 0xffff) {
      const entry = this.read(this.at(0, 'used', 4 + 8 * (this.seen[0]! % this.size)), 8);
      const id = entry.readUInt32LE(0);
      frames.push(this.read(this.buffer(id), entry.readUInt32LE(4)).subarray(12));
      this.offer(0, id);
    }
    return frames;
  }

  /** Offers one chain of descriptors from number `first` on, linked one to the next. */
  chain(index: number, first: number, ...descriptors: Descriptor[]): void {
    for (const [i, d] of descriptors.entries()) {
      const last = i === descriptors.length - 1;
      const link = last ? {} : { flags: (d.flags ?? 0) | 1, next: (first + i + 1) % this.size };
      this.describe(index, (first + i) % this.size, { ...d, ...link });
    }
    this.offer(index, first);
  }

  /** The switch has given everything back that was offered. */
  allUsed(index: number): boolean {
    return this.usedIdx(index) === this.offered[index];
  }

  /** Stops a ring and starts it again with nothing on offer. */
  async restart(index: number): Promise<void> {
    await this.session.stopVring(index);
    this.offered[index] = this.usedIdx(index);
    this.setAvailIdx(index, this.usedIdx(index));
    await this.startRing(index, this.usedIdx(index));
  }

  /** Has the switch signalled that this ring is broken? */
  errSignalled(index: number): boolean {
    return drain(this.errs[index]!);
  }

  /** Leaves without a word, and gives everything back. May be called again. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.session.close();
    for (const fd of [...this.kicks, ...this.calls, ...this.errs, this.fd]) closeFd(fd);
  }
}

/** A frame with a number in it, at byte 14. */
export function numbered(to: Buffer, from: Buffer, number: number, length = 60): Buffer {
  const bytes = frame(to, from, length, number);
  bytes.writeUInt32LE(number, 14);
  return bytes;
}

export function numberOf(bytes: Uint8Array): number {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).readUInt32LE(14);
}
