import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  featureNames,
  features,
  vhostProtocolFeatureNames,
  vhostProtocolFeatures,
} from '../../src/virtio/features.ts';

test('bits have the numbers of the specification', () => {
  assert.equal(features.VIRTIO_NET_F_MRG_RXBUF, 1n << 15n);
  assert.equal(features.VHOST_F_LOG_ALL, 1n << 26n);
  assert.equal(features.VHOST_USER_F_PROTOCOL_FEATURES, 1n << 30n);
  assert.equal(features.VIRTIO_F_IN_ORDER, 1n << 35n);
  assert.equal(features.VIRTIO_NET_F_SPEED_DUPLEX, 1n << 63n);
  assert.equal(vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_REPLY_ACK, 8n);
});

test('no two names share a bit, and the tables ascend', () => {
  for (const table of [features, vhostProtocolFeatures]) {
    const masks = Object.values(table);
    for (const [i, mask] of masks.entries()) {
      assert.equal(mask & (mask - 1n), 0n);
      if (i > 0) assert.ok(mask > masks[i - 1]!);
    }
  }
});

test('names of a set, unnamed bits by their number', () => {
  assert.deepEqual(featureNames(0n), []);
  assert.deepEqual(featureNames((1n << 15n) | (1n << 32n) | (1n << 45n)), [
    'VIRTIO_NET_F_MRG_RXBUF',
    'VIRTIO_F_VERSION_1',
    'bit 45',
  ]);
  assert.deepEqual(vhostProtocolFeatureNames(9n | (1n << 40n)), [
    'VHOST_USER_PROTOCOL_F_MQ',
    'VHOST_USER_PROTOCOL_F_REPLY_ACK',
    'bit 40',
  ]);
  assert.equal(featureNames(2n ** 64n - 1n).length, 64);
});
