/**
 * The load: one testpmd is one guest with two ports, or several in a ring. What it receives on one port of a guest it
 * sends on the other, to the address of the next guest's nearest port (of one guest, of its own), so a number of
 * packets circulates through switch and guests in each direction and the slowest of them sets the rate.
 */
import { Testpmd, virtioUser } from '../test/peers/dpdk.ts';
import { assertPath, type RingPath } from '../test/peers/paths.ts';
import { cpuSeconds } from '../test/peers/process.ts';
import type { Distance, Place } from './distance.ts';
import { percentile } from './report.ts';

export const RING = 1024;
/** The switch has this CPU to itself, the guests have the other. */
export const SWITCH_CPU = 0;
export const GUEST_CPU = 1;
/** Bursts of 32 packets that circulate in each direction. */
export const BURSTS = 4;

const mac = (port: number) => `52:54:00:00:00:${(port + 1).toString(16).padStart(2, '0')}`;
/** A first burst is lost when its port's peer isn't up yet: starts of the guests until both directions run. */
const ATTEMPTS = 5;
/** Seconds before the first measured window. */
const WARM_UP = 0.5;
/** Seconds of a window. The distance of the CPUs stays the same for some seconds. */
const WINDOW = 0.4;
/** Windows are added until those with near CPUs make up the seconds asked for, up to this many times as many. */
const PATIENCE = 3;
/** Share of its CPU that the switch and the guests must have had: below that, something else ran there. */
const UNDISTURBED = 0.97;
/** The kernel counts CPU time in steps of so many seconds. */
const TICK = 0.01;

/** A switch with vhost-user ports on sockets that listen. */
export interface Subject {
  name: string;
  pid: number;
  cyclesPerPacket?: (seconds: number) => Promise<number | undefined>;
}

export interface LoadOptions {
  /** Bytes of a frame. */
  size: number;
  /** Bursts of 32 packets that circulate in each direction. */
  bursts: number;
  /** Of the two CPUs. */
  distance: Distance;
  /** The way through the guests' driver; default: what DPDK chooses with all features on. */
  path?: RingPath;
  /** MiB of hugepages that the guests' process gets, and packets that it has in all; default: testpmd's own. */
  memory?: { size: number; packets: number };
}

export interface Load {
  /**
   * Packets a second, both directions summed: the median of the windows in which the two CPUs were near each other,
   * and of those in which they were far. Absent without such a window.
   */
  near?: number;
  far?: number;
  /** Windows that count, and those left out because others took part of a CPU or the distance changed. */
  windows: { near: number; far: number; left: number };
  /** Where the switch counts them itself. */
  cyclesPerPacket?: number;
  /** What the guests' drivers negotiated. */
  features: bigint;
  /** DPDK's version. */
  dpdk: string;
}

/** The port of another guest that is wired with this one: 1 with 2, 3 with 4, the last with 0. */
export function nextPort(port: number, ports: number): number {
  return (port + (port % 2 === 1 ? 1 : ports - 1)) % ports;
}

/** Measures loads that all run already, window by window in turn, each while the others are frozen. */
export async function measure(loads: RunningLoad[], seconds: number): Promise<Load[]> {
  const wanted = Math.ceil(seconds / WINDOW);
  for (let round = 0; round < wanted * PATIENCE; round++) {
    for (const load of loads) await load.window();
    if (loads.every((load) => load.windows.near >= wanted)) break;
  }
  const results: Load[] = [];
  for (const load of loads) results.push(await load.result());
  return results;
}

export class RunningLoad {
  readonly windows = { near: 0, far: 0, left: 0 };
  readonly #subject: Subject;
  readonly #guests: Testpmd;
  readonly #distance: Distance;
  readonly #rates: Record<Place, number[]> = { near: [], far: [] };

  private constructor(subject: Subject, guests: Testpmd, distance: Distance) {
    this.#subject = subject;
    this.#guests = guests;
    this.#distance = distance;
  }

  /** Starts the guests until both directions run, and leaves all frozen. */
  static async start(
    subject: Subject,
    sockets: readonly string[],
    { size, bursts, distance, path, memory }: LoadOptions,
    say: (line: string) => void,
  ): Promise<RunningLoad> {
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const guests = await Testpmd.start({
        cpu: GUEST_CPU,
        ...(path?.eal ? { eal: path.eal } : {}),
        ...(memory ? { memory: memory.size } : {}),
        vdevs: sockets.map((socket, index) =>
          virtioUser(index, { ...path?.options, path: socket, mac: mac(index), queueSize: RING }),
        ),
        args: [
          '--forward-mode=mac',
          ...sockets.map((_, index) => `--eth-peer=${index},${mac(nextPort(index, sockets.length))}`),
          `--txpkts=${size}`,
          ...(memory ? [`--total-num-mbufs=${memory.packets}`] : []),
        ],
      });
      if (path) await assertPath(guests, path, [...sockets.keys()]);
      await guests.waitForLinks();
      await guests.command(`start tx_first ${bursts}`);
      const rates = await guests.rates(WARM_UP);
      if (rates.every((rate) => rate > 0)) {
        const running = new RunningLoad(subject, guests, distance);
        running.#signal('SIGSTOP');
        return running;
      }
      say(`${subject.name}, ${size} B: a direction carries nothing, again`);
      await guests.close();
    }
    throw new Error(`${subject.name}: a direction carried nothing, ${ATTEMPTS} times`);
  }

  /** Runs for a window, and probes the distance before and after while everything stands still. */
  async window(): Promise<void> {
    const before = await this.#distance.place();
    this.#signal('SIGCONT');
    const pids = this.#pids();
    const used = pids.map(cpuSeconds);
    const start = performance.now();
    const rates = await this.#guests.rates(WINDOW);
    const wall = (performance.now() - start) / 1000;
    const shares = pids.map((pid, index) => (cpuSeconds(pid) + TICK - (used[index] ?? 0)) / wall);
    this.#signal('SIGSTOP');
    const after = await this.#distance.place();
    if (before === undefined || before !== after || Math.min(...shares) < UNDISTURBED) {
      this.windows.left++;
      return;
    }
    if (rates.some((rate) => rate === 0)) throw new Error(`${this.#subject.name}: a direction stands still`);
    this.windows[before]++;
    this.#rates[before].push(rates.reduce((sum, rate) => sum + rate, 0));
  }

  async result(): Promise<Load> {
    this.#signal('SIGCONT');
    const cyclesPerPacket = await this.#subject.cyclesPerPacket?.(0.5);
    this.#signal('SIGSTOP');
    const { near, far } = this.#rates;
    return {
      ...(near.length > 0 ? { near: percentile(near, 50) } : {}),
      ...(far.length > 0 ? { far: percentile(far, 50) } : {}),
      windows: this.windows,
      features: this.#guests.features()[0] ?? 0n,
      dpdk: this.#guests.version,
      ...(cyclesPerPacket === undefined ? {} : { cyclesPerPacket }),
    };
  }

  /** Ends the guests; the switch runs on. */
  async close(): Promise<void> {
    this.#signal('SIGCONT');
    await this.#guests.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #pids(): number[] {
    return [this.#subject.pid, this.#guests.child.pid];
  }

  #signal(signal: NodeJS.Signals): void {
    for (const pid of this.#pids()) process.kill(pid, signal);
  }
}
