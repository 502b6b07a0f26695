/** Commands of the control virtqueue (virtio 1.3, 5.1.6.5): each as the driver writes it, and each way to get it wrong. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  type ControlLimits,
  type ControlTarget,
  controlQueueIndex,
  executeControl,
  VIRTIO_NET_ERR,
  VIRTIO_NET_OK,
} from '../../src/virtio/control-queue.ts';
import { features } from '../../src/virtio/features.ts';
import { Random } from '../support/random.ts';

const ALL =
  features.VIRTIO_NET_F_CTRL_VQ |
  features.VIRTIO_NET_F_CTRL_RX |
  features.VIRTIO_NET_F_CTRL_RX_EXTRA |
  features.VIRTIO_NET_F_CTRL_MAC_ADDR |
  features.VIRTIO_NET_F_CTRL_VLAN |
  features.VIRTIO_NET_F_GUEST_ANNOUNCE |
  features.VIRTIO_NET_F_MQ |
  features.VIRTIO_NET_F_RSS |
  features.VIRTIO_NET_F_HASH_REPORT |
  features.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS |
  features.VIRTIO_NET_F_GUEST_CSUM |
  features.VIRTIO_NET_F_GUEST_TSO4;
const LIMITS: ControlLimits = {
  features: ALL,
  pairs: 8,
  keySize: 40,
  tableLength: 128,
  hashTypes: 0x3f,
  macAddresses: 4,
};

/** A target that remembers what it was told. */
function recorder(): { target: ControlTarget; told: unknown[] } {
  const told: unknown[] = [];
  const note =
    (what: string) =>
    (...values: unknown[]) =>
      void told.push([what, ...values]);
  const target: ControlTarget = {
    setReceiveMode: note('mode'),
    setMacTable: note('table'),
    setMac: note('mac'),
    setVlan: note('vlan'),
    setPairs: note('pairs'),
    setRss: note('rss'),
    setHash: note('hash'),
    setOffloads: note('offloads'),
    announced: note('announced'),
  };
  return { target, told };
}

/** What the target was told, and the answer. */
async function give(command: Uint8Array, limits: Partial<ControlLimits> = {}): Promise<[number, unknown[]]> {
  const { target, told } = recorder();
  return [await executeControl(command, { ...LIMITS, ...limits }, target), told];
}

const le16 = (...values: number[]) => values.flatMap((value) => [value & 255, value >>> 8]);
const le32 = (value: number) => [...le16(value & 0xffff), ...le16(value >>> 16)];
const A = [2, 0, 0, 0, 0, 1];
const B = [2, 0, 0, 0, 0, 2];
const GROUP = [1, 0, 0x5e, 0, 0, 1];
const KEY = Array.from({ length: 40 }, (_, i) => i + 1);
const bytes = (...values: number[]) => Uint8Array.from(values);
const RSS = [4, 1, ...le32(0x3f), ...le16(3), ...le16(0), ...le16(0, 1, 7, 3), ...le16(8), 40, ...KEY];
const HASH = [4, 2, ...le32(0x21), ...le16(0, 0, 0, 0), 40, ...KEY];

/** Name, command, the feature that allows it, what the target is told. */
const COMMANDS: [string, number[], bigint, unknown[]][] = [
  ...(['promiscuous', 'allMulticast'] as const).map(
    (mode, command) =>
      [mode, [0, command, 1], features.VIRTIO_NET_F_CTRL_RX, ['mode', mode, true]] as [
        string,
        number[],
        bigint,
        unknown[],
      ],
  ),
  ...(['allUnicast', 'noMulticast', 'noUnicast', 'noBroadcast'] as const).map(
    (mode, i) =>
      [mode, [0, 2 + i, 0], features.VIRTIO_NET_F_CTRL_RX_EXTRA, ['mode', mode, false]] as [
        string,
        number[],
        bigint,
        unknown[],
      ],
  ),
  [
    'a table of addresses',
    [1, 0, ...le32(2), ...A, ...B, ...le32(1), ...GROUP],
    features.VIRTIO_NET_F_CTRL_RX,
    ['table', [bytes(...A), bytes(...B)], [bytes(...GROUP)]],
  ],
  ['an empty table', [1, 0, ...le32(0), ...le32(0)], features.VIRTIO_NET_F_CTRL_RX, ['table', [], []]],
  ['an address', [1, 1, ...A], features.VIRTIO_NET_F_CTRL_MAC_ADDR, ['mac', bytes(...A)]],
  ['a VLAN more', [2, 0, ...le16(4095)], features.VIRTIO_NET_F_CTRL_VLAN, ['vlan', 4095, true]],
  ['a VLAN less', [2, 1, ...le16(0)], features.VIRTIO_NET_F_CTRL_VLAN, ['vlan', 0, false]],
  ['an announcement', [3, 0], features.VIRTIO_NET_F_GUEST_ANNOUNCE, ['announced']],
  ['pairs of queues', [4, 0, ...le16(8)], features.VIRTIO_NET_F_MQ, ['pairs', 8]],
  [
    'RSS',
    RSS,
    features.VIRTIO_NET_F_RSS,
    ['rss', { hashTypes: 0x3f, unclassified: 0, table: [0, 1, 7, 3], transmitQueues: 8, key: bytes(...KEY) }],
  ],
  ['hashes', HASH, features.VIRTIO_NET_F_HASH_REPORT, ['hash', { hashTypes: 0x21, key: bytes(...KEY) }]],
  [
    'offloads',
    [5, 0, ...le32(0x82), ...le32(0)],
    features.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    ['offloads', 0x82n],
  ],
];

