/** Filters of captures, held against libpcap: the same frames match, and what is no filter to one is none to the other. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Arena } from '../../src/arena/index.ts';
import { FilterError, readFilter } from '../../src/capture/filter.ts';
import { compileFilter } from '../../src/capture/filter-code.ts';
import { libpcap } from '../support/libpcap.ts';
import { Random } from '../support/random.ts';

const FILTERS = [
  'ip', 'ip6', 'arp', 'rarp', 'tcp', 'udp', 'icmp', 'icmp6', 'igmp', 'sctp',
  'host 10.0.0.1', 'src 10.0.0.1', 'dst host 10.0.0.2', 'src or dst host 10.0.0.1', 'src and dst host 10.0.0.1',
  'ip host 10.0.0.1', 'arp host 10.0.0.2', 'host fd00::1', 'ip6 src host fd00::2', 'not host 10.0.0.1',
  'net 10.0.0.0/8', 'net 10', 'net 10.0.1', 'src net 10.0.0.0 mask 255.255.255.0', 'dst net fd00::/64', 'ip6 net fd00::/15',
  'net 0.0.0.0/0', 'ip6 net ::/0',
  'port 80', 'udp port 53', 'src port 80', 'tcp dst port 443', 'portrange 50-80',
  'udp src portrange 53-1000', 'src and dst port 80', 'sctp port 80', 'port 80 or 443', 'tcp port (80 or 443)',
  'port 80 and not host 10.0.0.1', 'host 10.0.0.1 and (tcp or udp) and not port 53', 'not host 10.0.0.1 and 10.0.0.2',
  'tcp or udp and port 80', 'tcp && ! port 80 || arp',
  'ether host 02:00:00:00:00:01', 'ether src 02:00:00:00:00:02', 'ether dst 02:00:00:00:00:03',
  'broadcast', 'ether broadcast', 'multicast', 'ether multicast', 'ip multicast', 'ip6 multicast',
  'ether proto 0x0806', 'ether proto \\ip6', 'ip proto 17', 'ip6 proto \\tcp', 'proto 6', 'ip proto \\icmp',
  'less 64', 'greater 65', 'less 80 and greater 60',
  'vlan', 'vlan 10', 'vlan and tcp port 80', 'vlan 10 and host 10.0.0.1', 'vlan 10 and vlan 20 and ip', 'not vlan',
  'ip or (vlan and ip)', 'vlan 10 or arp',
  'tcp[tcpflags] & tcp-syn != 0', 'tcp[13] = 2', 'tcp[tcpflags] & (tcp-syn|tcp-ack) != 0', 'ip[8] > 32',
  'ether[0] & 1 = 0', 'icmp[icmptype] = icmp-echoreply', 'udp[4:2] >= 30', 'ip6[7] <= 64', 'ip[0] & 0xf != 5', 'arp[6:2] = 1',
]; // biome-ignore format: a table

const WRONG: [filter: string, column: number][] = [
  ['', 1], ['tcp port', 9], ['tcp prot 80', 5], ['port 65536', 6], ['port 80 and', 12], ['(tcp', 5], ['tcp)', 4],
  ['host 10.0.0', 6], ['host example', 6], ['net 10.0.0.1/8', 5], ['net 10.0.0.0/33', 5], ['vlan 4096', 6],
  ['ip host fd00::1', 9], ['icmp port 80', 11], ['ether host 10.0.0.1', 12], ['portrange 80-70', 11],
  ['tcp[13', 7], ['tcp[13]', 8], ['tcp[13:3] = 1', 5], ['port 80 %', 9], ['ip broadcast', 4], ['ether', 6],
  ['80', 1], ['less x', 6],
]; // biome-ignore format: a table

const seeded = new Random(7);
const below = (n: number) => seeded.below(n);
const pick = <T>(...of: T[]): T => seeded.pick(of);

/** A frame of some kind, often well formed, of addresses and ports that the filters name; or only bytes. */
function someFrame(): Buffer {
  const mac = () =>
    pick([2, 0, 0, 0, 0, 1 + below(3)], [255, 255, 255, 255, 255, 255], [0x33, 0x33, 0, 0, 0, 1]);
  const tags = pick([], [], [], [pick(0x81, 0x88), 0, 0, 10], [0x81, 0, 0x20, 20], [0x81, 0, 0, 10, 0x81, 0, 0, 20])
    .map((byte, i) => (i % 4 === 1 ? 0 : byte)); // biome-ignore format: one thought
  for (let i = 0; i < tags.length; i += 4) tags[i + 1] = tags[i] === 0x88 ? 0xa8 : 0;
  const v4 = () => pick([10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 1, 1], [192, 168, 0, 1], [224, 0, 0, 1]);
  const v6 = () =>
    pick(
      [0xfd, 0, ...Array(13).fill(0), 1],
      [0xfd, 0, ...Array(13).fill(0), 2],
      [0xff, 2, ...Array(13).fill(0), 1],
    );
  const port = () => pick([0, 80], [0, 53], [1, 187], [4, 0], [0, 60]);
  const some = (length: number) => Array.from({ length }, () => below(256));
  // Flags of TCP among them.
  const ports = () => [...port(), ...port(), ...some(9), pick(2, 16, 18), ...some(2 + below(30))];
  const protocol = pick(1, 2, 6, 6, 17, 17, 58, 132, 44, 0);
  const payload = protocol === 44 ? [pick(6, 17, 58), 0, 0, 0, ...ports()] : ports();
  const options = pick(0, 0, 1, 2);
  const ip = [0x45 + options, 0, 0, 0, 0, 0, ...pick([0, 0], [0, 0], [0x20, 0], [0, 9]), 64, protocol, 0, 0, ...v4(), ...v4(),
    ...Array(4 * options).fill(1)]; // biome-ignore format: a header
  const ip6 = [0x60, 0, 0, 0, 0, payload.length, protocol, pick(64, 255), ...v6(), ...v6()];
  const arp = [0, 1, 8, 0, 6, 4, 0, pick(1, 2), ...mac(), ...v4(), ...mac(), ...v4()];
  const body = pick(
    [8, 0, ...ip, ...payload], [0x86, 0xdd, ...ip6, ...payload], [8, 6, ...arp], [0x80, 0x35, ...arp],
    Array.from({ length: 2 + below(60) }, () => below(256)),
  ); // biome-ignore format: the kinds
  const frame = Buffer.from([...mac(), ...mac(), ...tags, ...body]);
  return below(8) === 0 ? frame.subarray(0, 14 + below(frame.length - 13)) : frame;
}

