/** Shaping and policing as DPDK's testpmd sees them: one sends as much as it can, the other counts what it receives. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { skipWithout } from './available.ts';
import { Testpmd, virtioUser } from './dpdk.ts';
import { until } from './process.ts';
import { Vireo } from './vireo.ts';

const SIZE = 1500;
const BURST = 30_000;
/** Bytes a millisecond of 20 Mbit/s. */
const RATE = 2500;

test('testpmd receives what shaping and policing let through', { skip: skipWithout('dpdk') }, async () => {
  await using vireo = await Vireo.start({ ports: ['sender', 'receiver'] });
  const start = async (name: string, mac: string, args: string[]) =>
    await Testpmd.start({ vdevs: [virtioUser(0, { path: join(vireo.directory, name), mac })], args });
  await using receiver = await start('receiver', '02:00:00:00:00:02', ['--forward-mode=rxonly']);
  await using sender = await start('sender', '02:00:00:00:00:01', [
    '--forward-mode=txonly',
    `--txpkts=${SIZE}`,
    '--eth-peer=0,02:00:00:00:00:02',
  ]);
  await receiver.waitForLinks();
  await sender.waitForLinks();
  await receiver.command('start');

  const limited = async (port: string, change: object, reason: string) => {
    await vireo.control.setPort(port, change);
    await receiver.command('clear port stats all');
    const begin = performance.now();
    await sender.command('start');
    // It goes on long after the burst.
    const { rxPackets, rxBytes, rxMissed } = await until('some bursts have come', 60_000, async () => {
      const [port] = await receiver.stats();
      return port !== undefined && port.rxBytes > 20 * BURST && port;
    });
    const most = BURST + RATE * (performance.now() - begin);
    await sender.command('stop');
    assert.ok(rxBytes <= most, `${rxBytes} bytes of at most ${most}`);
    // What was too much is counted.
    assert.equal(rxBytes, rxPackets * SIZE);
    assert.equal(rxMissed, 0);
    const { drops } = await vireo.control.port(port);
    assert.ok((drops[reason] ?? 0) > 0, JSON.stringify(drops));
  };
  await limited('receiver', { rateOut: '20Mbit', burstOut: BURST }, 'queueOut');
  // What waits arrives when the sender is quiet: as many as the switch has sent.
  await until('the queue is empty', 60_000, async () => {
    const before = (await vireo.control.port('receiver')).txPackets;
    await sleep(100);
    return (await vireo.control.port('receiver')).txPackets === before;
  });
  await vireo.control.setPort('receiver', { rateOut: null, burstOut: null });
  await limited('sender', { rateIn: '20Mbit', burstIn: BURST }, 'rateIn');
});
