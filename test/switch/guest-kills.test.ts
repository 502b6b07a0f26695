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

/** Of guests that send, for each kind of ring. Where it is said, all messages are tried, else each third. */
const KILLS = Number(process.env.VIREO_KILLS ?? 50);
const EACH = process.env.VIREO_KILLS ? 1 : 3;
const program = join(root, 'dist/test/switch/crash-guest.js');
const RECEIVER = 0xee;
/** Guests that live and die at the same time, each with a port; the kinds of ring in turn. */
const KINDS = ['split', 'packed', 'split', 'packed', 'split', 'packed'];
const PORTS = KINDS.map((kind, i) => `${kind}${i}`);

/** Frames taken at a time: those who flood may be faster than this thread, which has other things to do. */
const BURST = 256;

/** Frames that came, by sender and number. */
class Received {
  readonly #device: VirtioUser;
  readonly #seen = new Map<number, Set<number>>();
  readonly senders = new Set<number>();
  twice = 0;
  /** Frames of senders that were forgotten. */
  late = 0;
  #forgotten = 0;

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
      const number = came.readUInt32LE(14);
      const seen = this.#seen.get(sender) ?? new Set();
      if (sender <= this.#forgotten) this.late++;
      if (seen.has(number)) this.twice++;
      this.#seen.set(sender, seen.add(number));
      this.senders.add(sender);
    }
    return burst.length;
  }

  /** Senders up to this one are gone: nothing is to come of them any more. */
  forget(last: number): void {
    this.#forgotten = last;
    for (const sender of this.#seen.keys()) if (sender <= last) this.#seen.delete(sender);
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

test(`guests killed after each message, and ${KILLS} of each kind while they send`, async (t) => {
  const { at, vswitch, healthy, received } = await world(t);
  const random = new Random(5);
  await healthy.flows();
  let sender = 0;
  const started: Child[] = [];
  // What fails must not leave guests that keep this process for ever.
  t.after(() => Promise.all(started.map((child) => child.end('SIGKILL'))));
  /** A guest's program that waits for what to do. */
  const load = (port: number) => {
    const child = new Child(process.execPath, [program, at(PORTS[port]!), KINDS[port]!, String(RECEIVER)]);
    started.push(child);
    return child;
  };
  // While some live and die, the next ones are loaded.
  const loaded = PORTS.map((_, port) => load(port));
  const descriptors = openFds();
  /** Starts a guest that dies after so many messages; -1: one that lives. */
  const start = (port: number, messages: number) => {
    const child = loaded[port]!;
    loaded[port] = load(port);
    child.write(`${++sender} ${messages} ${random.below(10) / 10}\n`);
    return child;
  };
  const gone = () =>
    until(() => PORTS.every((name) => vswitch.port(name).state === 'listening'), 'the ports are free again');
  const ready = (child: Child) =>
    child.waitFor('its ready line', 60_000, () => child.output.includes('ready') || undefined);

  // The messages of a session, until there are no more of either kind.
  const lived = new Set<string>();
  for (let round = 0; lived.size < 2; round++) {
    const numberOf = (port: number) => (port % 2) + EACH * ((PORTS.length / 2) * round + (port >> 1));
    const children = PORTS.map((_, port) => start(port, numberOf(port)));
    for (const [port, child] of children.entries()) {
      await Promise.race([child.exited, ready(child).catch(() => {})]);
      if (child.running) lived.add(KINDS[port]!);
      await child.end('SIGKILL');
    }
    await gone();
    await healthy.flows();
    assert.ok(round < 100, 'a session has an end');
  }
  for (let kill = 0; kill < 2 * KILLS; kill += PORTS.length) {
    const children = PORTS.map((_, port) => start(port, -1));
    await Promise.all(children.map(ready));
    await until(() => PORTS.every((_, i) => received.senders.has(sender - i)), 'frames of all of them come');
    for (const child of children) {
      await sleep(random.below(10));
      await child.end('SIGKILL');
    }
    await gone();
    await healthy.flows();
    // What the receiver's ring still holds is of the last ones.
    received.forget(sender - 2 * PORTS.length);
  }
  await until(() => received.look() === 0, 'all that came is looked at');
  assert.equal(received.twice, 0, 'nothing came twice');
  assert.equal(received.late, 0, 'nor long after its sender was gone');
  await until(() => openFds() === descriptors, `${descriptors} descriptors again`);
});
