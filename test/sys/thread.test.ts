import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import { allowedCpus, setAffinity, threadCpuTime, threadId } from '../../src/sys/index.ts';
import { startThread } from './support.ts';

test('the main thread has the number of the process', () => {
  assert.equal(threadId(), process.pid);
});

test('affinity is set, read back and undone', () => {
  const all = allowedCpus();
  assert.ok(all.length > 0);
  const last = all.at(-1)!;
  setAffinity([last]);
  assert.deepEqual(allowedCpus(), [last]);
  setAffinity(all);
  assert.deepEqual(allowedCpus(), all);
});

test('a thread pins itself alone', async () => {
  const all = allowedCpus();
  const cpu = all[0]!;
  const thread = await startThread({ do: 'pin', cpu });
  assert.deepEqual(await thread.outcome, { cpus: [cpu] });
  assert.deepEqual(allowedCpus(), all);
});

test('a CPU that the thread can not have is named, and nothing changes', () => {
  const all = allowedCpus();
  const refused = (cpus: number[], detail: string) =>
    assert.throws(() => setAffinity(cpus), { code: 'EINVAL', call: 'sched_setaffinity', detail });
  refused([8000], 'CPU 8000');
  refused([all[0]!, 8000], 'CPU 8000');
  refused([99999], 'CPU 99999');
  refused([-1], 'CPU -1');
  refused([0.5], 'CPU 0.5');
  refused([], 'CPU (none)');
  assert.deepEqual(allowedCpus(), all);
});

test('the processor time of a thread grows with its work, and of that thread alone', () => {
  const spent = threadCpuTime(threadId());
  // Node's other threads sleep; one of them stands for a thread that does nothing.
  const others = readdirSync(`/proc/self/task`)
    .map(Number)
    .filter((tid) => tid !== threadId());
  const idle = others.map(threadCpuTime);
  const end = spent + 50e6;
  while (threadCpuTime(threadId()) < end) JSON.parse('[1,2,3]');
  assert.ok(threadCpuTime(threadId()) >= end);
  const grown = others.map((tid, i) => threadCpuTime(tid) - idle[i]!);
  assert.ok(Math.min(...grown) < 50e6);
});

test('the time of no thread of ours is refused', () => {
  assert.throws(() => threadCpuTime(1), { code: 'EINVAL', detail: 'thread 1' });
});
