/** What the tests of migration have in common. */
import type { Switch } from '../../src/index.ts';

/**
 * Milliseconds for which a guest's rings run neither on the port that it leaves nor on the one that it comes to, until
 * it has come: pings that it gets meanwhile have nobody who could answer.
 */
export function gapBetween(vswitch: Switch, from: string, to: string): Promise<number> {
  let gap = 0;
  let since: number | undefined;
  return new Promise((resolve) => {
    const down = ({ port }: { port: string }) => {
      if (port === from) since ??= performance.now();
    };
    const up = ({ port }: { port: string }) => {
      if (port !== from && port !== to) return;
      if (since !== undefined) gap += performance.now() - since;
      since = undefined;
      if (port !== to) return;
      vswitch.off('guestDown', down).off('guestUp', up);
      resolve(gap);
    };
    vswitch.on('guestDown', down).on('guestUp', up);
  });
}
