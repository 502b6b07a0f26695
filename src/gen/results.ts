/** What the counters of a run say: while it lasts, and at its end. */
import { constant, fields, Struct } from '../arena/index.ts';

import { type Counts, latencyOf } from './histogram.ts';
import type { Layout, RunTask } from './layout.ts';
import { examines, modeOf, sends } from './settle.ts';
import type { GenResult, PortResult, Progress, StreamResult } from './types.ts';

export const TASK_FIELDS = [
  'kind', 'receive', 'send', 'broken', 'frames', 'frameCount', 'position', 'notes', 'train', 'stream', 'due',
  'sequence', 'limit', 'sentBytes', 'full', 'lateMost', 'lateSum', 'first', 'last', 'received', 'receivedBytes',
  'foreign', 'corrupt', 'receivedFirst', 'receivedLast', 'tracks', 'streams', 'histogram', 'capture', 'dropped',
  'source', 'peer', 'arps', 'echoes',
] as const; // biome-ignore format: a table
export type TaskStruct = Struct<(typeof TASK_FIELDS)[number]>;

type Counter = 'sequence' | 'sentBytes' | 'full' | 'lateSum' | 'received' | 'receivedBytes' | 'foreign' | 'corrupt' | 'dropped' | 'arps' | 'echoes'; // biome-ignore format: names

const sum = (tasks: readonly RunTask[], field: Counter) =>
  tasks.reduce((total, { struct }) => total + Number(struct.get64(field)), 0);

/** What is 0 where nothing was noted is left out. */
const times = (tasks: readonly RunTask[], field: 'first' | 'last' | 'receivedFirst' | 'receivedLast') =>
  tasks.map(({ struct }) => Number(struct.get64(field))).filter((time) => time > 0);

function rate(count: number, first: number[], last: number[]): number {
  const span = Math.max(...last) - Math.min(...first);
  return count > 1 && span > 0 ? ((count - 1) * 1e9) / span : 0;
}

/** How far the mean rate is from that of the schedule: by the time that it took against the time that it should take. */
function rateError({ begin }: Layout, senders: readonly RunTask[]): number {
  let planned = 0;
  let taken = 0;
  for (const { struct } of senders) {
    const count = Number(struct.get64('sequence'));
    if (count < 2) continue;
    planned += (Number(struct.get64('due')) * (count - 1)) / count;
    taken += Number(struct.get64('last')) - begin;
  }
  return taken > 0 ? planned / taken - 1 : 0;
}

/** Which of a port's streams came, and the durations; every receiving task of a port counts in the same place. */
function tracksOf(layout: Layout, tasks: readonly RunTask[]) {
  const { arena } = layout;
  const plane = arena.dataplane.layout;
  const task = tasks.find(({ struct }) => struct.get('tracks') !== 0)?.struct;
  if (!task) return { streams: [], durations: undefined };
  const offsets = fields(plane, 'Track', ['next', 'unique', 'reordered', 'distance', 'duplicates', 'stale']);
  const stride = constant(plane, 'TRACK_STRIDE');
  const streams = Array.from({ length: task.get('streams') }, (_, stream) => {
    const track = new Struct(arena, task.get('tracks') + stream * stride, offsets);
    const get = (field: keyof typeof offsets) => Number(track.get64(field));
    return {
      stream,
      next: get('next'),
      received: get('unique'),
      reordered: get('reordered'),
      reorderDistance: get('distance'),
      duplicates: get('duplicates'),
      stale: get('stale'),
    };
  });
  const at = task.get('histogram');
  const heads = fields(plane, 'Histogram', ['total', 'sum', 'least', 'most']);
  const head = new Struct(arena, at, heads);
  const first = (at + constant(plane, 'HISTOGRAM_BASE')) / 8;
  const durations: Counts = {
    total: Number(head.get64('total')),
    sum: Number(head.get64('sum')),
    least: Number(head.get64('least')),
    most: Number(head.get64('most')),
    counts: arena.u64.subarray(first, first + constant(plane, 'HISTOGRAM_COUNTS')),
  };
  return { streams, durations };
}

