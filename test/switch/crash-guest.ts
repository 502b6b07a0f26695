/**
 * A guest of its own process, to be killed: connects to the socket in its arguments and sends numbered frames without
 * an end. Says `ready` when it sends; kills itself after so many messages of its session, if it has so many.
 */
import { setImmediate as turn } from 'node:timers/promises';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { atMessage } from '../support/at-message.ts';
import { frame, mac } from '../support/ethernet.ts';

const [path, packed, to, from, messages, delay] = process.argv.slice(2) as [string, ...string[]];
atMessage(Number(messages), Number(delay), () => process.kill(process.pid, 'SIGKILL'));
const guest = await VirtioUser.open({ path, packed: packed === 'packed', inflight: true, timeout: 60_000 });
const bytes = frame(mac(Number(to)), mac(Number(from)), 1000);
console.log('ready');
for (;;) {
  guest.floodFrames(bytes, 256);
  await turn();
}
