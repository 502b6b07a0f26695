/** Linux guests with more memory than the switch has address space: ordinary pages, sparse, and pages of 2 MiB. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { skipWithout } from './available.ts';
import { scratch, until } from './process.ts';
import { LinuxGuest, tcpTransfer } from './qemu.ts';

/** QEMU reserves all of its huge pages when it starts. */
const HUGE_MEBIBYTES = 4608;
const freeHuge = Number(/HugePages_Free:\s+(\d+)/.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1]);

for (const [what, second, skip] of [
  ['two of 6 GiB', {}, skipWithout('qemu', 'guestKernel')],
  [
    'one of 6 GiB and one of 4.5 GiB in huge pages',
    { memory: HUGE_MEBIBYTES, backend: 'hugetlb=on,hugetlbsize=2M' },
    skipWithout('qemu', 'guestKernel', 'hugepages') ||
      (freeHuge * 2 < HUGE_MEBIBYTES &&
        `${HUGE_MEBIBYTES / 2} free huge pages are needed, ${freeHuge} are there`),
  ],
] as const) {
  test(`${what}: ping and TCP both ways`, { skip }, async () => {
    const directory = scratch('large');
    const at = (name: string) => join(directory.path, name);
    // QEMU seals its memory, huge pages too.
    const fields = { type: 'vhost-user' as const, sealed: true };
    const ports = ['a', 'b'].map((name) => ({ name, target: at(name), ...fields }));
    const vswitch = await createSwitch({ ports });
    const guests: LinuxGuest[] = [];
    try {
      guests.push(
        ...(await Promise.all([
          LinuxGuest.start({ path: at('a'), mac: '52:54:00:00:00:01', memory: 6144 }),
          LinuxGuest.start({ path: at('b'), mac: '52:54:00:00:00:02', memory: 6144, ...second }),
        ])),
      );
      const [a, b] = guests as [LinuxGuest, LinuxGuest];
      await Promise.all(guests.map((guest, i) => guest.configure(`10.0.0.${i + 1}/24`)));
      for (const name of ['a', 'b']) {
        const { memory } = vswitch.port(name);
        assert.ok(
          memory.some((region) => region.reached === 'windows'),
          JSON.stringify(memory),
        );
      }
      await until('first ping', 60_000, async () => (await a.run('ping -c 1 -W 2 10.0.0.2')).status === 0);
      assert.match(await a.ok('ping -c 10 -i 0.2 10.0.0.2', 60_000), /10 packets received/);
      const there = await tcpTransfer(a, { guest: b, address: '10.0.0.2' }, 50);
      assert.equal(there.received, there.sent);
      const back = await tcpTransfer(b, { guest: a, address: '10.0.0.1' }, 50);
      assert.equal(back.received, back.sent);
    } finally {
      await Promise.all(guests.map((guest) => guest.close()));
      await vswitch.close();
      directory.remove();
    }
  });
}
