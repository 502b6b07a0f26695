/**
 * A switch of its own process, to be killed: each argument has the sockets of one bridge, with commas between them.
 * Says `loaded` when nothing is there of it yet but the program, and `ready` when it runs, which it does on a line.
 */
import { once } from 'node:events';
import { createSwitch } from '../../src/index.ts';

const groups = process.argv.slice(2).map((sockets) => sockets.split(','));
console.log('loaded');
await once(process.stdin, 'data');
await createSwitch({
  bridges: groups.map((_, i) => ({ name: `b${i}` })),
  ports: groups.flatMap((sockets, i) =>
    sockets.map((target, j) => ({
      name: `p${i}-${j}`,
      type: 'vhost-user' as const,
      target,
      bridge: `b${i}`,
    })),
  ),
});
console.log('ready');
