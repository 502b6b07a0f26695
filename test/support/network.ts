/**
 * Network namespaces for tests: one that the test program itself moves to, so that the host's interfaces are neither
 * seen nor touched, and others beside it.
 */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import koffi from 'koffi';
import { addressOf, closeFd, interfaceRequest, ioctl, udpSocket } from '../../src/sys/index.ts';
import { Child } from '../peers/process.ts';

const CLONE_NEWNET = 0x40000000;
const unshare = koffi.load(null).func('unshare', 'int', ['int']) as (flags: number) => number;

let moved: string | undefined;

/**
 * Moves this thread, and the threads and processes that it makes from now on, to a network namespace of its own, that
 * ends with them; later calls change nothing. Returns false, or in one sentence why it can't, for node:test's `skip`.
 */
export function ownNetwork(): string | false {
  moved ??= move();
  return moved === '' ? false : moved;
}

function move(): string {
  if (!existsSync('/dev/net/tun')) return 'there is no /dev/net/tun: run "modprobe tun" as root';
  if (process.getuid?.() !== 0 || unshare(CLONE_NEWNET) !== 0)
    return 'network namespaces take root: run the tests as root';
  ip('link set lo up');
  return '';
}

/** Runs `ip` with these words; returns what it prints. */
export function ip(words: string): string {
  return execFileSync('ip', words.split(' '), { stdio: ['ignore', 'pipe', 'pipe'] }).toString();
}

/** Frames that an interface has received, here or in another namespace. */
export function received(name: string, namespace?: Namespace): number {
  const words = `-j -s link show ${name}`;
  const [link] = JSON.parse(namespace === undefined ? ip(words) : namespace.ip(words));
  return (link as { stats64: { rx: { packets: number } } }).stats64.rx.packets;
}

/**
 * Lets an interface send no partial checksums, as cards do on a wire: between the ends of a veth pair the checksum of
 * an inner packet would stay undone, and nobody tells its receiver.
 */
export function completeChecksums(name: string): void {
  const SIOCETHTOOL = 0x8946;
  const ETHTOOL_STXCSUM = 0x17;
  const value = Buffer.from(new ArrayBuffer(8));
  value.writeUInt32LE(ETHTOOL_STXCSUM, 0);
  const request = interfaceRequest(name);
  request.writeBigUInt64LE(addressOf(value), 16);
  const fd = udpSocket({ address: '127.0.0.1', port: 0 }, { address: '127.0.0.1', port: 0 });
  ioctl(fd, SIOCETHTOOL, request);
  closeFd(fd);
}

/** Another namespace, there as long as its process. */
export class Namespace {
  readonly #holder: Child;

  private constructor(holder: Child) {
    this.#holder = holder;
  }

  static async open(): Promise<Namespace> {
    const holder = new Child('unshare', ['--net', '--', 'sh', '-c', 'echo here; exec sleep 1000000']);
    await holder.waitFor('the namespace', 20_000, () => holder.output.includes('here') || undefined);
    const namespace = new Namespace(holder);
    namespace.ip('link set lo up');
    return namespace;
  }

  /** What `ip link set X netns` takes. */
  get id(): number {
    return this.#holder.pid;
  }

  /** The words that run a program there. */
  get enter(): string[] {
    return ['nsenter', '-t', String(this.id), '-n', '--'];
  }

  ip(words: string): string {
    return this.run('ip', ...words.split(' '));
  }

  /** Runs a program there; returns what it prints, and throws when it fails. */
  run(...words: string[]): string {
    const [program, ...rest] = [...this.enter, ...words];
    return execFileSync(program!, rest, { stdio: ['ignore', 'pipe', 'pipe'] }).toString();
  }

  /** Starts a program there. */
  start(program: string, ...words: string[]): Child {
    const [enter, ...rest] = this.enter;
    return new Child(enter!, [...rest, program, ...words]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#holder.end('SIGKILL');
  }
}
