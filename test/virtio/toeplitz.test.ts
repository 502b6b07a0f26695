/** The Toeplitz hash against the values that Microsoft publishes for its key ("Verifying the RSS Hash Calculation"). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { toeplitzTable } from '../../src/virtio/toeplitz.ts';
import { Random } from '../support/random.ts';
import { toeplitz } from '../support/toeplitz.ts';

const MICROSOFT_KEY = Buffer.from(
  '6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa',
  'hex',
);

const port = (value: number) => Buffer.from([value >> 8, value & 255]);
const ipv4 = (text: string) => Buffer.from(text.split('.').map(Number));
function ipv6(text: string): Buffer {
  const [left, right] = text.split('::').map((half) => (half === '' ? [] : half.split(':')));
  const missing = Array<string>(8 - left!.length - (right?.length ?? 0)).fill('0');
  const words = right === undefined ? left! : [...left!, ...missing, ...right];
  return Buffer.concat(words.map((word) => port(Number.parseInt(word, 16))));
}

/** Destination and source, each with its port; the hash of the addresses, and that with the ports of TCP. */
const PUBLISHED = [
  [ipv4('161.142.100.80'), 1766, ipv4('66.9.149.187'), 2794, 0x323e8fc2, 0x51ccc178],
  [ipv4('65.69.140.83'), 4739, ipv4('199.92.111.2'), 14230, 0xd718262a, 0xc626b0ea],
  [ipv4('12.22.207.184'), 38024, ipv4('24.19.198.95'), 12898, 0xd2d0a5de, 0x5c2b394a],
  [ipv4('209.142.163.6'), 2217, ipv4('38.27.205.30'), 48228, 0x82989176, 0xafc7327f],
  [ipv4('202.188.127.2'), 1303, ipv4('153.39.163.191'), 44251, 0x5d1809c5, 0x10e828a2],
  [ipv6('3ffe:2501:200:3::1'), 1766, ipv6('3ffe:2501:200:1fff::7'), 2794, 0x2cc18cd5, 0x40207d3d],
  [ipv6('ff02::1'), 4739, ipv6('3ffe:501:8::260:97ff:fe40:efab'), 14230, 0x0f0c461c, 0xdde51bbf],
  [ipv6('fe80::200:f8ff:fe21:67cf'), 38024, ipv6('3ffe:1900:4545:3:200:f8ff:fe21:67cf'), 44251, 0x4b61e985, 0x02d1feef],
] as const; // biome-ignore format: a table

/** The hash as the data plane takes it of the table. */
function byTable(table: Uint32Array, data: Uint8Array): number {
  let hash = 0;
  for (const [i, byte] of data.entries()) {
    hash ^= table[2 * i * 16 + (byte >>> 4)]! ^ table[(2 * i + 1) * 16 + (byte & 15)]!;
  }
  return hash >>> 0;
}

test('the published values', () => {
  const table = toeplitzTable(MICROSOFT_KEY);
  for (const [destination, to, source, from, addresses, withPorts] of PUBLISHED) {
    const data = Buffer.concat([source, destination]);
    const whole = Buffer.concat([data, port(from), port(to)]);
    for (const [bytes, expected] of [
      [data, addresses],
      [whole, withPorts],
    ] as const) {
      assert.equal(toeplitz(MICROSOFT_KEY, bytes), expected);
      assert.equal(byTable(table, bytes), expected);
    }
  }
});

test('keys of any length, over random bytes', () => {
  const random = new Random(1);
  for (let length = 0; length <= 40; length++) {
    const key = random.bytes(length);
    const table = toeplitzTable(key);
    for (let i = 0; i < 5; i++) {
      const data = random.bytes(random.below(37));
      assert.equal(byTable(table, data), toeplitz(key, data));
    }
  }
});
