/** BPDUs as bytes: what others send is read, what is sent can be read, and what is wrong is told in a few words. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Bpdu, readBpdu, writeBpdu } from '../../src/rstp/bpdu.ts';
import { mac } from '../support/ethernet.ts';
import { Random } from '../support/random.ts';

const SOURCE = mac(7);
const vector = { root: 0x1000_0200_0000_0001n, cost: 4000, bridge: 0x8000_0200_0000_0002n, port: 0x8003 };
const times = { messageAge: 1, maxAge: 20, helloTime: 2, forwardDelay: 15 };
const rstp: Bpdu = {
  kind: 'rstp',
  role: 'designated',
  vector,
  times,
  tc: true,
  proposal: true,
  learning: false,
  forwarding: false,
  agreement: false,
};

test('a message of RSTP has the bytes of the standard', () => {
  assert.equal(
    writeBpdu(rstp, SOURCE).toString('hex'),
    [
      '0180c2000000', '020000000007', '0027', '424203',
      '0000', '02', '02', '0f',
      '1000020000000001', '00000fa0', '8000020000000002', '8003',
      '0100', '1400', '0200', '0f00', '00',
      // To the shortest frame of Ethernet.
      '00'.repeat(7),
    ].join(''), // biome-ignore format: by fields
  );
});

test('a message of the Linux kernel is read', () => {
  // Captured from a bridge with stp_state 1, the root: hello time 1 s, max age 6 s, forward delay 4 s.
  const bytes =
    '0180c2000000d21f87a33512002642420300000000001000d21f87a33512000000001000d21f87a3351280010000060001000400';
  assert.deepEqual(readBpdu(Buffer.from(bytes, 'hex')), {
    kind: 'stp',
    vector: { root: 0x1000_d21f_87a3_3512n, cost: 0, bridge: 0x1000_d21f_87a3_3512n, port: 0x8001 },
    times: { messageAge: 0, maxAge: 6, helloTime: 1, forwardDelay: 4 },
    tc: false,
    tcAck: false,
  });
});

test('each message that is written is read again', () => {
  const random = new Random(17);
  const flag = () => random.below(2) === 1;
  for (let i = 0; i < 2000; i++) {
    const content = {
      vector: {
        root: random.bytes(8).readBigUInt64BE(),
        cost: random.u32(),
        bridge: random.bytes(8).readBigUInt64BE(),
        port: random.below(0x10000),
      },
      times: {
        messageAge: random.below(6),
        maxAge: 6 + random.below(35),
        helloTime: 1 + random.below(10),
        forwardDelay: 4 + random.below(27),
      },
      tc: flag(),
    };
    const bpdu: Bpdu = random.pick([
      { kind: 'notification' },
      { kind: 'stp', tcAck: flag(), ...content },
      {
        kind: 'rstp',
        role: random.pick(['alternate', 'root', 'designated'] as const),
        proposal: flag(),
        learning: flag(),
        forwarding: flag(),
        agreement: flag(),
        ...content,
      },
    ]);
    assert.deepEqual(readBpdu(writeBpdu(bpdu, SOURCE)), bpdu);
  }
});

test('what is wrong is told', () => {
  const wrong = (expected: string, change: (bytes: Buffer) => Buffer | undefined) => {
    const bytes = writeBpdu(rstp, SOURCE);
    assert.equal(readBpdu(change(bytes) ?? bytes), expected);
  };
  const set =
    (at: number, ...values: number[]) =>
    (bytes: Buffer) =>
      void bytes.set(values, at);
  wrong('too short', (bytes) => bytes.subarray(0, 16));
  wrong('a length of 2 bytes', set(12, 0, 2));
  wrong('a length of 47 bytes', set(12, 0, 47));
  wrong('a length of 2048 bytes', set(12, 8, 0));
  wrong('no BPDU', set(14, 0xaa, 0xaa));
  wrong('too short', set(12, 0, 6));
  wrong('too short', set(12, 0, 38));
  wrong('protocol 1', set(17, 0, 1));
  wrong('type 7', set(20, 7));
  wrong('a message of RSTP in version 0', set(19, 0));
  wrong('too old', (bytes) => {
    bytes.set([0, 0], 19);
    bytes.set([20, 0], 44);
    return undefined;
  });
  // One of MSTP is longer than what is looked at; its begin is a message of RSTP.
  const long = Buffer.concat([writeBpdu(rstp, SOURCE), Buffer.alloc(68)]);
  long.set([0, 200], 12);
  long[19] = 3;
  assert.deepEqual(readBpdu(long), rstp);
  // Times are brought to what they may be.
  const times = writeBpdu(rstp, SOURCE);
  times.fill(0xff, 46, 52);
  assert.deepEqual((readBpdu(times) as typeof rstp).times, {
    messageAge: 1,
    maxAge: 40,
    helloTime: 10,
    forwardDelay: 30,
  });
});

test('anything is read or refused', () => {
  const random = new Random(23);
  let read = 0;
  for (let i = 0; i < 20_000; i++) {
    const bytes = Buffer.from(writeBpdu(rstp, SOURCE));
    for (let n = random.below(6); n > 0; n--) bytes[12 + random.below(48)] = random.below(256);
    const found = readBpdu(bytes.subarray(0, random.below(4) > 0 ? 60 : random.below(61)));
    if (typeof found === 'object') read++;
  }
  assert.ok(read > 100, `${read} were read`);
});
