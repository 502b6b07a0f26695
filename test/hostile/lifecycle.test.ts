/** What a hostile guest may do with what it shares with the switch: eventfds, memory files, time. */
import assert from 'node:assert/strict';
import { ftruncateSync, writeSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Arena, Structures } from '../../src/arena/index.ts';
import { drain, ioctl, memfd, openFds, seals } from '../../src/sys/index.ts';
import { DirtyLog } from '../../src/vhost/dirty-log.ts';
import { Inflight } from '../../src/vhost/inflight.ts';
import { Iotlb } from '../../src/vhost/iotlb.ts';
import { MemoryTable } from '../../src/vhost/memory-table.ts';
import { Workers } from '../../src/workers/workers.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { Random } from '../support/random.ts';
import { GUEST, RawGuest, USER } from '../support/raw-guest.ts';
import { until } from '../support/until.ts';
import { Stage } from './stage.ts';

let stage: Stage;
before(async () => {
  stage = await Stage.start();
});
after(() => stage.close());

const FULL = Buffer.from('feffffffffffffff', 'hex');
const FIONBIO = 0x5421;
/** Fills an eventfd and clears O_NONBLOCK: whoever writes to it now would wait for ever. */
function clog(fd: number): void {
  ioctl(fd, FIONBIO, Uint8Array.of(1, 0, 0, 0));
  drain(fd);
  writeSync(fd, FULL);
  ioctl(fd, FIONBIO, new Uint8Array(4));
}

test('a call eventfd that is full and blocking holds up no worker', async () => {
  stage.forget();
  const guest = new RawGuest(stage.path(), stage.lease.poller);
  await guest.start();
  // The switch has interrupted once as the rings started, and has set O_NONBLOCK before that.
  for (const fd of guest.calls) clog(fd);
  guest.lend();
  for (let i = 0; i < 20; i++) {
    guest.send(frame(BROADCAST, mac(4), 60, i));
    stage.healthy.a.send(frame(BROADCAST, mac(3), 60, i));
    await stage.healthy.flows(20);
  }
  await until(() => guest.allUsed(1), 'its frames are taken');
  assert.ok(stage.port.queues[0]!.notifications > 0, 'it was interrupted');
  await guest.close();
  await stage.unharmed();
});

test('eventfds that are full and blocking hold up no message', async () => {
  stage.forget();
  const guest = new RawGuest(stage.path(), stage.lease.poller);
  await guest.start();
  for (const fd of [...guest.calls, ...guest.errs]) clog(fd);
  guest.offer(1, 64);
  await until(() => stage.port.state === 'broken', 'the ring is broken, and its err eventfd signalled');
  for (const fd of [...guest.calls, ...guest.errs]) clog(fd);
  await guest.session.stopVring(1);
  await stage.healthy.flows(20);
  await guest.close();
  await stage.unharmed();
});

test('rings without an eventfd of any kind, also taken away while they run: nobody is interrupted', async () => {
  stage.forget();
  const guest = new RawGuest(stage.path(), stage.lease.poller);
  await guest.negotiate();
  await guest.session.setMemoryTable([guest.region]);
  for (const index of [0, 1]) {
    await guest.session.setVring(index, guest.layout(index));
    await guest.session.startVring(index, { kickFd: guest.kicks[index]!, callFd: -1, errFd: -1 });
    await guest.session.enable(index, true);
  }
  guest.lend();
  for (const fd of [-1, guest.calls[1]!, -1]) {
    await guest.session.setCall(1, fd);
    guest.send(frame(BROADCAST, mac(4)));
    stage.healthy.a.send(frame(BROADCAST, mac(3)));
    await until(() => guest.allUsed(1) && guest.received().length > 0, 'frames go both ways');
  }
  guest.offer(1, 64);
  await until(() => stage.port.state === 'broken', 'and the ring may break');
  await guest.close();
  await stage.unharmed();
});

test('a guest that leaves as the workers go to sleep, or are woken, or look at its rings', async () => {
  stage.forget();
  const random = new Random(23);
  for (let i = 0; i < 200; i++) {
    const guest = new RawGuest(stage.path(), stage.lease.poller);
    await guest.start();
    guest.lend();
    guest.send(frame(BROADCAST, mac(4)));
    if (i % 2) await sleep(random.below(4));
    if (i % 3 === 0) guest.send(frame(BROADCAST, mac(4)));
    await guest.close();
    await stage.listening();
  }
  assert.deepEqual(stage.errors, []);
  await stage.unharmed();
});

