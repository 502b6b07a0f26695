/** Plays a capture file into the switch, by the times in it or otherwise; what is sent to it is forgotten. */
import { ChannelError, type QueueSetup, type Replay, SinkChannel, type ThreadContext } from './channel.ts';

/** Frames in one run. */
const BURST = 64;

export class ReplayChannel extends SinkChannel {
  protected override readable = true;
  readonly #replay: Replay;
  readonly #frames: Uint8Array;
  readonly #ends: Uint32Array;
  readonly #times: Float64Array;
  #next = 0;
  /** Times that the file was played to its end. */
  #played = 0;
  /** When the first frame was due, on this thread's clock in milliseconds. */
  #start = performance.now();

  constructor(context: ThreadContext, queue: QueueSetup, replay: Replay) {
    super(context, queue);
    this.#replay = replay;
    this.#frames = new Uint8Array(replay.frames);
    this.#ends = new Uint32Array(replay.ends);
    this.#times = new Float64Array(replay.times);
  }

  override run(): boolean {
    if (this.due() <= 0) this.readable = true;
    return super.run();
  }

  override due(): number {
    const { timing, loop } = this.#replay;
    if (loop > 0 && this.#played === loop) return Number.POSITIVE_INFINITY;
    if (timing === 'fast') return 0;
    const after = timing === 'recorded' ? this.#times[this.#next]! : (this.#next * 1000) / timing;
    return this.#start + after - performance.now();
  }

  protected override toSwitch(): boolean {
    const { u8, dataplane } = this.context;
    const { buffer } = this.#replay;
    let moved = 0;
    while (moved < BURST) {
      if (this.due() > 0) {
        this.readable = false;
        break;
      }
      const frame = this.#frames.subarray(this.#ends[this.#next - 1] ?? 0, this.#ends[this.#next]!);
      u8.set(frame, buffer);
      const sent = dataplane.functions.sendFrame(this.queue.fromKernel.ring, buffer, frame.length);
      if (sent < 0) throw new ChannelError('the rings to the switch are broken');
      if (sent === 0) {
        this.starved = true;
        break;
      }
      moved++;
      this.#next++;
      if (this.#next === this.#ends.length) this.#again();
    }
    return moved > 0;
  }

  #again(): void {
    const { timing } = this.#replay;
    // By a rate one round follows the other as its frames do; by recorded times nothing says when the next one begins.
    if (typeof timing === 'number') this.#start += (this.#ends.length * 1000) / timing;
    else this.#start = performance.now();
    this.#next = 0;
    this.#played++;
  }
}
