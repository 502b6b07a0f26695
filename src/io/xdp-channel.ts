/** Frames of an AF_XDP socket: all is done in shared memory (src/dataplane/xdp.ts), but for calls that wake the kernel. */
import { fields } from '../arena/dataplane.ts';
import { errnoName, isInterrupted, kickReceive, kickSend } from '../sys/index.ts';
import { Channel, failed, intact, type QueueSetup, type ThreadContext } from './channel.ts';

const BURST = 64;
/** XDP_RING_NEED_WAKEUP */
const NEED_WAKEUP = 1;
/** Milliseconds until the kernel is asked again to send what it didn't. */
const RETRY = 1;
/** The kernel has no room or time now, or the interface is down. */
const LATER = new Set(['EAGAIN', 'EBUSY', 'ENOBUFS', 'ENETDOWN', 'ENOMEM']);

const POINTERS = [
  'rxProducer',
  'rxConsumer',
  'txProducer',
  'txConsumer',
  'txFlags',
  'fillFlags',
  'freeCount',
] as const;

export class XdpChannel extends Channel {
  readonly #fd: number;
  readonly #xdp: number;
  /** Where each field of XdpQueue leads to, in words of 4 bytes. */
  readonly #at: Record<(typeof POINTERS)[number], number>;
  /** Frames wait for the kernel, or for a chunk. */
  #stuck = false;

  constructor(context: ThreadContext, queue: QueueSetup, end: { fd: number; queue: number }) {
    super(context, queue);
    this.#fd = end.fd;
    this.#xdp = end.queue;
    const offsets = fields(context.dataplane.layout, 'XdpQueue', POINTERS);
    const at = (name: (typeof POINTERS)[number]) => context.u32[(end.queue + offsets[name]) >>> 2]! >>> 2;
    this.#at = {
      rxProducer: at('rxProducer'),
      rxConsumer: at('rxConsumer'),
      txProducer: at('txProducer'),
      txConsumer: at('txConsumer'),
      txFlags: at('txFlags'),
      fillFlags: at('fillFlags'),
      // A field of its own, not a pointer.
      freeCount: (end.queue + offsets.freeCount) >>> 2,
    };
  }

  #word(name: (typeof POINTERS)[number]): number {
    return Atomics.load(this.context.u32, this.#at[name]);
  }

  override due(): number {
    return this.#stuck ? RETRY : Number.POSITIVE_INFINITY;
  }

  override run(): boolean {
    if (this.#stuck) this.writable = true;
    return super.run();
  }

  protected toSwitch(): boolean {
    const { fromXdp } = this.context.dataplane.functions;
    const came = intact(fromXdp(this.#xdp, this.queue.fromKernel.transfer, BURST));
    const isEmpty = this.#word('rxProducer') === this.#word('rxConsumer');
    if (came < BURST) {
      this.starved = !isEmpty;
      if (isEmpty) this.readable = false;
    }
    if (this.#word('fillFlags') & NEED_WAKEUP) this.#check('recvfrom', kickReceive(this.#fd));
    return came > 0;
  }

  protected toKernel(): boolean {
    const { toXdp } = this.context.dataplane.functions;
    const done = intact(toXdp(this.#xdp, this.queue.toKernel.transfer, BURST));
    if (done > 0 || this.#stuck) this.#send();
    // Nobody signals that there is room: run() looks again.
    this.writable = !this.#stuck;
    return done > 0;
  }

  /** Has the kernel send what is on the ring: so many at a call, and not all of it where there is no room. */
  #send(): void {
    this.#stuck = this.#word('freeCount') === 0;
    for (let waits = this.#unsent(); waits > 0 && this.#word('txFlags') & NEED_WAKEUP; ) {
      const result = kickSend(this.#fd);
      this.#check('sendto', result);
      const now = this.#unsent();
      if (result < 0 && now >= waits) {
        this.#stuck = true;
        return;
      }
      waits = now;
    }
  }

  #unsent(): number {
    return (this.#word('txProducer') - this.#word('txConsumer')) >>> 0;
  }

  #check(call: string, result: number): void {
    if (result < 0 && !isInterrupted(result) && !LATER.has(errnoName(-result))) failed(call, result);
  }
}
