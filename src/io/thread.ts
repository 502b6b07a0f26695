/**
 * An I/O thread: moves frames between rings and files, on which a call may take its time and would hold up a worker.
 * It sleeps in epoll when there is nothing to move.
 *
 * The control plane speaks to it by messages, and wakes it by an eventfd; it never returns to its own event loop.
 */
import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { instantiateDataplane } from '../arena/dataplane.ts';
import { EPOLLET, EPOLLIN, Epoll } from '../sys/index.ts';
import { type ChannelCommand, Channels } from './channels.ts';

export interface ThreadSetup {
  module: WebAssembly.Module;
  memory: WebAssembly.Memory;
  /** What it sleeps in: the control plane's, which closes it however the thread ends. */
  epollFd: number;
  wakeFd: number;
}

export type ThreadCommand = ChannelCommand | { kind: 'stop' };

/** Bound of a sleep in nanoseconds, so that no lost wake-up is for ever. */
const SLEEP = 1e9;

function run({ module, memory, epollFd, wakeFd }: ThreadSetup, control: MessagePort): void {
  const epoll = new Epoll(epollFd);
  epoll.add(wakeFd, EPOLLIN | EPOLLET);
  const channels = new Channels(instantiateDataplane(module, memory), memory, epoll, control);
  let running = true;
  while (running) {
    for (let m = receiveMessageOnPort(control); m; m = receiveMessageOnPort(control)) {
      const command: ThreadCommand = m.message;
      if (command.kind === 'stop') running = false;
      else channels.obey(command);
    }
    channels.wait(channels.run() || !running ? 0 : channels.due(SLEEP));
  }
}

run(workerData as ThreadSetup, parentPort!);
