/** What people write for the generator: read as meant, or refused with what was expected. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { parseLatency } from '../../src/gen/expect.ts';
import * as parse from '../../src/gen/parse.ts';

const good: [string, () => unknown, unknown][] = [
  ['a port', () => parse.parsePort('/tmp/a.sock'), { path: '/tmp/a.sock' }],
  [
    'a port with everything',
    () => parse.parsePort('/tmp/a,,b,role=server,queues=2,packed,size=512,mode=rxonly,mac=02:00:00:00:00:0a,capture=c.pcap'),
    {
      path: '/tmp/a,b', role: 'server', queues: 2, packed: true, queueSize: 512, mode: 'rxonly',
      mac: '02:00:00:00:00:0a', capture: 'c.pcap',
    },
  ],
  ['a TAP', () => parse.parsePort('/dev/vhost-net,interface=tap0'), { path: '/dev/vhost-net', interface: 'tap0' }],
  ['sizes', () => parse.parseSizes('64,100-102'), [64, 100, 101, 102]],
  ['IMIX', () => parse.parseSizes('imix').length, 12],
  ['a MAC', () => parse.parseMacs('02:00:00:00:00:01'), { first: 0x0200_0000_0001n, count: 1 }],
  ['MACs', () => parse.parseMacs('02:00:00:00:00:01-02:00:00:00:01:00'), { first: 0x0200_0000_0001n, count: 256 }],
  ['IPv4', () => parse.parseAddresses('10.0.0.255+3'), { version: 4, range: { first: 0x0a00_00ffn, count: 3 } }],
  ['IPv6', () => parse.parseAddresses('fd00::1-fd00::1:0'), { version: 6, range: { first: (0xfd00n << 112n) + 1n, count: 65536 } }],
  ['IPv6 whole', () => parse.parseAddresses('1:2:3:4:5:6:7:8').range.first, 0x0001_0002_0003_0004_0005_0006_0007_0008n],
  ['IPv6 nothing', () => parse.parseAddresses('::').range.first, 0n],
  ['UDP ports', () => parse.parseUdpPorts('1000-1999'), { first: 1000n, count: 1000 }],
  ['VLANs', () => parse.parseVlans('4094'), { first: 4094n, count: 1 }],
  ['packets a second', () => parse.parseRate('1.5mpps'), { packets: 1.5e6 }],
  ['bits a second', () => parse.parseRate('2Gbps'), { bits: 2e9 }],
  ['bits as rules have them', () => parse.parseRate('1.5Mbit'), { bits: 1.5e6 }],
  ['full speed', () => parse.parseRate('max'), 'max'],
  ['a duration', () => parse.parseDuration('1.5ms'), 1.5e6],
  ['a loss', () => parse.parseLoss('0.1%'), { share: 0.001 }],
  ['no loss', () => parse.parseLoss('0'), { frames: 0 }],
  ['a latency', () => parseLatency('p99.9=50us'), { field: 'p999', most: 50_000 }],
]; // biome-ignore format: a table

const bad: [string, () => unknown, RegExp][] = [
  ['no path', () => parse.parsePort(',queues=2'), /path of a unix socket/],
  ['a path too long', () => parse.parsePort('x'.repeat(108)), /1 to 107 bytes/],
  ['an unknown key', () => parse.parsePort('/a,queue=2'), /one of role, queues, .* found "queue=2"/],
  ['a key of every object', () => parse.parsePort('/a,constructor=2'), /one of role/],
  ['a TAP', () => parse.parsePort('/a,interface=x/y'), /interface: expected the name of a TAP, .* found "x\/y"/],
  ['queues', () => parse.parsePort('/a,queues=0'), /queues: expected a whole number from 1 to 128, found "0"/],
  ['a role', () => parse.parsePort('/a,role=x'), /"server" or "client", found "x"/],
  ['a mode', () => parse.parsePort('/a,mode=fast'), /mode: expected one of txonly, .* found "fast"/],
  ['a size', () => parse.parseSizes('64,big'), /frame sizes such as .* found "big"/],
  ['a size too small', () => parse.parseSizes('10'), /from 42 to 65549, found "10"/],
  ['sizes that go down', () => parse.parseSizes('100-64'), /from 100 to 65549, found "64"/],
  ['a MAC', () => parse.parseMacs('02:00'), /a MAC address such as/],
  ['a range that goes down', () => parse.parseMacs('02:00:00:00:00:02-02:00:00:00:00:01'), /ascending/],
  ['too many values', () => parse.parseAddresses('10.0.0.0-10.1.0.0'), /1 to 65536 values/],
  ['no value', () => parse.parseAddresses('10.0.0.0+0'), /1 to 65536 values/],
  ['IPv4', () => parse.parseAddresses('10.0.0.256'), /an IPv4 address/],
  ['IPv6', () => parse.parseAddresses('fd00::x'), /an IPv6 address/],
  ['a UDP port', () => parse.parseUdpPorts('65536'), /a UDP port from 0 to 65535/],
  ['a VLAN', () => parse.parseVlans('0'), /a VLAN from 1 to 4094/],
  ['a rate without its unit', () => parse.parseRate('1000'), /a rate such as 1Mpps/],
  ['a rate of 0', () => parse.parseRate('0pps'), /a rate such as 1Mpps/],
  ['a duration', () => parse.parseDuration('50'), /a duration such as 50us/],
  ['a loss', () => parse.parseLoss('-1'), /a number of frames or a percentage/],
  ['a fraction of a frame', () => parse.parseLoss('0.5'), /a number of frames or a percentage/],
  ['a latency', () => parseLatency('p98=1us'), /one of mean, p50, .* found "p98=1us"/],
]; // biome-ignore format: a table

describe('is read', () => {
  for (const [name, read, expected] of good) test(name, () => assert.deepEqual(read(), expected));
});

describe('is refused', () => {
  for (const [name, read, message] of bad)
    test(name, () => assert.throws(read, { name: 'RangeError', message }));
});
