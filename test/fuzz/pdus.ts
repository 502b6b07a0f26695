/**
 * Messages of RSTP and STP, of LACP and its markers, made of right ones and then damaged, or of nothing: each is read
 * or refused, and what was read is written as what is read as the same again.
 */
import assert from 'node:assert/strict';
import { answerMarker, readLacpdu, writeLacpdu } from '../../src/bond/lacpdu.ts';
import { readBpdu, writeBpdu } from '../../src/rstp/bpdu.ts';
import type { Random } from '../support/random.ts';

const SOURCE = Buffer.from('525400000001', 'hex');

function bpdu(random: Random): Buffer {
  return Buffer.from(
    writeBpdu(
      random.below(4) === 0
        ? { kind: 'notification' }
        : {
            kind: 'rstp',
            role: random.pick(['alternate', 'root', 'designated'] as const),
            proposal: random.below(2) === 1,
            learning: random.below(2) === 1,
            forwarding: random.below(2) === 1,
            agreement: random.below(2) === 1,
            vector: {
              root: random.bytes(8).readBigUInt64BE(),
              cost: random.u32(),
              bridge: random.bytes(8).readBigUInt64BE(),
              port: random.below(0x10000),
            },
            times: { messageAge: random.below(6), maxAge: 20, helloTime: 2, forwardDelay: 15 },
            tc: random.below(2) === 1,
          },
      SOURCE,
    ),
  );
}

function damage(bytes: Buffer, random: Random): Buffer {
  if (random.below(8) === 0) return random.bytes(random.below(129));
  for (let count = random.below(5); count > 0; count--)
    bytes[12 + random.below(bytes.length - 12)] = random.u32();
  return random.below(4) === 0 ? bytes.subarray(0, random.below(bytes.length + 1)) : bytes;
}

export function pdus(random: Random): void {
  const read = readBpdu(damage(bpdu(random), random));
  if (typeof read === 'string') assert.ok(read.length > 0);
  else assert.deepEqual(readBpdu(writeBpdu(read, SOURCE)), read);

  const station = () => ({
    systemPriority: random.below(65_536),
    system: random
      .bytes(6)
      .toString('hex')
      .replace(/..(?=.)/g, '$&:'),
    key: random.below(65_536),
    portPriority: random.below(65_536),
    port: random.below(65_536),
    state: random.below(256),
  });
  const good = Buffer.from(writeLacpdu({ actor: station(), partner: station() }));
  const frame = damage(good, random);
  const pdu = readLacpdu(frame);
  if (pdu !== undefined) assert.deepEqual(readLacpdu(writeLacpdu(pdu)), pdu);
  answerMarker(frame, '52:54:00:00:00:01');
}
