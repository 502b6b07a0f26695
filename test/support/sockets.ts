/** A directory for a test's sockets. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';

/** Paths in a directory that goes when the test ends. */
export function sockets(t: TestContext): (name: string) => string {
  const directory = mkdtempSync(join(tmpdir(), 'vireo-switch-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return (name) => join(directory, `${name}.sock`);
}
