/**
 * The control virtqueue from the driver's side (virtio 1.3, 5.1.6.5), where the back-end owns it: commands, one at a
 * time, each resolved when the back-end has done it. The ring has room for one command and is looked at now and then
 * while one is in work: commands are few.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Arena } from '../arena/index.ts';
import { closeFd, eventfd, signal } from '../sys/index.ts';
import type { HashConfig, RssConfig } from '../virtio/control-queue.ts';
import { packedLayout } from '../virtio/packed-ring.ts';
import { splitLayout } from '../virtio/split-ring.ts';
import { VirtioUserError } from './errors.ts';
import type { RingPlace } from './transport.ts';

const SIZE = 4;
/** Where command and answer lie in the room; the ring is at its start. */
const COMMAND = 4096;
const MAX_COMMAND = 4096;
const ANSWER = COMMAND + MAX_COMMAND;
/** Bytes of the room, in memory that is shared with the back-end. */
export const CONTROL_ROOM = ANSWER + 4096;

/** Descriptor flags (2.7.5, 2.8.1). */
const NEXT = 1;
const WRITE = 2;
const AVAIL = 0x80;
const USED = 0x8000;
/** Nobody waits for interrupts: avail.flags (2.7.7), RING_EVENT_FLAGS_DISABLE (2.8.10). */
const NO_INTERRUPT = 1;
const EVENT_DISABLE = 1 << 16;
/** What no device answers. */
const NO_ANSWER = 0xee;
const OK = 0;

export class ControlQueue {
  /** @internal */
  readonly kickFd = eventfd();
  /** @internal */
  readonly callFd = eventfd();
  readonly #arena: Arena;
  readonly #view: DataView;
  readonly #words: Uint16Array;
  readonly #at: number;
  readonly #packed: boolean;
  readonly #timeout: number;
  /** Commands given since the ring began. */
  #given = 0;
  #last: Promise<unknown> = Promise.resolve();
  /** A command had no answer in time: one that comes late would be taken for another's. */
  #late = false;
  /** Counts connections, and the end of the last: a command ends with its own. */
  #connection = 0;
  #closed = false;

  /** Over CONTROL_ROOM bytes of the arena at `at`, a multiple of 4096. `timeout` in milliseconds for a command. @internal */
  constructor(arena: Arena, at: number, packed: boolean, timeout: number) {
    this.#arena = arena;
    this.#view = new DataView(arena.memory.buffer);
    this.#words = new Uint16Array(arena.memory.buffer);
    this.#at = at;
    this.#packed = packed;
    this.#timeout = timeout;
  }

  /** A fresh ring, as the back-end is told of it. @internal */
  begin(): RingPlace {
    const at = this.#packed ? packedLayout(SIZE) : splitLayout(SIZE);
    this.#arena.u8.fill(0, this.#at, this.#at + COMMAND);
    this.#given = 0;
    this.#late = false;
    this.#connection++;
    if (this.#packed) this.#view.setUint32(this.#at + at.avail, EVENT_DISABLE, true);
    else this.#view.setUint16(this.#at + at.avail, NO_INTERRUPT, true);
    const user = (offset: number) => this.#arena.base + BigInt(this.#at + offset);
    return {
      size: SIZE,
      base: this.#packed ? 0x8000 : 0,
      descUser: user(at.desc),
      availUser: user(at.avail),
      usedUser: user(at.used),
    };
  }

  setPromiscuous(on: boolean): Promise<void> {
    return this.#give([0, 0, Number(on)]);
  }

  setAllMulticast(on: boolean): Promise<void> {
    return this.#give([0, 1, Number(on)]);
  }

  /** The device's address from now on, 6 bytes. */
  setMac(address: Uint8Array): Promise<void> {
    return this.#give([1, 1, ...address]);
  }

  /** Addresses that frames are wanted for besides the device's own, in place of those before. */
  setMacTable(unicast: readonly Uint8Array[], multicast: readonly Uint8Array[]): Promise<void> {
    const list = (addresses: readonly Uint8Array[]) => [
      ...le32(addresses.length),
      ...addresses.flatMap((address) => [...address]),
    ];
    return this.#give([1, 0, ...list(unicast), ...list(multicast)]);
  }

  /** Wants frames of a VLAN, 0 to 4095, or not any more. */
  setVlan(id: number, on: boolean): Promise<void> {
    return this.#give([2, on ? 0 : 1, ...le16(id)]);
  }

  /** The device was asked to announce itself, and has. */
  announced(): Promise<void> {
    return this.#give([3, 0]);
  }

  /** Frames come on the first pairs of queues alone. */
  setPairs(pairs: number): Promise<void> {
    return this.#give([4, 0, ...le16(pairs)]);
  }

  /** Frames come on the queue that the table has for their hash. */
  setRss({ hashTypes, unclassified, table, transmitQueues, key }: RssConfig): Promise<void> {
    const queues = [table.length - 1, unclassified, ...table, transmitQueues].flatMap(le16);
    return this.#give([4, 1, ...le32(hashTypes), ...queues, key.length, ...key]);
  }

  /** Headers tell hashes of these types. */
  setHash({ hashTypes, key }: HashConfig): Promise<void> {
    return this.#give([4, 2, ...le32(hashTypes), ...Array<number>(8).fill(0), key.length, ...key]);
  }

  /** VIRTIO_NET_F_GUEST_… bits of what may be left undone in frames that come. */
  setOffloads(bits: bigint): Promise<void> {
    return this.#give([5, 0, ...le32(Number(bits & 0xffff_ffffn)), ...le32(Number(bits >> 32n))]);
  }

  /** Rejects with a VirtioUserError where the back-end says no, or nothing in time. */
  #give(command: readonly number[]): Promise<void> {
    const result = this.#last.then(() => this.#execute(Uint8Array.from(command)));
    this.#last = result.catch(() => {});
    return result;
  }

