/**
 * DPDK's virtio-user with several queue pairs as both guests: every frame of a fixed number arrives, each flow on
 * one queue and in its order, and the number of queues changes while the switch runs.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { createSwitch, type Switch } from '../../src/index.ts';
import { mac } from '../support/ethernet.ts';
import { flowFrame } from '../support/flows.ts';
import { skipWithout } from './available.ts';
import { Testpmd, type VirtioUser, virtioUser } from './dpdk.ts';
import { readPcap, writePcap } from './pcap.ts';
import { scratch, until } from './process.ts';

const QUEUES = 8;
const FLOWS = 128;
/** Frames of a flow: all queues together hold many more than all frames. */
const FRAMES = 16;
const SIZES = [64, 128, 256, 512, 1024, 1280, 1518];

/** Frame `n` of a flow, which tells both in its last bytes. */
function stamped(flow: number, n: number): Buffer {
  const bytes = flowFrame({
    to: mac(2),
    from: mac(1),
    source: `10.0.0.${1 + (flow % 16)}`,
    destination: '10.1.0.1',
    protocol: flow % 3 ? 6 : 17,
    sourcePort: 1024 + flow,
    destinationPort: 80,
    length: SIZES[n % SIZES.length]!,
  });
  bytes.writeUInt32BE(flow * FRAMES + n, bytes.length - 4);
  return bytes;
}

const ARGS = [`--rxq=${QUEUES}`, `--txq=${QUEUES}`, '--rxd=1024', '--txd=1024', '--total-num-mbufs=60000'];
const each = <T>(value: (queue: number) => T) => Array.from({ length: QUEUES }, (_, queue) => value(queue));

/** Packets that each queue of one direction has seen. */
function packets(vswitch: Switch, port: string, direction: 'rx' | 'tx'): number[] {
  return vswitch
    .port(port)
    .queues.filter((queue) => queue.direction === direction)
    .map((queue) => queue.packets);
}

const PATHS: [string, Omit<VirtioUser, 'path'>][] = [
  ['split', { queueSize: 1024 }],
  ['split, in_order=0, mrg_rxbuf=0', { queueSize: 1024, inOrder: false, mrgRxbuf: false }],
  ['packed', { queueSize: 1024, packed: true }],
];

describe('DPDK virtio-user with 8 queue pairs as both guests', { skip: skipWithout('dpdk') }, () => {
  for (const workers of [1, 2])
    for (const [name, options] of PATHS)
      test(`${name}, ${workers} workers: nothing is lost, flows keep queue and order`, () =>
        run(options, workers));

  for (const workers of [1, 2])
    test(`${workers} workers: fewer and more queues at run time`, () => resize(workers));
});

