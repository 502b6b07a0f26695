/**
 * The generator on switches of this process. What comes is compared with what a relay between two switches has let
 * through, swapped, doubled and damaged; what is sent, with the protocols' rules.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { Generator, type GenPort, type GenResult, type Traffic, type Trial } from '../../src/gen/index.ts';
import { createSwitch, type Switch } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { readPcap, writePcap } from '../peers/pcap.ts';
import { scratch } from '../peers/process.ts';
import { faults, type Segment } from '../support/ip.ts';
import { until } from '../support/until.ts';

const directory = scratch('gen');
const at = (name: string) => join(directory.path, name);
const port = (name: string, options: Partial<GenPort> = {}): GenPort => ({ path: at(name), ...options });
let vswitch: Switch;

before(async () => {
  vswitch = await createSwitch({
    ports: ['a', 'b', 'x', 'y'].map((name) => ({ name, type: 'vhost-user', target: at(name), queues: 4 })),
  });
});
after(async () => {
  await vswitch.close();
  directory.remove();
});

/** Slow enough for a busy machine: what is counted is to be exact. */
const SLOW = { packets: 5000 };

/** Frames that a device gets until `count` have come. */
async function receive(device: VirtioUser, count: number): Promise<Buffer[]> {
  const frames: Buffer[] = [];
  await until(() => {
    for (let frame = device.receive(); frame; frame = device.receive()) frames.push(Buffer.from(frame));
    return frames.length >= count;
  }, `${count} frames have come`);
  return frames;
}

/** What a trial on port a sends, as another device gets it: `count` frames. */
async function sentBy(trial: Trial, count: number, options: Partial<GenPort> = {}): Promise<Buffer[]> {
  await using device = await VirtioUser.open({ path: at('b'), queueSize: 1024 });
  await using generator = await Generator.open({ ports: [port('a', options)] });
  const receiving = receive(device, count);
  const result = await generator.run({ rate: SLOW, count, ...trial });
  assert.equal(result.sent, count);
  assert.equal(result.ended, 'count');
  return receiving;
}

describe('what is sent', () => {
  for (const [name, traffic, kind] of [
    ['IPv4', {}, { version: 4 }],
    ['IPv4 behind a VLAN tag', { vlan: { first: 7n, count: 1 } }, { version: 4, vlan: 7 }],
    ['IPv6', { version: 6 }, { version: 6 }],
    ['IPv6 behind a VLAN tag', { version: 6, vlan: { first: 7n, count: 1 } }, { version: 6, vlan: 7 }],
  ] as [string, Traffic, Pick<Segment, 'version' | 'vlan'>][]) {
    for (const packed of [false, true]) {
      test(`${name}, ${packed ? 'packed' : 'split'}: lengths and checksums are right at every size`, async () => {
        const sizes = [82, 83, 84, 127, 128, 129, 1000, 1514, 1518, 1900, 4000, 9001];
        const frames = await sentBy({ mode: 'txonly', traffic: { ...traffic, sizes } }, 3 * sizes.length, {
          packed,
        });
        for (const [index, frame] of frames.entries()) {
          assert.equal(frame.length, sizes[index % sizes.length]);
          const segment = { ...kind, protocol: 'udp', payload: frame } as const;
          assert.deepEqual(faults(frame, segment), [], `frame ${index} of ${frame.length} bytes`);
        }
      });
    }
  }

  test('every value of every range, in turn', async () => {
    const range = (first: bigint, count: number) => ({ first, count });
    const frames = await sentBy(
      {
        mode: 'txonly',
        traffic: {
          sizes: [64, 100],
          sourceMac: range(0x0200_0000_0010n, 2), destinationMac: range(0x0200_0000_0020n, 3),
          sourceIp: range(0x0a00_00ffn, 3), destinationIp: range(0x0a01_0000n, 5),
          sourcePort: range(1000n, 2), destinationPort: range(2000n, 3),
        },
      },
      60,
    ); // biome-ignore format: a list of ranges
    for (const [i, frame] of frames.entries()) {
      assert.equal(frame.length, [64, 100][i % 2]);
      assert.equal(frame.readUIntBE(0, 6), 0x0200_0000_0020 + (i % 3));
      assert.equal(frame.readUIntBE(6, 6), 0x0200_0000_0010 + (i % 2));
      assert.equal(frame.readUInt32BE(26), 0x0a00_00ff + (i % 3));
      assert.equal(frame.readUInt32BE(30), 0x0a01_0000 + (i % 5));
      assert.equal(frame.readUInt16BE(34), 1000 + (i % 2));
      assert.equal(frame.readUInt16BE(36), 2000 + (i % 3));
      assert.deepEqual(faults(frame, { version: 4, protocol: 'udp', payload: frame }), []);
    }
  });

  test('flowgen: 1024 flows', async () => {
    const frames = await sentBy({ mode: 'flowgen' }, 1024);
    assert.equal(new Set(frames.map((frame) => frame.readUInt32BE(30))).size, 1024);
  });

  test('a capture file, byte for byte, as often as asked for', async () => {
    const recorded = [60, 1514, 5000, 14].map((length, i) => Buffer.alloc(length, i + 1));
    for (const frame of recorded) frame.writeUInt16BE(0x0200, 6);
    const file = at('replay.pcap');
    writeFileSync(file, writePcap(recorded));
    const frames = await sentBy({ mode: 'txonly', replay: file, rate: SLOW }, 10);
    assert.deepEqual(frames, [...recorded, ...recorded, ...recorded].slice(0, 10));
  });
});