  async #execute(command: Uint8Array): Promise<void> {
    const name = `command ${command[0]}.${command[1]}`;
    // The room may be another device's by now.
    if (this.#closed) throw new VirtioUserError('CLOSED', `${name}: this virtio-user device is closed`);
    if (command.length > MAX_COMMAND)
      throw new VirtioUserError('BACKEND', `${name} has ${command.length} bytes, at most ${MAX_COMMAND} fit`);
    if (this.#late) throw new VirtioUserError('BACKEND', `${name}: an earlier command was never answered`);
    this.#arena.u8.set(command, this.#at + COMMAND);
    this.#arena.u8[this.#at + ANSWER] = NO_ANSWER;
    const used = this.#packed ? this.#postPacked(command.length) : this.#postSplit(command.length);
    this.#given++;
    signal(this.kickFd);
    const connection = this.#connection;
    for (const until = performance.now() + this.#timeout; !used(); ) {
      if (performance.now() > until) {
        this.#late = true;
        throw new VirtioUserError('BACKEND', `${name}: no answer within ${this.#timeout} ms`);
      }
      await sleep(1);
      if (connection !== this.#connection)
        throw new VirtioUserError('BACKEND', `${name}: the connection ended before the answer`);
    }
    const answer = this.#arena.u8[this.#at + ANSWER];
    if (answer !== OK) throw new VirtioUserError('BACKEND', `${name}: the back-end says no (${answer})`);
  }

  #describe(place: number, offset: number, length: number): number {
    const at = this.#at + 16 * place;
    this.#view.setBigUint64(at, this.#arena.base + BigInt(this.#at + offset), true);
    this.#view.setUint32(at + 8, length, true);
    return at;
  }

  #postSplit(length: number): () => boolean {
    const { avail, used } = splitLayout(SIZE);
    this.#view.setUint32(this.#describe(0, COMMAND, length) + 12, NEXT | (1 << 16), true);
    this.#view.setUint32(this.#describe(1, ANSWER, 1) + 12, WRITE, true);
    this.#view.setUint16(this.#at + avail + 4 + 2 * (this.#given % SIZE), 0, true);
    const next = (this.#given + 1) & 0xffff;
    // Sequentially consistent: what is made available is there before the index.
    Atomics.store(this.#words, (this.#at + avail + 2) >>> 1, next);
    return () => Atomics.load(this.#words, (this.#at + used + 2) >>> 1) === next;
  }

  /** Two descriptors a command, so that it is always the first or the second half of the ring. */
  #postPacked(length: number): () => boolean {
    const place = (2 * this.#given) % SIZE;
    // The wrap counter begins as 1 (2.8.1).
    const wrap = Math.floor((2 * this.#given) / SIZE) % 2 === 0;
    const available = wrap ? AVAIL : USED;
    const gone = wrap ? AVAIL | USED : 0;
    const first = this.#describe(place, COMMAND, length);
    const second = this.#describe(place + 1, ANSWER, 1);
    this.#view.setUint16(first + 12, 0, true);
    this.#view.setUint32(second + 12, (WRITE | available) << 16, true);
    Atomics.store(this.#words, (first + 14) >>> 1, NEXT | available);
    return () => (Atomics.load(this.#words, (first + 14) >>> 1) & (AVAIL | USED)) === gone;
  }

  /** @internal */
  close(): void {
    this.#closed = true;
    this.#connection++;
    closeFd(this.kickFd);
    closeFd(this.callFd);
  }
}

const le16 = (value: number) => [value & 255, (value >>> 8) & 255];
const le32 = (value: number) => [...le16(value & 0xffff), ...le16(value >>> 16)];
