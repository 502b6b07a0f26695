/** Hostile guests by the thousand, and at random, on a running switch beside a healthy pair. */
import assert from 'node:assert/strict';
import { after, before, type TestContext, test } from 'node:test';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { Random } from '../support/random.ts';
import { GUEST, RawGuest } from '../support/raw-guest.ts';
import { until } from '../support/until.ts';
import { Attacker, GIB } from './attacker.ts';
import {
  type Attack,
  DESCRIPTORS,
  FEATURES,
  HEADERS,
  LOGS,
  MEMORY,
  PLACES,
  POISONED,
  QUEUES,
  REFUSED,
  SLOTS,
} from './bad-messages.ts';
import { PackedGuest } from './packed-guest.ts';
import { count, Stage } from './stage.ts';

let stage: Stage;
before(async () => {
  stage = await Stage.start();
});
after(() => stage.close());

/** A guest on the bad port, gone when the test is over. */
function guestOf(t: TestContext): RawGuest {
  const guest = new RawGuest(stage.path(), stage.lease.poller);
  t.after(() => guest.close());
  return guest;
}

test('a guest that breaks its ring and leaves at once is still named', async (t) => {
  for (let i = 0; i < 50; i++) {
    const guest = guestOf(t);
    await guest.start();
    guest.describe(1, 0, { address: GUEST, length: 10 });
    guest.describe(1, 1, { address: BigInt(0x1000 + i), length: 100 });
    // Gone already for half of them, as this thread will find out when it gets to look.
    if (i % 2 === 0) void guest.session.close();
    guest.offer(1, 0, 1);
    // Seen by the worker, before this thread can have heard of it.
    const end = Date.now() + 20_000;
    while (guest.usedIdx(1) === 0 && Date.now() < end);
    await guest.close();
    await stage.listening();
    assert.match(stage.port.lastError!, new RegExp(`0x${(0x1000 + i).toString(16)} is in no region`));
  }
});

test('a guest that scribbles over its rings while a worker reads them hurts itself alone', async (t) => {
  stage.forget();
  const random = new Random(11);
  const guest = guestOf(t);
  await guest.start();
  const header = Buffer.concat([Buffer.alloc(12), frame(BROADCAST, mac(6), 20)]);
  for (let turn = 0; turn < 60; turn++) {
    // The rings' pages, in small pieces of good and bad words, while frames come for it as well.
    for (let i = 0; i < 200; i++) {
      const index = random.below(2);
      const at = random.below(guest.size);
      const address = random.below(10) === 0 ? BigInt(random.u32()) : guest.buffer(random.below(300));
      const length = random.pick([0, 12, 32, 60, 2048, random.u32()]);
      const flags = random.pick([0, 0, 1, 2, 2, 3, 4, random.u32() & 0xffff]);
      if (address >= GUEST && address < guest.buffer(300)) guest.write(address, header);
      guest.describe(index, at, { address, length, flags, next: random.below(guest.size + 1) });
      guest.offer(index, random.below(guest.size));
      if (i % 20 === 0) stage.healthy.a.send(frame(BROADCAST, mac(3)));
    }
    await stage.healthy.flows(5);
    for (const index of [0, 1]) if (stage.port.queues[index]!.state === 'broken') await guest.restart(index);
  }
  assert.ok(stage.broken.length > 20, `${stage.broken.length} times a ring broke`);
  await guest.close();
  await stage.unharmed();
});

test('a guest that scribbles over packed rings while a worker reads them hurts itself alone', async (t) => {
  stage.forget();
  const random = new Random(12);
  const guest = new PackedGuest(stage.path(), stage.lease.poller, { size: 61 });
  t.after(() => guest.close());
  await guest.start();
  const header = Buffer.concat([Buffer.alloc(12), frame(BROADCAST, mac(6), 20)]);
  for (let turn = 0; turn < 60; turn++) {
    for (let i = 0; i < 200; i++) {
      const index = random.below(2);
      const at = random.below(guest.size);
      const address = random.below(10) === 0 ? BigInt(random.u32()) : guest.buffer(random.below(300));
      const length = random.pick([0, 12, 32, 60, 2048, random.u32()]);
      const flags = random.pick([0, 0, 1, 2, 2, 3, 4, random.u32() & 0xffff]) ^ random.pick([0x80, 0x8000]);
      if (address >= GUEST && address < guest.buffer(300)) guest.write(address, header);
      guest.put(index, at, { address, length, flags, id: random.u32() & 0xffff });
      guest.suppress(index, random.u32());
      if (i % 20 === 0) stage.healthy.a.send(frame(BROADCAST, mac(3)));
      guest.kick(index);
    }
    await stage.healthy.flows(5);
    for (const index of [0, 1]) if (stage.port.queues[index]!.state === 'broken') await guest.restart(index);
  }
  assert.ok(stage.broken.length > 20, `${stage.broken.length} times a ring broke`);
  await guest.close();
  await stage.unharmed();
});

test('10,000 attempts leave no descriptor and no memory behind', async () => {
  stage.forget();
  const random = new Random(42);
  const { vswitch, healthy } = stage;
  // Rings that break in the data plane are a third of all.
  const named = [HEADERS, DESCRIPTORS, FEATURES, QUEUES, PLACES, MEMORY, SLOTS, LOGS, REFUSED].flat();
  const attacks = [
    ...named,
    ...Array(Math.ceil(named.length / 12))
      .fill(POISONED)
      .flat(),
  ] as Attack[];
  const names = ['bad', 'bad2', 'bad3', 'bad4'];
  for (const name of names.slice(1))
    await vswitch.addPort({ name, type: 'vhost-user', target: stage.path(name) });
  const open = count();
  const served = () => names.reduce((sum, name) => sum + vswitch.port(name).connections, 0);
  const start = served();
  const flowed = healthy.count;
  let poisoned = 0;
  // The backlog of the sockets keeps the ports busy; each attack leaves without waiting for what comes of it.
  for (let i = 0; i < 10_000; i++) {
    const a = new Attacker(stage.path(names[i % names.length]), stage.ram);
    try {
      const chosen = random.pick(attacks);
      chosen.act(a);
      if (POISONED.includes(chosen)) poisoned++;
    } finally {
      a.close();
    }
    if (i % 64 === 63) await until(() => served() >= start + i - 16, 'the ports keep up');
  }
  const idle = () => names.every((name) => vswitch.port(name).state === 'listening');
  await until(() => served() === start + 10_000 && idle(), 'all are served');
  await healthy.flows();
  assert.ok(healthy.count > flowed);
  assert.deepEqual(count(), open, 'no descriptor and no mapping is left');
  for (const name of names.slice(1)) await vswitch.removePort(name);
  assert.ok(stage.errors.length >= 10_000 - poisoned, `each has its error: ${stage.errors.length}`);
  assert.ok(stage.broken.length > 0, 'and some poisoned rings were seen by a worker');
  assert.deepEqual(stage.port.memory, []);
  // A guest of 3 GiB fits beside the healthy pair only if no piece of the arena is lost.
  const size = 3n * GIB;
  const large = new RawGuest(stage.path(), stage.lease.poller, { megabytes: 3072 });
  await large.negotiate();
  await large.session.setMemoryTable([large.region]);
  assert.equal(stage.vswitch.port('bad').memory[0]!.size, Number(size));
  await large.close();
  await stage.listening();
  assert.deepEqual(count(), stage.counts);
  const guest = await VirtioUser.open({ path: stage.path() });
  guest.send(frame(BROADCAST, mac(77)));
  await until(() => vswitch.fdb().some((entry) => entry.port === 'bad'), 'the port works as ever');
  await guest.close();
});
