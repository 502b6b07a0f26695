/** The least of a network stack, for a virtio-user device that talks to the kernel's: ARP and ICMP echo. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { VirtioUser } from '../../src/virtio-user/device.ts';
import { checksum } from '../support/ip.ts';

const ETHERTYPE_ARP = 0x0806;
const ETHERTYPE_IPV4 = 0x0800;
const ICMP = 1;

export interface Host {
  mac: Buffer;
  /** Four bytes. */
  ip: readonly number[];
}

/** Is there an ARP request for us, or an echo request to us? Then the answer to it. */
export function answer(us: Host, frame: Buffer): Buffer | undefined {
  const reply = Buffer.from(frame);
  const type = frame.readUInt16BE(12);
  frame.copy(reply, 0, 6, 12);
  us.mac.copy(reply, 6);
  if (
    type === ETHERTYPE_ARP &&
    frame.readUInt16BE(20) === 1 &&
    frame.subarray(38, 42).equals(Buffer.from(us.ip))
  ) {
    reply.writeUInt16BE(2, 20);
    us.mac.copy(reply, 22);
    reply.set(us.ip, 28);
    frame.copy(reply, 32, 22, 32);
    return reply;
  }
  if (type === ETHERTYPE_IPV4 && frame[23] === ICMP && frame[34] === 8) {
    frame.copy(reply, 26, 30, 34);
    frame.copy(reply, 30, 26, 30);
    reply[34] = 0;
    reply.writeUInt16BE(0, 36);
    reply.writeUInt16BE(checksum(reply.subarray(34)), 36);
    return reply;
  }
  return undefined;
}

export function arpRequest(us: Host, target: readonly number[]): Buffer {
  const frame = Buffer.alloc(42);
  frame.fill(0xff, 0, 6);
  us.mac.copy(frame, 6);
  frame.set([8, 6, 0, 1, 8, 0, 6, 4, 0, 1], 12);
  us.mac.copy(frame, 22);
  frame.set(us.ip, 28);
  frame.set(target, 38);
  return frame;
}

export function echoRequest(us: Host, them: Host, sequence: number, data: Buffer): Buffer {
  const frame = Buffer.alloc(42 + data.length);
  them.mac.copy(frame, 0);
  us.mac.copy(frame, 6);
  frame.writeUInt16BE(ETHERTYPE_IPV4, 12);
  frame[14] = 0x45;
  frame.writeUInt16BE(28 + data.length, 16);
  frame[22] = 64;
  frame[23] = ICMP;
  frame.set(us.ip, 26);
  frame.set(them.ip, 30);
  frame.writeUInt16BE(checksum(frame.subarray(14, 34)), 24);
  frame[34] = 8;
  frame.writeUInt16BE(sequence, 40);
  data.copy(frame, 42);
  frame.writeUInt16BE(checksum(frame.subarray(34)), 36);
  return frame;
}

/** The next frame that `wanted` returns something for. Fails after a time that only a loss takes. */
export async function receive<T>(
  device: VirtioUser,
  what: string,
  wanted: (frame: Buffer) => T | undefined,
): Promise<T> {
  const end = Date.now() + 20_000;
  for (;;) {
    const bytes = device.receive();
    const found = bytes && wanted(Buffer.from(bytes));
    if (found !== undefined) return found;
    if (bytes !== undefined) continue;
    if (Date.now() > end) throw new Error(`waited in vain for ${what}`);
    await device.wait(100);
  }
}

/** Answers for `us` until `done` is true. */
export async function respond(device: VirtioUser, us: Host, done: () => boolean): Promise<void> {
  while (!done()) {
    const bytes = device.receive();
    if (bytes === undefined) {
      await device.wait(20);
      continue;
    }
    const reply = answer(us, Buffer.from(bytes));
    while (reply && !device.send(reply)) await sleep(1);
  }
}
