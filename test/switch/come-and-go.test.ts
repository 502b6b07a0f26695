/**
 * Ports of many kinds that come and go, with guests that connect and leave, beside a healthy pair: after 10,000 of them
 * (VIREO_PORTS; fewer by default) descriptors, the arena and memory are where they were.
 */
import assert from 'node:assert/strict';
import { createConnection } from 'node:net';
import { test } from 'node:test';
import { createSwitch, type PortSpec } from '../../src/index.ts';
import { openFds } from '../../src/sys/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { ownNetwork } from '../support/network.ts';
import { sockets } from '../support/sockets.ts';
import { Traffic } from '../support/traffic.ts';
import { until } from '../support/until.ts';

const PORTS = Number(process.env.VIREO_PORTS ?? 200);
/** Ports at a time. */
const TOGETHER = 20;
/** Bytes of resident memory that may be there beside what was: the heap's own ups and downs. */
const MEMORY = 64 << 20;

test(`${PORTS} ports come and go, and leave nothing`, { skip: ownNetwork() }, async (t) => {
  const path = sockets(t);
  const guest = (name: string): PortSpec => ({ name, type: 'vhost-user', target: path(name) });
  /** The kinds in turn; the last of a turn has rules. */
  const kinds: ((name: string, i: number) => PortSpec)[] = [
    guest,
    (name) => ({ name, type: 'null', target: '' }),
    (name) => ({ name, type: 'stream', target: path(name) }),
    (name, i) => ({ name, type: 'tap', target: `tap${i}` }),
    (name) => ({ name, type: 'dgram', target: path(name) }),
    (name, i) => ({ name, type: 'vxlan', target: `127.0.1.${i + 1}`, local: `127.0.0.1:${41_900 + i}` }),
    (name) => ({ name, type: 'pcap', target: path(name), mode: 'write' }),
    (name) => ({
      ...guest(name),
      vlan: 10,
      allowMac: '52:54:00:00:00:01',
      rateOut: '10Mbit',
      stormBroadcast: '10kpps',
    }),
  ];
  await using vswitch = await createSwitch({ ports: [guest('a'), guest('b')] });
  const traffic = await Traffic.start({ path: path('a') }, { path: path('b') });
  let known = 0;
  const round = async (count: number) => {
    const specs = Array.from({ length: count }, (_, i) => kinds[i % kinds.length]!(`p${i}`, i));
    for (const spec of specs) await vswitch.addPort(spec);
    const guests: VirtioUser[] = [];
    for (const { name, type, target } of specs) {
      if (type === 'vhost-user') {
        guests.push(await VirtioUser.open({ path: target, queueSize: 64 }));
        guests.at(-1)!.send(frame(BROADCAST, mac(++known)));
      }
      if (type === 'stream') {
        const peer = createConnection(target);
        await until(() => vswitch.port(name).state === 'up', 'the stream is there');
        peer.destroy();
      }
    }
    // Half of the guests leave before their ports go, half of them after.
    for (const one of guests.splice(0, guests.length >> 1)) await one.close();
    for (const { name } of specs) await vswitch.removePort(name);
    for (const one of guests) await one.close();
  };
  try {
    // What is made once, and stays, is made by the first rounds.
    for (let i = 0; i < 5; i++) await round(TOGETHER);
    await until(() => vswitch.ports().length === 2, 'they are gone');
    const descriptors = openFds();
    const memory = process.memoryUsage.rss();
    const start = performance.now();
    for (let i = 0; i < PORTS; i += TOGETHER) await round(TOGETHER);
    await until(() => openFds() === descriptors, `${descriptors} descriptors again, not ${openFds()}`);
    assert.deepEqual(
      vswitch.ports().map(({ name }) => name),
      ['a', 'b'],
    );
    assert.ok(vswitch.fdb().every(({ port }) => port === 'a' || port === 'b'));
    const grown = process.memoryUsage.rss() - memory;
    t.diagnostic(
      `${((performance.now() - start) / 1000).toFixed(0)} s; ${descriptors} descriptors before and after; ` +
        `${memory >> 20} MiB resident before, ${(memory + grown) >> 20} MiB after`,
    );
    assert.ok(grown < MEMORY, `${grown >> 20} MiB more than before`);
  } finally {
    // What is lost, doubled or out of order fails here.
    await traffic.stop();
  }
});