/** The result but for how it ended. */
export function collect(layout: Layout): Omit<GenResult, 'ended' | 'fault'> {
  const { tasks, ports, trial } = layout;
  /** Frames sent by each stream of this run. */
  const sent = new Map<number, number>();
  for (const { stream, struct } of tasks)
    if (stream !== undefined) sent.set(stream, Number(struct.get64('sequence')));
  const durations: Counts[] = [];
  const results = ports.map((port, index): PortResult => {
    const mine = tasks.filter((task) => task.port === index);
    const mode = modeOf(trial, index);
    const senders = mine.filter(({ stream }) => stream !== undefined);
    const count = sends(mode) ? sum(senders, 'sequence') : sum(mine, 'sequence');
    const sendRate = rate(count, times(senders, 'first'), times(senders, 'last'));
    const sentBytes = sum(mine, 'sentBytes');
    const tracks = tracksOf(layout, mine);
    if (tracks.durations) durations.push(tracks.durations);
    const latency = tracks.durations && latencyOf([tracks.durations]);
    const capture = layout.captures[index]?.counts;
    const wanted = trial.rate;
    const due =
      senders.length > 0 && wanted !== 'max' && (wanted !== undefined || trial.replay !== undefined);
    return {
      path: port.path,
      mode,
      sent: count,
      sentBytes,
      sendRate,
      ...(due && count > 1 ? { rateError: rateError(layout, senders) } : {}),
      ...(due
        ? {
            lateMean: count > 0 ? sum(senders, 'lateSum') / count : 0,
            lateMost: Math.max(...senders.map(({ struct }) => Number(struct.get64('lateMost')))),
          }
        : {}),
      ringFull: sum(mine, 'full'),
      received: sum(mine, 'received'),
      receivedBytes: sum(mine, 'receivedBytes'),
      receiveRate: rate(sum(mine, 'received'), times(mine, 'receivedFirst'), times(mine, 'receivedLast')),
      foreign: sum(mine, 'foreign'),
      corrupt: sum(mine, 'corrupt'),
      dropped: sum(mine, 'dropped'),
      ...(mode === 'icmpecho' ? { answers: { arp: sum(mine, 'arps'), echo: sum(mine, 'echoes') } } : {}),
      streams: tracks.streams
        .filter(({ received, stale }) => received > 0 || stale > 0)
        .map(({ next, ...stream }): StreamResult => {
          const of = sent.get(stream.stream);
          return {
            ...stream,
            ...(of === undefined ? {} : { sent: of }),
            lost: Math.max(of ?? 0, next) - stream.received,
          };
        }),
      ...(latency ? { latency } : {}),
      ...(capture ? { capture } : {}),
    };
  });
  const all = (field: 'sent' | 'received' | 'corrupt' | 'foreign') =>
    results.reduce((total, port) => total + port[field], 0);
  const streams = results.flatMap((port) => port.streams);
  const streamSum = (field: 'reordered' | 'duplicates' | 'stale') =>
    streams.reduce((total, stream) => total + stream[field], 0);
  const first = [...times(tasks, 'first'), ...times(tasks, 'receivedFirst')];
  const last = [...times(tasks, 'last'), ...times(tasks, 'receivedLast')];
  const latency = latencyOf(durations);
  const lost = lostOf(layout, sent, results);
  return {
    seconds: first.length > 0 ? (Math.max(...last) - Math.min(...first)) / 1e9 : 0,
    ports: results,
    sent: all('sent'),
    received: all('received'),
    ...(lost === undefined ? {} : { lost }),
    reordered: streamSum('reordered'),
    duplicates: streamSum('duplicates'),
    stale: streamSum('stale'),
    corrupt: all('corrupt'),
    foreign: all('foreign'),
    ...(latency ? { latency } : {}),
  };
}

/**
 * Of each stream what is missing where most of it came: a switch that doesn't know an address yet sends to several
 * ports. Undefined where nobody looks, and of replayed frames, which have no numbers.
 */
function lostOf(
  { ports, trial }: Layout,
  sent: Map<number, number>,
  results: PortResult[],
): number | undefined {
  if (trial.replay !== undefined || !ports.some((_, index) => examines(modeOf(trial, index))))
    return undefined;
  const least = new Map(sent);
  for (const { stream, lost } of results.flatMap((port) => port.streams))
    least.set(stream, Math.min(lost, least.get(stream) ?? Number.POSITIVE_INFINITY));
  return [...least.values()].reduce((total, lost) => total + lost, 0);
}

/** How far a run is. */
export function progress(layout: Layout, now: number): Progress {
  const { tasks, trial, begin } = layout;
  const seconds = Math.max(0, (now - begin) / 1e9);
  const result = collect(layout);
  const sentSoFar = tasks.filter(({ stream }) => stream !== undefined);
  const shares = [
    ...(trial.seconds === undefined ? [] : [seconds / trial.seconds]),
    ...(trial.count === undefined
      ? []
      : [
          sentSoFar.length > 0
            ? result.sent / (trial.count * new Set(sentSoFar.map(({ port }) => port)).size)
            : result.received / trial.count,
        ]),
  ];
  const total = (field: 'sentBytes' | 'receivedBytes') =>
    result.ports.reduce((all, port) => all + port[field], 0);
  const lost = result.lost === undefined ? undefined : gaps(layout);
  return {
    seconds,
    ...(shares.length > 0 ? { share: Math.min(1, Math.max(...shares)) } : {}),
    sent: result.sent,
    sentBytes: total('sentBytes'),
    received: result.received,
    receivedBytes: total('receivedBytes'),
    ...(lost === undefined ? {} : { lost }),
    corrupt: result.corrupt,
    ...(result.latency ? { p50: result.latency.p50, p99: result.latency.p99 } : {}),
  };
}

/** What is missing below the highest numbers that came: frames on their way aren't lost yet. */
function gaps(layout: Layout): number {
  return layout.ports
    .flatMap(
      (_, index) =>
        tracksOf(
          layout,
          layout.tasks.filter(({ port }) => port === index),
        ).streams,
    )
    .reduce((sum, { next, received }) => sum + next - received, 0);
}
