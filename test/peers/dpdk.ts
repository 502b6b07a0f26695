/**
 * DPDK's dpdk-testpmd, driven through its prompt: as two guests (virtio-user ports) or as a switch (vhost ports).
 *
 * `--in-memory` takes the hugepages as memfds: no hugetlbfs mount, and nothing stays behind when the process is
 * killed. `--single-file-segments` keeps the memory within the eight regions of a vhost-user memory table.
 */
import { Child, sleep, until } from './process.ts';

export interface VirtioUser {
  /** The vhost-user socket. */
  path: string;
  mac?: string;
  /** Descriptors in each ring, a power of two. */
  queueSize?: number;
  /** Queue pairs. */
  queues?: number;
  /** Own the socket and wait for the switch to dial it. */
  server?: boolean;
  mrgRxbuf?: boolean;
  inOrder?: boolean;
  packed?: boolean;
  vectorized?: boolean;
}

/** The --vdev of the virtio-user port `index`. Options that aren't given keep DPDK's default. */
export function virtioUser(index: number, options: VirtioUser): string {
  const flag = (on: boolean | undefined) => (on === undefined ? undefined : Number(on));
  return vdev(`net_virtio_user${index}`, {
    path: options.path,
    mac: options.mac,
    queue_size: options.queueSize,
    queues: options.queues,
    server: flag(options.server),
    mrg_rxbuf: flag(options.mrgRxbuf),
    in_order: flag(options.inOrder),
    packed_vq: flag(options.packed),
    vectorized: flag(options.vectorized),
  });
}

/** The --vdev of the vhost port `index`: a vhost-user back-end on the socket `iface`. */
export function vhost(
  index: number,
  options: { iface: string; client?: boolean; queues?: number; tso?: boolean },
): string {
  return vdev(`net_vhost${index}`, {
    iface: options.iface,
    client: options.client ? 1 : undefined,
    queues: options.queues,
    tso: options.tso ? 1 : undefined,
    // What came as work left undone goes on as such.
    'legacy-ol-flags': options.tso ? 1 : undefined,
  });
}

/**
 * Options of testpmd for so many queues on each port, with sent packets of many flows, so that a switch that spreads
 * by flow has something to spread.
 */
export function queueArguments(queues: number): string[] {
  return [`--rxq=${queues}`, `--txq=${queues}`, '--txonly-multi-flow'];
}

function vdev(name: string, options: Record<string, string | number | undefined>): string {
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  return [name, ...given.map(([key, value]) => `${key}=${value}`)].join(',');
}

export interface TestpmdOptions {
  vdevs: string[];
  /** The CPU of both the prompt and the forwarding thread. */
  cpu?: number;
  /** MiB of hugepages. */
  memory?: number;
  /** More options for DPDK's environment layer. */
  eal?: string[];
  /** Options of testpmd itself, e.g. `--forward-mode=mac`. */
  args?: string[];
  /** Words before the program, e.g. those that enter a network namespace. */
  within?: string[];
}

/** Counters of a port since the last `clear port stats`, rates since the last look. */
export interface PortStats {
  rxPackets: number;
  rxBytes: number;
  rxMissed: number;
  rxErrors: number;
  txPackets: number;
  txBytes: number;
  txErrors: number;
  /** Packets a second. */
  rxRate: number;
  txRate: number;
}

const PROMPT = 'testpmd> ';
/** Milliseconds without an answer after which testpmd is asked for its prompt. */
const NUDGE = 5000;
let started = 0;

export class Testpmd {
  readonly child: Child;
  readonly ports: number;
  #last: Promise<unknown> = Promise.resolve();
  #nudged = false;

  private constructor(child: Child, ports: number) {
    this.child = child;
    this.ports = ports;
  }

  /** Resolves when the ports are configured and the prompt is there; rejects with testpmd's own words. */
  static async start(options: TestpmdOptions): Promise<Testpmd> {
    const cpu = options.cpu ?? 0;
    const prefix = `vireo-${process.pid}-${started++}`;
    // The prompt is written directly, the rest through stdio: line buffering and one pipe keep all in order.
    const [program = 'sh', ...words] = [...(options.within ?? []), 'sh'];
    const child = new Child(program, [
      ...words,
      ...['-c', 'exec stdbuf -oL dpdk-testpmd "$@" 2>&1', 'dpdk-testpmd'],
      ...['-v', '--no-pci', '--in-memory', '--single-file-segments', '--file-prefix', prefix],
      ...['-m', String(options.memory ?? 256), '--lcores', `0@${cpu},1@${cpu}`],
      ...options.vdevs.flatMap((device) => ['--vdev', device]),
      ...['--log-level=pmd.net.virtio.init:debug', ...(options.eal ?? [])],
      ...['--', '-i', ...(options.args ?? [])],
    ]);
    const pmd = new Testpmd(child, options.vdevs.length);
    try {
      await child.waitFor('its prompt', 30_000, () => child.output.includes(PROMPT) || undefined);
    } catch (error) {
      await pmd.close();
      throw error;
    }
    return pmd;
  }

