/**
 * The generator with DPDK's back-end (testpmd's vhost ports) and Open vSwitch, and through a Vireo switch with DPDK's
 * driver as the other guest. Their counters judge ours: packet by packet.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { Generator, type GenPort } from '../../src/gen/index.ts';
import { sum as sumOf } from '../support/ip.ts';
import { skipWithout } from './available.ts';
import { type PortStats, Testpmd, vhost, virtioUser } from './dpdk.ts';
import { Ovs } from './ovs.ts';
import { readPcap, writePcap } from './pcap.ts';
import { scratch, until } from './process.ts';
import { Vireo } from './vireo.ts';

const PATIENCE = 60_000;
/** Slow enough that nothing is lost on a busy machine. */
const SLOW = { packets: 5000 };

/** A testpmd with two vhost ports, and the generator's ports on them. */
async function withTestpmd(
  mode: string,
  options: Partial<GenPort>,
  use: (generator: Generator, pmd: Testpmd, path: string) => Promise<void>,
  ports: Partial<GenPort>[] = [{}, {}],
): Promise<void> {
  using directory = scratch('gen');
  const at = (which: string) => join(directory.path, which);
  const names = ['a', 'b'].slice(0, ports.length);
  await using pmd = await Testpmd.start({
    vdevs: names.map((name, i) => vhost(i, { iface: at(name), queues: options.queues ?? 1 })),
    args: [`--forward-mode=${mode}`, `--rxq=${options.queues ?? 1}`, `--txq=${options.queues ?? 1}`],
  });
  await using generator = await Generator.open({
    ports: names.map((name, i) => ({ path: at(name), timeout: PATIENCE, ...options, ...ports[i] })),
  });
  await pmd.waitForLinks();
  await pmd.command('start');
  await use(generator, pmd, directory.path);
}

/** The counters once they stand still. */
async function settled(pmd: Testpmd): Promise<PortStats[]> {
  let last = '';
  return until('rest', PATIENCE, async () => {
    const stats = await pmd.stats();
    const now = JSON.stringify(stats.map(({ rxPackets, txPackets }) => [rxPackets, txPackets]));
    const still = now === last;
    last = now;
    return still && stats;
  });
}

