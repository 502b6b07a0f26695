/**
 * A guest that migrates here by postcopy: its memory is at another place, and a page comes when the switch has
 * touched it and the front-end, which is this, brings it.
 */
import { fstatSync, readSync, writeSync } from 'node:fs';
import { closeFd, connectUnix, eventfd, memfd, wakeFaulting } from '../../src/sys/index.ts';
import * as m from '../../src/vhost/messages.ts';
import { features, vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { RawEnd } from '../vhost/harness.ts';
import { GUEST, USER } from './raw-guest.ts';
import { until } from './until.ts';

const R = m.requests;
const PAGE = 4096;
const UFFD_EVENT_PAGEFAULT = 0x12;
const BYTES = 1 << 20;
const ENTRIES = 64;
/** Where ring 1 lies; its buffers have a page each from BUFFERS on. */
const [DESC, AVAIL, USED, BUFFERS] = [0, 0x1000, 0x2000, 0x10000];
const P = vhostProtocolFeatures;
export const PAGEFAULT = P.VHOST_USER_PROTOCOL_F_PAGEFAULT;
const FEATURES = features.VHOST_USER_F_PROTOCOL_FEATURES | features.VIRTIO_F_VERSION_1;

export class LateGuest {
  readonly end: RawEnd;
  /** The memory here: a file without a page. */
  readonly fd = memfd('late', BYTES);
  /** The memory at the place that the guest has left. */
  readonly #source = Buffer.alloc(BYTES);
  readonly #kick = eventfd();
  /** Offsets of the pages that were asked for, in their order. */
  readonly asked: number[] = [];
  #userfault = -1;
  /** Where the switch has the memory. */
  base = 0n;
  #sent = 0;
  #closed = false;

  constructor(path: string) {
    this.end = new RawEnd(connectUnix(path));
  }

  /** The answer to a request. */
  async ask(request: number, payload?: Uint8Array, flags = 0, fds: number[] = []) {
    this.end.message(request, payload, { flags, fds });
    const answer = await this.end.next();
    if (!answer) throw new Error(`${m.requestName(request)}: the switch has left`);
    return answer;
  }

  /** The number that a request is answered with. */
  async number(request: number, payload?: Uint8Array): Promise<bigint> {
    return m.decodeU64((await this.ask(request, payload, m.FLAG_NEED_REPLY)).payload);
  }

  negotiate(more = 0n): void {
    const bits = PAGEFAULT | P.VHOST_USER_PROTOCOL_F_REPLY_ACK | P.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS;
    this.end.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(bits));
    this.end.message(R.SET_FEATURES, m.encodeU64(FEATURES | more));
  }

  /** POSTCOPY_ADVISE: takes the userfaultfd. */
  async advise(): Promise<void> {
    const { payload, fds } = await this.ask(R.POSTCOPY_ADVISE);
    if (payload.length !== 0 || fds.length !== 1) throw new Error('no userfaultfd came');
    if (this.#userfault >= 0) closeFd(this.#userfault);
    this.#userfault = fds[0]!;
  }

  /** Says that memory comes late, and that the guest is going to run here. */
  async listen(): Promise<void> {
    this.negotiate();
    await this.advise();
    if ((await this.number(R.POSTCOPY_LISTEN)) !== 0n) throw new Error('POSTCOPY_LISTEN was refused');
  }

  get region(): m.RegionLayout {
    return { guestAddress: GUEST, userAddress: USER, size: BigInt(BYTES), mmapOffset: 0n };
  }

  /** Shares the memory, as a table or as a region; resolves with the answer, and says nothing to it yet. */
  async share(how: 'table' | 'slots' = 'table'): Promise<void> {
    if (how === 'table') {
      const answer = await this.ask(R.SET_MEM_TABLE, m.encodeMemoryTable([this.region]), 0, [this.fd]);
      this.base = m.decodeMemoryTable(answer.payload)[0]!.userAddress;
    } else {
      const answer = await this.ask(R.ADD_MEM_REG, m.encodeRegion(this.region), 0, [this.fd]);
      this.base = m.decodeRegion(answer.payload).userAddress;
    }
  }

  /** Says that it knows where the switch has the memory. */
  know(how: 'table' | 'slots' = 'table'): void {
    this.end.message(how === 'table' ? R.SET_MEM_TABLE : R.ADD_MEM_REG, m.encodeU64(0n));
  }

  describe(): void {
    const at = (offset: number) => USER + BigInt(offset);
    this.end.message(R.SET_VRING_NUM, m.encodeVringState({ index: 1, num: ENTRIES }));
    const ring = { index: 1, flags: 0, descUser: at(DESC), availUser: at(AVAIL), usedUser: at(USED) };
    this.end.message(R.SET_VRING_ADDR, m.encodeVringAddress({ ...ring, logGuest: 0n }));
    this.end.message(R.SET_VRING_ENABLE, m.encodeVringState({ index: 1, num: 1 }));
  }

  /** Starts ring 1. What it needs of the ring's memory is asked for, and must be brought. */
  start(): void {
    this.describe();
    this.end.message(R.SET_VRING_KICK, m.encodeVringIndex(1, true), { fds: [this.#kick] });
  }

  /** Frames that the guest has sent before it came here. */
  queue(...frames: Uint8Array[]): void {
    for (const bytes of frames) {
      const at = BUFFERS + this.#sent * PAGE;
      this.#source.set(bytes, at + 12);
      this.#source.writeBigUInt64LE(GUEST + BigInt(at), DESC + 16 * this.#sent);
      this.#source.writeUInt32LE(12 + bytes.length, DESC + 16 * this.#sent + 8);
      this.#source.writeUInt16LE(this.#sent, AVAIL + 4 + 2 * this.#sent);
      this.#sent++;
    }
    this.#source.writeUInt16LE(this.#sent, AVAIL + 2);
  }

  /** A page has come, without being asked for. */
  bring(offset: number): void {
    writeSync(this.fd, this.#source, offset, PAGE, offset);
  }

  /** Brings what is asked for now; `but`: what never comes. */
  serve(but?: number): void {
    const event = Buffer.alloc(32);
    for (;;) {
      try {
        readSync(this.#userfault, event, 0, 32, null);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return;
        throw error;
      }
      if (event[0] !== UFFD_EVENT_PAGEFAULT) throw new Error(`event ${event[0]}`);
      const address = event.readBigUInt64LE(16);
      const offset = Number(address - this.base);
      this.asked.push(offset);
      if (offset === but) continue;
      this.bring(offset);
      wakeFaulting(this.#userfault, address, BigInt(PAGE));
    }
  }

  /** Serves until somebody waits for this page, which doesn't come. */
  async waitFor(offset: number): Promise<void> {
    await until(() => {
      this.serve(offset);
      return this.asked.includes(offset);
    }, 'the page is asked for');
  }

  static readonly used = USED;
  static readonly avail = AVAIL;
  static buffer = (i: number) => BUFFERS + i * PAGE;

  /** Entries of the used ring that it has been given back. */
  get usedIdx(): number {
    const bytes = Buffer.alloc(2);
    readSync(this.fd, bytes, 0, 2, USED + 2);
    return bytes.readUInt16LE();
  }

  /** Pages that are here. */
  get pages(): number {
    return (fstatSync(this.fd).blocks * 512) / PAGE;
  }

  /** The front-end dies. */
  leave(): void {
    this.end.close();
    if (this.#userfault >= 0) closeFd(this.#userfault);
    this.#userfault = -1;
  }

  /** Leaves, and gives everything back. May be called again. */
  close(): void {
    this.leave();
    if (this.#closed) return;
    this.#closed = true;
    closeFd(this.fd);
    closeFd(this.#kick);
  }
}
