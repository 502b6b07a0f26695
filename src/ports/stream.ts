/**
 * A stream port: Ethernet frames over a unix socket, each behind its length in 4 bytes, as QEMU's `-netdev stream`,
 * passt, libkrun and gvproxy speak. There is no virtio-net header, so checksums and segments are completed before.
 *
 * As a server it listens and serves one peer at a time; as a client it dials, and again whenever the connection ends.
 */
import { rmSync } from 'node:fs';
import type { Range } from '../arena/index.ts';
import type { Framing } from '../io/index.ts';
import type { PortSpec, PortState, Role } from '../switch/types.ts';
import { acceptUnix, closeFd, connectUnix, EPOLLIN, fileId, listenUnix } from '../sys/index.ts';
import type { End, Link } from './kernel-port.ts';
import type { PortContext } from './port.ts';

/** Bytes of a buffer each way: some largest frames, and many others. */
const BUFFER = 128 * 1024;
/** Milliseconds between two dials: doubled from the first to the last. */
const FIRST_REDIAL = 50;
const LAST_REDIAL = 1000;

export class StreamEnd implements End {
  readonly queues = 1;
  readonly framing: Framing = { prefix: 0, messages: 'one', offloads: 0n, patient: true };
  readonly role: Role;
  readonly #path: string;
  readonly #context: PortContext;
  readonly #buffers: Range;
  #link: Link | undefined;
  #listenFd = -1;
  #fd = -1;
  /** Tells our socket from one that somebody put in its place. */
  #socketId: string | undefined;
  #retry: NodeJS.Timeout | null = null;
  #delay = FIRST_REDIAL;
  #closed = false;
  connections = 0;

  /** Listens, where it is to. Throws a SystemError or an ArenaFullError. */
  constructor(spec: Pick<PortSpec, 'target' | 'role'>, context: PortContext) {
    this.role = spec.role ?? 'server';
    this.#path = spec.target;
    this.#context = context;
    this.#buffers = context.arena.takeTable(2 * BUFFER);
    if (this.role === 'client') return;
    try {
      this.#listenFd = listenUnix(spec.target);
      this.#socketId = fileId(spec.target);
    } catch (error) {
      context.arena.freeTable(this.#buffers);
      throw error;
    }
  }

  get state(): PortState {
    if (this.#fd >= 0) return 'up';
    return this.role === 'server' ? 'listening' : 'dialing';
  }

  start(link: Link): void {
    this.#link = link;
    this.#wait();
  }

  /** For the next connection. */
  #wait(): void {
    this.#retry = null;
    if (this.#closed) return;
    if (this.role === 'server') this.#context.poller.add(this.#listenFd, EPOLLIN, () => this.#accept());
    else this.#dial();
  }

  #accept(): void {
    try {
      const fd = acceptUnix(this.#listenFd);
      if (fd === undefined) return;
      this.#context.poller.remove(this.#listenFd);
      this.#serve(fd);
    } catch (error) {
      // Out of descriptors, most likely: the peer still waits, and the socket stays readable.
      this.#context.poller.remove(this.#listenFd);
      this.#link!.error((error as Error).message);
      this.#waitLater(LAST_REDIAL);
    }
  }

  #dial(): void {
    try {
      this.#serve(connectUnix(this.#path));
      this.#delay = FIRST_REDIAL;
    } catch (error) {
      this.#link!.error((error as Error).message);
      this.#waitLater(this.#delay);
      this.#delay = Math.min(2 * this.#delay, LAST_REDIAL);
    }
  }

  #waitLater(delay: number): void {
    this.#retry = setTimeout(() => this.#wait(), delay);
  }

  #serve(fd: number): void {
    this.#fd = fd;
    this.connections++;
    const { start } = this.#buffers;
    this.#link!.error(null);
    // First: what a ring that isn't enabled takes is lost.
    this.#link!.set(true);
    this.#link!.open(
      [{ kind: 'stream', fd, buffers: start, size: BUFFER }],
      (reason) => void this.#ended(reason),
    );
  }

  async #ended(reason: string): Promise<void> {
    if (!/closed the connection/.test(reason)) this.#link!.error(reason);
    await this.#link!.close(reason);
    this.#closeFd();
    if (this.#closed) return;
    if (this.role === 'server') this.#wait();
    else this.#waitLater(this.#delay);
  }

  #closeFd(): void {
    if (this.#fd >= 0) closeFd(this.#fd);
    this.#fd = -1;
  }

  async close(): Promise<void> {
    this.#closed = true;
    if (this.#retry) clearTimeout(this.#retry);
    if (this.#listenFd >= 0) {
      this.#context.poller.remove(this.#listenFd);
      closeFd(this.#listenFd);
      this.#listenFd = -1;
      if (this.#socketId && this.#socketId === fileId(this.#path)) rmSync(this.#path, { force: true });
    }
    this.#closeFd();
    this.#context.arena.freeTable(this.#buffers);
  }
}
