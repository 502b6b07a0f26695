/** Guests larger than the switch's address space: sparse memory files of many GiB, buffers all over them. */
import assert from 'node:assert/strict';
import { fstatSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { createSwitch, type Switch } from '../../src/index.ts';
import { openFds, sharedPoller } from '../../src/sys/index.ts';
import { frame, mac } from '../support/ethernet.ts';
import { RawGuest } from '../support/raw-guest.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

const SIZE = 64;
const NAMES = ['a', 'b', 'c', 'd'];

/** Bytes between two of a guest's buffers, so that they lie all over its memory. */
const strideOf = (gib: number) => Math.floor((gib * 2 ** 30 - 2 ** 20) / (2 * SIZE) / 512) * 512;

interface Guests {
  vswitch: Switch;
  guests: RawGuest[];
}

/** A switch, and a guest of so many GiB on each port, in turn. */
async function large(t: TestContext, sizes: readonly number[]): Promise<Guests> {
  const path = sockets(t);
  const lease = sharedPoller();
  const ports = sizes.map((_, i) => ({
    name: NAMES[i]!,
    type: 'vhost-user' as const,
    target: path(NAMES[i]!),
  }));
  const vswitch = await createSwitch({ ports });
  const guests: RawGuest[] = [];
  t.after(async () => {
    for (const guest of guests) await guest.close();
    await vswitch.close();
    await lease.release();
  });
  for (const [i, gib] of sizes.entries()) {
    const guest = new RawGuest(path(NAMES[i]!), lease.poller, {
      size: SIZE,
      megabytes: gib * 1024,
      stride: gib < 1 ? 2048 : strideOf(gib),
    });
    guests.push(guest);
    await guest.start();
    guest.lend();
  }
  return { vswitch, guests };
}

/** Sends so many frames of many lengths from one to the other; each must come, in order and as it was. */
async function exchange(from: RawGuest, to: RawGuest, ids: [number, number], count: number): Promise<void> {
  const [target, source] = [mac(ids[1]), mac(ids[0])];
  let came = 0;
  // What was flooded while nobody looked has filled the ring.
  to.received();
  for (let sent = 0; sent < count; ) {
    const burst = Math.min(16, count - sent);
    const at = (n: number) => frame(target, source, 60 + ((n * 37) % 1440), n);
    from.send(...Array.from({ length: burst }, (_, i) => at(sent + i)));
    sent += burst;
    await until(() => {
      for (const bytes of to.received()) {
        // Others may come that were flooded before.
        if (!bytes.subarray(0, 12).equals(Buffer.concat([target, source]))) continue;
        assert.ok(bytes.equals(at(came)), `frame ${came} came as it was sent`);
        came++;
      }
      return came === sent;
    }, 'all frames of the burst come');
  }
}

const reached = (vswitch: Switch, name: string) => vswitch.port(name).memory.map((region) => region.reached);

test('two guests of 8 GiB and one of 1 MiB exchange frames in buffers all over their memory', async (t) => {
  const { vswitch, guests } = await large(t, [8, 8, 1 / 1024]);
  assert.deepEqual(reached(vswitch, 'a'), ['windows']);
  assert.deepEqual(reached(vswitch, 'c'), ['mapped']);
  const [a, b, c] = guests as [RawGuest, RawGuest, RawGuest];
  await exchange(a, b, [1, 2], 1000);
  await exchange(b, a, [2, 1], 1000);
  await exchange(c, a, [3, 1], 200);
  await exchange(a, c, [1, 3], 200);
  // What the switch touched is what the frames took, not the guest.
  const touched = fstatSync(a.fd).blocks * 512;
  assert.ok(touched < 64 << 20, `${touched} bytes of 8 GiB are there`);
});

test('a guest that fills the address space, then four large ones, and one that has room again', async (t) => {
  const { vswitch, guests } = await large(t, [3.5, 4, 5, 6]);
  assert.deepEqual(NAMES.flatMap((name) => reached(vswitch, name)), ['mapped', 'windows', 'windows', 'windows']); // biome-ignore format: a list
  for (const [i, from] of guests.entries())
    for (const [j, to] of guests.entries()) if (i !== j) await exchange(from, to, [i + 1, j + 1], 64);
});

test('buffers that end in the next chunk, chains over many chunks, tables between two of them', async (t) => {
  const { guests } = await large(t, [8, 8]);
  const [a, b] = guests as [RawGuest, RawGuest];
  await exchange(a, b, [1, 2], 16);
  const chunk = 2n << 20n;
  const base = 0x4000_0000n;
  const payload = frame(mac(2), mac(1), 1500, 9);
  const bytes = Buffer.concat([Buffer.alloc(12), payload]);
  // A table of 60 entries in two chunks, each entry a piece in a chunk of its own, the last one in two.
  const table = base + 900n * chunk - 488n;
  const step = Math.ceil(bytes.length / 60);
  for (let i = 0; i < 60; i++) {
    const piece = bytes.subarray(i * step, (i + 1) * step);
    const address = base + BigInt(1000 + i) * chunk + (i === 59 ? -3n : 100n);
    a.write(address, piece);
    a.describeAt(table + 16n * BigInt(i), {
      address,
      length: piece.length,
      flags: i < 59 ? 1 : 0,
      next: i + 1,
    });
  }
  for (let turn = 0; turn < 100; turn++) {
    const slot = a.offered[1]! % SIZE;
    a.describe(1, slot, { address: table, length: 60 * 16, flags: 4 });
    a.offer(1, slot);
    const came = await until(() => b.received()[0], 'the scattered frame comes');
    assert.ok(came.equals(payload), 'as it was sent');
  }
});

test('a large guest that comes and goes, and sets its memory again while frames flow, leaves nothing', async (t) => {
  const path = sockets(t);
  const lease = sharedPoller();
  const ports = ['a', 'b'].map((name) => ({ name, type: 'vhost-user' as const, target: path(name) }));
  const vswitch = await createSwitch({ ports });
  const fds = openFds();
  for (let turn = 0; turn < 30; turn++) {
    const options = { size: SIZE, megabytes: 8192, stride: strideOf(8) };
    const guests = ['a', 'b'].map((name) => new RawGuest(path(name), lease.poller, options));
    const [a, b] = guests as [RawGuest, RawGuest];
    for (const guest of guests) {
      await guest.start();
      guest.lend();
    }
    await exchange(a, b, [1, 2], 32);
    await a.session.setMemoryTable([a.region]);
    await b.session.setMemoryTable([b.region]);
    await exchange(b, a, [2, 1], 32);
    for (const guest of guests) await guest.close();
    await until(() => vswitch.ports().every((port) => port.state === 'listening'), 'both are gone');
    assert.equal(openFds(), fds, 'no descriptor is left');
    assert.deepEqual(vswitch.port('a').memory, []);
  }
  await vswitch.close();
  await lease.release();
});
