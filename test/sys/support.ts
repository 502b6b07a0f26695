/** What the tests of sys share. */
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { promisify } from 'node:util';
import { Worker } from 'node:worker_threads';
import type { Outcome, Task } from './thread-peer.ts';

/** A directory that goes when the test ends. */
export function directory(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'vireo-sys-'));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** Starts a task in a worker thread; `outcome` comes when it is done. */
export async function startThread(task: Task): Promise<{ outcome: Promise<Outcome> }> {
  const worker = new Worker(new URL('./thread-peer.js', import.meta.url), { workerData: task });
  await once(worker, 'message');
  const outcome = once(worker, 'message').then(async ([message]) => {
    await once(worker, 'exit');
    return message as Outcome;
  });
  return { outcome };
}

const sys = new URL('../../src/sys/index.js', import.meta.url).href;

/**
 * Runs lines of a module, with everything of sys as `sys`, in a process of its own that may have `fds`
 * descriptors. Gives what it wrote and how it ended.
 */
export async function runProcess(
  lines: string,
  fds = 1024,
): Promise<{ code: number; stdout: string; stderr: string }> {
  const script = `import * as sys from ${JSON.stringify(sys)};\n${lines}`;
  const shell = `ulimit -n ${fds}; exec "$0" --input-type=module -e "$1"`;
  try {
    const output = await promisify(execFile)('sh', ['-c', shell, process.execPath, script], {
      timeout: 20_000,
    });
    return { code: 0, ...output };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, stdout, stderr };
  }
}

/** A small generator of reproducible random numbers in [0, limit). */
export function randomFrom(seed: number): (limit: number) => number {
  let state = seed >>> 0;
  return (limit) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
}
