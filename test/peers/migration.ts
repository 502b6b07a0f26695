/** What the tests of migration have in common. */
import { once } from 'node:events';
import type { Switch } from '../../src/index.ts';

/** Milliseconds from the moment when a guest's rings have stopped on one port until they run on another one. */
export async function gapBetween(vswitch: Switch, from: string, to: string): Promise<number> {
  const moment = async (event: 'guestDown' | 'guestUp', port: string) => {
    for (;;) {
      const [told] = await once(vswitch, event);
      if (told.port === port) return performance.now();
    }
  };
  const [down, up] = await Promise.all([moment('guestDown', from), moment('guestUp', to)]);
  return up - down;
}
