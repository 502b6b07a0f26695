/** Guests with several queue pairs on a running switch: real sockets, workers and rings on both sides. */
import assert from 'node:assert/strict';
import { describe, type TestContext, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { createSwitch, type Switch, type SwitchOptions } from '../../src/index.ts';
import { openFds } from '../../src/sys/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import type { VirtioUserOptions } from '../../src/virtio-user/options.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { flowFrame } from '../support/flows.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

const FLOWS = 64;
/** Frames on their way at most: fewer than one ring holds, so that the switch has no reason to drop any. */
const WINDOW = 200;

async function open(
  t: TestContext,
  options: SwitchOptions,
  guests: Partial<VirtioUserOptions>,
): Promise<{ vswitch: Switch; a: VirtioUser; b: VirtioUser }> {
  const path = sockets(t);
  const vswitch = await createSwitch({
    ...options,
    ports: ['a', 'b'].map((name) => ({ name, type: 'vhost-user', target: path(name) })),
  });
  t.after(() => vswitch.close());
  const [a, b] = await Promise.all(
    ['a', 'b'].map(async (name) => {
      const device = await VirtioUser.open({ ...guests, path: path(name) });
      t.after(() => device.close());
      return device;
    }),
  );
  // So that nothing is flooded later on.
  b!.send(frame(BROADCAST, mac(2)));
  await until(() => a!.receive(), 'the first frame comes');
  return { vswitch, a: a!, b: b! };
}

/** Numbered frames of many flows from one guest to the other. Notices what is lost, doubled, changed or overtaken. */
class Stream {
  readonly #a: VirtioUser;
  readonly #b: VirtioUser;
  readonly #sent: number[] = Array(FLOWS).fill(0);
  /** Frames on their way, by flow, oldest first. */
  readonly #missing = Array.from({ length: FLOWS }, () => new Set<number>());
  /** The last frame of a flow that came on a queue, by `flow * 256 + queue`. */
  readonly #last = new Map<number, number>();
  readonly #templates: Buffer[];
  /** The queue that each flow came on last. */
  readonly home = new Map<number, number>();
  #open = 0;
  /** Queues are being enabled or disabled. */
  moving = false;
  total = 0;

  constructor(a: VirtioUser, b: VirtioUser) {
    this.#a = a;
    this.#b = b;
    this.#templates = Array.from({ length: FLOWS }, (_, flow) =>
      flowFrame({
        to: mac(2),
        from: mac(1),
        source: `10.0.0.${flow}`,
        destination: '10.1.0.1',
        protocol: 6,
        sourcePort: 4000 + flow,
        destinationPort: 80,
        length: 100,
      }),
    );
  }

  #nth(flow: number, n: number): Buffer {
    const bytes = Buffer.from(this.#templates[flow]!);
    bytes.writeUInt32LE(flow, 92);
    bytes.writeUInt32LE(n, 96);
    return bytes;
  }

  /** Sends `count` frames, each flow on one of the first `queues`, and takes what comes. */
  async run(count: number, queues: number): Promise<void> {
    for (let i = 0; i < count; ) {
      const flow = i % FLOWS;
      if (this.#open < WINDOW && this.#a.send(this.#nth(flow, this.#sent[flow]!), undefined, flow % queues)) {
        this.#missing[flow]!.add(this.#sent[flow]!++);
        this.#open++;
        i++;
        continue;
      }
      this.take();
      await turn();
    }
  }

  /** Takes what has come; resolves when nothing is on its way any more. */
  async settle(): Promise<void> {
    await until(() => {
      this.take();
      return this.#open === 0;
    }, 'all frames arrive');
  }

  take(): void {
    for (let queue = 0; queue < this.#b.queues; queue++) {
      for (let came = this.#b.receive(queue); came; came = this.#b.receive(queue)) {
        const flow = Buffer.from(came).readUInt32LE(92);
        const n = Buffer.from(came).readUInt32LE(96);
        assert.ok(this.#nth(flow, n).equals(came), `frame ${n} of flow ${flow} comes as it was sent`);
        const [oldest] = this.#missing[flow]!;
        // Frames in two queues while the flow moves: which is looked at first is the receiver's affair.
        if (!this.moving) assert.equal(n, oldest, `flow ${flow}: the oldest frame comes next`);
        assert.ok(this.#missing[flow]!.delete(n), `frame ${n} of flow ${flow} comes once`);
        assert.ok(
          (this.#last.get(flow * 256 + queue) ?? -1) < n,
          `flow ${flow} keeps its order in queue ${queue}`,
        );
        this.#last.set(flow * 256 + queue, n);
        this.home.set(flow, queue);
        this.#open--;
        this.total++;
      }
    }
  }
}

describe('several queue pairs', () => {
  for (const workers of [1, 2, 3]) {
    for (const packed of [false, true]) {
      for (const poll of ['adaptive', 'busy'] as const) {
        const name = `${packed ? 'packed' : 'split'}, ${workers} workers, ${poll}`;
        test(`${name}: nothing is lost or overtaken within a flow, every queue carries some`, async (t) => {
          const { vswitch, a, b } = await open(t, { workers, poll }, { queues: 4, packed });
          const stream = new Stream(a, b);
          await stream.run(4000, 4);
          const home = new Map(stream.home);
          await stream.run(4000, 4);
          await stream.settle();
          for (const [flow, queue] of home)
            assert.equal(stream.home.get(flow), queue, 'a flow stays where it is');
          const [from, to] = [vswitch.port('a'), vswitch.port('b')];
          assert.equal(from.rxPackets, 8000, 'the sum of all queues');
          assert.equal(to.txPackets, 8000);
          const packets = (port: typeof to, way: string) =>
            port.queues.filter((q) => q.direction === way).map((q) => q.packets);
          assert.ok(
            packets(to, 'tx').every((n) => n > 0),
            String(packets(to, 'tx')),
          );
          assert.deepEqual(packets(from, 'rx'), [2000, 2000, 2000, 2000]);
          assert.deepEqual([from.drops, to.drops, from.lastError], [{}, {}, null]);
          assert.match(to.rings, /, 4 pairs$/);
          const polling = new Set(from.queues.map((q) => q.worker).filter((worker) => worker !== null));
          assert.equal(polling.size, workers, 'all workers have queues of this port');
        });
      }
    }
  }

  test('queues come and go under traffic: nothing is lost, and nothing goes to a queue that is disabled', async (t) => {
    const { vswitch, a, b } = await open(t, { workers: 2 }, { queues: 4 });
    const stream = new Stream(a, b);
    let enabled = 4;
    for (const next of [4, 3, 1, 2, 4, 1, 4]) {
      // Frames are on their way while the receiver changes; those of the sender use queue 0 alone meanwhile.
      stream.moving = true;
      const busy = stream.run(600, 1);
      while (enabled > next) await b.enable(--enabled, false);
      while (enabled < next) await b.enable(enabled++, true);
      await busy;
      await stream.settle();
      stream.moving = false;
      stream.home.clear();
      await stream.run(600, 1);
      await stream.settle();
      assert.deepEqual([...new Set(stream.home.values())].sort(), [0, 1, 2, 3].slice(0, next));
      const { state, rings, queues } = vswitch.port('b');
      assert.equal(state, 'up');
      assert.match(rings, next === 4 ? /, 4 pairs$/ : new RegExp(`, ${next} of 4 pairs$`));
      assert.deepEqual(
        queues.map((queue) => queue.enabled),
        queues.map((queue) => queue.index < 2 * next),
      );
    }
    assert.equal(stream.total, 7 * 1200);
    assert.deepEqual(vswitch.port('b').drops, {});
    assert.deepEqual(vswitch.port('a').drops, {});
  });

  test('what a disabled queue sends is dropped and counted, and the others go on', async (t) => {
    const { vswitch, a, b } = await open(t, {}, { queues: 2 });
    await a.enable(1, false);
    assert.ok(a.send(frame(mac(2), mac(1)), undefined, 1));
    assert.ok(a.send(frame(mac(2), mac(1)), undefined, 0));
    await until(() => b.receive(), 'the frame of the enabled queue comes');
    await until(() => vswitch.port('a').drops.queueDisabled === 1, 'the other one is counted');
    assert.equal(b.receive(), undefined);
    assert.equal(vswitch.port('a').rxDrops, 1);
  });

  test('a port may offer fewer, and needs nothing for those that are not started', async (t) => {
    const path = sockets(t);
    const vswitch = await createSwitch({
      ports: [
        { name: 'one', type: 'vhost-user', target: path('one'), queues: 1 },
        { name: 'three', type: 'vhost-user', target: path('three'), queues: 3 },
        { name: 'all', type: 'vhost-user', target: path('all') },
      ],
    });
    t.after(() => vswitch.close());
    const fds = openFds();
    const offers = (name: string) => vswitch.port(name).features.offered.includes('VIRTIO_NET_F_MQ');
    assert.deepEqual(['one', 'three', 'all'].map(offers), [false, true, true]);
    assert.equal(vswitch.port('all').queues.length, 2);
    await assert.rejects(
      VirtioUser.open({ path: path('one'), queues: 2 }),
      /queues 2: the back-end has 1 at most/,
    );
    await assert.rejects(
      VirtioUser.open({ path: path('three'), queues: 4 }),
      /queues 4: the back-end has 3 at most/,
    );
    await assert.rejects(
      VirtioUser.open({ path: path('all'), queues: 129 }),
      /queues 129: 1 to 128 expected/,
    );
    const three = await VirtioUser.open({ path: path('three'), queues: 3 });
    const all = await VirtioUser.open({ path: path('all'), queues: 128, queueSize: 16, bufferLength: 256 });
    assert.throws(() => three.send(frame(mac(1), mac(2)), undefined, 3), /queue 3: this device has 3/);
    assert.match(vswitch.port('all').rings, /, 128 pairs$/);
    assert.equal(vswitch.port('all').queues.length, 256);
    assert.ok(three.send(frame(BROADCAST, mac(3)), undefined, 2));
    await until(() => all.receive(), 'a frame comes on one of 128 queues');
    assert.equal(vswitch.port('all').txPackets, 1);
    for (let queue = 0; queue < 128; queue++) {
      assert.ok(all.send(frame(mac(3), mac(4)), undefined, queue));
      await until(() => three.receive(), `a frame of queue ${queue} comes`);
    }
    await Promise.all([three.close(), all.close()]);
    await until(() => vswitch.ports().every((port) => port.state === 'listening'), 'both have gone');
    assert.equal(openFds(), fds);
  });
});
