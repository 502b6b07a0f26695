/**
 * The end of a port that is an interface of the host: it follows the interface's state, takes what it has of it back
 * when that goes away, and goes on with one of the same name that comes. How frames pass is the kind's (af-packet.ts,
 * af-xdp.ts).
 */
import type { EndSetup, Framing } from '../io/index.ts';
import type { PortState } from '../switch/types.ts';
import { interfaceIndex, linkFault, type Poller, watchInterfaces } from '../sys/index.ts';
import type { End, Link } from './kernel-port.ts';

/** What is there of an interface that was taken. */
export interface Taken {
  /** One a queue pair. */
  ends: EndSetup[];
  /** What there is to know of the way that frames take. */
  note?: string;
  /** Frames that the kernel dropped on their way to the switch, by reason. */
  drops?(): Record<string, number>;
  /** Something of the interface has changed. */
  follow?(): void;
  /** No end is in use any more. */
  close(): void;
}

/** A way to frames of an interface. */
export interface Way {
  queues: number;
  framing: Framing;
  /** Throws an Error that says what is missing, and leaves nothing behind then. */
  take(index: number): Taken;
}

export class InterfaceEnd implements End {
  readonly queues: number;
  readonly framing: Framing;
  readonly role = null;
  readonly #name: string;
  readonly #way: Way;
  readonly #unwatch: () => void;
  #taken: Taken | undefined;
  /** The interface that it is of. */
  #index: number | undefined;
  #link: Link | undefined;
  #fault = 'is down';
  /** What there was of an interface that has gone is being given back. */
  #leaving = false;
  #closed = false;
  connections = 0;

  /** Takes the interface. Throws an Error that says what is missing. */
  constructor(name: string, way: Way, poller: Poller) {
    this.queues = way.queues;
    this.framing = way.framing;
    this.#name = name;
    this.#way = way;
    this.#take(interfaceIndex(name));
    if (!this.#taken) throw new Error(noInterface(name));
    try {
      this.#unwatch = watchInterfaces(
        poller,
        () => this.#look(),
        (error) => this.#link?.error(error.message),
      );
    } catch (error) {
      this.#giveBack();
      throw error;
    }
  }

  get state(): PortState {
    if (!this.#taken) return 'failed';
    return this.#fault === '' ? 'up' : 'down';
  }

  get note(): string {
    if (!this.#taken) return `interface ${this.#name} is gone`;
    const { note } = this.#taken;
    return `interface ${this.#name}${this.#fault && ` ${this.#fault}`}${note === undefined ? '' : `, ${note}`}`;
  }

  drops(): Record<string, number> {
    return this.#taken?.drops?.() ?? {};
  }

  start(link: Link): void {
    this.#link = link;
    this.#open();
  }

  #take(index: number | undefined): void {
    if (index === undefined) return;
    this.#taken = this.#way.take(index);
    this.#index = index;
    this.connections++;
  }

  #open(): void {
    // First: what a ring that isn't enabled takes is lost.
    this.#look();
    this.#link!.open(this.#taken!.ends, (reason) => void this.#lost(reason));
  }

  /** Follows the interface: its state, its end, and one of the same name that comes. */
  #look(): void {
    if (this.#closed || this.#leaving || !this.#link) return;
    const index = interfaceIndex(this.#name);
    if (this.#taken && index !== this.#index) {
      void this.#lost('it is gone; the port goes on with it when it is back');
    } else if (!this.#taken && index !== undefined) {
      try {
        this.#take(index);
        this.#link.error(null);
        this.#open();
      } catch (error) {
        this.#link.error((error as Error).message);
      }
    } else if (this.#taken) {
      this.#taken.follow?.();
      this.#fault = linkFault(this.#name) ?? 'is gone';
      this.#link.set(this.#fault === '', `interface ${this.#name} ${this.#fault}`);
    }
  }

  async #lost(reason: string): Promise<void> {
    if (this.#leaving) return;
    this.#leaving = true;
    this.#link!.error(`interface ${this.#name}: ${reason}`);
    await this.#link!.close(`interface ${this.#name} is gone`);
    this.#giveBack();
    this.#leaving = false;
    try {
      // It may have come back meanwhile.
      this.#look();
    } catch (error) {
      this.#link!.error((error as Error).message);
    }
  }

  #giveBack(): void {
    this.#taken?.close();
    this.#taken = undefined;
    this.#index = undefined;
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#unwatch();
    this.#giveBack();
  }
}

export const noInterface = (name: string): string =>
  `there is no interface ${name}: \`ip link\` lists those that are`;
