/**
 * A guest's program that is killed: after each message of its session, and while it sends, beside a healthy pair
 * that loses nothing. No frame of a dead guest comes twice, its port takes the next one, no descriptor is left.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createSwitch, type Switch } from '../../src/index.ts';
import { openFds } from '../../src/sys/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { root } from '../peers/available.ts';
import { Child } from '../peers/process.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { Random } from '../support/random.ts';
import { sockets } from '../support/sockets.ts';
import { Traffic } from '../support/traffic.ts';
import { until } from '../support/until.ts';

/** Of guests that send, for each kind of ring; from 50 on all messages are tried, else each third. */
const KILLS = Number(process.env.VIREO_KILLS ?? 6);
const EACH = KILLS >= 50 ? 1 : 3;
const program = join(root, 'dist/test/switch/crash-guest.js');
const RECEIVER = 0xee;
/** Guests that live and die at the same time, each with a port. */
const PORTS = ['g0', 'g1', 'g2'];

/** Frames taken at a time: those who flood may be faster than this thread, which has other things to do. */
const BURST = 256;

/** Frames that came, by sender and number. */
class Received {
  readonly #device: VirtioUser;
  readonly #seen = new Set<number>();
  readonly senders = new Set<number>();
  twice = 0;

  constructor(device: VirtioUser) {
    this.#device = device;
  }

  /** Takes some; returns how many. */
  look(): number {
    const burst = this.#device.receiveBurst(BURST);
    for (const bytes of burst) {
      const came = Buffer.from(bytes);
      if (came.readUIntBE(0, 6) !== mac(RECEIVER).readUIntBE(0, 6)) continue;
      const sender = came.readUIntBE(8, 4);
      const key = sender * 2 ** 32 + came.readUInt32LE(14);
      if (this.#seen.has(key)) this.twice++;
      this.#seen.add(key);
      this.senders.add(sender);
    }
    return burst.length;
  }
}

async function world(t: TestContext) {
  const at = sockets(t);
  const names = [...PORTS, 'r', 'h1', 'h2'];
  const ports = names.map((name) => ({ name, type: 'vhost-user' as const, target: at(name) }));
  const vswitch: Switch = await createSwitch({ ports });
  const healthy = await Traffic.start({ path: at('h1') }, { path: at('h2') });
  const device = await VirtioUser.open({ path: at('r'), queueSize: 1024 });
  device.send(frame(BROADCAST, mac(RECEIVER)));
  const received = new Received(device);
  const timer = setInterval(() => received.look(), 1);
  t.after(async () => {
    clearInterval(timer);
    await device.close();
    await healthy.stop();
    await vswitch.close();
  });
  return { at, vswitch, healthy, received };
}

for (const packed of ['split', 'packed']) {
  test(`${packed} rings: a guest killed after each message, and while it sends`, async (t) => {
    const { at, vswitch, healthy, received } = await world(t);
    const random = new Random(packed.length);
    await healthy.flows();
    const descriptors = openFds();
    let sender = 0;
    const started: Child[] = [];
    // What fails must not leave guests that keep this process for ever.
    t.after(() => Promise.all(started.map((child) => child.end('SIGKILL'))));
    /** Starts a guest that dies after so many messages; undefined: one that lives. */
    const start = (port: number, messages?: number) => {
      const child = new Child(process.execPath, [
        ...[program, at(PORTS[port]!), packed, String(RECEIVER), String(++sender)],
        ...[String(messages ?? -1), String(random.below(10) / 10)],
      ]);
      started.push(child);
      return child;
    };
    const gone = () =>
      until(
        () => PORTS.every((name) => vswitch.port(name).state === 'listening'),
        'the ports are free again',
      );
    const ready = (child: Child) =>
      child.waitFor('its ready line', 60_000, () => child.output.includes('ready') || undefined);

    // The messages of a session, until there are no more.
    for (let number = packed === 'split' ? 0 : 1, ended = false; !ended; number += EACH * PORTS.length) {
      const children = PORTS.map((_, i) => start(i, number + EACH * i));
      for (const child of children) {
        await Promise.race([child.exited, ready(child).catch(() => {})]);
        if (child.running) ended = true;
        await child.end('SIGKILL');
      }
      await gone();
      await healthy.flows();
      assert.ok(number < 300, 'a session has an end');
    }
    for (let kill = 0; kill < KILLS; kill += PORTS.length) {
      const children = PORTS.map((_, i) => start(i));
      await Promise.all(children.map(ready));
      await until(() => received.senders.has(sender), 'its frames come');
      for (const child of children) {
        await sleep(random.below(10));
        await child.end('SIGKILL');
      }
      await gone();
      await healthy.flows();
    }
    await until(() => received.look() === 0, 'all that came is looked at');
    assert.equal(received.twice, 0, 'nothing came twice');
    await until(() => openFds() === descriptors, `${descriptors} descriptors again`);
  });
}
