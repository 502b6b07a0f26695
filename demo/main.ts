/**
 * `npm start`: a switch with two vhost-user ports, a guest program on each, and frames between them in both
 * directions, with a live table until Ctrl-C.
 *
 * The guests (guest.ts) are processes of their own that plug in through the sockets, as a virtual machine does.
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { count, duration, table } from '../src/cli/table.ts';
import { createSwitch, type PortStatus, type Switch, type WorkerStatus } from '../src/index.ts';
import type { GuestCommand, GuestReport } from './guest.ts';

const USAGE = `usage: npm start [-- --seconds N] [--size BYTES] [--json]

  --seconds N    ends by itself after so long (default: at Ctrl-C)
  --size BYTES   of each frame, 64 to 1518 (default 64)
  --json         print one JSON object at the end, and nothing else`;

const GUESTS = [
  { port: 'vm1', mac: '52:54:00:00:00:01', peer: '52:54:00:00:00:02' },
  { port: 'vm2', mac: '52:54:00:00:00:02', peer: '52:54:00:00:00:01' },
];
/** Milliseconds for a guest to plug in, to report and to leave. */
const PATIENCE = 10_000;
/** Most milliseconds of a timer. */
const LONGEST = 2 ** 31 - 1;

function readOptions() {
  try {
    const { values } = parseArgs({
      options: {
        seconds: { type: 'string' },
        size: { type: 'string', default: '64' },
        json: { type: 'boolean', default: false },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
    const seconds = Number(values.seconds ?? Number.POSITIVE_INFINITY);
    if (!(seconds > 0)) throw new Error(`--seconds wants a number above 0, not "${values.seconds}"`);
    const size = Number(values.size);
    if (!(Number.isInteger(size) && size >= 64 && size <= 1518)) {
      throw new Error(`--size wants a whole number from 64 to 1518, not "${values.size}"`);
    }
    return { ...values, seconds, size };
  } catch (error) {
    console.error(`${(error as Error).message}\n\n${USAGE}`);
    return process.exit(2);
  }
}

const options = readOptions();

/** Aborted by the first signal; those that follow change nothing, the end is under way. */
const interrupt = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => interrupt.abort());
// Whoever read the output has left.
process.stdout.on('error', () => interrupt.abort());

/** A guest program: a process of its own, and what it says. */
class Guest {
  readonly port: string;
  readonly #child;
  readonly #exit: Promise<unknown[]>;

  constructor(port: string, args: string[]) {
    this.port = port;
    this.#child = fork(new URL('./guest.js', import.meta.url), args);
    this.#exit = once(this.#child, 'exit');
    // A command to one that has just left is lost; its exit tells why.
    this.#child.on('error', () => {});
  }

  tell(command: GuestCommand): void {
    if (this.#child.connected) this.#child.send(command);
  }

  /** What it says next. Rejects when it ends first. */
  report(): Promise<GuestReport> {
    return new Promise((resolve, reject) => {
      this.#child.once('message', (message) => resolve(message as GuestReport));
      this.#child.once('exit', () => reject(new Error(`the guest program on ${this.port} has ended`)));
    });
  }

  /** Ends the program if it still runs. */
  async close(): Promise<void> {
    if (this.#child.connected) this.#child.disconnect();
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), PATIENCE);
    await this.#exit;
    clearTimeout(timer);
  }
}

/** All reports. Rejects when a guest ends first, `end` is aborted, or PATIENCE has passed. */
async function within(reports: Promise<GuestReport>[], end?: AbortSignal): Promise<GuestReport[]> {
  const stop = AbortSignal.any([AbortSignal.timeout(PATIENCE), ...(end ? [end] : [])]);
  const late = once(stop, 'abort').then(() => {
    throw new Error('a guest program did not answer');
  });
  return Promise.race([Promise.all(reports), late]);
}

/** Counters and the moment (milliseconds) at which they were read. */
interface Look {
  at: number;
  ports: PortStatus[];
  workers: WorkerStatus[];
}

const look = (vswitch: Switch): Look => ({
  at: performance.now(),
  ports: vswitch.ports(),
  workers: vswitch.status().workers,
});

/** What a port carried between two looks, a second. */
function ratesOf(port: PortStatus, before: Look, now: Look) {
  const then = before.ports.find(({ name }) => name === port.name) ?? port;
  const span = (now.at - before.at) / 1000;
  return {
    rxPacketsPerSecond: (port.rxPackets - then.rxPackets) / span,
    rxBitsPerSecond: (8 * (port.rxBytes - then.rxBytes)) / span,
    txPacketsPerSecond: (port.txPackets - then.txPackets) / span,
    txBitsPerSecond: (8 * (port.txBytes - then.txBytes)) / span,
  };
}

/** `4.21 M` */
function short(value: number): string {
  if (value >= 999.5e6) return `${(value / 1e9).toFixed(2)} G`;
  if (value >= 999.5e3) return `${(value / 1e6).toFixed(2)} M`;
  return value >= 999.5 ? `${(value / 1e3).toFixed(1)} k` : `${value.toFixed(0)} `;
}

const load = (workers: WorkerStatus[]) =>
  workers.map(({ id, cpuPercent }) => `worker ${id}: ${cpuPercent.toFixed(0)} % of a CPU`).join(', ');

function screen(start: Look, before: Look, now: Look): string {
  const rows = now.ports.map((port) => {
    const rates = ratesOf(port, before, now);
    return [
      port.name,
      port.state,
      `${short(rates.rxPacketsPerSecond)}pps`,
      `${short(rates.rxBitsPerSecond)}bit/s`,
      `${short(rates.txPacketsPerSecond)}pps`,
      `${short(rates.txBitsPerSecond)}bit/s`,
      count(port.rxDrops + port.txDrops),
    ];
  });
  const titles = ['PORT', 'STATE', 'FROM GUEST', '', 'TO GUEST', '', 'DROPS'];
  const columns = titles.map((title, index) => ({ title, right: index >= 2 }));
  const elapsed = duration((now.at - start.at) / 1000);
  const rings = table(
    [{ title: 'PORT' }, { title: 'RINGS' }],
    now.ports.map((port) => [port.name, port.rings]),
  );
  return `${table(columns, rows)}\n${rings}\n${load(now.workers)}; frames of ${options.size} bytes; ${elapsed}; Ctrl-C ends it\n`;
}

function line(start: Look, before: Look, now: Look): string {
  const ports = now.ports.map((port) => {
    const rates = ratesOf(port, before, now);
    const drops = count(port.rxDrops + port.txDrops);
    const out = `${short(rates.txPacketsPerSecond)}pps ${short(rates.txBitsPerSecond)}bit/s`;
    return `${port.name} ${port.state}: from guest ${short(rates.rxPacketsPerSecond)}pps ${short(rates.rxBitsPerSecond)}bit/s, to guest ${out}, drops ${drops}`;
  });
  return [duration((now.at - start.at) / 1000), ...ports, load(now.workers)].join('; ');
}

/** Shows a table that is drawn over the last one, or on what is no terminal a line. */
function shower(): (start: Look, before: Look, now: Look) => void {
  if (options.json) return () => {};
  if (!process.stdout.isTTY) return (...looks) => process.stdout.write(`${line(...looks)}\n`);
  let drawn = 0;
  return (...looks) => {
    // A line that the terminal wraps would be two to move over.
    const lines = screen(...looks)
      .split('\n')
      .map((text) => text.slice(0, (process.stdout.columns || 80) - 1));
    process.stdout.write(`${drawn > 0 ? `\x1b[${drawn}A\x1b[J` : ''}${lines.join('\n')}`);
    drawn = lines.length - 1;
  };
}

/** Lets the guests exchange frames until the time is over or a signal comes. */
async function run(vswitch: Switch, guests: Guest[]): Promise<void> {
  const say = (text: string) => void (options.json || process.stdout.write(`${text}\n`));
  for (const { name, target } of vswitch.ports()) say(`port ${name}: ${target}`);
  // A guest's first report says that its rings run: a frame that comes earlier would be nobody's.
  await within(
    guests.map((guest) => guest.report()),
    interrupt.signal,
  );
  say(`two guest programs are plugged in: ${GUESTS.map(({ mac }) => mac).join(' and ')}\n`);

  const failed = new AbortController();
  const stop = AbortSignal.any([interrupt.signal, failed.signal]);
  const reports = guests.map((guest) => guest.report());
  for (const report of reports) report.catch(() => failed.abort());
  const show = shower();
  const start = look(vswitch);
  for (const guest of guests) guest.tell('start');
  const end = start.at + options.seconds * 1000;
  for (let before = start; ; ) {
    const left = end - performance.now();
    if (stop.aborted || left <= 0) break;
    await sleep(Math.min(left, options.json ? LONGEST : 1000), undefined, { signal: stop }).catch(() => {});
    if (stop.aborted || options.json) continue;
    const now = look(vswitch);
    show(start, before, now);
    before = now;
  }
  const last = look(vswitch);
  for (const guest of guests) guest.tell('stop');
  const counted = await within(reports);
  if (!options.json) return;
  const ports = vswitch.ports().map((port, index) => {
    const rates = ratesOf(last.ports[index] ?? port, start, last);
    return { ...port, ...rates, guest: counted[index] };
  });
  const { version, node, poll } = vswitch.status();
  const result = { version, node, poll, frameBytes: options.size, seconds: (last.at - start.at) / 1000 };
  console.log(JSON.stringify({ ...result, ports, workers: last.workers }));
}

async function main(): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'vireo-'));
  const guests: Guest[] = [];
  let vswitch: Switch | undefined;
  try {
    const socket = (port: string) => join(directory, `${port}.sock`);
    vswitch = await createSwitch({
      ports: GUESTS.map(({ port: name }) => ({ name, type: 'vhost-user', target: socket(name) })),
    });
    for (const { port, mac, peer } of GUESTS) {
      guests.push(new Guest(port, [socket(port), mac, peer, String(options.size)]));
    }
    await run(vswitch, guests);
  } finally {
    await Promise.all(guests.map((guest) => guest.close()));
    await vswitch?.close();
    rmSync(directory, { recursive: true, force: true });
  }
}

if (options.help) console.log(USAGE);
else {
  await main().catch((error: unknown) => {
    // What was under way when the signal came may fail.
    if (interrupt.signal.aborted) return;
    console.error(error instanceof Error ? error.message : error);
    process.exitCode = 1;
  });
}
