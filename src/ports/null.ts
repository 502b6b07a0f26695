/** A port on which nobody is: what is sent there is taken and forgotten, and nothing comes. */
import type { End, Link } from './kernel-port.ts';

export class NullEnd implements End {
  readonly queues = 1;
  readonly framing = { prefix: 12, messages: 'one', offloads: 0n } as const;
  readonly role = null;
  readonly state = 'up';
  readonly connections = 0;

  start(link: Link): void {
    link.open([{ kind: 'sink' }], (reason) => link.error(reason));
    link.set(true);
  }

  async close(): Promise<void> {}
}
