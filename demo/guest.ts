/**
 * A guest of the demonstration: a process of its own with a virtio-user device on one port of the switch.
 *
 *     node guest.js SOCKET MAC PEER-MAC SIZE
 *
 * A number of frames is under way in each direction, and each one that arrives is answered by one: the rate finds
 * itself, and no ring overflows. Every frame carries a sequence number, so that the receiver knows what is missing.
 *
 * Its parent says `start` and `stop` over the channel of child_process.fork, and gets a report (GuestReport) when
 * the device works and when the last frame has arrived. When the channel closes, the guest ends.
 */
import { setImmediate as turn } from 'node:timers/promises';
import { VirtioUser } from '../src/virtio-user/device.ts';
import type { VirtioUserCounters } from '../src/virtio-user/statistics.ts';

export type GuestCommand = 'start' | 'stop';

export interface GuestReport extends VirtioUserCounters {
  features: readonly string[];
}

/** Descriptors of a ring. */
const RING = 1024;
/** Frames under way in each direction: far fewer than a ring holds. */
const WINDOW = 512;
/** Frames that are sent or received in one go. */
const BURST = 64;
/** Milliseconds between two turns of the event loop, at work and asleep. */
const TURN = 2;
/** Milliseconds of looking in vain before a sleep: there may be fewer processors than programs. */
const SPIN = 0.02;
/** Milliseconds of silence after which the frames under way count as lost, and after the end as all arrived. */
const SILENCE = 250;
/** IEEE 802: "local experimental". */
const ETHERTYPE = 0x88b5;

const [path = '', mac = '', peer = '', size = ''] = process.argv.slice(2);

function frameOf(length: number): Uint8Array {
  const octets = (address: string) => Buffer.from(address.replaceAll(':', ''), 'hex');
  const frame = Buffer.alloc(length);
  octets(peer).copy(frame, 0);
  octets(mac).copy(frame, 6);
  frame.writeUInt16BE(ETHERTYPE, 12);
  return frame;
}

/** Exchanges frames until `stopped`, then takes what is still on its way. */
async function exchange(device: VirtioUser, frame: Uint8Array, stopped: () => boolean): Promise<void> {
  let credit = WINDOW;
  let last = performance.now();
  for (;;) {
    const begin = performance.now();
    let now = begin;
    while (now - begin < TURN) {
      const came = device.drainFrames(BURST);
      credit += came;
      if (credit > 0 && !stopped()) credit -= device.floodFrames(frame, Math.min(credit, BURST));
      if (came > 0) last = now;
      else if (now - last > SPIN) device.sleep(TURN);
      now = performance.now();
    }
    if (now - last > SILENCE) {
      if (stopped()) return;
      credit = WINDOW;
      last = now;
    }
    await turn();
  }
}

async function main(): Promise<void> {
  await using device = await VirtioUser.open({ path, queueSize: RING });
  let stopped = false;
  const report = () => process.send?.({ features: device.features, ...device.counters() });
  const command = new Promise<GuestCommand>((resolve) => {
    process.on('message', (message: GuestCommand) => {
      stopped = message === 'stop';
      resolve(message);
    });
  });
  report();
  const gone = device.closed.then((reason) => {
    throw new Error(`the switch is gone: ${reason}`);
  });
  if ((await Promise.race([command, gone])) === 'start') {
    await Promise.race([exchange(device, frameOf(Number(size)), () => stopped), gone]);
  }
  report();
  await gone;
}

// Ctrl-C reaches every process of the terminal; it is the parent that ends its guests.
process.on('SIGINT', () => {});
process.on('disconnect', () => process.exit());
main().catch((error: unknown) => {
  console.error(`guest on ${path}: ${error instanceof Error ? error.message : error}`);
  process.exit(1);
});
