/** Packet socket ports: a veth pair into a network namespace, whose kernel is the peer. */
import assert from 'node:assert/strict';
import { writeSync } from 'node:fs';
import { describe, type TestContext, test } from 'node:test';
import { Arena, Structures } from '../../src/arena/index.ts';
import { createSwitch, type PortSpec, type Switch } from '../../src/index.ts';
import { packetSockets } from '../../src/ports/af-packet.ts';
import type { PortContext } from '../../src/ports/port.ts';
import { closeFd, interfaceIndex, openFds, openPacketSender } from '../../src/sys/index.ts';
import type { Offload } from '../../src/virtio/net-header.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { answer, cable, macOf, ping, plug } from '../support/cable.ts';
import { frame, mac } from '../support/ethernet.ts';
import { frameOf, layout, type Segment } from '../support/ip.ts';
import { ip, ownNetwork } from '../support/network.ts';
import { sockets } from '../support/sockets.ts';
import { crossWhole, endIn } from '../support/tcp.ts';
import { Traffic } from '../support/traffic.ts';
import { until } from '../support/until.ts';

const MEGABYTES = 20;
/** Of a ring, and of a test that goes round in it. */
const SLOTS = 1024;
const FRAMES = 2200;

const uplink = (queues = 1): PortSpec => ({ name: 'up', type: 'af-packet', target: 'veth0', queues });
const isUp = (vswitch: Switch, name = 'up') =>
  until(() => vswitch.port(name).state === 'up' && vswitch.port(name).queues[0]!.enabled, `${name} is up`);

/** Two switches that a cable joins, and a guest of each. */
async function twoSides(t: TestContext) {
  ip('link add veth0 type veth peer name veth1');
  for (const name of ['veth0', 'veth1']) ip(`link set ${name} up`);
  const path = sockets(t);
  const side = (name: string) =>
    createSwitch({
      ports: [
        { name: 'a', type: 'vhost-user', target: path(name) },
        { ...uplink(), target: name },
      ],
    });
  const guest = (name: string) => VirtioUser.open({ path: path(name), offloads: true });
  const switches = [await side('veth0'), await side('veth1')] as const;
  await Promise.all(switches.map((vswitch) => isUp(vswitch)));
  const ends = [await guest('veth0'), await guest('veth1')] as const;
  const close = async () => {
    for (const end of [...ends, ...switches]) await end[Symbol.asyncDispose]();
  };
  return { switches, ends, [Symbol.asyncDispose]: close };
}

/** Frames of all lengths, with tags and without, a large segment among them now and then; the number stands at the end. */
function numbered(index: number): { bytes: Buffer; offload?: Offload & { gso: { size: number } } } {
  if (index % 40 === 39) {
    const segment: Segment = { version: 4, protocol: 'tcp', payload: Buffer.alloc(1000 + index * 16, index) };
    segment.payload.writeUInt32BE(index, segment.payload.length - 4);
    const { transport, field, headers } = layout(segment);
    const gso = { type: 'tcp4', size: 1448, headerLength: headers } as const;
    const bytes = frameOf(mac(20), mac(10), segment, true);
    return { bytes, offload: { csumStart: transport, csumOffset: field, gso } };
  }
  const plain = frame(mac(20), mac(10), Math.min(60 + index, 1514), index);
  const tag = [[], [0x81, 0, 0xe0, 7], [0x88, 0xa8, 0, 9, 0x81, 0, 0, 7]][index % 3]!;
  const bytes = Buffer.concat([
    plain.subarray(0, 12),
    Buffer.from(tag),
    plain.subarray(12, 1514 - (tag.length & 8)),
  ]);
  bytes.writeUInt32BE(index, bytes.length - 4);
  return { bytes };
}

/** The arena of a switch without anything else, for what needs no more. */
function arenaAlone() {
  const arena = new Arena();
  return { arena, context: { arena, structures: new Structures(arena) } as PortContext };
}

