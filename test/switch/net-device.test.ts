/** The network device behind a port, on real workers, where the order of events matters that a switch can't force. */
import assert from 'node:assert/strict';
import { writeSync } from 'node:fs';
import { test } from 'node:test';
import { Arena, Structures } from '../../src/arena/index.ts';
import { closeFd, drain, duplicateFd, eventfd, memfd, openFds, sharedPoller } from '../../src/sys/index.ts';
import { NetDevice } from '../../src/vhost/net-device.ts';
import { features } from '../../src/virtio/features.ts';
import { Workers } from '../../src/workers/workers.ts';
import { until } from '../support/until.ts';

const USER = 0x7f00_0000_0000n;

/** A device with one worker that polls without pause; nobody looks for broken rings unless the test does. */
async function device() {
  const arena = new Arena();
  const structures = new Structures(arena);
  const workers = new Workers(arena, structures, {
    count: 1,
    cpus: [],
    busy: true,
    onBroken: () => {},
    onFrame: () => {},
    onFailure: (error) => {
      throw error;
    },
  });
  await workers.start();
  const lease = sharedPoller();
  const events: string[] = [];
  const made = new NetDevice({
    arena,
    structures,
    workers,
    poller: lease.poller,
    slot: 0,
    queuePairs: 2,
    features: features.VIRTIO_F_VERSION_1,
    protocolFeatures: 0n,
    events: {
      onRings: () => void events.push('rings'),
      onQueueBroken: (queue, reason) => void events.push(`${queue}: ${reason}`),
    },
  });
  made.setFeatures(features.VIRTIO_F_VERSION_1);
  const ram = memfd('ram', 1 << 20);
  const err = eventfd();
  const close = async () => {
    await made.close();
    await workers.close();
    await lease.release();
    closeFd(ram);
    closeFd(err);
  };
  const region = () => ({
    guestAddress: 0n,
    userAddress: USER,
    size: 1n << 20n,
    mmapOffset: 0n,
    fd: duplicateFd(ram),
  });
  await made.setMemoryTable([region()]);
  /** Starts ring 1, of 8, at the start of memory. */
  const start = () =>
    made.startVring(1, {
      size: 8,
      base: 0,
      descUser: USER,
      availUser: USER + 0x1000n,
      usedUser: USER + 0x2000n,
      kickFd: -1,
      callFd: -1,
      errFd: duplicateFd(err),
      enabled: true,
    });
  /** Makes the next entry of the available ring a head that doesn't exist. */
  const breakRing = () => {
    writeSync(ram, Uint8Array.of(1, 0, 99, 0), 0, 4, 0x1002);
    return until(() => made.queues[1]!.vring.get('state') === 2, 'the worker has found it');
  };
  const repair = () => writeSync(ram, Uint8Array.of(0, 0), 0, 2, 0x1002);
  return { made, events, err, region, start, breakRing, repair, close };
}

test('a ring that broke and was stopped before anybody heard of it is reported by the stop', async () => {
  const { made, events, err, start, breakRing, repair, close } = await device();
  const fds = openFds();
  for (const end of ['stop', 'reset'] as const) {
    await start();
    await breakRing();
    events.length = 0;
    if (end === 'stop') await made.stopVring(1);
    else await made.reset();
    assert.equal(
      events.filter((word) => word === '1: head index 99 is not below the size of the ring').length,
      1,
    );
    assert.ok(drain(err), 'and on its err eventfd');
    made.reportBroken();
    assert.equal(events.filter((word) => word.startsWith('1:')).length, 1, 'once');
    assert.equal(made.queues[1]!.error, null, 'a stopped ring is not broken any more');
    repair();
  }
  assert.equal(openFds(), fds);
  await close();
});

test('a new memory table does not bring a broken ring back', async () => {
  const { made, events, region, start, breakRing, close } = await device();
  await start();
  await breakRing();
  await made.setMemoryTable([region()]);
  assert.equal(made.queues[1]!.vring.get('state'), 2);
  made.reportBroken();
  made.reportBroken();
  assert.equal(events.filter((word) => word.startsWith('1:')).length, 1);
  await close();
});
