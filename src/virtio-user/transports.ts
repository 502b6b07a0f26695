/** Which transport reaches what is at a path. */
import type { Poller } from '../sys/index.ts';
import type { Settings } from './options.ts';
import type { Transport, TransportEvents } from './transport.ts';
import { VHOST_NET, VhostNetTransport } from './vhost-net.ts';
import { VhostUserTransport } from './vhost-user.ts';
import { VHOST_VDPA, VhostVdpaTransport } from './vhost-vdpa.ts';

export function transportTo(settings: Settings, poller: Poller, events: TransportEvents): Transport {
  if (settings.path === VHOST_NET) return new VhostNetTransport({ ...settings, ...events });
  if (settings.path.startsWith(VHOST_VDPA)) return new VhostVdpaTransport({ ...settings, poller, ...events });
  return new VhostUserTransport({ ...settings, poller, ...events });
}
