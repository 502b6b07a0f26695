/** What a run is with all its defaults: each port's frames, schedule and bounds. */
import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs';
import { type Prepared, prepare, sizeBounds } from './frames.ts';
import { type Recorded, readCapture } from './pcap.ts';
import type { GenPort, Mode, Range, Rate, Traffic, Trial } from './types.ts';

/** A frame and the time from its start to the next one's, in nanoseconds. */
export interface Scheduled extends Prepared {
  gap: number;
}

/** Largest file that is replayed: all of it is held in the arena. */
const MOST_REPLAYED = 1024 ** 3;
/** Flows of the mode `flowgen` where no range is given, as in testpmd. */
const FLOWS = 1024;
const NANOSECONDS = 1e9;

/** Does a port in this mode send by itself, and does it look at what comes? */
export const sends = (mode: Mode) => mode === 'txonly' || mode === 'flowgen' || mode === 'latency';
export const examines = (mode: Mode) => mode === 'rxonly' || mode === 'flowgen' || mode === 'latency';

export function modeOf({ mode }: Trial, index: number): Mode {
  return typeof mode === 'string' ? mode : mode[index]!;
}

/** A port's own address. */
export function macOf(port: GenPort | undefined, index: number): bigint {
  if (port?.mac === undefined) return 0x02_00_00_00_00_01n + BigInt(index);
  return BigInt(`0x${port.mac.replaceAll(':', '')}`);
}

/** Ports are paired, as in testpmd: 0 and 1, 2 and 3; one that is left over with itself. */
export function peerOf(index: number, count: number): number {
  return (index ^ 1) < count ? index ^ 1 : index;
}

const one = (first: bigint): Range => ({ first, count: 1 });

/** 198.18.0.0/15 and 2001:2::/48 are for measurements (RFC 2544, RFC 5180). */
const address = (version: 4 | 6, host: number) =>
  version === 4 ? 0xc612_0000n + BigInt(host) : 0x2001_0002_0000_0000_0000_0000_0000_0000n + BigInt(host);

/** The frames that a port sends. Throws a RangeError for sizes without room. */
export function framesOf(ports: readonly GenPort[], index: number, trial: Trial): Prepared[] {
  const { traffic = {} } = trial;
  const version = traffic.version ?? 4;
  const peer = peerOf(index, ports.length);
  const own = macOf(ports[index], index);
  // A port alone sends to nobody in particular.
  const other = peer === index ? own + 0x100n : macOf(ports[peer], peer);
  const flows = modeOf(trial, index) === 'flowgen' && !hasRange(traffic) ? FLOWS : 1;
  return prepare({
    version,
    sizes: traffic.sizes ?? [Math.max(64, sizeBounds(traffic).least)],
    sourceMac: traffic.sourceMac ?? one(own),
    destinationMac: traffic.destinationMac ?? one(other),
    sourceIp: traffic.sourceIp ?? one(address(version, 1 + index)),
    destinationIp: traffic.destinationIp ?? { first: address(version, 0x1_0001 + peer), count: flows },
    sourcePort: traffic.sourcePort ?? one(1024n),
    destinationPort: traffic.destinationPort ?? one(9n),
    ...(traffic.vlan ? { vlan: traffic.vlan } : {}),
  });
}

function hasRange(traffic: Traffic): boolean {
  const { sourceMac, destinationMac, sourceIp, destinationIp, sourcePort, destinationPort, vlan } = traffic;
  return [sourceMac, destinationMac, sourceIp, destinationIp, sourcePort, destinationPort, vlan].some(
    (range) => range !== undefined && range.count > 1,
  );
}

/** The frames of a file to be replayed. Throws an Error that names it and what is wrong. */
export function readReplay(path: string): Recorded[] {
  try {
    const fd = openSync(path, 'r');
    try {
      const { size } = fstatSync(fd);
      if (size > MOST_REPLAYED)
        throw new Error(`it has ${size} bytes, at most ${MOST_REPLAYED} are replayed`);
      const frames = readCapture(readFileSync(fd));
      if (frames.length === 0) throw new Error('it holds no frames');
      return frames;
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    throw new Error(`${path}: ${(error as Error).message}`);
  }
}

/** Times when frames are due, at `share` of the rate: a port's queues share it. */
export function schedule(
  frames: readonly Prepared[],
  rate: Exclude<Rate, 'recorded'>,
  share: number,
): Scheduled[] {
  return frames.map((frame) => ({ ...frame, gap: gapOf(rate, frame.length) / share }));
}

function gapOf(rate: Exclude<Rate, 'recorded'>, length: number): number {
  if (rate === 'max') return 0;
  return 'packets' in rate ? NANOSECONDS / rate.packets : (NANOSECONDS * 8 * length) / rate.bits;
}

/** As recorded: frames whose times go back follow at once. After the last one the file begins again at once. */
export function recordedSchedule(recorded: readonly Recorded[]): Scheduled[] {
  return recorded.map((one, index) => {
    const next = recorded[index + 1]?.time ?? one.time;
    return { ...plain(one), gap: Math.max(0, Number(next - one.time)) };
  });
}

/** A recorded frame, to be sent as it is. */
export function plain({ frame }: Recorded): Prepared {
  return { bytes: frame, length: frame.length, stamp: 0, checksum: 0, sum: 0 };
}
