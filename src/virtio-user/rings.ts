/**
 * The rings of a virtio-user device: their memory, in a memory file that is shared with the back-end, their
 * structures for the data plane (DriverRing in src/dataplane/layout.ts), and an eventfd each for kicks and calls.
 *
 * Ring 2n is what queue pair n receives on, 2n + 1 what it sends on (virtio 1.3, 5.1.2).
 */
import { type Arena, fields, Pool, type Range, Struct } from '../arena/index.ts';
import { closeFd, eventfd } from '../sys/index.ts';
import { features } from '../virtio/features.ts';
import { packedLayout } from '../virtio/packed-ring.ts';
import { splitLayout } from '../virtio/split-ring.ts';
import { CONTROL_ROOM } from './control-queue.ts';
import { MAX_HEADER, type Settings } from './options.ts';
import type { RingPlace, SharedMemory } from './transport.ts';

/** DriverRing.flags, and the feature that each follows. */
const FLAGS = [
  [1, features.VIRTIO_F_EVENT_IDX],
  [2, features.VIRTIO_F_INDIRECT_DESC],
  [4, features.VIRTIO_NET_F_MRG_RXBUF],
  [8, features.VIRTIO_F_IN_ORDER],
  [16, features.VIRTIO_F_RING_PACKED],
  [32, features.VIRTIO_NET_F_CSUM],
  [32, features.VIRTIO_NET_F_GUEST_CSUM],
] as const;

const RING_FIELDS = [
  'size', 'flags', 'desc', 'avail', 'used', 'bias', 'headerLength', 'buffers', 'bufferLength', 'segmentLength',
  'headerAlone', 'shadow', 'tables', 'tableEntries', 'lent', 'lastUsed', 'error', 'errorValue', 'packets',
  'bytes', 'gaps', 'expected', 'errors', 'sizes', 'multicasts', 'broadcasts',
] as const; // biome-ignore format: a table

/** A sentence for each code of src/dataplane/errors.ts that the driver's side meets. */
const RING_ERRORS: Record<number, string> = {
  13: 'the back-end returned descriptor %, which it did not have',
  14: 'the back-end says that it wrote % bytes, which the buffer or the header does not allow',
  15: 'the back-end moved used.idx by %, more than it was given',
  16: 'a frame is said to lie in % buffers, more than came',
};

const TABLE_ENTRIES = 64;
export const MAX_FRAME = 65550;
/** Bytes before a frame in our memory, for its virtio-net header. A cache line, so that frames stay aligned. */
const HEADER_ROOM = 64;

export const TO_US = 0;
export const FROM_US = 1;

/** What rings are made of; options.ts says what each is. */
export type RingSettings = Pick<
  Settings,
  'queueSize' | 'bufferLength' | 'segmentLength' | 'headerAlone' | 'queues' | 'control'
>;

export type Ring = Struct<(typeof RING_FIELDS)[number]>;

export class Rings {
  readonly all: readonly Ring[];
  /** The eventfd of each ring that wakes the back-end, and that which it interrupts us by. */
  readonly kicks: readonly number[];
  readonly calls: readonly number[];
  /** Where the data plane finds a frame to send, and leaves one that came: MAX_FRAME bytes of the arena. */
  readonly frame: number;
  /** Where in the arena the control queue has its room, if it was asked for. */
  readonly controlRoom: number;
  readonly #arena: Arena;
  readonly #packed: boolean;
  /** Bytes from the start of a ring to its buffers. */
  readonly #ringLength: number;
  readonly #pool: Pool;
  readonly #tables: Range;