/** A filter as the data plane runs it. */
class Ours {
  readonly #arena = new Arena();
  readonly #program = this.#arena.takeTable(64 * 1024).start;
  readonly #frame = this.#arena.takeTable(4096).start;

  compile(filter: string): (frame: Buffer) => boolean {
    const words = compileFilter(filter);
    return (frame) => {
      this.#arena.u32.set(words, this.#program >>> 2);
      this.#arena.u8.set(frame, this.#frame);
      return this.#arena.dataplane.functions.matches(this.#program, this.#frame, frame.length) !== 0;
    };
  }
}

describe('the filters of captures', () => {
  const theirs = libpcap();
  const ours = new Ours();

  test('choose the same frames as libpcap', { skip: theirs ? false : 'libpcap is not installed' }, () => {
    const frames = Array.from({ length: 3000 }, someFrame);
    for (const filter of FILTERS) {
      const [one, other] = [ours.compile(filter), theirs!.compile(filter)];
      let matched = 0;
      for (const frame of frames) {
        const wanted = other(frame);
        if (wanted) matched++;
        if (wanted !== undefined) assert.equal(one(frame), wanted, `${filter}: ${frame.toString('hex')}`);
      }
      assert.ok(matched > 0, `${filter}: no frame matches`);
    }
  });

  test('and those that random words make', { skip: theirs ? false : 'libpcap is not installed' }, () => {
    const frames = Array.from({ length: 200 }, someFrame);
    const words = [...new Set(FILTERS.flatMap((filter) => filter.split(' ')))];
    let taken = 0;
    for (let i = 0; i < 20_000; i++) {
      const filter = Array.from({ length: 1 + below(6) }, () => pick(...words)).join(' ');
      let one: (frame: Buffer) => boolean;
      try {
        one = ours.compile(filter);
      } catch (error) {
        assert.ok(error instanceof FilterError, `${filter}: ${(error as Error).stack}`);
        continue;
      }
      let other: (frame: Buffer) => boolean | undefined;
      try {
        other = theirs!.compile(filter);
      } catch (error) {
        // It finds out what can never be; such a filter chooses nothing here.
        if (/expression rejects all packets/.test((error as Error).message)) continue;
        assert.fail(`libpcap takes no ${JSON.stringify(filter)}: ${(error as Error).message}`);
      }
      taken++;
      for (const frame of frames) {
        const wanted = other(frame);
        if (wanted !== undefined) assert.equal(one(frame), wanted, `${filter}: ${frame.toString('hex')}`);
      }
    }
    assert.ok(taken > 200, `${taken} filters were taken by both`);
  });

  for (const [filter, column] of WRONG) {
    test(`${JSON.stringify(filter)} is wrong at column ${column}`, () => {
      assert.throws(
        () => readFilter(filter),
        (error) =>
          error instanceof FilterError &&
          error.column === column &&
          /^expected .*, found /.test(error.message),
      );
    });
  }

  test('names of ports are those of services(5)', () => {
    assert.deepEqual(readFilter('port http'), readFilter('tcp port 80'));
    assert.deepEqual(readFilter('src port domain'), readFilter('src port 53'));
    assert.throws(() => readFilter('udp port http'), /expected a port of udp, found "http", at column 10/);
  });

  test('a filter is bounded', () => {
    assert.throws(() => readFilter('tcp or '.repeat(200)), /at most 1000 characters/);
    assert.throws(() => readFilter('('.repeat(1000)), FilterError);
    assert.throws(() => readFilter('!'.repeat(1000)), FilterError);
  });
});
