/** A thread that enters its port into groups and takes it out again, as fast as it can (groups-lock.test.ts). */
import { parentPort, workerData } from 'node:worker_threads';
import { instantiateDataplane } from '../../src/arena/dataplane.ts';

export interface Setup {
  module: WebAssembly.Module;
  memory: WebAssembly.Memory;
  /** The table of groups, and a word that all threads wait for each other at. */
  table: number;
  gate: number;
  threads: number;
  port: number;
  groups: number;
  rounds: number;
}

const { module, memory, table, gate, threads, port, groups, rounds } = workerData as Setup;
const { pinMember, unpinMember } = instantiateDataplane(module, memory).functions;
const words = new Uint32Array(memory.buffer);
/** All are here: they begin at the same time, also where a round before has been short. */
function meet(time: number): void {
  Atomics.add(words, gate >>> 2, 1);
  while (Atomics.load(words, gate >>> 2) < time * threads);
}

let refused = 0;
for (let round = 0; round < rounds; round++) {
  meet(round + 1);
  for (let group = 1; group <= groups; group++)
    refused += pinMember(table, 0n, BigInt(group), 0, port) ? 0 : 1;
  for (let group = 1; group <= groups; group++) unpinMember(table, 0n, BigInt(group), 0, port);
}
parentPort!.postMessage(refused);
