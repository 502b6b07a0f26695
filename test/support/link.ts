/** Waiting for what a virtio-user device tells. */
import type { VirtioUser, VirtioUserEvents } from '../../src/virtio-user/device.ts';

/** The next event of this name; unlike events.once() it lets errors be: a back-end may be away for a while. */
export function happens<K extends keyof VirtioUserEvents>(
  device: VirtioUser,
  name: K,
): Promise<VirtioUserEvents[K][0]> {
  return new Promise((resolve) => device.once(name as 'linkUp', resolve as () => void));
}
