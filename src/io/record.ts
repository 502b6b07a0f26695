/** Writes what the switch sends into a pcap file with nanoseconds (draft-ietf-opsawg-pcap); nothing comes from it. */
import { isInterrupted, isNotReady, writeAt } from '../sys/index.ts';
import { Channel, failed, intact, type QueueSetup, type ThreadContext } from './channel.ts';

/** Bytes of a record's header, and of the largest frame. */
const HEADER = 16;
const MAX_FRAME = 65_550;

export class RecordChannel extends Channel {
  protected override readable = false;
  readonly #fd: number;
  readonly #buffer: number;
  readonly #size: number;
  readonly #view: DataView;
  /** Bytes to write, and the first of them that isn't written. */
  #waiting = 0;
  #written = 0;

  constructor(context: ThreadContext, queue: QueueSetup, end: { fd: number; buffer: number; size: number }) {
    super(context, queue);
    this.#fd = end.fd;
    this.#buffer = end.buffer;
    this.#size = end.size;
    this.#view = new DataView(context.u8.buffer);
  }

  protected toSwitch(): boolean {
    return false;
  }

  protected toKernel(): boolean {
    if (this.#waiting === 0 && !this.#collect()) return false;
    const { base } = this.context;
    const length = writeAt(this.#fd, base + this.#buffer + this.#written, this.#waiting - this.#written);
    if (length < 0 && !isInterrupted(length) && !isNotReady(length)) failed('write', length);
    if (length > 0) this.#written += length;
    if (this.#written === this.#waiting) this.#written = this.#waiting = 0;
    return true;
  }

  /** Fills the buffer with what has come; false: nothing has. */
  #collect(): boolean {
    const { receiveFrame } = this.context.dataplane.functions;
    // One look at the clock for all that came together.
    const now = performance.timeOrigin + performance.now();
    const seconds = Math.floor(now / 1000);
    const nanoseconds = Math.floor((now - seconds * 1000) * 1e6);
    while (this.#waiting + HEADER + MAX_FRAME <= this.#size) {
      const at = this.#buffer + this.#waiting;
      const length = intact(receiveFrame(this.queue.toKernel.ring, at + HEADER));
      if (length === 0) break;
      for (const [i, value] of [seconds, nanoseconds, length, length].entries())
        this.#view.setUint32(at + 4 * i, value, true);
      this.#waiting += HEADER + length;
    }
    return this.#waiting > 0;
  }
}