describe("the generator on DPDK's vhost PMD", { skip: skipWithout('dpdk') }, () => {
  for (const packed of [false, true]) {
    const format = packed ? 'packed' : 'split';

    test(`${format}, txonly: testpmd's rxonly gets every frame and byte, at full speed too`, () =>
      withTestpmd(
        'rxonly',
        { packed },
        async (generator, pmd) => {
          const sizes = [64, 128, 1518, 3000];
          const slow = await generator.run({ mode: 'txonly', traffic: { sizes }, rate: SLOW, count: 2000 });
          const fast = await generator.run({ mode: 'txonly', count: 300_000 });
          const [port] = await settled(pmd);
          assert.deepEqual([slow.sent, fast.sent], [2000, 300_000]);
          assert.equal(port!.rxPackets, 302_000);
          assert.equal(port!.rxBytes, slow.ports[0]!.sentBytes + fast.ports[0]!.sentBytes);
        },
        [{}],
      ));

    test(`${format}, rxonly: every frame that testpmd's txonly has sent is counted`, () =>
      withTestpmd('txonly', { packed }, async (generator, pmd) => {
        const result = await generator.run({ mode: 'rxonly', count: 50_000 });
        await pmd.command('stop');
        const rest = await generator.run({ mode: 'rxonly', seconds: 0.5 });
        const ports = await settled(pmd);
        for (const [index, { txPackets }] of ports.entries())
          assert.equal(result.ports[index]!.received + rest.ports[index]!.received, txPackets);
        assert.equal(result.foreign, result.received, "testpmd's frames have no stamp of ours");
      }));

    test(`${format}, latency through testpmd's io: all that is missing is what testpmd has dropped`, () =>
      withTestpmd('io', { packed }, async (generator, pmd) => {
        const slow = await generator.run({
          mode: 'latency',
          rate: SLOW,
          count: 2000,
          traffic: { sizes: [64, 1518] },
        });
        const fast = await generator.run({ mode: 'latency', count: 200_000 });
        const stats = await settled(pmd);
        const sum = (field: 'rxPackets' | 'txPackets') =>
          stats.reduce((total, port) => total + port[field], 0);
        assert.equal(slow.sent + fast.sent, sum('rxPackets'));
        assert.equal(slow.received + fast.received, sum('txPackets'));
        assert.equal(slow.lost! + fast.lost!, sum('rxPackets') - sum('txPackets'));
        for (const { duplicates, reordered, corrupt, foreign } of [slow, fast])
          assert.deepEqual(
            { duplicates, reordered, corrupt, foreign },
            { duplicates: 0, reordered: 0, corrupt: 0, foreign: 0 },
          );
        assert.equal(slow.latency!.frames, slow.received);
      }));

    test(`${format}, into a ring of 16: loss is counted to the frame`, () =>
      withTestpmd(
        'io',
        { packed },
        async (generator, pmd) => {
          const result = await generator.run({ mode: ['txonly', 'rxonly'], count: 100_000 });
          const stats = await settled(pmd);
          assert.ok(result.lost! > 0, 'so small a ring loses frames');
          assert.equal(stats[0]!.rxPackets, 100_000);
          assert.equal(result.received, stats[1]!.txPackets);
          assert.equal(result.lost, 100_000 - stats[1]!.txPackets);
        },
        [{}, { queueSize: 16 }],
      ));
  }

  test('four queues, flows on all of them', () =>
    withTestpmd('io', { queues: 4 }, async (generator, pmd) => {
      const result = await generator.run({ mode: ['flowgen', 'rxonly'], rate: SLOW, count: 4000 });
      const stats = await settled(pmd);
      assert.equal(result.received, stats[1]!.txPackets);
      assert.equal(result.lost, 4000 - stats[1]!.txPackets);
      assert.deepEqual(
        result.ports[1]!.streams.map(({ sent }) => sent),
        [1000, 1000, 1000, 1000],
      );
    }));

  test("icmpecho answers as testpmd's icmpecho does, byte for byte, and a capture tells what came", async () => {
    const requests = [
      arpRequest(1),
      echoRequest(1, 56),
      echoRequest(2, 57),
      arpRequest(2),
      echoRequest(3, 1400),
    ];
    const files = scratch('answers');
    const file = (name: string) => join(files.path, name);
    const mac = Buffer.from('020000000001', 'hex');
    writeFileSync(file('requests.pcap'), writePcap([...requests, notForUs()]));
    try {
      // What DPDK answers.
      await withTestpmd(
        'icmpecho',
        {},
        async (generator) => {
          const result = await generator.run({
            mode: 'latency',
            replay: file('requests.pcap'),
            rate: SLOW,
            count: 6,
          });
          assert.equal(result.received, requests.length);
        },
        [{ capture: file('theirs.pcap') }],
      );
      // What we answer, through a Vireo switch.
      await using vireo = await Vireo.start({ ports: ['a', 'b'] });
      const at = (name: string) => join(vireo.directory, name);
      await using asker = await Generator.open({ ports: [{ path: at('a'), capture: file('ours.pcap') }] });
      await using answerer = await Generator.open({ ports: [{ path: at('b') }] });
      const answering = answerer.run({ mode: 'icmpecho', count: 6 });
      await asker.run({ mode: 'latency', replay: file('requests.pcap'), rate: SLOW, count: 6 });
      const { answers } = (await answering).ports[0]!;
      assert.deepEqual(answers, { arp: 2, echo: 3 });
      const [theirs, ours] = ['theirs.pcap', 'ours.pcap'].map((name) => readPcap(readFileSync(file(name))));
      assert.equal(ours!.length, requests.length);
      for (const [index, answer] of ours!.entries()) {
        const reference = Buffer.from(theirs![index]!);
        // Each has its own address.
        const own = reference.readUInt16BE(12) === 0x0806 ? [6, 22] : [6];
        for (const place of own) mac.copy(reference, place);
        mac.copy(answer, 6);
        assert.deepEqual(answer, reference, `answer ${index}`);
      }
    } finally {
      files.remove();
    }
  });
});

