/** A veth pair from the tests' namespace to another one, whose kernel answers pings. */
import type { TestContext } from 'node:test';
import type { VirtioUser } from '../../src/virtio-user/device.ts';
import { mac, macText } from './ethernet.ts';
import { checksum } from './ip.ts';
import { completeChecksums, ip, Namespace } from './network.ts';
import { until } from './until.ts';

const here = mac(1);

/** A veth pair: one end here, the other in a namespace of its own, with an address; `checksums`: that completes them. */
export async function cable(t: TestContext, options: { checksums?: boolean } = {}): Promise<Namespace> {
  const there = await Namespace.open();
  t.after(() => there[Symbol.asyncDispose]());
  plug(there, options);
  return there;
}

/** As cable(), to a namespace that is there. */
export function plug(there: Namespace, options: { checksums?: boolean } = {}): void {
  ip('link add veth0 type veth peer name veth1');
  if (options.checksums) completeChecksums('veth1');
  ip(`link set veth1 netns ${there.id}`);
  ip('link set veth0 up');
  there.ip('link set veth1 up');
  there.ip('addr add 10.0.0.2/24 dev veth1');
  there.ip(`neigh replace 10.0.0.1 lladdr ${macText(here)} dev veth1`);
}

export const macOf = (there: Namespace): Buffer =>
  Buffer.from(/link\/ether (\S+)/.exec(there.ip('link show veth1'))![1]!.replaceAll(':', ''), 'hex');

/** An echo request from 10.0.0.1 to 10.0.0.2. */
export function ping(to: Buffer, sequence: number, bytes = 56): Buffer {
  const header = Buffer.from([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
  header.writeUInt16BE(28 + bytes, 2);
  header.writeUInt16BE(checksum(header), 10);
  const echo = Buffer.concat([Buffer.from([8, 0, 0, 0, 0, 1, 0, 0]), Buffer.alloc(bytes, 'ping')]);
  echo.writeUInt16BE(sequence, 6);
  echo.writeUInt16BE(checksum(echo), 2);
  return Buffer.concat([to, here, Buffer.from([8, 0]), header, echo]);
}

/** Sends a ping and waits for its answer. */
export async function answer(device: VirtioUser, request: Buffer): Promise<void> {
  device.send(request);
  await until(() => {
    const bytes = device.receive();
    return bytes?.[23] === 1 && bytes[34] === 0 && Buffer.from(bytes).includes(request.subarray(40));
  }, 'the answer comes');
}