  /** Takes the memory; prepare() makes rings of it. Throws an Error where there is no room; nothing is left behind then. */
  constructor(arena: Arena, agreed: bigint, settings: RingSettings) {
    const { queueSize: size, bufferLength } = settings;
    this.#arena = arena;
    this.#packed = (agreed & features.VIRTIO_F_RING_PACKED) !== 0n;
    const at = this.#packed ? packedLayout(size) : splitLayout(size);
    const ringLength = roundUp(at.length, 4096);
    this.#ringLength = ringLength;
    const buffersLength = roundUp(size * bufferLength, 4096);
    const tableEntries = agreed & features.VIRTIO_F_INDIRECT_DESC ? TABLE_ENTRIES : 0;
    const queueLength = ringLength + buffersLength + size * tableEntries * 16;
    const count = 2 * settings.queues;
    const layout = arena.dataplane.layout;
    const stride = layout.DRIVER_RING_STRIDE!;
    const shadowLength = roundUp(size * layout.SHADOW_STRIDE!, 64);
    const frameRoom = roundUp(HEADER_ROOM + MAX_FRAME, 64);
    const fds: number[] = [];
    const undo: (() => void)[] = [() => fds.forEach(closeFd)];
    try {
      for (let i = 0; i < 2 * count; i++) fds.push(eventfd());
      this.kicks = fds.slice(0, count);
      this.calls = fds.slice(count);
      this.controlRoom = roundUp(count * queueLength, 4096);
      this.#pool = new Pool(arena, 'virtio-user', this.controlRoom + (settings.control ? CONTROL_ROOM : 0));
      this.controlRoom += this.#pool.range.start;
      undo.push(() => this.#pool.close());
      this.#tables = arena.takeTable(count * (stride + shadowLength) + frameRoom);
    } catch (error) {
      for (const step of undo.reverse()) step();
      throw error;
    }
    const tables = this.#tables;
    this.frame = tables.start + tables.length - frameRoom + HEADER_ROOM;
    const offsets = fields(layout, 'DriverRing', RING_FIELDS);
    const modern = agreed & (features.VIRTIO_F_VERSION_1 | features.VIRTIO_NET_F_MRG_RXBUF);
    this.all = Array.from({ length: count }, (_, index) => {
      const ring: Ring = new Struct(arena, tables.start + index * stride, offsets);
      const start = this.#pool.range.start + index * queueLength;
      ring.set('size', size);
      ring.set(
        'flags',
        FLAGS.reduce((sum, [flag, bit]) => (agreed & bit ? sum | flag : sum), 0),
      );
      ring.set('desc', start + at.desc);
      ring.set('avail', start + at.avail);
      ring.set('used', start + at.used);
      ring.set64('bias', arena.base);
      ring.set('headerLength', agreed & features.VIRTIO_NET_F_HASH_REPORT ? 20 : modern ? 12 : 10);
      ring.set('buffers', start + ringLength);
      ring.set('bufferLength', bufferLength);
      ring.set('segmentLength', settings.segmentLength);
      ring.set('headerAlone', settings.headerAlone ? 1 : 0);
      ring.set('shadow', tables.start + count * stride + index * shadowLength);
      ring.set('tables', start + ringLength + buffersLength);
      ring.set('tableEntries', tableEntries);
      return ring;
    });
  }

  /** Makes fresh rings of all: nothing to send, and every buffer to receive lent. */
  prepare(): void {
    const { functions } = this.#arena.dataplane;
    for (const [index, { at }] of this.all.entries()) {
      const desc = this.all[index]!.get('desc');
      this.#arena.u8.fill(0, desc, desc + this.#ringLength);
      functions.prepareDriver(at, index % 2 === TO_US ? 1 : 0);
      functions.publishDriver(at);
      functions.disarmDriver(at);
    }
  }

  get memory(): SharedMemory {
    const { fd, length, range } = this.#pool;
    const address = this.#arena.base + BigInt(range.start);
    return { fd, address, length, rings: this.all.length, ringSize: this.all[0]!.get('size') };
  }

  /**
   * Can another back-end go on with what lies in the rings? Not where one broke a rule in them; and packed rings
   * don't say what it had in work.
   */
  canGoOn(inflight: boolean): boolean {
    if (this.all.some((ring) => ring.get('error') !== 0)) return false;
    if (this.#packed) return inflight;
    return this.all.every(
      (ring) => ((this.#usedIdx(ring) - ring.get('lastUsed')) & 0xffff) <= ring.get('lent'),
    );
  }

  /** The index of a split ring's used ring (2.7.8): where the back-end stopped. */
  #usedIdx(ring: Ring): number {
    const at = ring.get('used') + 2;
    return this.#arena.u8[at]! | (this.#arena.u8[at + 1]! << 8);
  }

  /** A ring as the back-end is told of it, fresh, or as it `goesOn`. */
  place(index: number, goesOn: boolean): RingPlace {
    const ring = this.all[index]!;
    const user = (field: 'desc' | 'avail' | 'used') => this.#arena.base + BigInt(ring.get(field));
    return {
      size: ring.get('size'),
      // A packed ring begins with a wrap counter of 1 (2.8.1); one that goes on does so where its notes say.
      base: this.#packed ? 0x8000 : goesOn ? this.#usedIdx(ring) : 0,
      descUser: user('desc'),
      availUser: user('avail'),
      usedUser: user('used'),
    };
  }

  /** Where the data plane finds and leaves the virtio-net header of a frame. */
  get header(): Uint8Array {
    return this.#arena.u8.subarray(this.frame - MAX_HEADER, this.frame);
  }

  /** The 8 bytes of the header in which a frame that came has its hash (5.1.6), which the data plane leaves there. */
  get hash(): DataView {
    return new DataView(this.#arena.memory.buffer, this.frame - 24, 8);
  }

  /** The rule that the back-end broke in a ring; undefined: none. */
  fault(index: number): string | undefined {
    const ring = this.all[index]!;
    const code = ring.get('error');
    if (code === 0) return undefined;
    return (RING_ERRORS[code] ?? `error ${code}`).replace('%', String(ring.get64('errorValue')));
  }

  /** Frees everything. Only once the back-end is gone or the rings are stopped. */
  close(): void {
    for (const fd of [...this.kicks, ...this.calls]) closeFd(fd);
    this.#pool.close();
    this.#arena.freeTable(this.#tables);
  }
}

function roundUp(value: number, step: number): number {
  return Math.ceil(value / step) * step;
}
