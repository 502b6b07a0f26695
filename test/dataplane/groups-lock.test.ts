/**
 * Threads that change one table of groups at a time: the lock keeps what is counted and chained in it whole. Each
 * change of theirs is about groups that the others are at, and nothing is done between two of them.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { Plane } from '../support/plane.ts';
import type { Setup } from './groups-thread.ts';

const THREADS = 2;
const GROUPS = 200;
const ROUNDS = 200;

test('two threads at one table of groups lose no count and no member', async () => {
  const plane = new Plane();
  const { arena, structures } = plane;
  const table = plane.table(structures.constant('GROUPS_LENGTH'));
  const gate = plane.table(64);
  const threads = Array.from({ length: THREADS }, (_, i) => {
    const setup: Setup = {
      ...{ module: arena.module, memory: arena.memory, table, gate },
      ...{ threads: THREADS, port: 1 + i, groups: GROUPS, rounds: ROUNDS },
    };
    return new Worker(new URL('./groups-thread.js', import.meta.url), { workerData: setup });
  });
  const refused = await Promise.all(
    threads.map(async (thread) => (await once(thread, 'message'))[0] as number),
  );
  assert.deepEqual(refused, [0, 0]);
  const struct = structures.groups(table);
  assert.deepEqual([struct.get('groups'), struct.get('members')], [0, 0]);
  // Members that were given back are taken again: there were never more than all at a time.
  assert.ok(struct.get('used') <= THREADS * GROUPS, `${struct.get('used')} members were made`);
  plane.clear();
});
