/**
 * A thread of the generator. It waits for a run, and then stays in the data plane's loop (src/dataplane/generate.ts)
 * until the control side stops it through the arena; it comes out only to kick a back-end that sleeps.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { constant, fields, instantiateDataplane } from '../arena/dataplane.ts';
import { Notifier, setAffinity } from '../sys/index.ts';

export interface LoopSetup {
  /** Of its area for scratch memory; 0 is the main thread's. */
  index: number;
  module: WebAssembly.Module;
  memory: WebAssembly.Memory;
  /** CPU to run on; null: any. */
  cpu: number | null;
}

/** A run, or null to end the thread: where its Generator is, and of each task the eventfds that wake the back-end; -1: none. */
export interface LoopRun {
  generator: number;
  tasks: { at: number; kickReceive: number; kickSend: number }[];
}

export type LoopMessage = 'ready' | 'ended';

const setup = workerData as LoopSetup;
const { functions, layout } = instantiateDataplane(setup.module, setup.memory);
const u32 = new Uint32Array(setup.memory.buffer);
const { kickReceive, kickSend } = fields(layout, 'Task', ['kickReceive', 'kickSend']);
const stop = constant(layout, 'Generator_stop');
functions.start(setup.index);
if (setup.cpu !== null) setAffinity([setup.cpu]);
const notifier = new Notifier();

parentPort!.on('message', (run: LoopRun | null) => {
  if (run === null) {
    notifier.close();
    parentPort!.close();
    return;
  }
  const { generator, tasks } = run;
  while (Atomics.load(u32, (generator + stop) >>> 2) === 0) {
    if (functions.generate(generator) === 0) continue;
    for (const task of tasks) {
      signal((task.at + kickReceive) >>> 2, task.kickReceive);
      signal((task.at + kickSend) >>> 2, task.kickSend);
    }
  }
  parentPort!.postMessage('ended' satisfies LoopMessage);
});
parentPort!.postMessage('ready' satisfies LoopMessage);

function signal(wish: number, fd: number): void {
  if (u32[wish] === 0) return;
  u32[wish] = 0;
  notifier.signal(fd);
}
