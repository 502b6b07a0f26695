/**
 * Goes between the kernel and a network device of ours that is its VDUSE device's implementation: what the kernel
 * asks (vduse.ts) becomes calls of the device (net-device.ts).
 *
 * Addresses are I/O addresses always. What memory is behind them is asked of the kernel when a ring first needs
 * it, a whole range at a time, and forgotten when the kernel says so: with virtio_vdpa there is the kernel's bounce
 * buffer and the rings, with vhost_vdpa the memory of a program or guest.
 *
 * Requests, misses of translations and rings that are late are worked off one at a time, in order.
 */
import {
  closeFd,
  duplicateFd,
  EPOLLERR,
  EPOLLIN,
  eventfd,
  fdKind,
  fileInfo,
  type Poller,
} from '../sys/index.ts';
import { features as VIRTIO } from '../virtio/features.ts';
import { deviceStatus, statusNames } from '../virtio/status.ts';
import { wholeRange } from './iotlb.ts';
import { type InflightLayout, iotlb } from './messages.ts';
import type { NetDevice } from './net-device.ts';
import {
  encodeResponse,
  type RingState,
  type VduseDevice,
  type VduseRequest,
  type VduseRing,
} from './vduse.ts';

/** Most entries of a ring. */
export const MAX_RING = 1024;

/** Milliseconds between two looks for rings that the driver makes ready after DRIVER_OK: doubled up to the last. */
const FIRST_LOOK = 1;
const LAST_LOOK = 100;
/** Requests taken at a time; the kernel has one or two. */
const MOST_REQUESTS = 16;

export interface VduseSessionOptions {
  device: NetDevice;
  kernel: VduseDevice;
  poller: Poller;
  /** A file for the notes of buffers in work, one that has none yet, or the one that a predecessor left (`keep`). */
  notes(packed: boolean, keep: boolean): InflightLayout & { fd: number };
  /** What went wrong, in one sentence. */
  onError(message: string): void;
  /** The kernel has given the device up; nothing can be done with it any more. */
  onBroken(reason: string): void;
  /** Rings were stopped by the driver, for this reason. */
  onReset(reason: string): void;
}

export class VduseSession {
  readonly #options: VduseSessionOptions;
  readonly #device: NetDevice;
  readonly #kernel: VduseDevice;
  #status = 0;
  #watching = false;
  #closed = false;
  /** Queues that the driver has said it uses and that aren't ready yet are looked at again. */
  #timer: NodeJS.Timeout | null = null;
  #delay = FIRST_LOOK;
  /** Rings that could not be started, until the driver resets. */
  readonly #failed = new Set<number>();
  /** Pages that rings wait for. */
  readonly #missing = new Set<bigint>();
  /** The work in hand and all that waits behind it. */
  #work: Promise<void> = Promise.resolve();

  constructor(options: VduseSessionOptions) {
    this.#options = options;
    this.#device = options.device;
    this.#kernel = options.kernel;
  }

