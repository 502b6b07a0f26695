/** The state machines of RSTP among themselves: bridges that are joined anyhow find one tree, and another one after each cut. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Network } from './network.ts';

const SEEDS = Number(process.env.VIREO_MATRIX ? 2000 : 150);

test('any network comes to the tree of the standard, and to another after each change', () => {
  let slowest = 0;
  let loops = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    const network = new Network(seed);
    const { random } = network;
    const bridges = 2 + random.below(7);
    for (let i = 0; i < bridges; i++) network.addBridge(4096 * random.below(4), i + 1);
    for (let i = bridges + random.below(2 * bridges); i > 0; i--)
      network.connect(
        random.below(bridges),
        random.below(bridges),
        random.pick([200, 2000, 20_000]),
        16 * random.below(3),
      );
    try {
      network.settle();
      network.check();
      for (let changes = 0; changes < 5; changes++) {
        const cable = random.pick(network.cables);
        network.set(cable, !cable.up);
        slowest = Math.max(slowest, network.settle());
        network.check();
      }
      loops += network.loops;
    } catch (error) {
      throw new Error(`seed ${seed}: ${(error as Error).message}`);
    }
  }
  assert.equal(loops, 0);
  assert.ok(slowest <= 10, `one took ${slowest} seconds`);
});
