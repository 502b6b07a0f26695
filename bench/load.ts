/**
 * The load: one testpmd is two guests. What it receives on one port it sends on the other with the address of the
 * guest behind the first, so a number of packets circulates through the switch in each direction and the slower of
 * the two ends sets the rate.
 */
import { Testpmd, virtioUser } from '../test/peers/dpdk.ts';
import { cpuSeconds } from '../test/peers/process.ts';

export const RING = 1024;
/** The switch has this CPU to itself, the guests have the other. */
export const SWITCH_CPU = 0;
export const GUEST_CPU = 1;
/** Bursts of 32 packets that circulate in each direction. */
export const BURSTS = 4;

const MACS = ['52:54:00:00:00:01', '52:54:00:00:00:02'] as const;
/**
 * A first burst is lost when its port's peer isn't up yet: starts of the guests until both directions run. Also
 * measured windows until nothing else ran on the two CPUs; the last one counts, and its share is reported.
 */
const ATTEMPTS = 5;
/** Seconds before the first measured window. */
const WARM_UP = 0.5;
/** Share of its CPU that the switch and the guests must have had: below that, something else ran there. */
export const UNDISTURBED = 0.97;

/** A switch with vhost-user ports on sockets that listen. */
export interface Subject {
  name: string;
  pid: number;
  cyclesPerPacket?: (seconds: number) => Promise<number | undefined>;
}

export interface LoadOptions {
  /** Bytes of a frame. */
  size: number;
  seconds: number;
  bursts: number;
}

export interface Load {
  /** Packets a second, both directions summed. */
  rate: number;
  /** Where the switch counts them itself. */
  cyclesPerPacket?: number;
  /** Share of its CPU that the switch or the guests had, whichever had less: 1 on an otherwise quiet machine. */
  cpuShare: number;
  /** What the guests' drivers negotiated. */
  features: bigint;
  /** DPDK's version. */
  dpdk: string;
}

/** Runs the load between the two sockets; guests that stand still are started again. */
export async function load(
  subject: Subject,
  sockets: readonly [string, string],
  options: LoadOptions,
  say: (line: string) => void,
): Promise<Load> {
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const found = await circulate(subject, sockets, options, say);
    if (found !== undefined) return found;
    say(`${subject.name}, ${options.size} B: a direction carries nothing, again`);
  }
  throw new Error(`${subject.name}: a direction carried nothing, ${ATTEMPTS} times`);
}

/** Undefined when one direction stands still. */
async function circulate(
  subject: Subject,
  sockets: readonly [string, string],
  { size, seconds, bursts }: LoadOptions,
  say: (line: string) => void,
): Promise<Load | undefined> {
  await using guests = await Testpmd.start({
    cpu: GUEST_CPU,
    vdevs: sockets.map((path, index) => virtioUser(index, { path, mac: MACS[index], queueSize: RING })),
    args: ['--forward-mode=mac', `--eth-peer=0,${MACS[1]}`, `--eth-peer=1,${MACS[0]}`, `--txpkts=${size}`],
  });
  await guests.waitForLinks();
  await guests.command(`start tx_first ${bursts}`);
  let measured = await window(subject, guests, WARM_UP);
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    if (measured.rates.some((rate) => rate === 0)) return undefined;
    measured = await window(subject, guests, seconds);
    if (measured.cpuShare >= UNDISTURBED) break;
    say(`${subject.name}, ${size} B: others took ${percent(1 - measured.cpuShare)} of a CPU`);
  }
  if (measured.rates.some((rate) => rate === 0)) return undefined;
  const cyclesPerPacket = await subject.cyclesPerPacket?.(0.5);
  return {
    rate: measured.rates.reduce((sum, rate) => sum + rate, 0),
    cpuShare: measured.cpuShare,
    features: guests.features()[0] ?? 0n,
    dpdk: guests.version,
    ...(cyclesPerPacket === undefined ? {} : { cyclesPerPacket }),
  };
}

/** What each guest received a second, and the least share of a CPU that the switch and the guests had meanwhile. */
async function window(
  subject: Subject,
  guests: Testpmd,
  seconds: number,
): Promise<{ rates: number[]; cpuShare: number }> {
  const pids = [subject.pid, guests.child.pid];
  const before = pids.map(cpuSeconds);
  const start = performance.now();
  const rates = await guests.rates(seconds);
  const wall = (performance.now() - start) / 1000;
  const shares = pids.map((pid, index) => (cpuSeconds(pid) - (before[index] ?? 0)) / wall);
  return { rates, cpuShare: Math.min(1, ...shares) };
}

export function percent(share: number): string {
  return `${(100 * share).toFixed(0)} %`;
}
