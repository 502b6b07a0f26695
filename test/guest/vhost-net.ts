/**
 * virtio-user over the kernel's vhost-net: our driver on one side of the rings, the guest kernel's network stack on the
 * other. Run by test/peers/vhost-net.test.ts.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { chmodSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { openFds } from '../../src/sys/index.ts';
import type { Offload } from '../../src/virtio/net-header.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import type { VirtioUserOptions } from '../../src/virtio-user/options.ts';
import { mac } from '../support/ethernet.ts';
import { faults, frameOf, layout, type Segment } from '../support/ip.ts';
import { until } from '../support/until.ts';
import { bringUp, sh, start, statistic } from './shell.ts';
import { arpRequest, echoRequest, type Host, receive, respond } from './stack.ts';

/** Addresses that test/support/ip.ts writes: from us, to the kernel. */
const US: Host = { mac: mac(1), ip: [10, 1, 2, 3] };
const OURS = '10.1.2.3';
const KERNELS = '10.4.5.6';
const PORT = 80;

const open = (name: string, options: Partial<VirtioUserOptions> = {}) =>
  VirtioUser.open({ path: '/dev/vhost-net', interface: name, ...options });

test("frames go both ways between a program and the host's stack", async () => {
  await using device = await open('tap0', { packed: true });
  assert.ok(!device.features.includes('VIRTIO_F_RING_PACKED'), 'the kernel has split rings only');
  assert.ok(device.features.includes('VIRTIO_NET_F_MRG_RXBUF'));
  const kernel: Host = { mac: bringUp('tap0', `${KERNELS}/8`), ip: [10, 4, 5, 6] };

  let done = false;
  const ping = start(`ping -c 10 -i 0.1 -s 1400 ${OURS}`).finally(() => {
    done = true;
  });
  await respond(device, US, () => done);
  const { output, status } = await ping;
  assert.equal(status, 0, output);
  assert.match(output, /10 packets transmitted, 10 packets received/);

  assert.ok(device.send(arpRequest(US, kernel.ip)));
  const found = await receive(device, 'the ARP reply', (frame) =>
    frame.readUInt16BE(12) === 0x0806 && frame[21] === 2 ? frame.subarray(22, 28) : undefined,
  );
  assert.deepEqual(found, kernel.mac);
  for (let sequence = 1; sequence <= 300; sequence++) {
    const data = Buffer.alloc((sequence * 7) % 1400, sequence);
    assert.ok(device.send(echoRequest(US, kernel, sequence, data)));
    // The program sleeps in the kernel until the answer comes.
    let came = device.receive();
    while (came === undefined) came = device.sleep(20_000) ? device.receive() : assert.fail('no answer');
    const reply = Buffer.from(came);
    assert.equal(reply[34], 0, 'an echo reply');
    assert.equal(reply.readUInt16BE(40), sequence);
    assert.deepEqual(reply.subarray(42), data);
  }
});

test('two queue pairs: the host spreads flows over them, and over those that are enabled', async () => {
  await using device = await open('tap0', { queues: 2 });
  const kernel = bringUp('tap0', `${KERNELS}/8`);
  sh(`arp -s ${OURS} ${[...US.mac].map((byte) => byte.toString(16)).join(':')}`);
  const FLOWS = 32;
  const EACH = 5;
  const received = async () => {
    const before = [0, 1].map((queue) => device.counters(queue).rxPackets);
    const wanted = new Set<string>();
    for (let flow = 0; flow < FLOWS; flow++) {
      const socket = createSocket('udp4');
      for (let i = 0; i < EACH; i++) {
        wanted.add(`${flow} ${i}`);
        await new Promise((sent) => socket.send(`${flow} ${i}`, PORT, OURS, sent));
      }
      socket.close();
    }
    while (wanted.size > 0)
      await receive(device, `${wanted.size} datagrams more`, (frame) =>
        wanted.delete(frame.subarray(42).toString()) ? true : undefined,
      );
    return [0, 1].map((queue) => device.counters(queue).rxPackets - before[queue]!);
  };
  const spread = await received();
  assert.equal(spread[0]! + spread[1]!, FLOWS * EACH);
  assert.ok(
    spread.every((count) => count > 0),
    `${spread}`,
  );
  await device.enable(1, false);
  assert.deepEqual(await received(), [FLOWS * EACH, 0]);
  await device.enable(1, true);
  const again = await received();
  assert.ok(
    again.every((count) => count > 0),
    `${again}`,
  );

  const server = createSocket('udp4').bind(PORT, KERNELS);
  await once(server, 'listening');
  const came: string[] = [];
  server.on('message', (message) => came.push(message.toString()));
  const BURST = 50;
  for (let round = 1; round <= 10; round++) {
    for (const queue of [0, 1])
      for (let i = 0; i < BURST; i++) {
        const payload = Buffer.from(`${queue} ${round} ${i}`);
        const frame = frameOf(kernel, US.mac, { version: 4, protocol: 'udp', payload }, false);
        await until(() => device.send(frame, undefined, queue), 'the ring has room');
      }
    await until(() => came.length === 2 * BURST * round, `${2 * BURST * round} datagrams came`);
  }
  server.close();
  assert.equal(new Set(came).size, 1000);
  assert.deepEqual([device.counters(0).txPackets, device.counters(1).txPackets], [500, 500]);
});

