/**
 * A datagram port: an Ethernet frame in each datagram of a socket, as QEMU's `-netdev dgram` speaks over UDP and unix
 * sockets, and libkrun, vfkit and gvproxy over unix ones. There is no virtio-net header, so checksums and segments are
 * completed before.
 *
 * The target is our end, `remote` the other one. Where a unix socket has none set, the first that sends is the other
 * end, until its socket is gone. Nobody tells of an end of datagrams: it is looked for again and again.
 */
import { rmSync } from 'node:fs';
import type { Framing } from '../io/index.ts';
import type { PortSpec, PortState } from '../switch/types.ts';
import {
  closeFd,
  connectDatagrams,
  EPOLLIN,
  fileId,
  nextSender,
  type Poller,
  udpSocket,
  unixDatagramSocket,
} from '../sys/index.ts';
import { dgramTarget } from './addresses.ts';
import type { End, Link } from './kernel-port.ts';

/** Milliseconds between two looks for the other end's socket. */
const LOOK = 500;

/** Opens the end of a port; what its target is says how. Throws a SystemError that names the socket. */
export function openDgramEnd(spec: PortSpec, poller: Poller): End {
  const ours = dgramTarget(spec.target)?.udp;
  const theirs = dgramTarget(spec.remote ?? '')?.udp;
  return ours && theirs ? new UdpEnd(udpSocket(ours, theirs)) : new UnixEnd(spec, poller);
}

const FRAMING: Framing = { prefix: 0, messages: 'many', offloads: 0n };

/** Both addresses are known, and whether somebody is at the other one nobody knows. */
class UdpEnd implements End {
  readonly queues = 1;
  readonly framing = FRAMING;
  readonly role = null;
  readonly state: PortState = 'up';
  readonly connections = 0;
  readonly #fd: number;

  constructor(fd: number) {
    this.#fd = fd;
  }

  start(link: Link): void {
    // First: what a ring that isn't enabled takes is lost.
    link.set(true);
    link.open([{ kind: 'messages', fd: this.#fd }], (reason) => link.error(reason));
  }

  async close(): Promise<void> {
    closeFd(this.#fd);
  }
}

class UnixEnd implements End {
  readonly queues = 1;
  readonly framing = FRAMING;
  readonly role = null;
  readonly #path: string;
  readonly #remote: string | undefined;
  readonly #poller: Poller;
  readonly #fd: number;
  /** Tells our socket from one that somebody put in its place. */
  readonly #socketId: string | undefined;
  readonly #timer: NodeJS.Timeout;
  /** The path of the other end, once it is there. */
  #peer: string | undefined;
  #listens = false;
  #leaving = false;
  #closed = false;
  #link: Link | undefined;
  connections = 0;

  constructor(spec: PortSpec, poller: Poller) {
    this.#path = spec.target;
    this.#remote = spec.remote;
    this.#poller = poller;
    this.#fd = unixDatagramSocket(spec.target);
    this.#socketId = fileId(spec.target);
    this.#timer = setInterval(() => this.#look(), LOOK);
  }

  get state(): PortState {
    if (this.#peer !== undefined) return 'up';
    return this.#remote === undefined ? 'listening' : 'dialing';
  }

  start(link: Link): void {
    this.#link = link;
    this.#look();
  }

  /** Finds the other end, or that it has gone: a socket that was made anew at its path counts as the same. */
  #look(): void {
    if (this.#closed || this.#leaving || !this.#link) return;
    const path = this.#peer ?? this.#remote;
    if (path === undefined) this.#listen();
    else this.#connect(path);
  }

  #connect(path: string): void {
    try {
      // What others have sent before is not the other end's.
      if (this.#peer === undefined && this.#remote !== undefined) this.#forget();
      connectDatagrams(this.#fd, path);
    } catch (error) {
      if (this.#remote !== undefined) this.#link!.error((error as Error).message);
      if (this.#peer !== undefined) void this.#lost('the other side has closed its socket');
      return;
    }
    if (this.#peer !== undefined) return;
    this.#peer = path;
    this.connections++;
    this.#link!.error(null);
    // First: what a ring that isn't enabled takes is lost.
    this.#link!.set(true);
    this.#link!.open([{ kind: 'messages', fd: this.#fd }], (reason) => {
      this.#link!.error(reason);
      void this.#lost(reason);
    });
  }

  #forget(): void {
    for (let i = 0; i < 1000 && nextSender(this.#fd, true) !== undefined; i++);
  }

  /** Waits for who sends first. */
  #listen(): void {
    if (this.#listens) return;
    this.#listens = true;
    this.#poller.add(this.#fd, EPOLLIN, () => {
      try {
        const sender = nextSender(this.#fd, false);
        if (sender === undefined) return;
        // Without a path there is nowhere to send to.
        if (sender === null) nextSender(this.#fd, true);
        else this.#connect(sender);
      } catch (error) {
        this.#link!.error((error as Error).message);
      }
      if (this.#peer !== undefined) this.#listenNoMore();
      // Its sender has gone already.
      else nextSender(this.#fd, true);
    });
  }

  #listenNoMore(): void {
    if (this.#listens) this.#poller.remove(this.#fd);
    this.#listens = false;
  }

  async #lost(reason: string): Promise<void> {
    if (this.#leaving) return;
    this.#leaving = true;
    await this.#link!.close(reason);
    this.#leaving = false;
    this.#peer = undefined;
    if (this.#closed) return;
    connectDatagrams(this.#fd, undefined);
    this.#look();
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#timer);
    this.#listenNoMore();
    closeFd(this.#fd);
    if (this.#socketId && this.#socketId === fileId(this.#path)) rmSync(this.#path, { force: true });
  }
}
