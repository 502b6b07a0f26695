/**
 * The control queue as a part of a device: what a driver finds at its start, and the ring that its commands come on
 * (control-ring.ts serves it, device-control.ts has what was said).
 */
import { executeControl } from '../virtio/control-queue.ts';
import { features as VIRTIO } from '../virtio/features.ts';
import { takes } from '../virtio/offloads.ts';
import { report } from './broken-rings.ts';
import { ControlRing } from './control-ring.ts';
import type { VringSetup } from './device.ts';
import { isPacked, isReceiver, type NetState } from './net-state.ts';
import { BROKEN, type Queue } from './queue.ts';
import { retry } from './ring-waits.ts';
import { spread } from './spread.ts';

/** What the driver is to find at its start. */
export async function forgetCommands(s: NetState): Promise<void> {
  s.control.reset(s.acknowledged);
  s.config.askAnnouncement(false);
  applyOffloads(s);
  spread(s);
  s.forgotten = true;
  await s.workers.quiesce();
}

/** Tells the rings to the guest which offloads it takes. */
export function applyOffloads(s: NetState): void {
  const accepts = takes(s.control.offloads(s.acknowledged));
  for (const { index, vring } of s.queues) if (isReceiver(s, index)) vring.set('offloads', accepts);
}

/**
 * Serves the control queue. A ring at its very beginning is that of a driver that starts. Another one's driver has
 * been there, and if it is new here it has moved: it is asked to say so, since nobody else knows all its addresses.
 */
export async function startControl(s: NetState, q: Queue, setup: VringSetup): Promise<void> {
  const begins = (setup.base & 0xffff) === (isPacked(s) ? 0x8000 : 0);
  if (begins) await forgetCommands(s);
  else if (s.forgotten && s.acknowledged & VIRTIO.VIRTIO_NET_F_GUEST_ANNOUNCE) {
    s.config.askAnnouncement(true);
    void s.channel?.configChanged?.();
  }
  s.forgotten = false;
  const { vring } = q;
  s.controlRing = new ControlRing({
    arena: s.arena,
    structures: s.structures,
    poller: s.poller,
    vring,
    execute: (command) => executeControl(command, s.control.limits, s.control),
    interrupt: () => {
      const fd = q.setup?.callFd ?? -1;
      if (fd >= 0) s.workers.notify(fd);
    },
    onStopped: () => {
      if (vring.get('state') === BROKEN) report(s, q);
      else retry(s, q);
    },
  });
  s.controlRing.watch(setup.kickFd);
}

export function stopControl(s: NetState): void {
  s.controlRing?.unwatch();
  s.controlRing = null;
}