describe('a packet socket port', { skip: ownNetwork() }, () => {
  for (const queues of [1, 3]) {
    test(`pings the kernel behind the cable, with ${queues} sockets`, async (t) => {
      const there = await cable(t);
      const path = sockets(t);
      await using vswitch = await createSwitch({
        workers: 2,
        ports: [{ name: 'a', type: 'vhost-user', target: path('a') }, uplink(queues)],
      });
      await isUp(vswitch);
      await using device = await VirtioUser.open({ path: path('a') });
      for (const [i, bytes] of [18, 56, 1400].entries()) await answer(device, ping(macOf(there), i, bytes));
      assert.match(ip('-d link show veth0'), /promiscuity [1-9]/);
      ip('link del veth0');
    });
  }

  test('keeps VLAN tags, single and double, and what is left undone behind them', async (t) => {
    await using pair = await twoSides(t);
    const [here, there] = pair.ends;
    const tags = [[], [0x81, 0, 0xe0, 7], [0x88, 0xa8, 0, 9], [0x88, 0xa8, 0, 9, 0x81, 0, 0, 7]];
    for (const [from, to] of [
      [here, there],
      [there, here],
    ] as const) {
      for (const [i, tag] of tags.entries()) {
        const plain = frame(mac(20 + i), mac(10 + i), 200);
        const tagged = Buffer.concat([plain.subarray(0, 12), Buffer.from(tag), plain.subarray(12)]);
        from.send(tagged);
        await until(() => {
          const came = to.receive();
          return came !== undefined && tagged.equals(came);
        }, `the frame comes, tagged with ${tag}`);
      }
      const segment: Segment = { version: 4, protocol: 'udp', vlan: 7, payload: Buffer.alloc(300, 'x') };
      const { transport, field } = layout(segment);
      const offload = { csumStart: transport, csumOffset: field };
      const partial = frameOf(mac(31), mac(30), segment, true);
      from.send(partial, offload);
      await until(() => {
        const came = to.receive();
        return came !== undefined && partial.equals(came);
      }, 'the frame with a partial checksum comes');
      assert.deepEqual(to.received, offload);
    }
    ip('link del veth0');
  });

  test('frames in slots and such that are longer cross as they are, more than the rings have slots', async (t) => {
    await using pair = await twoSides(t);
    for (const [from, to] of [pair.ends, [...pair.ends].reverse()] as [VirtioUser, VirtioUser][]) {
      const sent = Array.from({ length: FRAMES }, (_, i) => numbered(i));
      const missing = new Set(sent.keys());
      for (let next = 0; missing.size > 0; ) {
        while (next < FRAMES && next < FRAMES - missing.size + 64) {
          const { bytes, offload } = sent[next]!;
          if (!from.send(bytes, offload)) break;
          next++;
        }
        await until(() => {
          for (let came = to.receive(); came !== undefined; came = to.receive()) {
            // The kernel sends some of its own by a veth.
            if (!mac(20).equals(came.subarray(0, 6))) continue;
            const index = Buffer.from(came).readUInt32BE(came.length - 4);
            assert.ok(sent[index]?.bytes.equals(came), `frame ${index} is as it was sent`);
            assert.deepEqual(to.received?.gso?.size, sent[index]!.offload?.gso.size);
            assert.ok(missing.delete(index), `frame ${index} comes once`);
          }
          return missing.size < FRAMES - next + 64 && (next < FRAMES || missing.size === 0);
        }, `${missing.size} frames come`);
      }
    }
    for (const vswitch of pair.switches) {
      const { note, drops } = vswitch.port('up');
      assert.match(note!, /, by rings$/);
      assert.deepEqual(drops, {});
    }
    ip('link del veth0');
  });

  test('what the interface is too narrow for is refused, by the width that it has now', async (t) => {
    await using pair = await twoSides(t);
    const [here, there] = pair.ends;
    const refused = () => pair.switches[0].port('up').drops.refusedByKernel ?? 0;
    const crosses = async (bytes: Buffer) => {
      here.send(bytes);
      await until(() => {
        const came = there.receive();
        return came !== undefined && bytes.equals(came);
      }, `${bytes.length} bytes cross`);
    };
    await crosses(frame(mac(20), mac(10), 1514));
    here.send(frame(mac(20), mac(10), 1600));
    await until(() => refused() === 1, 'it was refused');
    for (const name of ['veth1', 'veth0']) ip(`link set ${name} mtu 9000`);
    for (const bytes of [1600, 1990, 2100, 9014]) await crosses(frame(mac(20), mac(10), bytes));
    assert.equal(refused(), 1);
    ip('link set veth0 mtu 1000');
    await until(() => {
      here.send(frame(mac(20), mac(10), 1200));
      return refused() > 1;
    }, 'the port has heard of it');
    await crosses(frame(mac(20), mac(10), 1014));
    ip('link del veth0');
  });

  test('counts what the kernel has no slot for', async () => {
    const { context } = arenaAlone();
    ip('link add veth0 type veth peer name veth1');
    for (const name of ['veth0', 'veth1']) ip(`link set ${name} up`);
    const taken = packetSockets(uplink(), context).take(interfaceIndex('veth0')!);
    const sender = openPacketSender(interfaceIndex('veth1')!);
    assert.equal(taken.ends[0]!.kind, 'packet');
    assert.deepEqual(taken.drops!(), {});
    // Nobody takes what comes. Before each frame a virtio-net header.
    const message = Buffer.concat([Buffer.alloc(10), frame(mac(20), mac(10), 100)]);
    let sent = 0;
    await until(() => {
      for (let i = 0; i < 100; i++, sent++) writeSync(sender, message);
      return taken.drops!().ringFull !== undefined;
    }, 'frames are dropped, and counted');
    // Some of the kernel's own may have come, too.
    assert.ok(sent > SLOTS - 100, `${sent} frames fill ${SLOTS} slots`);
    closeFd(sender);
    taken.close();
    ip('link del veth0');
  });

  test('where there is no memory for rings, frames are messages', () => {
    const { arena, context } = arenaAlone();
    const whole = arena.reserve(arena.largestFree);
    ip('link add veth0 type veth peer name veth1');
    const fds = openFds();
    const {
      ends,
      note,
      drops,
      close: leave,
    } = packetSockets(uplink(2), context).take(interfaceIndex('veth0')!);
    assert.deepEqual(
      ends.map(({ kind }) => kind),
      ['messages', 'messages'],
    );
    assert.match(note!, /^by messages, which are slower, for want of rings: 4194304 bytes .* don't fit/);
    assert.deepEqual(drops!(), {});
    assert.equal(openFds(), fds + 2);
    leave();
    assert.equal(openFds(), fds);
    arena.unmap(whole);
    ip('link del veth0');
  });

  test('TCP crosses in large segments both ways', async (t) => {
    const there = await cable(t);
    await using vswitch = await createSwitch({
      ports: [uplink(), { name: 'host', type: 'tap', target: 'vt0' }],
    });
    await isUp(vswitch);
    await isUp(vswitch, 'host');
    const address = '10.0.0.3';
    ip(`addr add ${address}/24 dev vt0`);
    await crossWhole(t, address, MEGABYTES << 20, endIn(there, address, MEGABYTES << 20));
    for (const { sizes, direction } of vswitch.port('up').queues)
      assert.ok(sizes.size1519ToMax > 50, `${direction}: ${sizes.size1519ToMax} large segments`);
    ip('link del veth0');
  });

  test('an interface that goes away under traffic, and comes back', async (t) => {
    const there = await cable(t);
    const path = sockets(t);
    await using vswitch = await createSwitch({
      ports: [
        ...['a', 'b', 'c'].map((name) => ({ name, type: 'vhost-user' as const, target: path(name) })),
        uplink(),
      ],
    });
    const traffic = await Traffic.start({ path: path('a') }, { path: path('b') });
    await isUp(vswitch);
    await using device = await VirtioUser.open({ path: path('c') });
    await answer(device, ping(macOf(there), 1));
    const fds = openFds();
    const to = macOf(there);
    const pouring = setInterval(() => {
      for (let i = 0; i < 16; i++) device.send(ping(to, i));
      while (device.receive());
    }, 1);
    t.after(() => clearInterval(pouring));
    await until(() => vswitch.port('up').rxPackets > 500, 'frames flow');
    ip('link del veth0');
    await until(() => vswitch.port('up').state === 'failed', 'the port has noticed');
    assert.match(vswitch.port('up').lastError!, /^interface veth0: it is gone; the port goes on/);
    await traffic.flows();
    clearInterval(pouring);
    plug(there);
    await isUp(vswitch);
    assert.equal(vswitch.port('up').lastError, null);
    await answer(device, ping(macOf(there), 2));
    assert.equal(openFds(), fds);
    ip('link set veth0 down');
    await until(() => vswitch.port('up').state === 'down', 'the port is down');
    ip('link set veth0 up');
    await isUp(vswitch);
    await answer(device, ping(macOf(there), 3));
    await traffic.stop();
    ip('link del veth0');
  });

  test('says that an interface is missing', async () => {
    await using vswitch = await createSwitch({});
    await assert.rejects(vswitch.addPort(uplink()), /port up: there is no interface veth0: `ip link` lists/);
  });
});
