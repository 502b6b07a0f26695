/** A worker thread that does one thing with what it is given and tells the outcome. */
import { parentPort, workerData } from 'node:worker_threads';
import { allowedCpus, drain, epollWait, setAffinity, signal, threadId } from '../../src/sys/index.ts';

export type Task =
  | { do: 'sleep'; epollFd: number; eventFd: number }
  | { do: 'signal'; eventFd: number }
  | { do: 'pin'; cpu: number }
  | { do: 'write'; memory: WebAssembly.Memory; offset: number; text: string };

export type Outcome =
  | { threadId: number; ready: number; drained: boolean }
  | { signalled: boolean }
  | { cpus: number[] }
  | { written: number };

function perform(task: Task): Outcome {
  switch (task.do) {
    case 'sleep': {
      // Bounded, so that a failing test ends.
      const ready = epollWait(task.epollFd, 10_000);
      return { threadId: threadId(), ready, drained: drain(task.eventFd) };
    }
    case 'signal':
      return { signalled: signal(task.eventFd) };
    case 'pin':
      setAffinity([task.cpu]);
      return { cpus: allowedCpus() };
    case 'write': {
      const bytes = new Uint8Array(task.memory.buffer, task.offset);
      return { written: new TextEncoder().encodeInto(task.text, bytes.subarray(0, 64)).written };
    }
  }
}

parentPort?.postMessage('started');
parentPort?.postMessage(perform(workerData as Task));
