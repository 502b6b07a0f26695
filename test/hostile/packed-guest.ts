/** A guest with packed rings (virtio 1.3, 2.8) written by hand, behind a real vhost-user socket. */
import type { Poller } from '../../src/sys/index.ts';
import { signal } from '../../src/sys/index.ts';
import { features } from '../../src/virtio/features.ts';
import { packedLayout } from '../../src/virtio/packed-ring.ts';
import type { RingLayout } from '../../src/virtio/split-ring.ts';
import { RawGuest, type RawGuestOptions } from '../support/raw-guest.ts';

export interface PackedDescriptor {
  address: bigint;
  length: number;
  flags?: number;
  /** Buffer id; default: the number of its place. */
  id?: number;
}

const NEXT = 1;
const AVAIL = 0x80;
const USED = 0x8000;
const FEATURES =
  features.VIRTIO_F_VERSION_1 |
  features.VIRTIO_F_INDIRECT_DESC |
  features.VIRTIO_NET_F_MRG_RXBUF |
  features.VIRTIO_F_RING_PACKED;

export class PackedGuest extends RawGuest {
  /** Places filled since the ring started, by ring. */
  readonly #filled: number[] = [];

  constructor(path: string, poller: Poller, options: RawGuestOptions = {}) {
    super(path, poller, { features: FEATURES, ...options });
  }

  protected override parts(): RingLayout {
    return packedLayout(this.size);
  }

  /** Both wrap counters begin as 1 (2.8.1). */
  override async startRing(index: number): Promise<void> {
    this.#filled[index] = 0;
    this.write(this.at(index, 'desc', 0), Buffer.alloc(16 * this.size));
    await super.startRing(index, 0x8000);
  }

  override async restart(index: number): Promise<void> {
    await this.session.stopVring(index);
    await this.startRing(index);
  }

  /** Writes a descriptor at a place in the ring, flags and all as they are given. */
  put(index: number, place: number, descriptor: PackedDescriptor): void {
    this.describeAt(this.at(index, 'desc', 16 * place), { id: place, ...descriptor });
  }

  /** A packed descriptor anywhere, as in an indirect table (2.8.7). */
  override describeAt(at: bigint, { address, length, flags = 0, id = 0 }: PackedDescriptor): void {
    const bytes = Buffer.alloc(16);
    bytes.writeBigUInt64LE(BigInt.asUintN(64, address), 0);
    bytes.writeUInt32LE(length, 8);
    bytes.writeUInt16LE(id, 12);
    bytes.writeUInt16LE(flags, 14);
    this.write(at, bytes);
  }

  /** The driver's event suppression structure: 16 bits of place and wrap counter, 16 bits of flags (2.8.10). */
  suppress(index: number, word: number): void {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(word);
    this.write(this.at(index, 'avail', 0), bytes);
  }

  kick(index: number): void {
    signal(this.kicks[index]!);
  }

  /** The flags with which a descriptor that is filled `n`-th is available (2.8.1). */
  available(n: number): number {
    return Math.floor(n / this.size) % 2 === 0 ? AVAIL : USED;
  }

  /** Makes one buffer available: descriptors at the next places, linked, the first one written last. */
  post(index: number, ...descriptors: PackedDescriptor[]): void {
    const first = this.#filled[index]!;
    for (const [i, d] of [...descriptors.entries()].reverse()) {
      const link = i < descriptors.length - 1 ? NEXT : 0;
      const flags = (d.flags ?? 0) ^ link ^ this.available(first + i);
      this.put(index, (first + i) % this.size, { ...d, flags });
    }
    this.#filled[index] = first + descriptors.length;
    this.kick(index);
  }

  /** The used descriptor at a place: its id, length and flags. */
  descriptor(index: number, place: number): { id: number; length: number; flags: number } {
    const bytes = this.read(this.at(index, 'desc', 16 * place), 16);
    return { length: bytes.readUInt32LE(8), id: bytes.readUInt16LE(12), flags: bytes.readUInt16LE(14) };
  }

  /** The buffer that began at the `n`-th descriptor is used. */
  isUsed(index: number, n: number): boolean {
    const flags = this.descriptor(index, n % this.size).flags & (AVAIL | USED);
    return flags === (this.available(n) === AVAIL ? AVAIL | USED : 0);
  }

  /** How many descriptors were made available since the start. */
  filled(index: number): number {
    return this.#filled[index]!;
  }

  /** A frame in one descriptor. */
  override send(...frames: Uint8Array[]): void {
    for (const bytes of frames) {
      const place = this.#filled[1]! % this.size;
      const address = this.buffer(this.size + place);
      this.write(address, Buffer.concat([Buffer.alloc(12), bytes]));
      this.post(1, { address, length: 12 + bytes.length });
    }
  }

  override lend(count = this.size): void {
    for (let i = 0; i < count; i++) this.post(0, { address: this.buffer(i), length: 2048, flags: 2 });
  }
}