async function run(options: Omit<VirtioUser, 'path'>, workers: number): Promise<void> {
  using directory = scratch('dpdk');
  const at = (name: string) => join(directory.path, name);
  // A flow is sent on one queue.
  for (const queue of each((q) => q)) {
    const flows = Array.from({ length: FLOWS / QUEUES }, (_, i) => i * QUEUES + queue);
    const frames = Array.from({ length: FRAMES }, (_, n) => flows.map((flow) => stamped(flow, n)));
    writeFileSync(at(`in${queue}.pcap`), writePcap(frames.flat()));
  }
  writeFileSync(at('empty.pcap'), writePcap([]));
  const capture = (from: (queue: number) => string, to: (queue: number) => string) =>
    ['net_pcap0', ...each((q) => `rx_pcap=${from(q)}`), ...each((q) => `tx_pcap=${to(q)}`)].join(',');

  await using vswitch = await createSwitch({
    workers,
    ports: ['a', 'b'].map((name) => ({ name, type: 'vhost-user', target: at(name) })),
  });
  const device = (name: string) => virtioUser(0, { ...options, queues: QUEUES, path: at(name) });
  const args = ['--forward-mode=io', '--no-flush-rx', ...ARGS];
  const out = (queue: number) => at(`out${queue}.pcap`);
  await using receiver = await Testpmd.start({
    vdevs: [device('b'), capture(() => at('empty.pcap'), out)],
    args,
  });
  await receiver.command('start');
  await until('guest on port b', 10_000, () => /, 8 pairs$/.test(vswitch.port('b').rings));
  await using sender = await Testpmd.start({
    vdevs: [
      device('a'),
      capture(
        (queue) => at(`in${queue}.pcap`),
        () => '/dev/null',
      ),
    ],
    args,
  });
  await until('guest on port a', 10_000, () => /, 8 pairs$/.test(vswitch.port('a').rings));
  await sender.command('start');
  await until('all frames at the receiver', 20_000, async () => {
    return (await receiver.stats())[0]!.rxPackets >= FLOWS * FRAMES;
  });
  await receiver.command('stop');
  await receiver.close();

  const next: number[] = Array(FLOWS).fill(0);
  const home = new Map<number, number>();
  const came = each((queue) => {
    const frames = readPcap(readFileSync(out(queue)));
    for (const bytes of frames) {
      const flow = Math.floor(bytes.readUInt32BE(bytes.length - 4) / FRAMES);
      assert.ok(bytes.equals(stamped(flow, next[flow]!++)), `flow ${flow}: the next frame, as it was sent`);
      assert.equal(home.get(flow) ?? queue, queue, `flow ${flow} stays in its queue`);
      home.set(flow, queue);
    }
    return frames.length;
  });
  assert.deepEqual(next, Array(FLOWS).fill(FRAMES));
  assert.ok(
    came.every((n) => n > 0),
    `every queue of the receiver: ${came}`,
  );
  assert.deepEqual(packets(vswitch, 'b', 'tx'), came);
  assert.deepEqual(packets(vswitch, 'a', 'rx'), Array(QUEUES).fill((FLOWS / QUEUES) * FRAMES));
  const [a, b] = ['a', 'b'].map((name) => vswitch.port(name));
  assert.deepEqual([a!.rxPackets, b!.txPackets], [FLOWS * FRAMES, FLOWS * FRAMES]);
  assert.deepEqual([a!.drops, b!.drops, a!.lastError], [{}, {}, null]);
  const polling = new Set(a!.queues.map((queue) => queue.worker).filter((worker) => worker !== null));
  assert.equal(polling.size, workers, 'its queues are shared among all workers');
}

/** Packets circle between the two guests; each number of queues in turn is started and must carry traffic. */
async function resize(workers: number): Promise<void> {
  using directory = scratch('dpdk');
  const at = (name: string) => join(directory.path, name);
  await using vswitch = await createSwitch({
    workers,
    ports: ['a', 'b'].map((name) => ({ name, type: 'vhost-user', target: at(name) })),
  });
  await using guests = await Testpmd.start({
    vdevs: ['a', 'b'].map((name, i) =>
      virtioUser(i, { path: at(name), queues: QUEUES, mac: `02:00:00:00:00:0${i + 1}` }),
    ),
    args: [
      ...['--forward-mode=mac', '--eth-peer=0,02:00:00:00:00:02', '--eth-peer=1,02:00:00:00:00:01'],
      ...['--txonly-multi-flow', ...ARGS],
    ],
  });
  for (const queues of [8, 3, 1, 8, 2]) {
    await guests.command('stop');
    await guests.command('port stop all');
    await guests.command(`port config all rxq ${queues}`);
    await guests.command(`port config all txq ${queues}`);
    await guests.command('port start all');
    const words = queues === QUEUES ? ', 8 pairs' : `, ${queues} of 8 pairs`;
    await until(`${queues} queues enabled`, 10_000, () =>
      vswitch.ports().every((p) => p.rings.endsWith(words)),
    );
    const before = ['a', 'b'].map((name) => packets(vswitch, name, 'tx'));
    await guests.command('start tx_first 4');
    const moved = () =>
      ['a', 'b'].map((name, i) => packets(vswitch, name, 'tx').map((n, queue) => n - before[i]![queue]!));
    await until(`traffic on each of ${queues} queues`, 20_000, () =>
      moved().every((port) => port.slice(0, queues).every((n) => n > 100)),
    );
    assert.ok(
      moved().every((port) => port.slice(queues).every((n) => n === 0)),
      'and on no other',
    );
    assert.deepEqual(
      vswitch.ports().map((port) => port.state),
      ['up', 'up'],
    );
  }
}