  /** What the driver last set, as `ACKNOWLEDGE DRIVER`; empty before that. */
  get driverStatus(): string {
    return statusNames(this.#status);
  }

  /** Answers from now on. `takeOver`: the device was there already, and its driver may have rings that run. */
  start(takeOver: boolean): void {
    if (takeOver && this.#kernel.configChanged()) {
      this.#status =
        deviceStatus.ACKNOWLEDGE | deviceStatus.DRIVER | deviceStatus.FEATURES_OK | deviceStatus.DRIVER_OK;
      this.#then(() => this.#begin(true));
    }
    this.#options.poller.add(this.#kernel.fd, EPOLLIN, (events) => this.#ready(events));
    this.#watching = true;
  }

  #then(work: () => void | Promise<void>): void {
    this.#work = this.#work.then(async () => {
      if (this.#closed) return;
      try {
        await work();
      } catch (error) {
        this.#options.onError((error as Error).message);
      }
    });
  }

  #ready(events: number): void {
    // It is unreadable for ever, and says so for ever.
    if (events & EPOLLERR) {
      this.#ignore();
      this.#options.onBroken(
        `the kernel has given the device up, since a request of it went without an answer for too long: ` +
          `\`vdpa dev del ${this.#kernel.name}\`, then remove the port and add it again`,
      );
      return;
    }
    try {
      for (let i = 0; i < MOST_REQUESTS; i++) {
        const request = this.#kernel.read();
        if (!request) return;
        this.#then(() => this.#handle(request));
      }
    } catch (error) {
      this.#options.onError((error as Error).message);
    }
  }

  #ignore(): void {
    if (!this.#watching) return;
    this.#watching = false;
    this.#options.poller.remove(this.#kernel.fd);
  }

  async #handle(request: VduseRequest): Promise<void> {
    let answer: Uint8Array;
    let begins = false;
    try {
      let ring: { index: number; state: RingState } | undefined;
      if (request.type === 'GET_VQ_STATE') ring = this.#state(request.index);
      else if (request.type === 'SET_STATUS') begins = await this.#setStatus(request.status);
      else if (request.type === 'UPDATE_IOTLB') await this.#forget(request.start, request.last);
      else throw new Error(`the kernel sent request ${request.number}, which this version doesn't know`);
      answer = encodeResponse(request.id, true, ring);
    } catch (error) {
      this.#options.onError((error as Error).message);
      answer = encodeResponse(request.id, false);
    }
    if (this.#closed) return;
    this.#kernel.respond(answer);
    // Behind the answer: only then has the kernel noted DRIVER_OK, and lets us interrupt.
    if (begins) await this.#begin(false);
  }

  /** Where a ring would go on now. */
  #state(index: number): { index: number; state: RingState } {
    const q = this.#device.queues[index];
    if (index >= this.#device.queuePairs * 2)
      throw new Error(`the kernel asked for queue ${index}, there is none`);
    if (!q?.setup) {
      const base = this.#kernel.ring(index, this.#device.packed)?.base ?? 0;
      return { index, state: this.#device.packed ? { packed: base } : { split: base } };
    }
    const [next, used] = [q.vring.get('lastAvail'), q.vring.get('usedIdx')];
    return { index, state: this.#device.packed ? { packed: (next | (used << 16)) >>> 0 } : { split: next } };
  }

  /** True: rings are to begin. */
  async #setStatus(status: number): Promise<boolean> {
    if (status === 0) {
      await this.#reset('the driver reset the device');
      return false;
    }
    const rising = status & ~this.#status;
    if (rising & deviceStatus.FEATURES_OK) this.#checkFeatures();
    if (rising & deviceStatus.FAILED)
      this.#options.onError("the kernel's driver gave up on the device (FAILED)");
    this.#status = status;
    return (rising & deviceStatus.DRIVER_OK) !== 0;
  }

  /** Throws where the driver took what wasn't offered; the kernel's drivers don't. */
  #checkFeatures(): void {
    const foreign = this.#kernel.features() & ~this.#device.features;
    if (foreign !== 0n)
      throw new Error(`the driver took features 0x${foreign.toString(16)}, which this port doesn't offer`);
  }

  async #reset(reason: string): Promise<void> {
    this.#status = 0;
    this.#stopLooking();
    this.#missing.clear();
    this.#failed.clear();
    await this.#device.reset();
    this.#options.onReset(reason);
  }

  async #begin(takeOver: boolean): Promise<void> {
    // Whether or not the driver says so, its addresses are I/O addresses.
    this.#checkFeatures();
    await this.#device.setFeatures(this.#kernel.features() | VIRTIO.VIRTIO_F_ACCESS_PLATFORM);
    this.#device.setInflight(this.#options.notes(this.#device.packed, takeOver));
    this.#device.setChannel({
      iotlb: ({ type, iova }) => {
        if (type === iotlb.MISS) this.#miss(iova);
      },
    });
    await this.#look();
  }

  /** Starts the rings that are ready; with vhost_vdpa they may get so long after DRIVER_OK, and nobody tells. */
  async #look(): Promise<void> {
    // The driver may have reset the device since.
    if ((this.#status & deviceStatus.DRIVER_OK) === 0) return;
    let late = false;
    for (let index = 0; index < this.#device.queuePairs * 2; index++) {
      if (this.#device.queues[index]?.setup || this.#failed.has(index)) continue;
      const ring = this.#kernel.ring(index, this.#device.packed);
      if (ring === undefined) throw new Error(`the device has no queue ${index}: it was made with fewer`);
      if (ring.ready && ring.size > 0) await this.#startRing(index, ring);
      else late = true;
    }
    if (!late) {
      this.#stopLooking();
      return;
    }
    if (this.#timer) clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#then(() => this.#look()), this.#delay);
    this.#delay = Math.min(2 * this.#delay, LAST_LOOK);
  }

  #stopLooking(): void {
    if (this.#timer) clearTimeout(this.#timer);
    this.#timer = null;
    this.#delay = FIRST_LOOK;
  }

  async #startRing(index: number, { size, base, desc, driver, device }: VduseRing): Promise<void> {
    try {
      const wrong = !this.#device.packed && (size & (size - 1)) !== 0;
      if (size > MAX_RING || wrong)
        throw new Error(`size ${size}, a power of 2 of at most ${MAX_RING} expected`);
      const { kickFd, callFd } = this.#notifiers(index);
      await this.#device.startVring(index, {
        size,
        base,
        descUser: desc,
        availUser: driver,
        usedUser: device,
        kickFd,
        callFd,
        callQueue: index,
        errFd: -1,
        enabled: true,
      });
    } catch (error) {
      this.#failed.add(index);
      this.#options.onError(`queue ${index}: ${(error as Error).message}`);
    }
  }

  /** Descriptors of a ring, for the device to own. Only what comes from the driver is waited for. */
  #notifiers(index: number): { kickFd: number; callFd: number } {
    const kickFd = index % 2 === 1 ? eventfd() : -1;
    try {
      if (kickFd >= 0) this.#kernel.setKick(index, kickFd);
      return { kickFd, callFd: duplicateFd(this.#kernel.fd) };
    } catch (error) {
      if (kickFd >= 0) closeFd(kickFd);
      throw error;
    }
  }

  /** A ring needs the translation of this page. */
  #miss(page: bigint): void {
    if (this.#missing.size === 0) this.#then(() => this.#answerMisses());
    this.#missing.add(page);
  }

  async #answerMisses(): Promise<void> {
    for (const page of this.#missing) {
      this.#missing.delete(page);
      const known = this.#device.memory.regions.some(
        ({ guestAddress, size }) => page >= guestAddress && page < guestAddress + size,
      );
      // Mapped meanwhile, by the answer for another page: that one has told all rings.
      if (known) continue;
      try {
        await this.#map(page);
      } catch (error) {
        // The pages behind it are waited for as well.
        this.#options.onError((error as Error).message);
      }
    }
  }

  /** Maps the range in which a page lies; says that there is none where the kernel has none. */
  async #map(page: bigint): Promise<void> {
    const range = this.#kernel.iotlb(page);
    if (!range) {
      this.#device.refuseIotlb(page, 4096n);
      return;
    }
    const { start, last, offset, access } = range;
    const size = last - start + 1n;
    // The kernel's descriptor would be inherited by programs that this one starts.
    let fd: number;
    try {
      fd = duplicateFd(range.fd);
    } finally {
      closeFd(range.fd);
    }
    try {
      checkFile(fd);
    } catch (error) {
      closeFd(fd);
      this.#device.refuseIotlb(start, size);
      throw error;
    }
    try {
      // One space of addresses is enough: the device's own ones are those of the driver.
      await this.#device.addRegion({ guestAddress: start, userAddress: start, size, mmapOffset: offset, fd });
    } catch (error) {
      this.#device.refuseIotlb(start, size);
      throw error;
    }
    await this.#device.setIotlb({ type: iotlb.UPDATE, iova: start, size, userAddress: start, access });
  }

  /** The kernel has changed what is behind these addresses: when this resolves nobody uses what was there before. */
  async #forget(start: bigint, last: bigint): Promise<void> {
    // Before features are settled there is nothing to forget.
    if (this.#device.acknowledged === 0n) return;
    const { regions } = this.#device.memory;
    const gone = regions.filter(
      ({ guestAddress, size }) => guestAddress <= last && guestAddress + size > start,
    );
    if (gone.length === regions.length) await this.#device.setMemoryTable([]);
    else for (const region of gone) await this.#device.removeRegion(region);
    // There may be something now where nothing was before.
    const size = wholeRange(start, last - start + 1n);
    await this.#device.setIotlb({ type: iotlb.INVALIDATE, iova: start, size, userAddress: 0n, access: 0 });
  }

  /** Answers no more, and stops the rings; the descriptor stays open. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#ignore();
    this.#stopLooking();
    await this.#work;
    await this.#device.reset();
  }
}

/** The kernel's own memory, or a file that the one behind vhost_vdpa has mapped: nothing else is known to be sound. */
function checkFile(fd: number): void {
  if (fileInfo(fd).kind === 'file' || fdKind(fd) === 'anon_inode:[vduse-domain]') return;
  throw new Error(`the driver's memory is ${fdKind(fd)}, which can't be mapped: a memory file is expected`);
}