test('a TCP segment goes to the host whole, and comes from it whole', async () => {
  await using device = await open('tap0', { offloads: true });
  for (const feature of ['CSUM', 'GUEST_CSUM', 'HOST_TSO4', 'GUEST_TSO4', 'HOST_USO', 'GUEST_USO4'])
    assert.ok(device.features.includes(`VIRTIO_NET_F_${feature}`), feature);
  const kernel = bringUp('tap0', `${KERNELS}/8`);
  sh(`arp -s ${OURS} ${[...US.mac].map((byte) => byte.toString(16)).join(':')}`);

  const server = createServer().listen(PORT, KERNELS);
  await once(server, 'listening');
  let there = Buffer.alloc(0);
  const back = pattern(60_000, 7);
  server.on('connection', (socket: Socket) => {
    socket.on('data', (bytes) => {
      there = Buffer.concat([there, bytes]);
    });
  });

  let ours = 1000;
  let theirs = 0;
  /** Sends a segment; its checksum is left to the host, and so is what `gso` says. */
  const send = (flags: number, payload: Buffer = Buffer.alloc(0), gso?: Offload['gso']) => {
    const segment: Segment = { version: 4, protocol: 'tcp', payload, sequence: ours, flags };
    const frame = frameOf(kernel, US.mac, segment, true);
    const { transport, field } = layout(segment);
    frame.writeUInt32BE(theirs, transport + 8);
    frame.writeUInt16BE(0xffff, transport + 14);
    assert.ok(device.send(frame, { csumStart: transport, csumOffset: field, ...(gso && { gso }) }));
    ours += payload.length;
  };
  const [SYN, ACK] = [2, 16];
  const connection = once(server, 'connection') as Promise<[Socket]>;
  send(SYN);
  ours += 1;
  theirs = await receive(device, 'the SYN and its acknowledgement', (frame) =>
    frame[47] === (SYN | ACK) ? frame.readUInt32BE(38) + 1 : undefined,
  );
  send(ACK);
  const [socket] = await connection;

  const before = ['rx_packets', 'rx_bytes'].map((name) => statistic('tap0', name));
  const segment = pattern(32_000, 3);
  send(ACK, segment, { type: 'tcp4', size: 1448, headerLength: 54 });
  await until(() => there.length >= segment.length, 'the segment came');
  assert.deepEqual(there, segment);
  const after = ['rx_packets', 'rx_bytes'].map((name) => statistic('tap0', name));
  assert.deepEqual([after[0]! - before[0]!, after[1]! - before[1]!], [1, segment.length + 54], 'one frame');

  socket.write(back);
  const here = Buffer.alloc(back.length);
  const start = theirs;
  let whole = 0;
  while (theirs - start < back.length) {
    await receive(device, 'more of the stream', (frame) => {
      const length = frame.readUInt16BE(16) - 20 - (frame[46]! >> 4) * 4;
      if (frame[23] !== 6 || length === 0 || frame.readUInt32BE(38) !== theirs) return undefined;
      const gso = device.received?.gso;
      if (gso) assert.equal(gso.type, 'tcp4');
      if (gso && length > gso.size) whole += 1;
      else assert.ok(frame.length <= 1514);
      frame.copy(here, theirs - start, frame.length - length);
      theirs += length;
      send(ACK);
      return true;
    });
  }
  assert.deepEqual(here, back);
  assert.ok(whole > 0, 'some of it came in segments larger than the wire takes');
  // At once, so that the host knows nothing of this flow any more.
  socket.resetAndDestroy();
  server.close();

  // A checksum that is neither there nor said to be missing is refused: the host does look.
  const udp = createSocket('udp4').bind(PORT, KERNELS);
  await once(udp, 'listening');
  const heard: string[] = [];
  udp.on('message', (message) => heard.push(message.toString()));
  const datagram = (text: string) => ({ version: 4, protocol: 'udp', payload: Buffer.from(text) }) as const;
  const wrong = frameOf(kernel, US.mac, datagram('wrong'), true);
  const right = datagram('right');
  assert.ok(device.send(wrong));
  const { transport, field } = layout(right);
  assert.ok(device.send(frameOf(kernel, US.mac, right, true), { csumStart: transport, csumOffset: field }));
  await until(() => heard.length > 0, 'a datagram came');
  assert.deepEqual(heard, ['right']);
  udp.close();
});

