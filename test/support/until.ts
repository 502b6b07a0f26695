/** Waiting for what another thread or process will do. */
import { setTimeout as sleep } from 'node:timers/promises';

/** Looks again and again until `condition` gives something; fails after a time that only a hang takes. */
export async function until<T>(condition: () => T | undefined | false, what: string): Promise<T> {
  const end = Date.now() + 60_000;
  for (;;) {
    const result = condition();
    if (result !== undefined && result !== false) return result;
    if (Date.now() > end) throw new Error(`waited in vain until ${what}`);
    await sleep(1);
  }
}