/** Frames that the relay takes from one device and what it gives to the other. */
type Relay = (frame: Buffer, index: number) => Buffer[];

/** A sends through one switch to a relay, which gives to B behind another switch what it chooses. */
async function relayed(trial: Trial, relay: Relay, count: number): Promise<GenResult> {
  const far = await createSwitch({
    name: 'far',
    ports: ['c', 'd'].map((name) => ({ name, type: 'vhost-user', target: at(name) })),
  });
  try {
    await using from = await VirtioUser.open({ path: at('b'), queueSize: 1024 });
    await using to = await VirtioUser.open({ path: at('c'), queueSize: 1024 });
    await using generator = await Generator.open({ ports: [port('a'), port('d')] });
    const run = generator.run({ ...trial, mode: ['txonly', 'rxonly'], count, rate: SLOW });
    let index = 0;
    let over = false;
    run.finally(() => {
      over = true;
    });
    while (!over) {
      for (let frame = from.receive(); frame; frame = from.receive()) {
        for (const one of relay(Buffer.from(frame), index++))
          await until(() => to.send(one), 'there is room in the ring');
      }
      await turn();
    }
    return await run;
  } finally {
    await far.close();
  }
}

describe('what comes', () => {
  const COUNT = 600;

  test('lost, doubled, late and damaged frames, each counted exactly', async () => {
    const held: Buffer[] = [];
    const expected = { lost: 0, duplicates: 0, reordered: 0, corrupt: 0 };
    const result = await relayed(
      { mode: 'latency' },
      (frame, index) => {
        if (index % 20 === 3) {
          expected.lost++;
          return [];
        }
        if (index % 20 === 7) {
          expected.duplicates++;
          return [frame, frame];
        }
        if (index % 20 === 11) {
          // Comes 5 frames later.
          expected.reordered++;
          held.push(frame);
          return [];
        }
        if (index % 20 === 16) return [frame, held.pop()!];
        if (index % 20 === 18) {
          // Any byte of sequence number, time, run, check and pattern.
          frame[42 + (index % 22 === 6 ? 0 : index % 22)]! ^= 0x10;
          expected.corrupt++;
          expected.lost++;
          return [frame];
        }
        return [frame];
      },
      COUNT,
    );
    const [stream] = result.ports[1]!.streams;
    assert.equal(result.sent, COUNT);
    // The byte with the mark tells whose frame it is.
    assert.equal(result.corrupt + result.foreign, expected.corrupt);
    assert.equal(result.lost, expected.lost);
    assert.equal(result.duplicates, expected.duplicates);
    assert.equal(result.reordered, expected.reordered);
    assert.equal(result.stale, 0);
    assert.equal(stream?.reorderDistance, 5);
    assert.equal(stream?.received, COUNT - expected.lost);
    assert.equal(result.latency?.frames, COUNT - expected.lost + expected.duplicates);
  });

  test('frames that are cut, padded, tagged and of other protocols', async () => {
    let cut = 0;
    let foreign = 0;
    const result = await relayed(
      { mode: 'latency', traffic: { sizes: [200] } },
      (frame, index) => {
        if (index % 10 === 1) {
          cut++;
          return [frame.subarray(0, 199)];
        }
        if (index % 10 === 2) return [Buffer.concat([frame, Buffer.alloc(9)])];
        if (index % 10 === 3)
          return [Buffer.concat([frame.subarray(0, 12), Buffer.from([0x81, 0, 0, 5]), frame.subarray(12)])];
        if (index % 10 === 4) {
          foreign++;
          return [frame, Buffer.concat([frame.subarray(0, 12), Buffer.alloc(48, 0x88)])];
        }
        return [frame];
      },
      COUNT,
    );
    assert.deepEqual(
      { corrupt: result.corrupt, lost: result.lost, foreign: result.foreign, received: result.received },
      { corrupt: cut, lost: cut, foreign, received: COUNT + foreign },
    );
  });

  test('a single bit anywhere behind the headers is noticed', async () => {
    const length = 42 + 16 + 90;
    const bits = (length - 42) * 8;
    const result = await relayed(
      { mode: 'latency', traffic: { sizes: [length] } },
      (frame, index) => {
        frame[42 + (index >> 3)]! ^= 1 << (index & 7);
        return [frame];
      },
      bits,
    );
    assert.equal(result.corrupt + result.foreign, bits);
    assert.equal(result.foreign, 8, 'eight bits of the mark');
    assert.equal(result.lost, bits);
  });

  test('where stamps alone are checked, damage behind them passes and damage to them does not', async () => {
    const length = 42 + 16 + 90;
    const bits = (length - 42) * 8;
    const result = await relayed(
      { mode: 'latency', traffic: { sizes: [length] }, check: 'stamp' },
      (frame, index) => {
        frame[42 + (index >> 3)]! ^= 1 << (index & 7);
        return [frame];
      },
      bits,
    );
    assert.equal(result.corrupt + result.foreign, 16 * 8);
    assert.equal(result.lost, 16 * 8);
  });

  test('a capture holds what came, in order, with its times', async () => {
    const capture = at('capture.pcap');
    await using generator = await Generator.open({ ports: [port('a'), port('b', { capture })] });
    const start = Date.now();
    const result = await generator.run({
      mode: ['txonly', 'rxonly'], count: 300, rate: SLOW, traffic: { sizes: [64, 1518, 4000] },
    }); // biome-ignore format: short
    assert.deepEqual(result.ports[1]!.capture, { file: capture, frames: 300, lost: 0 });
    const file = readFileSync(capture);
    const frames = readPcap(file);
    assert.equal(frames.length, 300);
    for (const [index, frame] of frames.entries()) {
      assert.equal(frame.length, [64, 1518, 4000][index % 3]);
      assert.equal(frame.readUIntLE(42, 6), index, 'the sequence number');
    }
    assert.equal(file.readUInt32LE(0), 0xa1b23c4d);
    const time = file.readUInt32LE(24) * 1000 + file.readUInt32LE(28) / 1e6;
    assert.ok(time >= start - 1000 && time <= Date.now() + 1000, `${time} lies in the run`);
  });
});

