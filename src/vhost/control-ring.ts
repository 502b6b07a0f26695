/**
 * Serves a control virtqueue on the main thread (src/dataplane/control.ts has the ring's side of it): one command
 * after the other, each as a snapshot, answered when it is done.
 *
 * While the ring is to change (stopped, moved, its memory replaced) it is held: the command in work is answered
 * first, and no other begins. A guest that never stops sending commands gets turns between which everything else of
 * this thread has its own.
 *
 * Guest memory is looked at by this thread, which must not wait for a page of it: no control queue goes together with
 * postcopy (transfer-messages.ts).
 */
import { setImmediate as turn } from 'node:timers/promises';
import type { Arena, Structures, VringStruct } from '../arena/index.ts';
import { drain, EPOLLIN, type Poller } from '../sys/index.ts';

/** Vring.state */
const RUNNING = 1;
/** takeControl() and giveControl(): the ring broke, or has to wait. */
const BAD = -1;
/** Commands between two turns of the event loop. */
const COMMANDS = 16;
/** Milliseconds between two looks at a ring without an eventfd for kicks. */
const LOOK = 100;

export interface ControlRingContext {
  arena: Arena;
  structures: Structures;
  poller: Poller;
  vring: VringStruct;
  /** Does what the bytes say; resolves with the byte for the driver. Never rejects. */
  execute(command: Uint8Array): Promise<number>;
  /** Interrupts the guest, if it wants that. */
  interrupt(): void;
  /** The ring broke, or waits for a translation. */
  onStopped(): void;
}

export class ControlRing {
  readonly #context: ControlRingContext;
  #kickFd = -1;
  #timer: NodeJS.Timeout | undefined;
  /** Holds that were not released yet. */
  #holds = 0;
  #working: Promise<void> | undefined;
  #again = false;

  constructor(context: ControlRingContext) {
    this.#context = context;
  }

  /** Looks at the ring when this eventfd says so, in place of the one before; -1: now and then. */
  watch(kickFd: number): void {
    this.unwatch();
    this.#kickFd = kickFd;
    if (kickFd < 0) {
      this.#timer = setInterval(() => this.look(), LOOK);
      return;
    }
    this.#context.poller.add(kickFd, EPOLLIN, () => {
      drain(kickFd);
      this.look();
    });
  }

  unwatch(): void {
    if (this.#kickFd >= 0) this.#context.poller.remove(this.#kickFd);
    this.#kickFd = -1;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  /** There may be commands. */
  look(): void {
    this.#again = true;
    if (this.#holds > 0 || this.#working) return;
    this.#working = this.#work().finally(() => {
      this.#working = undefined;
      // It may have come while the last look ended.
      if (this.#again) this.look();
    });
  }

  /** Resolves when no command is in work; none begins before `release`. */
  async hold(): Promise<void> {
    this.#holds++;
    while (this.#working) await this.#working;
  }

  release(): void {
    if (--this.#holds === 0 && this.#again) this.look();
  }

  async #work(): Promise<void> {
    const { arena, structures, vring } = this.#context;
    const { functions } = arena.dataplane;
    this.#again = false;
    for (let done = 0; this.#mayRun(); ) {
      const at = functions.takeControl(vring.at);
      if (at === BAD) return this.#context.onStopped();
      if (at === 0) {
        if (!functions.armControl(vring.at)) return;
        continue;
      }
      const command = structures.command(at);
      const [head, slots, answer] = [command.get('head'), command.get('slots'), command.get64('answer')];
      const from = at + structures.constant('COMMAND_BYTES');
      const value = await this.#context.execute(arena.u8.slice(from, from + command.get('length')));
      const given = functions.giveControl(vring.at, head, slots, answer, value);
      if (given === BAD) return this.#context.onStopped();
      if (given === 1) this.#context.interrupt();
      if (++done % COMMANDS === 0) await turn();
    }
  }

  #mayRun(): boolean {
    const { vring } = this.#context;
    if (vring.get('state') !== RUNNING || vring.get('enabled') !== 1) return false;
    if (this.#holds === 0) return true;
    this.#again = true;
    return false;
  }
}
