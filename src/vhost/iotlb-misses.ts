/**
 * What is asked of a front-end with an IOMMU: translations that a ring waits for, and those that it will need next.
 */
import type { VringStruct } from '../arena/index.ts';
import { ACCESS_READ, ACCESS_WRITE, type IotlbMessage, iotlb } from './messages.ts';

const PAGE = 4096n;
/** Questions without an answer; beyond that older ones are asked again when they are needed. */
const MOST = 1024;

/** Whoever can be asked. */
export interface IotlbChannel {
  iotlb(message: IotlbMessage): void;
}

/** Asks for each page once, until an answer comes. */
export class Misses {
  readonly #asked = new Map<bigint, number>();
  #channel: IotlbChannel | undefined;

  /** Asks this front-end from now on, anew. */
  use(channel: IotlbChannel | undefined): void {
    this.#channel = channel;
    this.#asked.clear();
  }

  /**
   * `again`: even without an answer to the question before. That one may have been of a buffer that was used up
   * meanwhile: such a page isn't mapped, QEMU doesn't answer, and later the guest has another buffer there.
   */
  ask(address: bigint, access: number, again = false): void {
    const page = address - (address % PAGE);
    const before = again ? 0 : (this.#asked.get(page) ?? 0);
    if (!this.#channel || (before & access) === access) return;
    if (this.#asked.size >= MOST) this.#asked.clear();
    this.#asked.set(page, before | access);
    this.#channel.iotlb({ iova: page, size: 0n, userAddress: 0n, access, type: iotlb.MISS });
  }

  /** What was needed isn't allowed there. */
  refuse(iova: bigint, access: number): void {
    this.#channel?.iotlb({ iova, size: 0n, userAddress: 0n, access, type: iotlb.ACCESS_FAIL });
  }

  answered(iova: bigint, size: bigint): void {
    for (const page of this.#asked.keys()) {
      if (page < iova + size && iova < page + PAGE) this.#asked.delete(page);
    }
  }
}

/** Descriptor flags (virtio 1.3, 2.7.5 and 2.8.1). */
const NEXT = 1;
const INDIRECT = 4;
const AVAIL = 0x80;
const USED = 0x8000;
const WRAP = 0x8000;

/**
 * Pages of the next `most` buffers that a ring has been given and not worked on yet, with what it will do there; read
 * from guest memory as it is, so of no more worth than a question. Tables are not followed.
 */
export function* buffersAhead(
  view: DataView,
  vring: VringStruct,
  packed: boolean,
  most: number,
): Generator<{ address: bigint; access: number }> {
  const size = vring.get('size');
  const [desc, avail] = [vring.get('desc'), vring.get('avail')];
  const access = vring.get('writes') === 1 ? ACCESS_WRITE : ACCESS_READ;
  function* pages(index: number, flags: number) {
    const start = view.getBigUint64(desc + 16 * index, true);
    const length = BigInt(view.getUint32(desc + 16 * index + 8, true));
    const first = start - (start % PAGE);
    const last = start + (length < 0x1_0000n ? length : 0x1_0000n);
    for (let page = first; page < last; page += PAGE) {
      yield { address: BigInt.asUintN(64, page), access: flags & INDIRECT ? ACCESS_READ : access };
    }
  }
  let at = vring.get('lastAvail');
  if (packed) {
    for (let i = 0; i < Math.min(size, most); i++) {
      const index = at & 0x7fff;
      const flags = view.getUint16(desc + 16 * index + 14, true);
      if ((flags & (AVAIL | USED)) !== (at & WRAP ? AVAIL : USED)) return;
      yield* pages(index, flags);
      at = index + 1 === size ? (at & WRAP) ^ WRAP : at + 1;
    }
    return;
  }
  const waiting = Math.min((view.getUint16(avail + 2, true) - at) & 0xffff, size, most);
  for (let i = 0; i < waiting; i++) {
    let index = view.getUint16(avail + 4 + 2 * ((at + i) % size), true);
    for (let chain = 0; chain < 20 && index < size; chain++) {
      const flags = view.getUint16(desc + 16 * index + 12, true);
      yield* pages(index, flags);
      if (!(flags & NEXT)) break;
      index = view.getUint16(desc + 16 * index + 14, true);
    }
  }
}
