/** Who does what in a run: the tasks of all ports, the threads that they belong to, and what is sent when. */
import type { VirtioUser } from '../virtio-user/device.ts';
import {
  framesOf, modeOf, peerOf, plain, readReplay, recordedSchedule, type Scheduled, schedule, sends,
} from './settle.ts'; // biome-ignore format: a list
import type { GenPort, Mode, Trial } from './types.ts';

/** Task.kind (src/dataplane/generator.ts) of what receives, by the port's mode. */
export const KINDS: Record<Exclude<Mode, 'txonly'>, number> = {
  rxonly: 2, flowgen: 2, latency: 2, io: 3, mac: 4, macswap: 5, icmpecho: 6,
}; // biome-ignore format: a table
const SEND = 1;
export const FORWARDS: readonly number[] = [KINDS.io, KINDS.mac, KINDS.macswap];

const MOST_STREAMS = 256;
/** Descriptors of a ring by default. */
export const RING = 1024;

/** A task: one ring's, or that of a ring to receive and one to send. */
export interface Plan {
  port: number;
  queue: number;
  thread: number;
  kind: number;
  mode: Mode;
  /** Number of the stream that it sends. */
  stream?: number;
}

const forwards = (mode: Mode) => mode !== 'txonly' && FORWARDS.includes(KINDS[mode]);

/** The tasks of all ports. Those of a port, and of two that forward to each other, share a thread. */
export function planTasks(
  ports: readonly GenPort[],
  devices: readonly VirtioUser[],
  trial: Trial,
  threads: number,
): Plan[] {
  const plans: Plan[] = [];
  let streams = 0;
  for (const [port, { path }] of ports.entries()) {
    const mode = modeOf(trial, port);
    const peer = peerOf(port, ports.length);
    // Whoever forwards uses its peer's ring to send.
    if (peer !== port && forwards(modeOf(trial, peer)) && (sends(mode) || mode === 'icmpecho'))
      throw new RangeError(
        `${path}: its peer ${ports[peer]!.path} forwards to it, so it can't send by itself`,
      );
    const first = forwards(mode) ? Math.min(port, peer) : port;
    for (let queue = 0; queue < devices[port]!.queues; queue++) {
      const common = { port, queue, mode, thread: first % threads };
      if (sends(mode)) plans.push({ ...common, kind: SEND, stream: streams++ });
      if (mode !== 'txonly') plans.push({ ...common, kind: KINDS[mode] });
    }
  }
  if (streams > MOST_STREAMS)
    throw new RangeError(`${streams} sending queues: at most ${MOST_STREAMS} expected`);
  return plans;
}

/** What each port sends, and when; empty for those that don't. */
export function scheduleAll(
  ports: readonly GenPort[],
  devices: readonly VirtioUser[],
  trial: Trial,
): Scheduled[][] {
  const recorded = trial.replay === undefined ? undefined : readReplay(trial.replay);
  const rate = trial.rate ?? (recorded ? 'recorded' : 'max');
  if (rate === 'recorded' && recorded === undefined)
    throw new RangeError('rate recorded: only with a file to replay');
  return ports.map((_, index) => {
    if (!sends(modeOf(trial, index))) return [];
    if (rate === 'recorded') return recordedSchedule(recorded!);
    return schedule(recorded?.map(plain) ?? framesOf(ports, index, trial), rate, 1 / devices[index]!.queues);
  });
}
