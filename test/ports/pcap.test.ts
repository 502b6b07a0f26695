/** Capture files as ports: played, written, and such that are none. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { pcapHeader, type Recorded, readCapture } from '../../src/gen/pcap.ts';
import { createSwitch, type PortSpec, parsePortSpec, type Switch } from '../../src/index.ts';
import { openFds } from '../../src/sys/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

/** A file with a frame at each of these milliseconds. */
function capture(times: readonly number[]): Buffer {
  const records = times.map((time, i) => {
    const bytes = frame(BROADCAST, mac(1), 60 + ((i * 37) % 1400), i);
    const header = Buffer.alloc(16);
    header.writeUInt32LE(1_700_000_000 + Math.floor(time / 1000), 0);
    header.writeUInt32LE((time % 1000) * 1e6, 4);
    header.writeUInt32LE(bytes.length, 8);
    header.writeUInt32LE(bytes.length, 12);
    return Buffer.concat([header, bytes]);
  });
  return Buffer.concat([pcapHeader(), ...records]);
}

/** A switch that writes what it floods, and what that was once there are so many frames. */
async function recorder(t: TestContext) {
  const path = sockets(t);
  const vswitch = await createSwitch({
    ports: [{ name: 'out', type: 'pcap', target: path('out'), mode: 'write' }],
  });
  t.after(() => vswitch.close());
  await until(() => vswitch.port('out').queues[0]?.enabled, 'it writes');
  const frames = (count: number): Promise<Recorded[]> =>
    until(() => {
      try {
        const came = readCapture(readFileSync(path('out')));
        return came.length >= count ? came : undefined;
      } catch {
        // It is being written.
        return undefined;
      }
    }, `${count} frames are written`);
  return { vswitch, path, frames };
}

const play = (target: string, more: Partial<PortSpec> = {}): PortSpec => ({
  ...{ name: 'in', type: 'pcap', target },
  ...more,
});
const played = (vswitch: Switch) => vswitch.port('in').rxPackets;

test('a file is played as fast as the switch takes it, and so often, without a loss', async (t) => {
  const { vswitch, path, frames } = await recorder(t);
  const file = capture(Array.from({ length: 2000 }, (_, i) => i));
  writeFileSync(path('in'), file);
  await vswitch.addPort(play(path('in'), { timing: 'fast', loop: 3 }));
  await until(() => played(vswitch) === 6000, 'all are played');
  assert.equal(vswitch.port('in').rxDrops, 0);
  const lost = vswitch.port('out').txDrops;
  const came = await frames(6000 - lost);
  assert.equal(came.length, 6000 - lost);
  if (lost > 0) return;
  const wanted = readCapture(file);
  for (const [i, { frame }] of came.entries()) assert.deepEqual(frame, wanted[i % 2000]!.frame);
});

test('by the times in it, and by a rate, no frame comes before its time', async (t) => {
  const { vswitch, path, frames } = await recorder(t);
  const times = [0, 100, 110, 300];
  writeFileSync(path('in'), capture(times));
  await vswitch.addPort(play(path('in')));
  const came = await frames(times.length);
  const last = Number(came.at(-1)!.time - came[0]!.time) / 1e6;
  assert.ok(last > 200, `the last frame came ${last} ms after the first`);
  await vswitch.removePort('in');
  await vswitch.addPort(play(path('in'), { timing: '20pps', loop: 2 }));
  const more = (await frames(times.length * 3)).slice(times.length);
  assert.equal(more.length, 8);
  const took = Number(more.at(-1)!.time - more[0]!.time) / 1e6;
  assert.ok(took > 250, `eight frames at 20 a second took ${took} ms`);
});

test('what a guest sends is written, of any size', async (t) => {
  const { vswitch, path, frames } = await recorder(t);
  await vswitch.addPort({ name: 'a', type: 'vhost-user', target: path('a') });
  await using device = await VirtioUser.open({ path: path('a') });
  const sent = [14, 60, 1514, 9000, 65_550].map((size) => frame(BROADCAST, mac(2), size, size));
  const before = Date.now();
  for (const bytes of sent) await until(() => device.send(bytes), 'there is room');
  const came = await frames(sent.length);
  for (const [i, { frame, time }] of came.entries()) {
    assert.ok(sent[i]!.equals(frame));
    assert.ok(Math.abs(Number(time / 1_000_000n) - before) < 3_600_000, 'it has the time of day');
  }
});

test('a file that is none is named, and the byte where it goes wrong', async (t) => {
  const path = sockets(t);
  await using vswitch = await createSwitch({});
  const good = capture([0, 1]);
  const fds = openFds();
  for (const [bytes, error] of [
    [Buffer.from('no capture file'), /in\.sock: expected a pcap or pcapng file, found one that begins/],
    [good.subarray(0, good.length - 3), /in\.sock: the file ends within a frame of \d+ bytes at byte 116/],
    [pcapHeader(), /in\.sock: there is no frame in it/],
    [Buffer.alloc(0), /in\.sock: expected a pcap or pcapng file, found 0 bytes/],
  ] as const) {
    writeFileSync(path('in'), bytes);
    await assert.rejects(vswitch.addPort(play(path('in'))), error);
  }
  await assert.rejects(vswitch.addPort(play(path('none'))), /none\.sock: ENOENT/);
  await assert.rejects(vswitch.addPort(play('/dev/zero')), /\/dev\/zero: expected a file/);
  await assert.rejects(vswitch.addPort(play('/tmp', { mode: 'write' })), /\/tmp: EISDIR/);
  assert.ok(openFds() <= fds + 3);
  assert.throws(() => parsePortSpec('p=pcap:/x,mode=write,loop=2'), /loop: expected none with mode=write/);
  assert.throws(
    () => parsePortSpec('p=pcap:/x,timing=0pps'),
    /timing: expected "recorded", "fast", or packets/,
  );
});
