/**
 * A device's connection with its back-end: made, watched, and made again when it ends.
 *
 * Split rings go on with the next back-end where the one before stopped, as their used ring says; with notes of
 * buffers in work (INFLIGHT_SHMFD) nothing is sent twice. Packed rings say less: they go on with such notes only,
 * and begin anew without (as DPDK's do), which loses what lies in them. So does a ring in which the back-end broke
 * a rule.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Poller } from '../sys/index.ts';
import { controlQueueIndex } from '../virtio/control-queue.ts';
import { featureNames, features } from '../virtio/features.ts';
import type { ControlQueue } from './control-queue.ts';
import { asVirtioUserError, VirtioUserError } from './errors.ts';
import type { Settings } from './options.ts';
import type { Rings } from './rings.ts';
import type { DeviceConfig, Transport } from './transport.ts';
import { transportTo } from './transports.ts';

export interface LinkEvents {
  onUp(): void;
  onDown(reason: string): void;
  /** It couldn't be made again; the next try follows. */
  onError(error: VirtioUserError): void;
  onConfigChange(): void;
}

export class Link {
  /** Resolves with the reason when the connection of now has ended. */
  closed!: Promise<string>;
  /** Feature bits that both sides have. */
  agreed = 0n;
  config: DeviceConfig | undefined;
  readonly #settings: Settings;
  readonly #events: LinkEvents;
  readonly #transport: Transport;
  readonly #closing = new AbortController();
  #rings: Rings | undefined;
  /** Commands, where the back-end takes them. */
  control: ControlQueue | undefined;
  /** Queue pairs that the back-end has. */
  #pairs = 1;
  #connected = false;
  /** Why the connection of now has ended. */
  #lost: string | undefined;
  #end!: (reason: string) => void;
  /** What was told last. */
  #told = false;
  #attempt: Promise<void> | undefined;
  #trying = false;
  #lastError = '';

