/**
 * Live migration: a Linux guest goes from one QEMU to another, from one port of the switch to another and back,
 * while a second guest pings it and sends it a file. What the switch wrote to the guest's memory and did not log
 * would be missing in the file that the guest has in the end.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { createSwitch, type Switch } from '../../src/index.ts';
import { skipWithout } from './available.ts';
import { gapBetween } from './migration.ts';
import { scratch, until } from './process.ts';
import { LinuxGuest } from './qemu.ts';

const MAC = '52:54:00:00:00:01';
/** Bytes a second of migration: a guest of 256 MiB, of which a fifth is in use, then takes some seconds. */
const RATE = 16 << 20;
/** Seconds between two pings, and how many: they begin before the migration and end after it. */
const INTERVAL = 0.2;
const PINGS = 200;
/** Of those, lost beside the ones that came while the guest's rings ran at neither place: a few. */
const LOST = 5;
const CHUNKS = 60;

for (const packed of [false, true]) {
  describe(`a Linux guest with ${packed ? 'packed' : 'split'} rings migrates`, {
    skip: skipWithout('qemu', 'guestKernel'),
  }, () => {
    const directory = scratch('migration');
    const at = (name: string) => join(directory.path, name);
    let vswitch: Switch;
    let guest: LinuxGuest;
    let peer: LinuxGuest;

    before(async () => {
      const ports = ['here', 'there', 'peer'].map((name) => ({
        name,
        type: 'vhost-user' as const,
        target: at(name),
      }));
      vswitch = await createSwitch({ ports });
      const device = packed ? 'packed=on' : undefined;
      [guest, peer] = await Promise.all([
        LinuxGuest.start({ path: at('here'), mac: MAC, device }),
        LinuxGuest.start({ path: at('peer'), mac: '52:54:00:00:00:02' }),
      ]);
      await guest.configure('10.0.0.1/24');
      await peer.configure('10.0.0.2/24');
      await peer.ok('until ping -c 1 -W 2 10.0.0.1; do sleep 0.2; done');
    });
    after(async () => {
      await Promise.all([guest?.close(), peer?.close()]);
      await vswitch?.close();
      directory.remove();
    });

    for (const [from, to] of [
      ['here', 'there'],
      ['there', 'here'],
    ] as const) {
      test(`from ${from} to ${to}`, async () => {
        assert.match(vswitch.port(from).rings, packed ? /^packed/ : /^split/);
        const place = () => vswitch.fdb().find(({ mac }) => mac === MAC)?.port;
        assert.equal(place(), from);
        await peer.ok(`dd if=/dev/urandom of=/tmp/data bs=128k count=${CHUNKS} 2> /dev/null`);
        await guest.ok(
          '(tail -f /dev/null | nc -l -p 5000 | tee /tmp/got | md5sum > /tmp/end) > /dev/null 2>&1 &',
        );
        await guest.ok('until netstat -tln | grep -q :5000; do sleep 0.1; done');
        await peer.ok(`ping -i ${INTERVAL} -c ${PINGS} 10.0.0.1 > /tmp/ping 2>&1 &`);
        const chunk = 'dd if=/tmp/data bs=128k skip=$i count=1 2> /dev/null; sleep 0.2';
        await peer.ok(
          `(i=0; while [ $i -lt ${CHUNKS} ]; do ${chunk}; i=$((i+1)); done | nc 10.0.0.1 5000) > /dev/null 2>&1 &`,
        );
        const gap = gapBetween(vswitch, from, to);
        const { leave } = await guest.migrate(at(to), RATE);
        assert.equal(place(), to, 'the switch knows the new place at once');
        await until('the rings run there', 20_000, () => vswitch.port(to).state === 'up');
        assert.equal(vswitch.port(from).state, 'connected');
        await leave();
        await guest.ok('until [ -s /tmp/end ]; do sleep 0.2; done', 120_000);
        const [sent, got] = await Promise.all([
          peer.ok('md5sum < /tmp/data'),
          guest.ok('md5sum < /tmp/got; rm /tmp/got /tmp/end'),
        ]);
        assert.equal(got, sent, 'the file came whole');
        await peer.ok(`until grep -q "packets transmitted" /tmp/ping; do sleep 0.2; done`, 120_000);
        const summary = await peer.ok('grep "packets transmitted" /tmp/ping');
        const [, transmitted, received] = /(\d+) packets transmitted, (\d+) packets received/.exec(summary)!;
        assert.equal(Number(transmitted), PINGS);
        const most = Math.ceil((await gap) / 1000 / INTERVAL) + LOST;
        assert.ok(PINGS - Number(received) <= most, `${summary}: at most ${most} may be lost`);
        for (const name of [from, to]) assert.equal(vswitch.port(name).drops.queueBroken, undefined);
      });
    }
  });
}
