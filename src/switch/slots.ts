/** The places of ports in the data plane: `Port` structures, by their index. */
import type { Structures } from '../arena/index.ts';
import { SwitchError } from './errors.ts';
import { MAX_GROUPS_PER_PORT } from './groups.ts';

/** Takes one for a port on the bridge of this number. Throws a SwitchError, LIMIT. */
export function takeSlot(structures: Structures, bridge: number, maxPorts: number | undefined): number {
  const most = structures.constant('MAX_PORTS');
  const limit = maxPorts ?? most;
  for (let slot = 0; slot < limit; slot++) {
    const port = structures.port(slot);
    if (port.get('used') !== 0) continue;
    port.set('addresses', 0);
    port.set('notLearned', 0);
    port.set('groupFlags', 0);
    port.set('groupLimit', MAX_GROUPS_PER_PORT);
    port.set('groupsRefused', 0);
    port.set('bridge', bridge);
    port.set('used', 1);
    return slot;
  }
  const more = limit < most ? `maxPorts may be raised to ${most}` : 'start another one beside it';
  throw new SwitchError('LIMIT', `the switch has ${limit} ports, which is its limit: ${more}`);
}

/** The port is open: frames for many go there from now on. */
export function showSlot({ header }: Structures, slot: number): void {
  if (slot >= header.get('portCount')) header.set('portCount', slot + 1);
}

/** No worker looks at it any more. */
export function releaseSlot(structures: Structures, slot: number): void {
  structures.port(slot).set('used', 0);
}