describe("the generator beside DPDK's guest on a Vireo switch", { skip: skipWithout('dpdk') }, () => {
  test("txonly: the guest's rxonly gets every frame and byte", async () => {
    await using vireo = await Vireo.start({ ports: ['gen', 'guest'] });
    const at = (name: string) => join(vireo.directory, name);
    await using guest = await Testpmd.start({
      vdevs: [virtioUser(0, { path: at('guest'), queueSize: 1024 })],
      args: ['--forward-mode=rxonly'],
    });
    await guest.waitForLinks();
    await guest.command('start');
    await using generator = await Generator.open({ ports: [{ path: at('gen') }] });
    const result = await generator.run({
      mode: 'txonly',
      rate: SLOW,
      count: 2000,
      traffic: { sizes: [64, 594, 1518], vlan: { first: 1n, count: 3 } },
    });
    const [port] = await settled(guest);
    // A guest that doesn't run for a while finds its ring full: the switch then tells how many it dropped.
    const { txDrops } = await vireo.control.port('guest');
    assert.equal(port!.rxPackets + txDrops, 2000);
    if (txDrops === 0) assert.equal(port!.rxBytes, result.ports[0]!.sentBytes);
  });

  for (const mode of ['io', 'mac', 'macswap'] as const) {
    test(`${mode}: frames go round, and both ends count the same`, async () => {
      await using vireo = await Vireo.start({ ports: ['gen', 'guest'] });
      const at = (name: string) => join(vireo.directory, name);
      await using generator = await Generator.open({ ports: [{ path: at('gen') }] });
      await using guest = await Testpmd.start({
        vdevs: [virtioUser(0, { path: at('guest'), queueSize: 1024 })],
        // What came goes out again, to the generator's address.
        args: ['--forward-mode=mac', '--eth-peer=0,02:00:00:00:00:01'],
      });
      await guest.waitForLinks();
      const abort = new AbortController();
      let round = 0;
      const running = generator.run(
        { mode },
        {
          signal: abort.signal,
          interval: 20,
          onProgress: ({ received }) => {
            round = received;
          },
        },
      );
      // One burst of 32: it goes round until the guest stops.
      await guest.command('start tx_first 1');
      await until('thousand frames', PATIENCE, () => round >= 1000);
      await guest.command('stop');
      const [port] = await settled(guest);
      await until('all that the guest has sent', PATIENCE, () => round === port!.txPackets);
      abort.abort();
      const [own] = (await running).ports;
      assert.deepEqual(
        { received: own!.received, sent: own!.sent, dropped: own!.dropped },
        { received: port!.txPackets, sent: port!.txPackets, dropped: 0 },
      );
      // Of the burst what the guest has not sent again lies with it, or in its ring.
      const waiting = own!.sent - port!.rxPackets;
      assert.ok(waiting >= 0 && waiting <= 32, `${waiting} frames are between`);
    });
  }
});

describe('the generator on Open vSwitch with DPDK', { skip: skipWithout('dpdk', 'ovs') }, () => {
  test('every frame sent has come to it, and what it does not send on is counted as lost', async () => {
    await using ovs = await Ovs.start({ ports: ['a', 'b'] });
    const at = (name: string) => join(ovs.directory, name);
    await using generator = await Generator.open({
      ports: ['a', 'b'].map((name) => ({ path: at(name), timeout: PATIENCE })),
    });
    const slow = await generator.run({
      mode: 'latency',
      rate: SLOW,
      count: 2000,
      traffic: { sizes: [64, 1518] },
    });
    const fast = await generator.run({ mode: 'latency', count: 100_000 });
    const sent = slow.sent + fast.sent;
    const received = slow.received + fast.received;
    // Of these ports it has no counters by themselves: its forwarding threads count what came.
    const text = await ovs.appctl('dpif-netdev/pmd-stats-show');
    const came = [...text.matchAll(/packets received: (\d+)/g)].reduce((sum, [, n]) => sum + Number(n), 0);
    assert.equal(came, sent);
    assert.equal(fast.duplicates + fast.reordered + fast.corrupt + fast.foreign, 0);
    assert.equal(slow.lost! + fast.lost!, sent - received);
  });
});

const ASKER = Buffer.from('0200000000aa', 'hex');

function arpRequest(host: number): Buffer {
  const frame = Buffer.alloc(60);
  frame.fill(0xff, 0, 6);
  ASKER.copy(frame, 6);
  frame.write('08060001080006040001', 12, 'hex');
  ASKER.copy(frame, 22);
  frame.set([198, 18, 0, 1], 28);
  frame.set([198, 18, 0, 10 + host], 38);
  return frame;
}

function echoRequest(sequence: number, payload: number): Buffer {
  const frame = Buffer.alloc(14 + 20 + 8 + payload);
  frame.set([2, 0, 0, 0, 0, 0xbb], 0);
  ASKER.copy(frame, 6);
  frame.writeUInt16BE(0x0800, 12);
  frame[14] = 0x45;
  frame.writeUInt16BE(28 + payload, 16);
  frame.writeUInt16BE(7, 18);
  frame[22] = 64;
  frame[23] = 1;
  frame.set([198, 18, 0, 1, 198, 18, 0, 11], 26);
  frame.writeUInt16BE(~sumOf(frame.subarray(14, 34)) & 0xffff, 24);
  frame[34] = 8;
  frame.writeUInt16BE(99, 38);
  frame.writeUInt16BE(sequence, 40);
  for (let i = 0; i < payload; i++) frame[42 + i] = i * 7 + sequence;
  frame.writeUInt16BE(~sumOf(frame.subarray(34)) & 0xffff, 36);
  return frame;
}

/** An echo reply: nobody answers it. */
function notForUs(): Buffer {
  const frame = echoRequest(9, 30);
  frame[34] = 0;
  return frame;
}
