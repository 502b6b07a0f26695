/** A switch of its own process, to be killed: ports at the sockets named on the command line. Says `ready`. */
import { createSwitch } from '../../src/index.ts';

const ports = process.argv
  .slice(2)
  .map((target, i) => ({ name: `p${i}`, type: 'vhost-user' as const, target }));
await createSwitch({ ports });
console.log('ready');