  constructor(settings: Settings, poller: Poller, events: LinkEvents) {
    this.#settings = settings;
    this.#events = events;
    this.#transport = transportTo(settings, poller, {
      onClose: (reason) => this.lose(reason),
      onConfigChange: () => void this.#readConfig(),
    });
    this.#begin();
  }

  /** The rings run. */
  get connected(): boolean {
    return this.#connected;
  }

  /** They do, and the back-end doesn't say that the link is down. */
  get up(): boolean {
    const says = (this.agreed & features.VIRTIO_NET_F_STATUS) !== 0n && this.config;
    return this.#connected && !(says && !this.config!.linkUp);
  }

  /** Connects for the first time. `make` gives the rings, once it is known what both sides can. */
  async open(make: (agreed: bigint) => Rings): Promise<Rings> {
    const { queues, queueSize, wanted } = this.#settings;
    try {
      await this.#find();
      const { features: agreed, queuePairs } = await this.#transport.negotiate(wanted);
      if (queuePairs < queues)
        throw new VirtioUserError('BACKEND', `queues ${queues}: the back-end has ${queuePairs} at most`);
      if ((agreed & features.VIRTIO_F_RING_PACKED) === 0n && !Number.isInteger(Math.log2(queueSize)))
        throw new VirtioUserError(
          'BACKEND',
          `queueSize ${queueSize}: the back-end has split rings only, a power of 2 expected`,
        );
      this.agreed = agreed;
      this.#pairs = queuePairs;
      this.config = await this.#transport.config();
      this.#rings = make(agreed);
      this.#rings.prepare();
      await this.#start(this.#rings, 'first');
      this.#told = this.up;
      return this.#rings;
    } catch (error) {
      await this.close();
      throw asVirtioUserError('BACKEND', error);
    }
  }

  /** Reaches the back-end for the first time; with `reconnect` it may come a while later. */
  async #find(): Promise<void> {
    const { timeout, reconnect } = this.#settings;
    for (const until = performance.now() + timeout; ; ) {
      try {
        return await this.#reach(timeout);
      } catch (error) {
        if (!reconnect || performance.now() > until) throw error;
        await sleep(reconnect.initialDelay);
      }
    }
  }

  /** Connects again, at once; one attempt at a time. */
  reconnect(): Promise<void> {
    this.#attempt ??= this.#again().finally(() => {
      this.#attempt = undefined;
    });
    return this.#attempt;
  }

  async #again(): Promise<void> {
    const rings = this.#rings!;
    const { reconnect, role, timeout } = this.#settings;
    const transport = this.#transport;
    await transport.close();
    this.#begin();
    try {
      // With `reconnect` a server's socket stays there until somebody comes.
      await this.#reach(reconnect && role === 'server' ? undefined : timeout);
      const { features: agreed, inflight, queuePairs } = await transport.negotiate(this.agreed);
      if (agreed !== this.agreed) {
        const missing = featureNames(this.agreed & ~agreed).join(', ');
        throw new Error(`the back-end that came back does not offer ${missing}`);
      }
      if (queuePairs < this.#settings.queues)
        throw new Error(`the back-end that came back has ${queuePairs} queues at most`);
      this.#pairs = queuePairs;
      this.config = await transport.config();
      const goesOn = rings.canGoOn(inflight);
      if (!goesOn) rings.prepare();
      await this.#start(rings, goesOn ? 'again' : 'anew');
    } catch (error) {
      await transport.close();
      this.lose((error as Error).message);
      throw asVirtioUserError('BACKEND', error);
    }
    this.#lastError = '';
    this.#tell('');
  }

  /** Tries until it succeeds or the device is closed. */
  async #keepTrying(delays: { initialDelay: number; maxDelay: number }): Promise<void> {
    if (this.#trying) return;
    this.#trying = true;
    const { signal } = this.#closing;
    for (let delay = delays.initialDelay; !signal.aborted && !this.#connected; ) {
      try {
        await this.reconnect();
        delay = delays.initialDelay;
      } catch (error) {
        if (signal.aborted) break;
        this.#report(error as VirtioUserError);
        await sleep(delay, undefined, { signal }).catch(() => {});
        delay = Math.min(2 * delay, delays.maxDelay);
      }
    }
    this.#trying = false;
  }

  /** Tells of an error, but not of the same one with each try. */
  #report(error: VirtioUserError): void {
    if (error.message === this.#lastError) return;
    this.#lastError = error.message;
    this.#events.onError(error);
  }

  /** Reaches the back-end, within so many milliseconds, or until the device is closed. */
  async #reach(timeout: number | undefined): Promise<void> {
    const abort = new AbortController();
    const reason = new Error(`no back-end connected to ${this.#settings.path} within ${timeout} ms`);
    const { signal } = this.#closing;
    const stop = () => abort.abort(signal.reason);
    const timer = timeout === undefined ? undefined : setTimeout(() => abort.abort(reason), timeout);
    signal.addEventListener('abort', stop);
    try {
      signal.throwIfAborted();
      await this.#transport.connect(abort.signal);
      signal.throwIfAborted();
    } catch (error) {
      throw asVirtioUserError('NO_BACKEND', error);
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', stop);
    }
  }

  /** Shares the memory and starts the rings: for the `first` time, `again` with what lies in them, or `anew`. */
  async #start(rings: Rings, how: 'first' | 'again' | 'anew'): Promise<void> {
    const transport = this.#transport;
    const goesOn = how === 'again';
    await transport.share(rings.memory, !goesOn);
    for (const index of rings.all.keys()) {
      await transport.setRing(index, rings.place(index, goesOn));
      // A ring that runs and isn't enabled is emptied, and what waits in it would be lost.
      if (goesOn) await transport.enableRing(index, true);
      await transport.startRing(index, { kickFd: rings.kicks[index]!, callFd: rings.calls[index]! });
    }
    if (!goesOn) for (const index of rings.all.keys()) await transport.enableRing(index, true);
    await this.#startControl();
    await transport.ready();
    // 5.1.6.5.6: until then the device uses the first pair alone.
    const { queues } = this.#settings;
    if (queues > 1 && this.agreed & features.VIRTIO_NET_F_MQ) await this.control?.setPairs(queues);
    if (this.#lost !== undefined) throw new Error(this.#lost);
    this.#connected = true;
  }

  /** The control queue begins anew with each connection: the back-end has forgotten what was said before. */
  async #startControl(): Promise<void> {
    if (!this.control) return;
    const { kickFd, callFd } = this.control;
    const index = controlQueueIndex(this.agreed, this.#pairs);
    await this.#transport.setRing(index, this.control.begin());
    await this.#transport.startRing(index, { kickFd, callFd });
    await this.#transport.enableRing(index, true);
  }

  /** Enables or disables a ring. */
  enable(index: number, enabled: boolean): Promise<void> {
    return this.#transport.enableRing(index, enabled);
  }

  /** The connection has ended, or is no longer worth having. */
  lose(reason: string): void {
    this.#lost ??= reason;
    this.#end(reason);
    this.#connected = false;
    this.#tell(reason);
    const { reconnect } = this.#settings;
    if (reconnect && this.#rings && !this.#closing.signal.aborted) void this.#keepTrying(reconnect);
  }

  async #readConfig(): Promise<void> {
    try {
      this.config = await this.#transport.config();
    } catch {
      // Then the connection ends, or has, and that is told.
      return;
    }
    this.#events.onConfigChange();
    this.#tell('the back-end says that the link is down');
  }

  #tell(reason: string): void {
    if (this.up === this.#told || this.#closing.signal.aborted) return;
    this.#told = this.up;
    if (this.up) this.#events.onUp();
    else this.#events.onDown(reason);
  }

  /** Another connection begins. */
  #begin(): void {
    this.#lost = undefined;
    this.closed = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  /** Stops the rings and ends the connection; the back-end doesn't touch the rings after it. Never rejects. */
  async close(): Promise<void> {
    this.#closing.abort(new VirtioUserError('CLOSED', 'this virtio-user device is closed'));
    if (this.#attempt) {
      await this.#transport.close();
      await this.#attempt.catch(() => {});
    }
    try {
      if (this.#connected && this.#rings)
        for (const index of this.#rings.all.keys()) await this.#transport.stopRing(index);
    } catch {
      // The back-end is gone or lies: there is nothing to stop then.
    }
    await this.#transport.close();
    this.#end('closed here');
    this.#transport.dispose();
    this.control?.close();
    this.#rings?.close();
  }
}
