import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as m from '../../src/vhost/messages.ts';

const bytes = (hex: string) => Uint8Array.from(Buffer.from(hex.replaceAll(/\s/g, ''), 'hex'));

test('a message on the wire: request, flags with the version, size, payload', () => {
  const message = m.encodeMessage(
    m.requests.SET_VRING_NUM,
    m.FLAG_NEED_REPLY,
    m.encodeVringState({ index: 1, num: 256 }),
  );
  assert.deepEqual(message, bytes('08000000 09000000 08000000 01000000 00010000'));
  assert.deepEqual(m.decodeHeader(message), { request: 8, flags: 9, size: 8 });
});

test('payloads keep all their bits', () => {
  assert.deepEqual(m.encodeU64(0x8000000000000001n), bytes('0100000000000080'));
  assert.equal(m.decodeU64(bytes('0100000000000080')), 0x8000000000000001n);
  assert.deepEqual(m.decodeVringState(bytes('ffffffff 00000100')), { index: 0xffffffff, num: 65536 });

  const address = { index: 1, flags: 0, descUser: 1n << 63n, usedUser: 2n, availUser: 3n, logGuest: 4n };
  const wire = bytes('01000000 00000000 0000000000000080 0200000000000000 0300000000000000 0400000000000000');
  assert.deepEqual(m.encodeVringAddress(address), wire);
  assert.deepEqual(m.decodeVringAddress(wire), address);

  const region = {
    guestAddress: 0x100000000n,
    size: 0x1000n,
    userAddress: 0x7f0000000000n,
    mmapOffset: 0x2000n,
  };
  const table = bytes(
    '01000000 00000000 0000000001000000 0010000000000000 0000000000 7f0000 0020000000000000',
  );
  assert.deepEqual(m.encodeMemoryTable([region]), table);
  assert.deepEqual(m.decodeMemoryTable(table), [region]);
});

test('payloads are read where they lie in a larger buffer', () => {
  const larger = bytes('ffffff 0200000000000000 ff');
  assert.equal(m.decodeU64(larger.subarray(3, 11)), 2n);
});

test('the index of a kick: eight bits, bit 8 for none, the rest refused', () => {
  assert.equal(m.decodeVringIndex(12, m.encodeVringIndex(255, true)), 255);
  assert.equal(m.decodeVringIndex(12, m.encodeVringIndex(3, false)), 3);
  assert.throws(
    () => m.decodeVringIndex(12, m.encodeU64(0x200n)),
    /^ProtocolError: SET_VRING_KICK: bits 0x200 /,
  );
});

test('every request has a rule, and numbers follow each other', () => {
  const numbers = Object.values(m.requests);
  assert.deepEqual(
    numbers,
    Array.from({ length: 44 }, (_, i) => i + 1),
  );
  for (const number of numbers) {
    const rule = m.requestRule(number)!;
    const max = typeof rule.size === 'number' ? rule.size : rule.size[1];
    assert.ok(max <= m.MAX_PAYLOAD);
  }
  assert.equal(m.requestRule(0), undefined);
  assert.equal(m.requestName(45), 'message 45');
});

test('answers by specification', () => {
  assert.equal(m.hasAnswer(m.requests.GET_VRING_BASE, 0n), true);
  assert.equal(m.hasAnswer(m.requests.SET_MEM_TABLE, ~0n), false);
  assert.equal(m.hasAnswer(m.requests.SET_LOG_BASE, 0n), false);
  assert.equal(m.hasAnswer(m.requests.SET_LOG_BASE, 2n), true);
});
