/** passt as the back-end of our own driver: ARP, DHCP, ping and UDP with the network of a namespace. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { checksum } from '../support/ip.ts';
import { happens } from '../support/link.ts';
import { skipWithout } from './available.ts';
import { NETWORK, startPasst } from './passt.ts';
import { scratch, until } from './process.ts';

const octets = (address: string) => Buffer.from(address.split('.').map(Number));
const hex = (text: string) => Buffer.from(text.replaceAll(/[: ]/g, ''), 'hex');
const GATEWAY = octets(NETWORK.gateway);
const HOST = octets(NETWORK.host);

/** The guest: a device, the address that it was given, and the gateway's MAC. */
interface Guest {
  device: VirtioUser;
  mac: Buffer;
  gatewayMac: Buffer;
}

/** An IPv4 packet in an Ethernet frame. */
function ipv4(guest: Guest, from: Buffer, to: Buffer, protocol: number, payload: Buffer): Buffer {
  const header = Buffer.alloc(20);
  header[0] = 0x45;
  header.writeUInt16BE(20 + payload.length, 2);
  header[8] = 64;
  header[9] = protocol;
  from.copy(header, 12);
  to.copy(header, 16);
  header.writeUInt16BE(checksum(header), 10);
  return Buffer.concat([guest.gatewayMac, guest.mac, hex('0800'), header, payload]);
}

/** A UDP datagram without a checksum, which IPv4 allows. */
function udp(from: number, to: number, payload: Buffer): Buffer {
  const header = Buffer.alloc(8);
  for (const [i, value] of [from, to, 8 + payload.length, 0].entries()) header.writeUInt16BE(value, 2 * i);
  return Buffer.concat([header, payload]);
}

/** Sends a frame, again now and then, until one comes that `answers`; waits by interrupt. */
async function ask(
  guest: Guest,
  what: string,
  frame: Buffer,
  answers: (came: Buffer) => boolean,
): Promise<Buffer> {
  let answer: Buffer | undefined;
  await until(what, 20_000, async () => {
    assert.ok(guest.device.send(frame));
    while (!answer && (await guest.device.wait(500)))
      answer = guest.device
        .receiveBurst()
        .map((bytes) => Buffer.from(bytes))
        .find(answers);
    return answer !== undefined;
  });
  return answer!;
}

async function arp(guest: Guest): Promise<void> {
  const request = Buffer.concat([
    hex('ffffffffffff'), guest.mac, hex('0806 0001 0800 0604 0001'), guest.mac, HOST, hex('000000000000'), GATEWAY,
  ]); // biome-ignore format: a frame
  const reply = await ask(
    guest,
    'the answer to ARP',
    request,
    (came) => came.readUInt16BE(12) === 0x0806 && came.readUInt16BE(20) === 2,
  );
  assert.ok(reply.subarray(28, 32).equals(GATEWAY), 'it is the gateway that answers');
  assert.ok(reply.subarray(0, 6).equals(guest.mac));
  reply.copy(guest.gatewayMac, 0, 22, 28);
}

async function dhcp(guest: Guest): Promise<void> {
  const discover = Buffer.alloc(300);
  discover.set([1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78]);
  guest.mac.copy(discover, 28);
  discover.set([99, 130, 83, 99, 53, 1, 1, 255], 236);
  const everybody = { ...guest, gatewayMac: hex('ffffffffffff') };
  const frame = ipv4(everybody, Buffer.alloc(4), Buffer.alloc(4, 255), 17, udp(68, 67, discover));
  const offer = await ask(
    guest,
    'the answer to DHCP',
    frame,
    (came) => came.readUInt16BE(12) === 0x0800 && came[23] === 17 && came.readUInt16BE(36) === 68,
  );
  const bootp = offer.subarray(42);
  assert.deepEqual([bootp[0], bootp.readUInt32BE(4)], [2, 0x1234_5678], 'a reply, to this request');
  assert.ok(bootp.subarray(16, 20).equals(HOST), 'the address of the namespace is the guest’s');
  assert.ok(bootp.subarray(240).includes(Buffer.from([53, 1, 2])), 'an offer');
}

async function ping(guest: Guest, length: number): Promise<void> {
  const request = Buffer.alloc(8 + length, 0x5a);
  request.set([8, 0, 0, 0, 0x77, 0x01, 0, length & 255]);
  request.writeUInt16BE(checksum(request), 2);
  const reply = await ask(
    guest,
    'the answer to the ping',
    ipv4(guest, HOST, GATEWAY, 1, request),
    (came) => came[23] === 1 && came[34] === 0 && came.readUInt16BE(40) === (length & 255),
  );
  assert.ok(
    reply.subarray(42, 42 + length).equals(request.subarray(8)),
    `${length} bytes, as they were sent`,
  );
}

async function udpEcho(guest: Guest, length: number): Promise<void> {
  const payload = Buffer.from(Array.from({ length }, (_, i) => (i * 7 + length) & 255));
  const reply = await ask(
    guest,
    'the answer of the echo server',
    ipv4(guest, HOST, GATEWAY, 17, udp(4000, NETWORK.echoPort, payload)),
    (came) => came[23] === 17 && came.readUInt16BE(34) === NETWORK.echoPort && came.length >= 42 + length,
  );
  assert.ok(reply.subarray(42, 42 + length).equals(payload), `${length} bytes, as they were sent`);
}

test('ARP, DHCP, ping and UDP through passt; again with the next passt', {
  skip: skipWithout('passt'),
}, async () => {
  using directory = scratch('passt');
  const path = join(directory.path, 'socket');
  let passt = await startPasst(path);
  try {
    await using device = await VirtioUser.open({ path, reconnect: { initialDelay: 50, maxDelay: 500 } });
    const guest = { device, mac: hex(device.mac), gatewayMac: Buffer.alloc(6) };
    for (let round = 0; round < 2; round++) {
      await arp(guest);
      await dhcp(guest);
      for (const length of [56, 1000]) await ping(guest, length);
      for (const length of [1, 512, 1400]) await udpEcho(guest, length);
      if (round === 1) break;
      const down = happens(device, 'linkDown');
      await passt.end();
      await down;
      passt = await startPasst(path);
      await until('the link', 20_000, () => device.linkUp);
    }
  } finally {
    await passt.end();
  }
});
