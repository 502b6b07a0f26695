/**
 * The data plane with a step before each of its loads and stores: a test can stop it there, and what lies in memory
 * then is what a program leaves that is killed at that moment; or it can change memory there, as a guest may do that
 * runs beside it. Binaryen comes with the AssemblyScript compiler.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const WASM = new URL('../../src/dataplane/dataplane.wasm', import.meta.url);

interface Binaryen {
  Features: { All: number };
  readBinaryWithFeatures(
    bytes: Uint8Array,
    features: number,
  ): { runPasses(passes: string[]): void; emitBinary(): Uint8Array };
}

/** Thrown by `poll` of a stepper where it was to stop. */
export class Stopped extends Error {}

/** Called before an access of so many bytes. Copies of the engine's own (memory.copy) are not among them. */
export interface Steps {
  load?(at: number, bytes: number): void;
  store?(at: number, bytes: number): void;
}

export interface Stepped {
  start(worker: number): void;
  poll(rounds: number): number;
}

/** An instance over the memory of an arena; it uses the area of worker 0, as another one does when it is stopped. */
export async function stepped(memory: WebAssembly.Memory, steps: Steps): Promise<Stepped> {
  const compiler = createRequire(import.meta.resolve('assemblyscript'));
  const { default: b } = (await import(pathToFileURL(compiler.resolve('binaryen')).href)) as {
    default: Binaryen;
  };
  const module = b.readBinaryWithFeatures(readFileSync(WASM), b.Features.All);
  module.runPasses(['instrument-memory']);
  const compiled = new WebAssembly.Module(module.emitBinary());
  // What is stored or loaded passes through as it is; what isn't needed in this program is never called.
  const same = (_id: number, value: unknown) => value;
  const others = WebAssembly.Module.imports(compiled).map(({ name }) => [name, same]);
  const instance = new WebAssembly.Instance(compiled, {
    env: {
      ...Object.fromEntries(others),
      memory,
      load_ptr(_id: number, bytes: number, offset: number, at: number) {
        steps.load?.((at >>> 0) + offset, bytes);
        return at;
      },
      store_ptr(_id: number, bytes: number, offset: number, at: number) {
        steps.store?.((at >>> 0) + offset, bytes);
        return at;
      },
    },
  });
  return instance.exports as unknown as Stepped;
}

export interface Stepper {
  /** A round of worker 0 that stops before store number `stop` (from 0) at an address of at least `from`. */
  poll(from: number, stop: number): void;
}

export async function stepper(memory: WebAssembly.Memory): Promise<Stepper> {
  let lowest = 0;
  let left = 0;
  const functions = await stepped(memory, {
    store(at) {
      if (at >= lowest && left-- === 0) throw new Stopped();
    },
  });
  return {
    poll(from, stop) {
      lowest = 2 ** 32;
      functions.start(0);
      lowest = from;
      left = stop;
      functions.poll(1);
    },
  };
}
