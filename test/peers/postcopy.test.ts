/**
 * Postcopy live migration: a Linux guest runs in the other QEMU before most of its memory is there, and its rings
 * and buffers come as the switch touches them, while a second guest pings it and sends it a file.
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
/** Bytes a second of migration: most of the guest's memory is still to come when it goes. */
const RATE = 16 << 20;
const INTERVAL = 0.2;
const PINGS = 150;
/** Of those, lost beside the ones that came while the guest's rings ran at neither place: a few. */
const LOST = 5;
const CHUNKS = 60;

describe('a Linux guest migrates by postcopy', { skip: skipWithout('qemu', 'guestKernel') }, () => {
  const directory = scratch('postcopy');
  const at = (name: string) => join(directory.path, name);
  let vswitch: Switch;
  let guest: LinuxGuest;
  let peer: LinuxGuest;

  before(async () => {
    const port = (name: string, features?: string) => ({
      name,
      type: 'vhost-user' as const,
      target: at(name),
      ...(features && { features }),
    });
    // Memory comes region by region to one port, as a table to the other.
    const ports = [port('here', '+postcopy,-mem-slots'), port('there', '+postcopy'), port('peer')];
    vswitch = await createSwitch({ ports });
    [guest, peer] = await Promise.all([
      LinuxGuest.start({ path: at('here'), mac: MAC }),
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
      const { leave, asked } = await guest.migrate(at(to), RATE, { postcopy: true });
      assert.ok(asked > 0, 'pages were asked for that had not come');
      assert.equal(place(), to, 'the switch knows the new place at once');
      await until('the rings run there', 20_000, () => vswitch.port(to).state === 'up');
      await leave();
      await guest.ok('until [ -s /tmp/end ]; do sleep 0.2; done', 120_000);
      const [sent, got] = await Promise.all([
        peer.ok('md5sum < /tmp/data'),
        guest.ok('md5sum < /tmp/got; rm /tmp/got /tmp/end'),
      ]);
      assert.equal(got, sent, 'the file came whole');
      await peer.ok('until grep -q "packets transmitted" /tmp/ping; do sleep 0.2; done', 120_000);
      const summary = await peer.ok('grep "packets transmitted" /tmp/ping');
      const [, transmitted, received] = /(\d+) packets transmitted, (\d+) packets received/.exec(summary)!;
      assert.equal(Number(transmitted), PINGS);
      const most = Math.ceil((await gap) / 1000 / INTERVAL) + LOST;
      assert.ok(PINGS - Number(received) <= most, `${summary}: at most ${most} may be lost`);
      assert.equal(vswitch.port(to).lastError, null);
      assert.ok(vswitch.port(to).protocolFeatures.acknowledged.includes('VHOST_USER_PROTOCOL_F_PAGEFAULT'));
    });
  }
});
