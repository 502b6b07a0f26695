/**
 * As many ports in one process as DPDK's test plan vhost_1024_ethports wants, 1023: each with a guest, some of which
 * talk, and a plain answer to whoever wants one more.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { createSwitch, type SwitchError } from '../../src/index.ts';
import { openFds } from '../../src/sys/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

const PORTS = 1023;
/** A port with its guest in the same process: seven of the switch, five of the guest. Some are left for the rest. */
const DESCRIPTORS = 14 * PORTS;
/** Guests that connect at the same time: fewer than wait in a socket's backlog. */
const AT_ONCE = 32;

/** Node raises the soft limit to the hard one when it starts. */
function lacking(): false | string {
  const limit = /^Max open files\s+(\S+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1];
  const few = limit !== 'unlimited' && Number(limit) < DESCRIPTORS;
  return few && `${PORTS} ports with guests want ${DESCRIPTORS} descriptors (ulimit -n), not ${limit}`;
}

test(`${PORTS} ports with guests, and not one more`, { skip: lacking() }, async (t) => {
  const path = sockets(t);
  const spec = (i: number) => ({ name: `p${i}`, type: 'vhost-user' as const, target: path(`${i}`) });
  await using vswitch = await createSwitch({ maxPorts: PORTS });
  const fds = openFds();
  for (let i = 0; i < PORTS; i++) await vswitch.addPort(spec(i));
  await assert.rejects(vswitch.addPort(spec(PORTS)), (error: SwitchError) => {
    assert.equal(error.code, 'LIMIT');
    assert.match(error.message, /has 1023 ports, which is its limit: maxPorts may be raised to 2048/);
    return true;
  });

  const guests: VirtioUser[] = [];
  try {
    for (let i = 0; i < PORTS; i += AT_ONCE) {
      const some = Array.from({ length: Math.min(AT_ONCE, PORTS - i) }, (_, k) => path(`${i + k}`));
      guests.push(...(await Promise.all(some.map((path) => VirtioUser.open({ path, queueSize: 64 })))));
    }
    await until(() => vswitch.ports().every((port) => port.state === 'up'), 'all ports are up');

    // One to everybody, and from the far ends to each other.
    const hello = frame(BROADCAST, mac(PORTS), 60);
    assert.ok(guests.at(-1)!.send(hello));
    for (const guest of guests.slice(0, -1)) {
      const came = await until(() => guest.receive(), 'the broadcast comes everywhere');
      assert.ok(hello.equals(came));
    }
    for (let i = 0; i < PORTS / 2; i += 37) {
      const [a, b] = [guests[i]!, guests[PORTS - 1 - i]!];
      for (const [from, to, last] of [
        [a, b, 2 * i],
        [b, a, 2 * i + 1],
      ] as const) {
        const back = last % 2 === 1;
        // The first is flooded, the answer is not: only who is meant gets it.
        const bytes = frame(back ? mac(0x1000 + last - 1) : BROADCAST, mac(0x1000 + last), 1000, last);
        assert.ok(from.send(bytes));
        await until(() => arrives(to, bytes), `a frame comes to the peer of port ${i}`);
      }
    }
    const flooded = 1 + Math.ceil(PORTS / 2 / 37);
    assert.ok(vswitch.ports().every((port) => port.txDrops === 0 && port.txPackets <= flooded + 1));
    assert.equal(vswitch.fdb().length, 1 + 2 * (flooded - 1));
  } finally {
    for (const guest of guests) await guest.close();
  }
  for (let i = 0; i < PORTS; i++) await vswitch.removePort(`p${i}`);
  assert.equal(vswitch.ports().length, 0);
  await until(() => openFds() === fds, 'every descriptor is closed');
});

/** True once the guest has received this frame; what was flooded before it is passed over. */
function arrives(guest: VirtioUser, bytes: Buffer): boolean {
  for (let came = guest.receive(); came !== undefined; came = guest.receive())
    if (bytes.equals(came)) return true;
  return false;
}
