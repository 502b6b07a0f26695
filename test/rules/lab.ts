/** A switch with guests by virtio-user, one a port, for tests of rules: who gets what of the frames that one sends. */
import type { TestContext } from 'node:test';
import { createSwitch, type PortSpec, type Switch, type SwitchOptions } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import type { VirtioUserOptions } from '../../src/virtio-user/options.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

export interface Lab {
  vswitch: Switch;
  /** The guests, by the names of their ports. */
  guests: Record<string, VirtioUser>;
  /**
   * Sends frames from one guest, waits until the switch has done with them, and returns what each other guest got.
   * A port that keeps frames for later (shaping, delay) is not to be waited for like this.
   */
  exchange(from: string, ...frames: Buffer[]): Promise<Record<string, Buffer[]>>;
}

/** Starts a switch with a port and a guest for each name; what is given for a name are fields of its port. */
export async function lab(
  t: TestContext,
  ports: Record<string, Partial<PortSpec>>,
  options: Omit<SwitchOptions, 'ports'> = {},
  device: Partial<VirtioUserOptions> = {},
): Promise<Lab> {
  const path = sockets(t);
  const specs = Object.entries(ports).map(
    ([name, fields]) => ({ name, type: 'vhost-user', target: path(name), ...fields }) as PortSpec,
  );
  const vswitch = await createSwitch({ ...options, ports: specs });
  t.after(() => vswitch.close());
  const guests: Record<string, VirtioUser> = {};
  for (const { name, target } of specs) {
    const guest = await VirtioUser.open({ path: target, queueSize: 256, ...device });
    t.after(() => guest.close());
    guests[name] = guest;
  }
  await until(() => vswitch.ports().every(({ state }) => state === 'up'), 'all ports are up');
  return {
    vswitch,
    guests,
    async exchange(from, ...frames) {
      const sender = guests[from]!;
      for (const bytes of frames) await until(() => sender.send(bytes), 'the ring takes a frame');
      // A worker gives a burst's buffers back when it has sent the burst where it belongs.
      await until(() => sender.pending() === 0, 'the switch has done with what was sent');
      const got: Record<string, Buffer[]> = {};
      for (const [name, guest] of Object.entries(guests)) {
        if (name === from) continue;
        got[name] = [];
        for (let came = guest.receive(); came !== undefined; came = guest.receive())
          got[name].push(Buffer.from(came));
      }
      return got;
    },
  };
}
