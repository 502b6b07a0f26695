/**
 * Bad cables, rates and storm control as Linux guests have them. What is asserted holds on any machine, however busy:
 * counts that guests, ports and a capture agree on to the frame, order, nothing before its time, never more than the
 * rate by the switch's own clock. How exact delays and rates are is measured by `npm run bench -- rules`.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import type { Captured } from '../../src/capture/pcapng.ts';
import { createSwitch, type PortSpec, type Switch } from '../../src/index.ts';
import { happens, splitMix } from '../support/split-mix.ts';
import { during, type Taken } from '../support/taken.ts';
import { skipWithout } from './available.ts';
import { scratch, until } from './process.ts';
import { LinuxGuest, tcpTransfer } from './qemu.ts';

const NAMES = ['a', 'b', 'c'] as const;
const MAC = (i: number) => `52:54:00:00:00:0${i + 1}`;
const ADDRESS = { a: '10.0.0.1', b: '10.0.0.2', c: '10.0.0.3' } as const;
/** Of nobody's. */
const UNKNOWN = '10.0.0.99';
const MILLISECOND = 1_000_000n;
/** Bytes before an ICMP message: of Ethernet's header, and with IPv4's. */
const ETHERNET = 14;
const ICMP = 34;
const TAG = 4;

type Packet = Taken['packets'][number];

/** Echo requests of those that were captured, or replies. */
const echoes = (taken: Taken, kind: 'request' | 'reply') =>
  taken.packets.filter(({ bytes }) => bytes[ICMP] === (kind === 'request' ? 8 : 0));
const numberOf = ({ bytes }: Captured) => Buffer.from(bytes).readUInt16BE(ICMP + 6);
const isTo = (address: string) => {
  const wanted = Buffer.from(address.split('.').map(Number));
  return ({ bytes }: Captured) => wanted.equals(Buffer.from(bytes).subarray(ICMP - 4, ICMP));
};
const at = (packets: Packet[], port: string, way: 'in' | 'out') =>
  packets.filter((packet) => packet.port === port && packet.way === way);
/** Of frames captured on their way to a guest, those that it was given, and those that were turned away. */
const given = (packets: Packet[]) => packets.filter(({ comment }) => comment === undefined);
const refused = (packets: Packet[], reason: string) =>
  packets.filter(({ comment }) => comment === `dropped: ${reason}`);

/** Are all of `some` in `all`, in their order? */
function inOrder<T>(some: readonly T[], all: readonly T[], same: (one: T, other: T) => boolean): boolean {
  let next = 0;
  for (const one of all) if (next < some.length && same(some[next]!, one)) next++;
  return next === some.length;
}
const sameBytes = (one: Packet, other: Packet) => Buffer.compare(one.bytes, other.bytes) === 0;
const equal = (one: number, other: number) => one === other;
/** 0, 1, … */
const firstOf = (count: number) => Array.from({ length: count }, (_, i) => i);

/**
 * Asserts that frames kept to a bucket of `rate` units a second and `burst` units, that was full before the first:
 * not one of them came when there weren't enough tokens for it, or for a burst where it costs more.
 */
function withinRate(packets: Packet[], rate: number, burst: number, cost: (packet: Packet) => number): void {
  let tokens = burst;
  let last = packets[0]?.time ?? 0n;
  for (const [i, packet] of packets.entries()) {
    tokens = Math.min(burst, tokens + (rate * Number(packet.time - last)) / 1e9);
    last = packet.time;
    const enough = Math.min(cost(packet), burst);
    assert.ok(tokens >= enough - 1e-3, `frame ${i} of ${packets.length}: ${tokens} of ${enough} tokens`);
    tokens -= cost(packet);
  }
}
const bits = ({ length }: Packet) => 8 * length;