describe('a run', () => {
  test('goes on its schedule: none too early, and who was late catches up', async () => {
    await using generator = await Generator.open({ ports: [port('a'), port('b')] });
    for (const [rate, train] of [
      [{ packets: 3000 }, 1],
      [{ bits: 3000 * 8 * 64 }, 1],
      [{ packets: 3000 }, 32],
    ] as const) {
      const result = await generator.run({ mode: ['txonly', 'rxonly'], rate, count: 900, train });
      const [sender] = result.ports;
      assert.equal(sender!.sent, 900);
      // The first of a train is due when a frame alone would be; those behind it leave with it.
      if (train > 1) continue;
      const planned = 899 / 3000;
      const taken = planned / (1 + sender!.rateError!);
      assert.ok(taken >= planned - 1e-6, `${taken} s: not faster than asked`);
      assert.ok(
        taken <= planned + sender!.lateMost! / 1e9 + 1e-6,
        `${taken} s: no later than the latest frame`,
      );
    }
  });

  test('of four queues: each stream is complete, packed and split', async () => {
    for (const packed of [false, true]) {
      await using generator = await Generator.open({
        ports: [port('a', { queues: 4, packed }), port('b', { queues: 4, packed })],
      });
      const result = await generator.run({ mode: ['flowgen', 'rxonly'], rate: SLOW, count: 1001 });
      assert.equal(result.sent, 1001);
      assert.equal(result.lost, 0);
      assert.deepEqual(
        result.ports[1]!.streams.map(({ sent }) => sent),
        [251, 250, 250, 250],
      );
    }
  });

  test('by two threads: both ports send and receive', async () => {
    await using generator = await Generator.open({ ports: [port('a'), port('b')], cpus: [0, 1] });
    const result = await generator.run({ mode: 'latency', rate: SLOW, count: 1000 });
    assert.deepEqual([result.sent, result.received, result.lost], [2000, 2000, 0]);
    assert.ok(result.latency!.most < 60e9, 'no clock is ahead of another by more than it takes');
  });

  test('after another one counts its own frames alone', async () => {
    await using generator = await Generator.open({ ports: [port('a'), port('b')] });
    for (const count of [100, 50, 200]) {
      const result = await generator.run({ mode: ['txonly', 'rxonly'], rate: SLOW, count });
      assert.deepEqual([result.sent, result.lost, result.foreign], [count, 0, 0]);
    }
  });

  test('that is interrupted tells what was measured so far', async () => {
    await using generator = await Generator.open({ ports: [port('a'), port('b')] });
    const abort = new AbortController();
    const result = await generator.run(
      { mode: 'latency', rate: SLOW },
      {
        signal: abort.signal,
        interval: 10,
        onProgress: ({ received }) => void (received > 0 && abort.abort()),
      },
    );
    assert.equal(result.ended, 'interrupt');
    assert.ok(result.received > 0);
  });

  test('whose back-end leaves tells so, and what was measured so far', async () => {
    const other = await createSwitch({
      name: 'other',
      ports: ['e', 'f'].map((name) => ({ name, type: 'vhost-user', target: at(name) })),
    });
    await using generator = await Generator.open({ ports: [port('e'), port('f')] });
    let closing: Promise<void> | undefined;
    const result = await generator.run(
      { mode: 'latency', rate: SLOW },
      {
        interval: 10,
        onProgress: ({ received }) => {
          if (received > 0) closing ??= other.close();
        },
      },
    );
    await closing;
    assert.equal(result.ended, 'fault');
    assert.match(result.fault!, /\/[ef]: the back-end is gone: .+/);
    assert.ok(result.received > 0);
  });

  test('that can’t be is refused, and the next one runs', async () => {
    await using generator = await Generator.open({ ports: [port('a'), port('b')] });
    const bad: [Trial, RegExp][] = [
      [
        { mode: 'latency', traffic: { sizes: [57] } },
        /size 57: frames with a stamp over IPv4 have 58 to 65549 bytes/,
      ],
      [
        { mode: 'latency', traffic: { version: 6, sizes: [64] } },
        /size 64: frames with a stamp over IPv6 have 78/,
      ],
      [{ mode: 'txonly', replay: at('none.pcap') }, /none\.pcap: ENOENT/],
      [{ mode: 'txonly', replay: process.execPath }, /node: expected a pcap or pcapng file/],
      [{ mode: 'txonly', rate: 'recorded' }, /rate recorded: only with a file/],
      [{ mode: ['txonly', 'io'] }, /forwards to it, so it can't send by itself/],
    ];
    for (const [trial, message] of bad)
      await assert.rejects(generator.run({ count: 1, ...trial }), { message });
    const result = await generator.run({ mode: ['txonly', 'rxonly'], rate: SLOW, count: 10 });
    assert.equal(result.lost, 0);
  });

  test('on a socket that isn’t there is refused by its name', async () => {
    await assert.rejects(
      Generator.open({ ports: [port('a'), port('nowhere')] }),
      /nowhere: .*ENOENT.*; start the back-end first/,
    );
    await assert.rejects(Generator.open({ ports: [port('a')], cpus: [1000] }), /CPU 1000/);
  });
});