describe('a command of the control queue', () => {
  for (const [name, command, needs, expected] of COMMANDS) {
    test(`${name}: done when it is whole and was negotiated, refused when it is not`, async () => {
      assert.deepEqual(await give(bytes(...command)), [VIRTIO_NET_OK, [expected]]);
      assert.deepEqual(await give(bytes(...command), { features: ALL & ~needs }), [VIRTIO_NET_ERR, []]);
      assert.deepEqual(await give(bytes(...command, 0)), [VIRTIO_NET_ERR, []], 'a byte too many');
      for (let length = 0; length < command.length; length++)
        assert.deepEqual(
          await give(bytes(...command.slice(0, length))),
          [VIRTIO_NET_ERR, []],
          `${length} bytes`,
        );
    });
  }

  const wrong: [string, number[]][] = [
    ['a mode that is neither on nor off', [0, 0, 2]],
    ['an unknown mode', [0, 6, 1]],
    ['an unknown class', [9, 0]],
    ['an unknown command', [4, 3, ...le16(1)]],
    ['more addresses than there is room for', [1, 0, ...le32(5), ...Array(5).fill(A).flat(), ...le32(0)]],
    ['four thousand million addresses', [1, 0, ...le32(0xffff_ffff), ...A, ...le32(0)]],
    ['a group address among the others', [1, 0, ...le32(1), ...GROUP, ...le32(0)]],
    ['a station among the groups', [1, 0, ...le32(0), ...le32(1), ...A]],
    ['a group address for its own', [1, 1, ...GROUP]],
    ['VLAN 4096', [2, 0, ...le16(4096)]],
    ['no pair', [4, 0, ...le16(0)]],
    ['a pair more than there are', [4, 0, ...le16(9)]],
    ['65535 pairs', [4, 0, ...le16(0xffff)]],
    ['a hash type that is not supported', [4, 2, ...le32(0x40), ...le16(0, 0, 0, 0), 0]],
    ['every hash type', [4, 2, ...le32(0xffff_ffff), ...le16(0, 0, 0, 0), 0]],
    ['a reserved field', [4, 2, ...le32(1), ...le16(0, 0, 1, 0), 0]],
    ['a key of 41 bytes', [4, 2, ...le32(1), ...le16(0, 0, 0, 0), 41, ...KEY, 0]],
    ['a table of 3', [4, 1, ...le32(1), ...le16(2), ...le16(0), ...le16(0, 0, 0), ...le16(1), 0]],
    ['a table of 256', [4, 1, ...le32(1), ...le16(255), ...le16(0), ...Array(512).fill(0), ...le16(1), 0]],
    ['a table of 65536', [4, 1, ...le32(1), ...le16(65535), ...le16(0), ...le16(0), ...le16(1), 0]],
    ['queue 8 in the table', [4, 1, ...le32(1), ...le16(0), ...le16(0), ...le16(8), ...le16(1), 0]],
    ['queue 8 for the rest', [4, 1, ...le32(1), ...le16(0), ...le16(8), ...le16(0), ...le16(1), 0]],
    [
      'the reserved bit of a queue',
      [4, 1, ...le32(1), ...le16(0), ...le16(0), ...le16(0x8000), ...le16(1), 0],
    ],
    ['no queue to transmit', [4, 1, ...le32(1), ...le16(0), ...le16(0), ...le16(0), ...le16(0), 0]],
    ['an offload that was not negotiated', [5, 0, ...le32(0x100), ...le32(0)]],
    ['a feature that is no offload', [5, 0, ...le32(1), ...le32(0)]],
  ];
  for (const [name, command] of wrong)
    test(`${name} is refused, and nothing is changed`, async () => {
      assert.deepEqual(await give(bytes(...command)), [VIRTIO_NET_ERR, []]);
    });

  test('what the target can not do is refused', async () => {
    const { target } = recorder();
    target.setPairs = () => Promise.reject(new Error('not now'));
    assert.equal(await executeControl(bytes(4, 0, 1, 0), LIMITS, target), VIRTIO_NET_ERR);
  });

  test('is answered when it has been done, and keeps nothing of the buffer', async () => {
    const { target, told } = recorder();
    let done = () => {};
    target.setPairs = () =>
      new Promise((resolve) => {
        done = resolve;
      });
    let answered = false;
    const answer = executeControl(bytes(4, 0, 1, 0), LIMITS, target).finally(() => {
      answered = true;
    });
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(answered, false);
    done();
    assert.equal(await answer, VIRTIO_NET_OK);
    const command = bytes(1, 1, ...A);
    await executeControl(command, LIMITS, target);
    command.fill(0xff);
    assert.deepEqual(told, [['mac', bytes(...A)]]);
  });

  test('of random bytes never throws, and tells the target what is in bounds', async () => {
    const random = new Random(17);
    const { target, told } = recorder();
    let done = 0;
    for (let turn = 0; turn < 20_000; turn++) {
      const command = Uint8Array.from({ length: random.below(24) }, () =>
        random.pick([0, 0, 1, 2, 4, random.below(256)]),
      );
      const answer = await executeControl(command, LIMITS, target);
      assert.ok(answer === VIRTIO_NET_OK || answer === VIRTIO_NET_ERR);
      if (answer === VIRTIO_NET_OK) done++;
    }
    assert.equal(told.length, done);
    assert.ok(done > 0);
    for (const [what, value] of told as [string, number][])
      if (what === 'pairs') assert.ok(value >= 1 && value <= 8);
  });
});

test('the control queue is behind the pairs that were negotiated', () => {
  assert.equal(controlQueueIndex(features.VIRTIO_NET_F_CTRL_VQ, 8), 2);
  assert.equal(controlQueueIndex(features.VIRTIO_NET_F_MQ, 8), 16);
  assert.equal(controlQueueIndex(features.VIRTIO_NET_F_RSS, 4), 8);
});
