/** An echo server: sends each frame for it back to its sender, on the queue it came: `node echo-server.js SOCKET`. */
import { setImmediate } from 'node:timers/promises';
import { VirtioUser } from 'vireo';

const [path = '/tmp/vm1.sock', queues = '1'] = process.argv.slice(2);
const BURST = 64;

await using device = await VirtioUser.open({ path, queues: Number(queues), reconnect: true });
const mac = Buffer.from(device.mac.replaceAll(':', ''), 'hex');
let running = true;
process.once('SIGTERM', () => {
  running = false;
});
console.log(`echo at ${device.mac}`);

/** Polls all queues as long as frames come; sleeps until an interrupt when none does. */
while (running) {
  let came = 0;
  for (let queue = 0; queue < device.queues; queue++) {
    const frames = device.receiveBurst(BURST, queue).filter((frame) => mac.equals(frame.subarray(0, 6)));
    for (const frame of frames) {
      frame.copyWithin(0, 6, 12);
      frame.set(mac, 6);
    }
    came += frames.length;
    const sent = device.sendBurst(frames, queue);
    if (sent < frames.length) console.log(`queue ${queue} is full: ${frames.length - sent} frames lost`);
  }
  // Let the process hear of signals and of the link, too.
  if (came > 0) await setImmediate();
  else await device.wait(200);
}
const { rxPackets, txPackets } = device.counters();
console.log(`${rxPackets} frames came, ${txPackets} went back`);