  /** Everything that testpmd has said. */
  get log(): string {
    return this.child.output;
  }

  /** DPDK's version, `22.11.11`. */
  get version(): string {
    return /RTE Version: 'DPDK ([^']+)'/.exec(this.log)?.[1] ?? 'unknown';
  }

  /** Types a command, resolves with what it printed. Commands wait for one another. */
  command(text: string, timeout = 20_000): Promise<string> {
    const answer = this.#last.then(() => this.#type(text, timeout));
    this.#last = answer.catch(() => {});
    return answer;
  }

  async #type(text: string, timeout: number): Promise<string> {
    this.child.output = this.child.output.replaceAll(PROMPT, '');
    this.child.write(`${text}\n`);
    // The prompt is written letter by letter, and a line of another thread may fall into it: this brings a whole one.
    const nudge = setInterval(() => {
      this.#nudged = true;
      this.child.write('\n');
    }, NUDGE);
    const answer = this.child.waitFor(`an answer to "${text}"`, timeout, () => {
      const output = this.child.output;
      const end = output.lastIndexOf(PROMPT);
      if (end < 0) return undefined;
      const echo = output.lastIndexOf(`${text}\r\n`, end);
      // It may be the prompt of an empty line before.
      if (echo < 0 && this.#nudged) return undefined;
      return output.slice(echo < 0 ? 0 : echo + text.length + 2, end).trim();
    });
    return answer.finally(() => clearInterval(nudge));
  }

  /** Counters of all ports, by port number. */
  async stats(): Promise<PortStats[]> {
    const text = await this.command('show port stats all');
    const field = (part: string, name: string) => Number(new RegExp(`${name}:\\s*(\\d+)`).exec(part)?.[1]);
    return text
      .split('NIC statistics for port')
      .slice(1)
      .map((part) => ({
        rxPackets: field(part, 'RX-packets'),
        rxBytes: field(part, 'RX-bytes'),
        rxMissed: field(part, 'RX-missed'),
        rxErrors: field(part, 'RX-errors'),
        txPackets: field(part, 'TX-packets'),
        txBytes: field(part, 'TX-bytes'),
        txErrors: field(part, 'TX-errors'),
        rxRate: field(part, 'Rx-pps'),
        txRate: field(part, 'Tx-pps'),
      }));
  }

  /** Packets a second that each port received over `seconds`. */
  async rates(seconds: number): Promise<number[]> {
    await this.stats();
    await sleep(seconds * 1000);
    return (await this.stats()).map((port) => port.rxRate);
  }

  /**
   * Cycles a packet as testpmd counts them, over `seconds` of forwarding; undefined where it doesn't. Only the time
   * of bursts that weren't empty counts.
   */
  async cyclesPerPacket(seconds: number): Promise<number | undefined> {
    await this.command('set record-core-cycles on');
    // The burst under way began without a time stamp: let it end before the counters begin.
    await sleep(50);
    await this.command('clear fwd stats all');
    await sleep(seconds * 1000);
    const text = await this.command('show fwd stats all');
    await this.command('set record-core-cycles off');
    const cycles = /CPU cycles\/packet=([\d.]+)/.exec(text)?.[1];
    return cycles === undefined ? undefined : Number(cycles);
  }

  /** True if every port's link is up. */
  async linksUp(): Promise<boolean> {
    const text = await this.command('show port summary all');
    return (text.match(/\bup\b/g) ?? []).length === this.ports;
  }

  async waitForLinks(timeout = 10_000): Promise<void> {
    await until(`link on all ports of testpmd\n${this.child.tail()}`, timeout, () => this.linksUp());
  }

  /** The feature bits that each virtio-user port negotiated last. */
  features(): bigint[] {
    const found = [...this.log.matchAll(/features after negotiate = ([0-9a-f]+)/g)];
    return found.slice(-this.ports).map((match) => BigInt(`0x${match[1]}`));
  }

  /** Ends testpmd: its devices are closed if it still listens, else it is killed. */
  async close(): Promise<void> {
    if (this.child.running) this.child.write('quit\n');
    const timer = setTimeout(() => this.child.process.kill('SIGKILL'), 5000);
    await this.child.exited;
    clearTimeout(timer);
  }

  /** Ends it with SIGKILL, as a crash would. */
  async kill(): Promise<void> {
    await this.child.end('SIGKILL');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
