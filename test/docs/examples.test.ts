/** The examples of docs/library.md, run as they stand there. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { root } from '../peers/available.ts';
import { Child, scratch } from '../peers/process.ts';

const PATIENCE = 30_000;
const MACS = [
  [0x52, 0x54, 0, 0, 0, 1],
  [0x52, 0x54, 0, 0, 0, 2],
] as const;

function frame(to: readonly number[], from: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(100);
  bytes.set([...to, ...from, 0x88, 0xb5]);
  return bytes;
}

describe('docs/examples', () => {
  it('stand in docs/library.md, word for word', () => {
    const text = readFileSync(join(root, 'docs/library.md'), 'utf8');
    for (const file of readdirSync(join(root, 'docs/examples'))) {
      const example = readFileSync(join(root, 'docs/examples', file), 'utf8');
      assert.ok(text.includes(`\`\`\`ts\n${example}\`\`\``), `docs/library.md doesn't show ${file} as it is`);
    }
  });

  it('two-ports.ts switches frames between two guests and tells what happened', async () => {
    const { path, remove } = scratch('examples');
    const child = new Child(process.execPath, [join(root, 'dist/docs/examples/two-ports.js'), path]);
    try {
      const saw = (text: string) =>
        child.waitFor(text, PATIENCE, () => (child.output.includes(text) ? true : undefined));
      await saw('plug guests into');
      const one = await VirtioUser.open({ path: join(path, 'vm1.sock') });
      await using two = await VirtioUser.open({ path: join(path, 'vm2.sock') });
      await saw('vm1: a guest runs');
      await saw('vm2: a guest runs');

      const there = frame(MACS[1], MACS[0]);
      const back = frame(MACS[0], MACS[1]);
      assert.ok(one.send(there));
      assert.ok(await two.wait(PATIENCE));
      assert.deepEqual(two.receive(), there);
      assert.ok(two.send(back));
      assert.ok(await one.wait(PATIENCE));
      assert.deepEqual(one.receive(), back);

      await one.close();
      assert.equal(await child.exited, 0, child.output);
      const lines = child.output.split('\n');
      assert.ok(lines.some((line) => line.startsWith('vm1: its guest is gone: ')));
      assert.ok(lines.includes('vm1: 1 packets from the guest, 1 to it, 0 dropped'));
      assert.ok(lines.includes('vm2: 1 packets from the guest, 1 to it, 0 dropped'));
      assert.ok(lines.includes('52:54:00:00:00:01 is behind vm1'));
      assert.ok(lines.includes('52:54:00:00:00:02 is behind vm2'));
      assert.deepEqual(readdirSync(path), []);
    } finally {
      await child.end('SIGKILL');
      remove();
    }
  });
});
