/** A sniffer: prints a line for each frame that reaches a port: `node sniffer.js SOCKET [FRAMES]`. */
import { VirtioUser } from 'vireo';

const [path = '/tmp/vm1.sock', frames = 'Infinity'] = process.argv.slice(2);
const address = (bytes: Uint8Array) =>
  [...bytes].map((octet) => octet.toString(16).padStart(2, '0')).join(':');

await using device = await VirtioUser.open({ path, reconnect: true });
device.on('linkDown', ({ reason }) => console.log(`link down: ${reason}`));
device.on('linkUp', () => console.log('link up'));
console.log(`listening as ${device.mac}`);

let seen = 0;
for await (const burst of device.bursts()) {
  for (const frame of burst) {
    const type = ((frame[12]! << 8) | frame[13]!).toString(16).padStart(4, '0');
    const [to, from] = [address(frame.subarray(0, 6)), address(frame.subarray(6, 12))];
    console.log(`${from} > ${to}, type 0x${type}, ${frame.length} bytes`);
  }
  seen += burst.length;
  if (seen >= Number(frames)) break;
}
for (const [name, value] of Object.entries(device.xstats())) if (value > 0) console.log(`${name}: ${value}`);