test('memory that can be made shorter is shown as unsealed, and a file that is too short is not mapped', () => {
  const arena = new Arena();
  const structures = new Structures(arena);
  const table = new MemoryTable(arena, structures, structures.port(0));
  const region = { guestAddress: GUEST, userAddress: USER, size: 2n << 20n, mmapOffset: 0n };
  const fds = openFds();
  // The session has seen a file of its right size; by now it has been made shorter.
  const short = memfd('short', 1 << 20);
  assert.throws(() => table.replace([{ ...region, fd: short }]), /region at guest address 0x40000000: its file has 1048576 bytes, 2097152 are needed/); // biome-ignore format: a sentence
  const sealable = memfd('sealable', 2 << 20);
  const keep = [sealable, memfd('unsealable', 2 << 20, { sealable: false })];
  for (const [i, fd] of keep.entries()) {
    table.replace([{ ...region, fd }]);
    assert.equal(table.regions[0]!.sealed, i === 0);
  }
  table.close();
  assert.equal(openFds(), fds, 'descriptors are closed');
});

test('a port that wants seals refuses each file that takes none, and takes the others', async () => {
  const path = stage.path('sealed');
  await stage.vswitch.addPort({ name: 'sealed', type: 'vhost-user', target: path, sealed: true });
  const good = new RawGuest(path, stage.lease.poller);
  await good.start();
  assert.equal(stage.vswitch.port('sealed').memory[0]!.sealed, true);
  await good.close();
  const bad = new RawGuest(path, stage.lease.poller, { sealable: false });
  await assert.rejects(bad.start());
  await until(
    () =>
      stage.errors.some((error) =>
        /^sealed .*region .*sealed=true: give the guest memory that takes seals/.test(error),
      ),
    'the port says why',
  );
  await bad.close();
  await stage.vswitch.removePort('sealed');
  stage.forget();
  await stage.unharmed();

  const arena = new Arena();
  const structures = new Structures(arena);
  const unsealable = () => memfd('unsealable', 1 << 20, { sealable: false });
  const fds = openFds();
  const log = { offset: 0n, size: 4096n };
  assert.throws(
    () => new DirtyLog(arena, structures, { ...log, fd: unsealable() }, true),
    /could be made shorter/,
  );
  const notes = { offset: 0n, size: 1n << 20n, queues: 2, queueSize: 64 };
  assert.throws(
    () => new Inflight(arena, { ...notes, fd: unsealable() }, false, true),
    /could be made shorter/,
  );
  assert.equal(openFds(), fds, 'descriptors are closed');
});

test('a file that the switch has mapped can not be made shorter any more', async () => {
  const guest = new RawGuest(stage.path(), stage.lease.poller);
  await guest.start();
  assert.equal(stage.port.memory[0]!.sealed, true);
  assert.equal(seals(guest.fd).shrink, true);
  assert.throws(() => ftruncateSync(guest.fd, 4096), { code: 'EPERM' });
  await guest.close();
  await stage.unharmed();
});

test('translations never outgrow their list, however many regions one of them spans', () => {
  const arena = new Arena();
  const structures = new Structures(arena);
  const port = structures.port(0);
  const table = new MemoryTable(arena, structures, port);
  const translations = new Iotlb(arena, structures, port);
  const PAGE = 4096n;
  // One piece for the front-end, 508 pieces for the guest.
  const regions = Array.from({ length: 508 }, (_, i) => ({
    guestAddress: GUEST + BigInt(2 * i) * PAGE,
    userAddress: USER + BigInt(i) * PAGE,
    size: PAGE,
    mmapOffset: 0n,
    fd: memfd('slot', 4096),
  }));
  table.replace(regions);
  const count = () => Number(arena.u64[(port.at + port.offsets.iotlb) >>> 3]! >> 32n);
  for (let i = 0; i < 5000; i++) {
    translations.update(0x1_0000_0000n + BigInt(i) * PAGE, 16n, USER, 3, table);
    assert.ok(count() <= 2048);
  }
  for (let i = 0; i < 20; i++) {
    translations.update(BigInt(i) << 40n, 508n * PAGE, USER, 3, table);
    assert.ok(count() <= 2048, `${count()} entries where there is room for 2048`);
  }
  translations.close();
  table.close();
});

test('a worker that ends by a fault of ours is told, and nobody waits for it', async () => {
  const arena = new Arena();
  const structures = new Structures(arena);
  let failure: Error | undefined;
  const workers = new Workers(arena, structures, {
    count: 2,
    cpus: [],
    busy: true,
    onBroken: () => {},
    onFrame: () => {},
    onFailure: (error) => {
      failure ??= error;
    },
  });
  await workers.start();
  // A running ring at the very end of the arena: its size would lie behind it.
  arena.u32[0xffff_fff8 >>> 2] = 1;
  workers.assign(0xffff_fff8, 0);
  await until(() => failure, 'the failure is told');
  assert.match(failure!.message, /memory access out of bounds/);
  await workers.quiesce();
  await workers.close();
});
