/**
 * Crash safety: a switch that is killed at any moment, under load or in the middle of a message, and started again.
 * The drivers live on in this process, know by number what they sent, and see what arrives: with the notes of
 * buffers in work no frame comes twice and no buffer is lost.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, type TestContext, test } from 'node:test';
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { root } from '../peers/available.ts';
import { Child } from '../peers/process.ts';
import { atMessage } from '../support/at-message.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { Random } from '../support/random.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

/** Of a switch under load, each for both kinds of ring. Where it is said, all messages are tried, else each third. */
const KILLS = Number(process.env.VIREO_KILLS ?? 50);
const EACH = process.env.VIREO_KILLS ? 1 : 3;
const program = join(root, 'dist/test/switch/crash-switch.js');
const SIZE = 512;
/** Milliseconds for traffic to flow again: a machine may have much else to do. */
const PATIENCE = 60_000;
/** One that sends, and those that it sends to: the more, the longer is a burst in work when the first has it. */
const NAMES = ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'];

/** Switches at the same sockets, one after the other, each to be killed. While one runs the next is loaded. */
class Switches {
  readonly #bridges: readonly string[];
  #next: Child;
  #current: Child | undefined;

  /** `bridges`: the sockets of each. */
  constructor(t: TestContext, ...bridges: string[][]) {
    this.#bridges = bridges.map((sockets) => sockets.join());
    this.#next = this.#load();
    t.after(() => Promise.all([this.#next.end('SIGKILL'), this.#current?.end('SIGKILL')]));
  }

  #load(): Child {
    return new Child(process.execPath, [program, ...this.#bridges]);
  }

  /** Resolves with the next one when it is ready. */
  async start(): Promise<Child> {
    const child = this.#next;
    this.#current = child;
    for (const word of ['loaded', 'ready']) {
      await child.waitFor(`it to be ${word}`, 60_000, () => child.output.includes(word) || undefined);
      if (word === 'loaded') child.write('go\n');
    }
    this.#next = this.#load();
    return child;
  }
}

/** Connects again; the switch may be killed meanwhile, and then it is the next one's turn. */
async function again(device: VirtioUser): Promise<boolean> {
  try {
    await device.reconnect();
    return true;
  } catch {
    return false;
  }
}

/** Numbered frames from one device to some others, and what arrived of them. */
class Flow {
  readonly from: VirtioUser;
  readonly #to: readonly { device: VirtioUser; seen: Set<number> }[];
  readonly #bytes: Buffer;
  /** Frames that came more than once, and the fewest that a receiver has. */
  twice = 0;

  constructor(from: VirtioUser, to: readonly VirtioUser[], bytes: Buffer) {
    this.from = from;
    this.#to = to.map((device) => ({ device, seen: new Set() }));
    this.#bytes = bytes;
  }

  get came(): number {
    return Math.min(...this.#to.map(({ seen }) => seen.size));
  }

  /** Sends what the ring takes, as one burst. */
  send(): void {
    this.from.floodFrames(this.#bytes, SIZE);
  }

  receive(): void {
    for (const { device, seen } of this.#to) {
      for (let bytes = device.receive(); bytes; bytes = device.receive()) {
        this.#note(seen, bytes);
      }
    }
  }

  /** Takes one frame that came for the first receiver; false when there is none. */
  receiveFirst(): boolean {
    const { device } = this.#to[0]!;
    const bytes = device.receive();
    if (bytes) this.#note(this.#to[0]!.seen, bytes);
    return bytes !== undefined;
  }

  #note(seen: Set<number>, bytes: Uint8Array): void {
    const came = Buffer.from(bytes.buffer);
    if (this.#bytes.compare(came, 6, 12, 6, 12) !== 0) return;
    const number = came.readUInt32LE(14);
    if (seen.has(number)) this.twice++;
    seen.add(number);
  }

  turn(): void {
    this.send();
    this.receive();
  }
}

/** Guests with one kind of rings on a bridge of their own: the first sends to all others, the second to the first. */
class Guests {
  readonly devices: VirtioUser[] = [];
  readonly flows: Flow[] = [];

  static async open(t: TestContext, paths: readonly string[], packed: boolean): Promise<Guests> {
    const guests = new Guests();
    const options = { packed, inflight: true, queueSize: SIZE, timeout: 60_000 };
    for (const path of paths) {
      const device = await VirtioUser.open({ path, ...options });
      t.after(() => device.close());
      guests.devices.push(device);
    }
    const [first, ...others] = guests.devices as [VirtioUser, ...VirtioUser[]];
    guests.flows.push(
      new Flow(first, others, frame(BROADCAST, mac(1), 9000)),
      new Flow(others[0]!, [first], frame(mac(1), mac(2), 200)),
    );
    return guests;
  }

  /** The one that sends last: what it had in work would find everybody there. */
  async reconnect(): Promise<void> {
    const [first, ...others] = this.devices as [VirtioUser, ...VirtioUser[]];
    const connect = async (device: VirtioUser) => {
      for (let tries = 0; !(await again(device)); tries++) {
        assert.ok(tries < 100, 'the device connects again');
        await sleep(20);
      }
    };
    await Promise.all(others.map(connect));
    await connect(first);
  }
}

test(`${KILLS} kills under load, of a switch with split and packed rings`, async (t: TestContext) => {
  const at = sockets(t);
  const random = new Random(1);
  const paths = ['s', 'p'].map((kind) => NAMES.map((name) => at(kind + name)));
  const switches = new Switches(t, ...paths);
  let vswitch = await switches.start();
  const split = await Guests.open(t, paths[0]!, false);
  const packed = await Guests.open(t, paths[1]!, true);
  const kinds = [split, packed];
  const flows = kinds.flatMap((kind) => kind.flows);
  const alive = async (child: Child, steps: number) => {
    for (let i = 0; i < steps && child.running; i++) {
      for (const flow of flows) flow.turn();
      await turn();
    }
  };
  for (let kill = 0; kill < KILLS; kill++) {
    const closed = kinds.flatMap(({ devices }) => devices.map((device) => device.closed));
    await alive(vswitch, random.below(20));
    // In the middle of a burst, most likely: at any moment, or when the first of the two has its frames.
    for (const flow of flows) flow.receive();
    // Of one kind or the other: the one that is sent last is the one whose burst is cut, the other's is behind it.
    const order = random.below(2) ? [split, packed] : [packed, split];
    for (const kind of order) kind.flows[0]!.send();
    const moment = performance.now() + (random.below(2) ? random.below(2000) / 1000 : 50);
    const [watched] = order[random.below(2)]!.flows;
    while (performance.now() < moment && !watched!.receiveFirst());
    vswitch.process.kill('SIGKILL');
    await vswitch.exited;
    await Promise.all(closed);
    vswitch = await switches.start();
    await Promise.all(kinds.map((kind) => kind.reconnect()));
    const came = flows.map((flow) => flow.came);
    const deadline = Date.now() + PATIENCE;
    // Every buffer of both rings goes through: none was lost.
    while (flows.some((flow, i) => flow.came - came[i]! < SIZE)) {
      assert.ok(Date.now() < deadline, `kill ${kill}: traffic flows again`);
      await alive(vswitch, 1);
    }
    assert.deepEqual(
      flows.map((flow) => flow.twice),
      [0, 0, 0, 0],
      `kill ${kill}: nothing came twice`,
    );
  }
  for (const flow of flows) {
    const deadline = Date.now() + PATIENCE;
    while (flow.from.pending() > 0) {
      assert.ok(Date.now() < deadline, 'every buffer comes back');
      await turn();
    }
  }
});

for (const packed of [false, true]) {
  describe(`${packed ? 'packed' : 'split'} rings`, () => {
    test('killed after each message of two sessions', async (t: TestContext) => {
      const at = sockets(t);
      const random = new Random(packed ? 4 : 3);
      const paths = ['a', 'b'].map(at);
      const switches = new Switches(t, paths);
      let vswitch = await switches.start();
      const { devices, flows } = await Guests.open(t, paths, packed);
      const [a, b] = devices as [VirtioUser, VirtioUser];
      vswitch.process.kill('SIGKILL');
      for (let number = packed ? 1 : 0, ended = false; !ended; number += EACH) {
        await vswitch.exited;
        await Promise.all(devices.map((device) => device.closed));
        // What waits in the rings goes as soon as one of them runs.
        for (const flow of flows) flow.turn();
        vswitch = await switches.start();
        const dying = vswitch;
        let killed = false;
        const undo = atMessage(number, random.below(10) / 10, () => {
          killed = dying.process.kill('SIGKILL');
        });
        const connected = (await again(b)) && (await again(a));
        // Behind the last message nobody waits for an answer: both may be connected to a switch that is dying.
        ended = connected && !killed;
        undo();
        for (const flow of flows) {
          flow.receive();
          assert.equal(flow.twice, 0, `message ${number}: nothing came twice`);
        }
        assert.ok(number < 300, 'the sessions have an end');
      }
      const came = flows.map((flow) => flow.came);
      await until(() => {
        for (const flow of flows) flow.turn();
        return flows.every((flow, i) => flow.came - came[i]! >= 2 * SIZE);
      }, 'every buffer of both rings goes through');
      assert.deepEqual(flows.map((flow) => flow.twice), [0, 0]); // biome-ignore format: a line
    });
  });
}
