/**
 * A port whose other end is no guest but something that the kernel has a descriptor of: an interface, a socket, a
 * file. What differs by kind is in an End (tap.ts, stream.ts, ...); what they have in common is here: the rings
 * (src/io/pair.ts), whose frames a worker or an I/O thread moves, and what is told of them.
 */
import { type EndSetup, type Framing, Pair } from '../io/index.ts';
import type { PortSpec, PortState, PortStatus, Role } from '../switch/types.ts';
import { deviceDetail, ringWords, totals } from './net-status.ts';
import type { DetailOfKind, Port, PortContext } from './port.ts';

/** What an end does with its port. */
export interface Link {
  /**
   * Frames pass by these descriptors, one a queue pair, from now on. Those that can't go on end with `onEnd`, which
   * is called once.
   */
  open(ends: readonly EndSetup[], onEnd: (reason: string) => void): void;
  /** Nothing looks at the descriptors any more once it resolves: they may be closed then. */
  close(reason: string): Promise<void>;
  /** The link goes up or down: frames pass, or none do. */
  set(up: boolean, reason?: string): void;
  /** Tells an error, that is the port's last one from now on; null: it is over. */
  error(message: string | null): void;
}

/** The other end of a port, by its kind. */
export interface End {
  /** Queue pairs. */
  readonly queues: number;
  readonly framing: Framing;
  readonly role: Role | null;
  readonly state: PortState;
  /** Times that the other end was found. */
  readonly connections: number;
  /** What there is to know of it that is no error, such as the state of an interface. */
  readonly note?: string;
  /** Frames that the kernel dropped on their way to the switch, by reason. */
  drops?(): Record<string, number>;
  /** The switch takes its end of the link up or down: what can be told of that to the other is. */
  setLink?(up: boolean): void;
  /** The rings are there: opens the link, now or later. */
  start(link: Link): void;
  /** Ends everything; resolves when no descriptor is left. The link is closed before. */
  close(): Promise<void>;
}

export class KernelPort implements Port {
  readonly spec: PortSpec;
  readonly #context: PortContext;
  readonly #end: End;
  readonly #pair: Pair;
  #up = false;
  #downReason = 'the link is down';
  #lastError: string | null = null;
  #closing: Promise<void> | undefined;

  /** Throws an Error where there is no room for the rings; the end is closed then. */
  constructor(spec: PortSpec, context: PortContext, end: End) {
    this.spec = spec;
    this.#context = context;
    this.#end = end;
    context.structures.port(context.slot).set('addressLimit', context.maxAddresses);
    try {
      this.#pair = new Pair(context, end.queues, end.framing, {
        onRings: () => this.#ringsChanged(),
        onQueueBroken: (queue, reason) => {
          this.#lastError = `queue ${queue}: ${reason}`;
          context.events.queueBroken(queue, reason);
        },
      });
    } catch (error) {
      void end.close();
      throw error;
    }
    try {
      end.start(this.#link);
    } catch (error) {
      void this.close();
      throw error;
    }
  }

  get #link(): Link {
    const pair = this.#pair;
    /** A change that fails is nobody's to wait for. */
    const failed = (error: Error) => this.#link.error(error.message);
    return {
      open: (ends, onEnd) => void pair.attach(ends, onEnd).catch(failed),
      close: async (reason) => {
        this.#downReason = reason;
        await pair.enable(false).catch(failed);
        await pair.detach().catch(failed);
      },
      set: (up, reason) => {
        if (reason !== undefined) this.#downReason = reason;
        void pair.enable(up).catch(failed);
      },
      error: (message) => {
        if (message !== null && message !== this.#lastError) this.#context.events.portError(message);
        this.#lastError = message;
      },
    };
  }

  #ringsChanged(): void {
    const up = this.#pair.device.enabledPairs > 0;
    if (up === this.#up) return;
    this.#up = up;
    if (up) this.#context.events.guestUp();
    else this.#context.events.guestDown(this.#downReason);
  }

  setLink(up: boolean): void {
    this.#end.setLink?.(up);
  }

  reportBroken(): void {
    this.#pair.device.reportBroken();
  }

  status(): PortStatus {
    const { name, type, target } = this.spec;
    const broken = this.#pair.device.queues.some((q) => q.error !== null);
    const counters = totals(this.#pair.device, this.#context.arena);
    const { fromKernel, toKernel } = this.#pair.dropped;
    return {
      name,
      type,
      target,
      role: this.#end.role,
      state: broken ? 'broken' : this.#end.state,
      rings: ringWords(this.#pair.device),
      lastError: this.#lastError,
      ...counters,
      rxDrops: counters.rxDrops + fromKernel + sum(this.#end.drops?.() ?? {}),
      txDrops: counters.txDrops + toKernel,
    };
  }

  detail(): DetailOfKind {
    const { device, dropped } = this.#pair;
    const detail = deviceDetail(device, this.#context.arena);
    const struct = this.#context.structures.port(this.#context.slot);
    return {
      ...this.status(),
      ...detail,
      // Both sides are ours: what isn't there is of no use to this kind of port.
      features: { ...detail.features, missing: [] },
      drops: {
        ...detail.drops,
        ...this.#end.drops?.(),
        ...(dropped.fromKernel > 0 && { noFrame: dropped.fromKernel }),
        ...(dropped.toKernel > 0 && { refusedByKernel: dropped.toKernel }),
      },
      ...(this.#end.note !== undefined && { note: this.#end.note }),
      driverStatus: '',
      protocolFeatures: { offered: [], acknowledged: [] },
      addresses: { learned: struct.get('addresses'), limit: struct.get('addressLimit') },
      connections: this.#end.connections,
      filtered: 0,
    };
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    await this.#link.close('the port was removed');
    await this.#end.close();
    await this.#pair.close();
  }
}

const sum = (drops: Record<string, number>): number => Object.values(drops).reduce((all, n) => all + n, 0);
