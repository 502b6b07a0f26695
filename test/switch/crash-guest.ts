/**
 * A guest of its own process, to be killed: connects to the socket in its arguments and sends numbered frames without
 * an end. It waits for a line: its number as a sender, and after how many messages of its session, and how many
 * milliseconds more, it kills itself (-1: never). Says `ready` when it sends.
 */
import { once } from 'node:events';
import { setImmediate as turn } from 'node:timers/promises';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { atMessage } from '../support/at-message.ts';
import { frame, mac } from '../support/ethernet.ts';

const [path, packed, to] = process.argv.slice(2) as [string, ...string[]];
const [line] = await once(process.stdin.setEncoding('utf8'), 'data');
const [from, messages, delay] = String(line).split(' ').map(Number) as [number, number, number];
atMessage(messages, delay, () => process.kill(process.pid, 'SIGKILL'));
const guest = await VirtioUser.open({ path, packed: packed === 'packed', inflight: true, timeout: 60_000 });
const bytes = frame(mac(Number(to)), mac(from), 1000);
console.log('ready');
for (;;) {
  guest.floodFrames(bytes, 256);
  await turn();
}
