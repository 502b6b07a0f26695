/** An ARP responder: answers for one IPv4 address: `node arp-responder.js SOCKET ADDRESS`. */
import { VirtioUser } from 'vireo';

const [path = '/tmp/vm1.sock', text = '192.0.2.1'] = process.argv.slice(2);
const address = Buffer.from(text.split('.').map(Number));

await using device = await VirtioUser.open({ path, reconnect: true });
const mac = Buffer.from(device.mac.replaceAll(':', ''), 'hex');
process.once('SIGTERM', () => device.close());
console.log(`${text} is at ${device.mac}`);

/** Ethernet type 0806, operation 1 at byte 20, and the address asked for at byte 38 (RFC 826). */
function asksForUs(frame: Buffer): boolean {
  if (frame.length < 42 || frame.readUInt16BE(12) !== 0x0806) return false;
  return frame.readUInt16BE(20) === 1 && frame.subarray(38, 42).equals(address);
}

function answer(request: Buffer): Buffer {
  const reply = Buffer.from(request);
  request.copy(reply, 0, 6, 12); // to whoever asked
  mac.copy(reply, 6);
  reply.writeUInt16BE(2, 20);
  mac.copy(reply, 22);
  address.copy(reply, 28);
  request.copy(reply, 32, 22, 32); // who asked, by both addresses
  return reply;
}

for await (const burst of device.bursts()) {
  const requests = burst.map((frame) => Buffer.from(frame.buffer)).filter(asksForUs);
  device.sendBurst(requests.map(answer));
}