describe('Linux guests behind bad cables, rates and storm control', {
  skip: skipWithout('qemu', 'guestKernel'),
}, () => {
  const directory = scratch('rules');
  let vswitch: Switch;
  let guests: LinuxGuest[] = [];
  let a: LinuxGuest;
  let b: LinuxGuest;
  let c: LinuxGuest;

  before(async () => {
    const place = (name: string) => join(directory.path, name);
    vswitch = await createSwitch({
      ports: NAMES.map((name) => ({ name, type: 'vhost-user', target: place(name) })),
    });
    guests = await Promise.all(
      NAMES.map((name, i) => LinuxGuest.start({ path: place(name), mac: MAC(i), memory: 128 })),
    );
    [a, b, c] = guests as [LinuxGuest, LinuxGuest, LinuxGuest];
    // Who is where is said once and for all, and IPv6 says nothing: what is counted is what is sent on purpose.
    await Promise.all(
      NAMES.map(async (name, i) => {
        const guest = guests[i]!;
        await guest.ok('echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6');
        await guest.configure(`${ADDRESS[name]}/24`);
        const others = NAMES.map((other, k) => `arp -s ${ADDRESS[other]} ${MAC(k)}`).filter(
          (_, k) => k !== i,
        );
        await guest.ok('ip route add 224.0.0.0/4 dev eth0');
        await guest.ok([...others, `arp -s ${UNKNOWN} 52:54:00:00:00:99`].join(' && '));
      }),
    );
    // What a guest takes for a millisecond of its TSC it has measured while it booted; this one is QEMU's own clock.
    await a.ok('echo hpet > /sys/devices/system/clocksource/clocksource0/current_clocksource');
    await until('guests reach each other', 60_000, async () => {
      const there = await Promise.all([b, c].map((guest) => guest.run(`ping -c 1 -W 2 ${ADDRESS.a}`)));
      return there.every(({ status }) => status === 0);
    });
  });
  after(async () => {
    await Promise.all(guests.map((guest) => guest.close()));
    await vswitch?.close();
    directory.remove();
  });

  /** Sets fields of a port until the test is over. */
  async function set(t: TestContext, port: string, fields: Partial<PortSpec>): Promise<void> {
    await vswitch.setPort(port, fields);
    t.after(() =>
      vswitch.setPort(port, Object.fromEntries(Object.keys(fields).map((field) => [field, null]))),
    );
  }

  /** Counters of a guest's kernel, such as `Icmp InEchos`, since this was called. */
  async function counting(guest: LinuxGuest): Promise<(name: string) => Promise<number>> {
    const read = async () => {
      const lines = (await guest.ok('cat /proc/net/snmp /proc/net/netstat')).trim().split('\n');
      const counters = new Map<string, number>();
      // Two lines for each protocol: `Icmp: InMsgs InErrors …` and `Icmp: 3 0 …`.
      for (let i = 0; i + 1 < lines.length; i += 2) {
        const [names, values] = [lines[i]!.split(' '), lines[i + 1]!.split(' ')];
        for (const [k, name] of names.entries())
          if (k > 0) counters.set(`${names[0]!.replace(':', '')} ${name}`, Number(values[k]));
      }
      return counters;
    };
    const before = await read();
    return async (name) => {
      assert.ok(before.has(name), name);
      return (await read()).get(name)! - before.get(name)!;
    };
  }

  /** What a port has turned away for a reason since this was called. */
  function dropping(port: string): (reason: string) => number {
    const before = vswitch.port(port).drops;
    return (reason) => (vswitch.port(port).drops[reason] ?? 0) - (before[reason] ?? 0);
  }

  /**
   * Has a guest ping so often, `every` so many seconds: numbers and round trips in milliseconds as they came back.
   * It has room for a few answers at a time and doesn't wait for all: on a busy machine it misses some.
   */
  async function ping(from: LinuxGuest, address: string, count: number, every: number, bytes = 56) {
    const { output } = await from.run(`ping -c ${count} -i ${every} -s ${bytes} ${address}`, 300_000);
    const answers = [...output.matchAll(/seq=(\d+) ttl=\d+ time=([\d.]+) ms/g)];
    return {
      numbers: answers.map(([, number]) => Number(number)),
      times: answers.map(([, , time]) => Number(time)),
    };
  }

  /** Has a guest ping on and on while `act` runs. */
  async function flooding(from: LinuxGuest, address: string, bytes: number, act: () => Promise<void>) {
    await from.ok(`ping -q -i 0.001 -s ${bytes} ${address} > /dev/null 2>&1 & echo $! > /tmp/flood`);
    await act().finally(() => from.ok('kill $(cat /tmp/flood)'));
  }

  test('no frame comes before its delay, by the switch and by the guest, and none is lost', async (t) => {
    await set(t, 'a', { delayIn: '20ms', jitterIn: '10ms' });
    await set(t, 'b', { delayOut: '30ms' });
    const count = 50;
    let answers = { numbers: [] as number[], times: [] as number[] };
    const counted = await counting(a);
    const taken = await during(vswitch, { port: 'any', filter: 'icmp' }, async () => {
      // Closer to each other than the jitter moves them.
      answers = await ping(a, ADDRESS.b, count, 0.005);
      await until('all answers', 60_000, async () => (await counted('Icmp InEchoReps')) >= count);
    });
    const all = firstOf(count);
    const requests = echoes(taken, 'request');
    const [came, went] = [at(requests, 'a', 'in'), at(requests, 'b', 'out')];
    // The jitter of the way in isn't seen in the order either.
    assert.deepEqual(came.map(numberOf), all);
    assert.deepEqual(went.map(numberOf), all);
    // A frame is captured when it is handed to the guest: behind its delay.
    for (const [i, { time }] of went.entries()) {
      const under = time - came[i]!.time;
      assert.ok(under >= 30n * MILLISECOND, `${i}: ${under} ns`);
    }
    assert.equal(await counted('Icmp InEchoReps'), count);
    assert.ok(answers.times.length > 0 && inOrder(answers.numbers, all, equal));
    for (const time of answers.times) assert.ok(time >= 40, `${time} ms`);
  });

  test('losses, doubles and reordering are those of the seed, and as the guests count them', async (t) => {
    const seed = 7;
    const share = 0.2;
    const count = 150;
    const fate = { lossOut: '20%', duplicateOut: '20%', reorderOut: '20%' };
    await set(t, 'b', { delayOut: '300ms', ...fate, seed });
    const draw = splitMix(BigInt(seed));
    const ahead: number[] = [];
    const behind: number[] = [];
    let lost = 0;
    for (let i = 0; i < count; i++) {
      const copies = happens(draw, share) ? 2 : 1;
      for (let copy = 0; copy < copies; copy++) {
        if (happens(draw, share)) {
          lost += 1;
          continue;
        }
        (happens(draw, share) ? ahead : behind).push(i);
      }
    }
    assert.ok(lost > 10 && ahead.length > 10 && ahead.length + behind.length + lost > count + 10);
    const drops = dropping('b');
    const { txPackets } = vswitch.port('b');
    const [atA, atB] = [await counting(a), await counting(b)];
    let answers: number[] = [];
    const arriving = ahead.length + behind.length;
    const taken = await during(vswitch, { port: 'any', filter: 'icmp' }, async () => {
      ({ numbers: answers } = await ping(a, ADDRESS.b, count, 0.005));
      await until('all answers', 60_000, async () => (await atA('Icmp InEchoReps')) >= arriving);
    });
    const requests = echoes(taken, 'request');
    assert.deepEqual(at(requests, 'a', 'in').map(numberOf), firstOf(count));
    const went = at(requests, 'b', 'out').map(numberOf);
    assert.deepEqual(
      went.toSorted((x, y) => x - y),
      [...ahead, ...behind].toSorted((x, y) => x - y),
    );
    assert.ok(inOrder(behind, went, equal), 'those that wait keep their order');
    assert.ok(inOrder(ahead, went, equal), 'those that do not wait keep theirs');
    assert.ok(
      went.some((number, i) => i > 0 && number < went[i - 1]!),
      'some were overtaken',
    );
    assert.equal(drops('lossOut'), lost);
    assert.equal(vswitch.port('b').txPackets - txPackets, arriving);
    assert.equal(await atB('Icmp InEchos'), arriving);
    assert.equal(await atA('Icmp InEchoReps'), arriving);
    // The way back is a good one: the guest sees what became of its requests.
    assert.ok(answers.length > 0 && inOrder(answers, went, equal));
  });

  test('a guest throws away what is damaged, each frame by the checksum that finds it', async (t) => {
    const count = 200;
    await set(t, 'b', { corruptOut: '50%', seed: 1 });
    const [atA, atB] = [await counting(a), await counting(b)];
    const bad = { destination: 0, source: 0, type: 0, ip: 0, icmp: 0 };
    const taken = await during(vswitch, { port: 'any', snaplen: 128 }, async () => {
      await ping(a, ADDRESS.b, count, 0.005, 24);
    });
    const came = at(taken.packets, 'a', 'in');
    const went = at(taken.packets, 'b', 'out');
    assert.equal(came.length, count);
    assert.equal(went.length, count);
    let answered = 0;
    for (const [i, { bytes }] of went.entries()) {
      const flips = Array.from(bytes).flatMap((byte, at) => (byte === came[i]!.bytes[at] ? [] : [at]));
      if (flips.length === 0) {
        answered += 1;
        continue;
      }
      const where = flips[0]!;
      const bit = bytes[where]! ^ came[i]!.bytes[where]!;
      assert.ok(flips.length === 1 && (bit & (bit - 1)) === 0, `frame ${i}: more than a bit`);
      if (where >= ICMP) bad.icmp += 1;
      else if (where >= ETHERNET) bad.ip += 1;
      else if (where >= 12) bad.type += 1;
      else if (where >= 6) bad.source += 1;
      else bad.destination += 1;
      // Ethernet's addresses have no checksum: what comes to a group, or from somebody else, is taken.
      if ((where >= 6 && where < 12) || (where === 0 && bit === 1)) answered += 1;
    }
    for (const [part, frames] of Object.entries(bad)) assert.ok(frames > 0, part);
    await until('all good ones are answered', 60_000, async () => (await atA('Icmp InEchoReps')) >= answered);
    assert.equal(await atA('Icmp InEchoReps'), answered);
    assert.equal(await atB('Icmp InEchos'), answered);
    assert.equal(await atB('Icmp InCsumErrors'), bad.icmp);
    assert.equal(await atB('Ip InHdrErrors'), bad.ip);
  });

  test('TCP brings a file over such a link whole, in small segments and in large ones', async (t) => {
    await set(t, 'a', { delayIn: '1ms', jitterIn: '1ms', lossIn: '1%' });
    await set(t, 'b', { delayOut: '1ms', reorderOut: '1%', duplicateOut: '1%', corruptOut: '1%' });
    for (const large of ['off', 'on']) {
      await a.ok(`ethtool -K eth0 tso ${large} gso ${large}`);
      const [fromA, atB, lost] = [await counting(a), await counting(b), dropping('a')];
      const { sent, received } = await tcpTransfer(a, { guest: b, address: ADDRESS.b }, 3);
      assert.equal(received, sent);
      // Of some 2000 small segments, that is. Of large ones there are too few to count on anything.
      if (large === 'on') continue;
      assert.ok(lost('lossIn') > 0);
      assert.ok((await fromA('Tcp RetransSegs')) > 0);
      assert.ok((await atB('Tcp InCsumErrors')) > 0);
      assert.ok((await atB('TcpExt TCPOFOQueue')) > 0);
      assert.ok((await atB('TcpExt TCPDSACKOldSent')) > 0);
    }
  });

  test('a guest gets TCP no faster than its rate, in order, and whole', async (t) => {
    await set(t, 'b', { rateOut: '10Mbit', burstOut: 20_000 });
    const drops = dropping('b');
    const taken = await during(vswitch, { port: 'any', filter: 'tcp', snaplen: 124 }, async () => {
      const { sent, received } = await tcpTransfer(a, { guest: b, address: ADDRESS.b }, 2);
      assert.equal(received, sent);
    });
    const [sent, got] = [at(taken.packets, 'a', 'in'), at(taken.packets, 'b', 'out')];
    withinRate(given(got), 10e6, 8 * 20_000, bits);
    assert.ok(inOrder(given(got), sent, sameBytes));
    assert.equal(refused(got, 'queueOut').length, drops('queueOut'));
    assert.equal(given(got).length + drops('queueOut'), sent.length);
  });

  test('what has a high priority is not lost while the rest is', async (t) => {
    // PCP of the tag, which the guest's kernel writes: 10.5.0.x is VLAN 5 with priority 6.
    for (const [i, guest] of [a, b].entries()) {
      await guest.ok('ip link add link eth0 name eth0.5 type vlan id 5 && vconfig set_egress_map eth0.5 0 6');
      await guest.ok(`ip addr add 10.5.0.${i + 1}/24 dev eth0.5 && ip link set eth0.5 up`);
      await guest.ok(`arp -i eth0.5 -s 10.5.0.${2 - i} ${MAC(1 - i)}`);
    }
    await set(t, 'b', { rateOut: '400kbit', queueOut: '128KiB' });
    const drops = dropping('b');
    const count = 40;
    let low = 0;
    const taken = await during(vswitch, { port: 'b', snaplen: 128 }, async () => {
      await flooding(a, ADDRESS.b, 1400, async () => {
        await until('its queue is full', 60_000, () => drops('queueOut') > 0);
        await ping(a, '10.5.0.2', count, 0.02);
        low = drops('queueOut');
        await until('more is lost of the rest', 60_000, () => drops('queueOut') > low);
      });
    });
    const high = (packet: Packet) => packet.bytes[12] === 0x81 && packet.bytes[14]! >> 5 === 6;
    const went = at(taken.packets, 'b', 'out');
    const first = went.filter(high);
    const inTag = ({ bytes }: Captured) => Buffer.from(bytes).readUInt16BE(TAG + ICMP + 6);
    assert.deepEqual(first.map(inTag), firstOf(count));
    assert.deepEqual(refused(first, 'queueOut'), []);
    const rest = went.filter((packet) => !high(packet));
    assert.ok(refused(rest, 'queueOut').length >= low && low > 0);
    withinRate(given(went), 400e3, 8 * 16_384, bits);
    // Those of either priority keep their order.
    const numbers = given(rest).map(numberOf);
    assert.deepEqual(
      numbers,
      numbers.toSorted((x, y) => x - y),
    );
  });

  test('what a guest sends beyond its rate is dropped, counted, and the rest arrives', async (t) => {
    await set(t, 'a', { rateIn: '400kbit', burstIn: 8000 });
    const drops = dropping('a');
    const taken = await during(vswitch, { port: 'any', filter: 'icmp', snaplen: 128 }, async () => {
      await ping(a, ADDRESS.b, 200, 0.001, 1000);
    });
    const requests = echoes(taken, 'request');
    const [sent, got] = [at(requests, 'a', 'in'), at(requests, 'b', 'out')];
    assert.equal(sent.length, 200);
    assert.equal(refused(sent, 'rateIn').length, drops('rateIn'));
    assert.ok(drops('rateIn') > 0);
    withinRate(got, 400e3, 8 * 8000, bits);
    assert.deepEqual(got.map(numberOf), given(sent).map(numberOf));
  });

  for (const [kind, address] of [
    ['stormBroadcast', '10.0.0.255'],
    ['stormMulticast', '224.0.0.1'],
    ['stormUnknown', UNKNOWN],
  ] as const) {
    test(`${kind}: a guest that floods has its bound, and others have their TCP and it its own`, async (t) => {
      await set(t, 'a', { [kind]: '100pps' });
      const drops = dropping('a');
      const counted = await counting(c);
      const taken = await during(vswitch, { port: 'any', filter: 'icmp', snaplen: 128 }, async () => {
        await flooding(a, address, 56, async () => {
          await until('there is too much of it', 60_000, () => drops(kind) > 100);
          const { sent, received } = await tcpTransfer(b, { guest: c, address: ADDRESS.c }, 1);
          assert.equal(received, sent);
          await ping(a, ADDRESS.b, 20, 0.01);
        });
      });
      const requests = echoes(taken, 'request');
      const own = at(requests.filter(isTo(ADDRESS.b)), 'b', 'out');
      assert.deepEqual(own.map(numberOf), firstOf(20));
      const flood = requests.filter(isTo(address));
      const sent = at(flood, 'a', 'in');
      assert.equal(refused(sent, kind).length, drops(kind));
      for (const port of ['b', 'c']) {
        const got = at(flood, port, 'out');
        withinRate(got, 100, 10, () => 1);
        assert.ok(inOrder(got, sent, sameBytes));
        assert.equal(got.length + drops(kind), sent.length);
      }
      const name = { stormBroadcast: 'IpExt InBcastPkts', stormMulticast: 'IpExt InMcastPkts' } as Record<
        string,
        string
      >;
      if (name[kind]) assert.equal(await counted(name[kind]), given(at(flood, 'c', 'out')).length);
    });
  }
});
