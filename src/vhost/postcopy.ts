/**
 * Postcopy: the guest runs here already while pages of its memory are still at the place that it left. A thread that
 * touches such a page waits in the kernel until the front-end has fetched it (userfault.ts).
 *
 * Theory of operation. A worker may wait like that at any moment; whoever waits for the worker waits too, but does
 * so without holding up the main thread. The main thread itself touches nothing of the guest: what it has to read
 * and write as a ring starts goes by another thread.
 *
 * Waiting ends when the front-end leaves, or leaves a thread waiting for too long: anonymous memory is laid over the
 * guest's, and whoever waits is woken and finds zeros. What it writes there reaches no guest. The session ends then.
 */
import {
  closeFd,
  faultingThreads,
  mapFixed,
  readAside,
  unwatchMissing,
  userfaultfd,
  wakeFaulting,
  watchMissing,
  writeAside,
} from '../sys/index.ts';

/** A region as it lies in this process: its first byte, and the whole pages that are mapped for it. */
export interface PostcopyRegion {
  guestAddress: bigint;
  address: bigint;
  pages: { address: bigint; length: bigint };
}

export interface PostcopyOptions {
  /** Milliseconds that a thread may wait for a page. */
  patience: number;
  /** Resolves when every worker has passed by (see Workers). */
  quiesce(): Promise<void>;
  /** The front-end knows now where the regions lie: their pages may be touched. */
  onKnown(): void;
  /** A page did not come in time, and the guest's memory is gone. */
  onGiveUp(reason: string): void;
}

/** Looks at a worker that doesn't pass, before patience is at its end. */
const LOOKS = 30;

/** One at a time in this process: libuv has few threads, and the poller needs one. */
let aside: Promise<unknown> = Promise.resolve();

export class Postcopy {
  /** The userfaultfd. */
  readonly fd: number;
  /** The front-end has said that memory comes late from now on. */
  listening = false;
  readonly #options: PostcopyOptions;
  #regions: readonly PostcopyRegion[] = [];
  #known = true;
  #active = true;
  #timer: NodeJS.Timeout | undefined;
  /** Node waits for its threads as the process exits, and one of them may wait for a page. */
  readonly #onExit = () => this.abandon();

  /** Throws a SystemError where this process may have no userfaultfd. */
  constructor(options: PostcopyOptions) {
    this.#options = options;
    this.fd = userfaultfd();
    process.on('exit', this.#onExit);
  }

  /** Pages may be missing. */
  get active(): boolean {
    return this.#active && this.listening;
  }

  /** The front-end has yet to say that it knows where the regions lie; until then nobody may touch them. */
  get unknown(): boolean {
    return this.#active && !this.#known;
  }

  /** Where a region lies in this process. */
  addressOf(guestAddress: bigint): bigint {
    return this.#regions.find((region) => region.guestAddress === guestAddress)?.address ?? 0n;
  }

  /** Watches all regions of a memory table that nobody has touched yet. Throws a SystemError. */
  watch(regions: readonly PostcopyRegion[]): void {
    this.#known = false;
    this.#regions = regions;
    for (const { pages } of regions) watchMissing(this.fd, pages.address, pages.length);
    this.#timer ??= this.#watchWorkers();
  }

  /** The front-end knows where the regions lie. */
  acknowledge(): void {
    if (this.#known) return;
    this.#known = true;
    this.#options.onKnown();
  }

  /** Gives up on workers that wait for a page of these regions without end. */
  #watchWorkers(): NodeJS.Timeout {
    let passed = true;
    let looks = 0;
    return setInterval(() => {
      if (passed || faultingThreads(this.fd) === 0) looks = 0;
      if (passed) {
        passed = false;
        void this.#options.quiesce().then(() => {
          passed = true;
        });
      }
      if (++looks > LOOKS) this.#giveUp();
    }, this.#options.patience / LOOKS);
  }

  #giveUp(): void {
    if (!this.#active) return;
    const seconds = this.#options.patience / 1000;
    this.abandon();
    this.#options.onGiveUp(`POSTCOPY: a page of guest memory did not come within ${seconds} s`);
  }

  /** Reads guest memory at an address of this process. Rejects where it is gone meanwhile. */
  read(address: bigint, length: number): Promise<Buffer> {
    return this.#aside(() => readAside(address, length));
  }

  /** Writes to guest memory. Rejects where it is gone meanwhile. */
  write(address: bigint, bytes: Uint8Array): Promise<void> {
    return this.#aside(() => writeAside(address, bytes));
  }

  #aside<T>(access: () => Promise<T>): Promise<T> {
    const result = aside.then(async () => {
      this.#checkThere();
      const timer = setTimeout(() => this.#giveUp(), this.#options.patience);
      const value = await access().finally(() => clearTimeout(timer));
      this.#checkThere();
      return value;
    });
    aside = result.catch(() => {});
    return result;
  }

  #checkThere(): void {
    if (!this.active) throw new Error('the guest is gone, and some of its memory never came');
  }

  /** All of the guest's memory has come. Throws a SystemError; then nothing has changed. */
  end(): void {
    if (!this.#active) return;
    for (const { pages } of this.#regions) unwatchMissing(this.fd, pages.address, pages.length);
    this.#over();
  }

  /** Takes the guest's memory away under whoever touches it, and lets those go on who wait for a page. */
  abandon(): void {
    if (!this.#active) return;
    for (const { pages } of this.#regions) {
      mapFixed(pages.address, Number(pages.length), 'anonymous');
      wakeFaulting(this.fd, pages.address, pages.length);
    }
    this.#over();
  }

  #over(): void {
    this.#active = false;
    this.#regions = [];
    clearInterval(this.#timer);
    process.off('exit', this.#onExit);
    closeFd(this.fd);
  }
}
