/** Loads the data plane's WebAssembly into a memory and reads the layouts that it exports. */
import { readFileSync } from 'node:fs';
import { addressOf, copyMemory, dontDump, mapFixed } from '../sys/index.ts';

/** Functions of the data plane; see src/dataplane for what each does. Addresses are arena offsets. */
export interface DataplaneFunctions {
  start(worker: number): void;
  poll(rounds: number): number;
  armAll(): number;
  disarmAll(): void;
  sleep(): void;
  wake(): void;
  learn(mac: bigint, fid: number, port: number): void;
  lookup(mac: bigint, fid: number): number;
  markStart(vring: number): void;
  discardHeld(vring: number): void;
  takeControl(vring: number): number;
  giveControl(vring: number, head: number, slots: number, answer: bigint, value: number): number;
  armControl(vring: number): number;
  pin(mac: bigint, fid: number, port: number): number;
  unpin(mac: bigint, fid: number): void;
  pinMember(groups: number, high: bigint, low: bigint, fid: number, port: number): number;
  unpinMember(groups: number, high: bigint, low: bigint, fid: number, port: number): void;
  forgetMembers(groups: number, port: number, expired: number): void;
  flush(port: number, expired: number, fid?: number, mask?: number): number;
  flowHash(frame: number, length: number): number;
  generate(generator: number): number;
  matches(program: number, frame: number, length: number): number;
  prepareDriver(ring: number, receive: number): void;
  publishDriver(ring: number): number;
  reclaim(ring: number): number;
  sendFrame(ring: number, frame: number, length: number): number;
  receiveFrame(ring: number, to: number): number;
  floodFrames(ring: number, frame: number, length: number, count: number, offset: number): number;
  drainFrames(ring: number, count: number, offset: number): number;
  armDriver(ring: number): number;
  disarmDriver(ring: number): void;
  prepareTransfer(transfer: number): void;
  refillBuffers(transfer: number): number;
  acceptMessages(transfer: number, count: number): void;
  collectFrames(transfer: number): number;
  releaseBuffers(transfer: number): void;
  toStream(ring: number, to: number, room: number): number;
  fromStream(ring: number, from: number, length: number): number;
  fromPacketRing(queue: number, transfer: number, most: number): number;
  copiesWaiting(queue: number, most: number): number;
  skipCopies(queue: number, count: number): void;
  toPacketRing(queue: number, transfer: number, most: number): number;
  wantsMessage(queue: number, transfer: number): number;
  hasSlot(queue: number): number;
  hasUnsent(queue: number): number;
  takeBack(queue: number, transfer: number): void;
  prepareXdp(queue: number): void;
  fromXdp(queue: number, transfer: number, most: number): number;
  toXdp(queue: number, transfer: number, most: number): number;
}

/** Constants of the layout, by the name of the export. */
export type Layout = Readonly<Record<string, number>>;

export interface Dataplane {
  readonly functions: DataplaneFunctions;
  readonly layout: Layout;
}

const WASM = new URL('../dataplane/dataplane.wasm', import.meta.url);

/** Pages of 64 KiB: the whole 4 GiB of address space, never grown. */
export const ARENA_PAGES = 65536;

/** Compiles the data plane; the module may be handed to worker threads. */
export function compileDataplane(): WebAssembly.Module {
  return new WebAssembly.Module(readFileSync(WASM));
}

/** An instance of the data plane over `memory`: one for each thread. */
export function instantiateDataplane(module: WebAssembly.Module, memory: WebAssembly.Memory): Dataplane {
  const instance = new WebAssembly.Instance(module, { env: { memory, clock, ...outside(memory) } });
  const layout: Record<string, number> = {};
  for (const [name, value] of Object.entries(instance.exports)) {
    if (value instanceof WebAssembly.Global) layout[name] = Number(value.value) >>> 0;
  }
  return { functions: instance.exports as unknown as DataplaneFunctions, layout };
}

/** What to add to this thread's performance.now() to make it nanoseconds of the machine's monotonic clock. */
const CLOCK_START = (() => {
  let start = 0;
  let narrowest = Number.POSITIVE_INFINITY;
  // Of several looks the one that nothing came between.
  for (let look = 0; look < 100; look++) {
    const before = performance.now();
    const time = Number(process.hrtime.bigint());
    const after = performance.now();
    if (after - before >= narrowest) continue;
    narrowest = after - before;
    start = time - ((before + after) / 2) * 1e6;
  }
  return start;
})();

/** The monotonic clock in nanoseconds, the same in all threads and processes but for a fraction of a microsecond. */
export function clock(): number {
  return performance.now() * 1e6 + CLOCK_START;
}

/**
 * What the data plane calls to reach memory that isn't in the arena (src/dataplane/windows.ts): never where all of
 * a guest's memory is. Arena addresses come as signed numbers.
 */
function outside(memory: WebAssembly.Memory) {
  const base = addressOf(new Uint8Array(memory.buffer));
  const address = (at: number) => base + BigInt(at >>> 0);
  return {
    mapWindow(at: number, fd: number, offset: bigint, length: number): number {
      try {
        mapFixed(address(at), length, { fd, offset });
        dontDump(address(at), length);
        return 1;
      } catch {
        // The kernel may have taken away what was there, and a hole would end the process.
        mapFixed(address(at), length, 'anonymous');
        return 0;
      }
    },
    copyIn: (to: number, from: bigint, length: number) =>
      copyMemory(address(to), BigInt.asUintN(64, from), length),
    copyOut: (to: bigint, from: number, length: number) =>
      copyMemory(BigInt.asUintN(64, to), address(from), length),
  };
}

/** A constant of the layout by its name; throws where the data plane exports none such. */
export function constant(layout: Layout, name: string): number {
  const value = layout[name];
  if (value === undefined)
    throw new Error(`the data plane exports no ${name}: build it again (npm run build)`);
  return value;
}

/** Offsets of a structure's fields, e.g. `fields(layout, 'Vring', ['state', 'size'])`. */
export function fields<const F extends readonly string[]>(
  layout: Layout,
  structure: string,
  names: F,
): Readonly<Record<F[number], number>> {
  const offsets = names.map((name) => [name, constant(layout, `${structure}_${name}`)]);
  return Object.fromEntries(offsets) as Record<F[number], number>;
}
