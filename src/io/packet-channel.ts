/**
 * Frames of a packet socket with rings: moved in shared memory (src/dataplane/packet-ring.ts), with one system call a
 * burst to send, and as messages where they don't fit into a slot.
 */
import { errnoName, isInterrupted, kickSend } from '../sys/index.ts';
import { failed, intact, isLost, MessageChannel, type QueueSetup, type ThreadContext } from './channel.ts';

const BURST = 64;
/** Milliseconds until the kernel is asked again to send what it didn't. */
const RETRY = 1;
/** The kernel has no room now. */
const LATER = new Set(['EAGAIN', 'EBUSY', 'ENOBUFS', 'ENOMEM']);

export class PacketChannel extends MessageChannel {
  readonly #fd: number;
  /** The data plane's PacketQueue. */
  readonly #rings: number;
  /** Frames wait in the ring for the kernel, or for a slot: nobody signals that there is room. */
  #stuck = false;

  constructor(context: ThreadContext, queue: QueueSetup, end: { fd: number; sendFd: number; rings: number }) {
    super(context, queue, end.fd, end.sendFd);
    this.#fd = end.fd;
    this.#rings = end.rings;
  }

  override due(): number {
    return this.#stuck ? RETRY : Number.POSITIVE_INFINITY;
  }

  override run(): boolean {
    if (this.#stuck) this.writable = true;
    return super.run();
  }

  protected override toSwitch(): boolean {
    const { fromPacketRing, copiesWaiting, skipCopies } = this.context.dataplane.functions;
    let moved = 0;
    for (let rounds = 0; moved < BURST && rounds < BURST; rounds++) {
      moved += intact(fromPacketRing(this.#rings, this.queue.fromKernel.transfer, BURST - moved));
      if (moved === BURST) break;
      const copies = copiesWaiting(this.#rings, BURST - moved);
      if (copies < 0) {
        this.readable = false;
        break;
      }
      if (copies === 0) {
        this.starved = true;
        break;
      }
      const count = this.receive(copies);
      if (this.starved) break;
      // Not there though the ring says so: it is lost.
      const gone = this.readable ? count : copies;
      this.readable = true;
      skipCopies(this.#rings, gone);
      moved += gone;
    }
    return moved > 0;
  }

  protected override toKernel(): boolean {
    const { toPacketRing, wantsMessage, hasSlot } = this.context.dataplane.functions;
    const { transfer } = this.queue.toKernel;
    let moved = false;
    for (let rounds = 0; rounds < 2 && this.#send(); rounds++) {
      if (this.collected || intact(wantsMessage(this.#rings, transfer)) !== 0) {
        if (super.toKernel()) moved = true;
        // The socket for messages says when it has room.
        if (!this.writable) return moved;
      }
      if (intact(toPacketRing(this.#rings, transfer, BURST)) === 0) break;
      moved = true;
    }
    this.#stuck = !this.#send() || !hasSlot(this.#rings);
    this.writable = !this.#stuck;
    return moved;
  }

  /** Has the kernel send what is in the ring; false: it has no room for all of it now. */
  #send(): boolean {
    const { hasUnsent, takeBack } = this.context.dataplane.functions;
    let isLast = false;
    while (hasUnsent(this.#rings)) {
      const result = kickSend(this.#fd);
      if (isInterrupted(result) || !hasUnsent(this.#rings)) continue;
      if (result >= 0 || LATER.has(errnoName(-result))) return false;
      if (!isLost(result) && errnoName(-result) !== 'ENXIO') failed('sendto', result);
      // The first time it may tell of what is over: that the interface was down.
      if (isLast) takeBack(this.#rings, this.queue.toKernel.transfer);
      isLast = true;
    }
    return true;
  }
}