test('the host completes what was left undone for a device that takes no such frames', async () => {
  await using from = await open('tap0', { offloads: true });
  await using to = await open('tap1');
  const router = bringUp('tap0', '10.1.0.1/16');
  bringUp('tap1', '10.4.0.1/16');
  sh('echo 1 > /proc/sys/net/ipv4/ip_forward');
  sh(`arp -s ${KERNELS} 02:00:00:00:00:09`);
  const ours = (frame: Buffer) => (frame.readUInt16BE(12) === 0x0800 ? frame : undefined);

  const datagram: Segment = { version: 4, protocol: 'udp', payload: pattern(700, 1) };
  const checksum = (segment: Segment): Offload => {
    const { transport, field } = layout(segment);
    return { csumStart: transport, csumOffset: field };
  };
  from.send(frameOf(router, US.mac, datagram, true), checksum(datagram));
  const completed = await receive(to, 'the datagram', ours);
  assert.deepEqual(faults(completed, datagram), []);
  assert.deepEqual(completed.subarray(42), datagram.payload);

  const payload = pattern(20_000, 5);
  for (const [protocol, type] of [
    ['tcp', 'tcp4'],
    ['udp', 'udpL4'],
  ] as const) {
    const segment: Segment = { version: 4, protocol, payload };
    const { headers } = layout(segment);
    const gso = { type, size: 1400, headerLength: headers };
    from.send(frameOf(router, US.mac, segment, true), { ...checksum(segment), gso });
    const pieces: Buffer[] = [];
    while (pieces.length < Math.ceil(payload.length / gso.size)) {
      const piece = await receive(to, `a piece over ${protocol}`, ours);
      assert.deepEqual(faults(piece, segment), []);
      assert.ok(piece.length <= headers + gso.size);
      pieces.push(piece.subarray(headers));
    }
    assert.deepEqual(Buffer.concat(pieces), payload);
  }
});

test('an interface that is removed ends the device by name, and it comes back', async () => {
  await using device = await open('tap0');
  bringUp('tap0', `${KERNELS}/8`);
  sh('ip link del tap0');
  assert.equal(await device.closed, 'the interface tap0 was removed');
  assert.ok(device.send(arpRequest(US, [10, 4, 5, 6])), 'the ring takes frames, and nobody looks at it');
  await device.reconnect();
  const kernel = bringUp('tap0', `${KERNELS}/8`);
  for (let i = 0; i < 3; i++) device.send(arpRequest(US, [10, 4, 5, 6]));
  const found = await receive(device, 'the ARP reply', (frame) =>
    frame.readUInt16BE(12) === 0x0806 && frame[21] === 2 ? frame.subarray(22, 28) : undefined,
  );
  assert.deepEqual(found, kernel);
});

test('what is missing or not allowed is said with what to do', async () => {
  await assert.rejects(
    open(''),
    /^VirtioUserError: interface "": the name of a TAP, such as tap0, expected$/,
  );
  await assert.rejects(open('lo'), { message: /^TUNSETIFF\(lo\): EINVAL, .*ip tuntap add dev lo mode tap/ });
  {
    await using one = await open('tap0');
    assert.equal(one.queues, 1);
    const before = openFds();
    await assert.rejects(open('tap0'), /TUNSETIFF\(tap0\): EBUSY, in use by another program/);
    await assert.rejects(open('tap0', { queues: 2 }), /TUNSETIFF\(tap0\): EINVAL, .* multi_queue/);
    assert.equal(openFds(), before, 'no descriptor is left behind');
  }
  await assert.rejects(open('tap0', { queues: 128, queueSize: 300 }), /a power of 2/);
  const as = (path: string) => {
    const module = fileURLToPath(new URL('../../src/virtio-user/device.js', import.meta.url));
    const program = `import('${module}').then(({ VirtioUser }) =>
      VirtioUser.open({ path: '${path}', interface: 'tap7' })).catch((error) => console.log(error.message))`;
    const run = spawnSync(process.execPath, ['-e', program], { uid: 65534, gid: 65534, encoding: 'utf8' });
    return run.stdout + run.stderr;
  };
  assert.match(as('/dev/vhost-net'), /^open\(\/dev\/vhost-net\): EACCES, permission denied: join the group/);
  for (const path of ['/dev/vhost-net', '/dev/net/tun']) chmodSync(path, 0o666);
  assert.match(
    as('/dev/vhost-net'),
    /^TUNSETIFF\(tap7\): EPERM, not permitted: .*ip tuntap add dev tap7 mode tap/,
  );
});

/** Bytes that tell their place. */
function pattern(length: number, salt: number): Buffer {
  return Buffer.from(Array.from({ length }, (_, i) => (i * 31 + (i >> 8) + salt) & 0xff));
}
