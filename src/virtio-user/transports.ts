/** Which transport reaches what is at a path. */
import type { Poller } from '../sys/index.ts';
import type { Settings } from './options.ts';
import type { Transport, TransportEvents } from './transport.ts';
import { VhostUserTransport } from './vhost-user.ts';

export function transportTo(settings: Settings, poller: Poller, events: TransportEvents): Transport {
  return new VhostUserTransport({ ...settings, poller, ...events });
}
