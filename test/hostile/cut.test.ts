/**
 * Memory files that take no seal, and are made shorter while the switch uses them: their guest is disconnected, and
 * nobody else notices. Where nothing can be guarded (src/sys/guard.ts) there is nothing to test.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { ftruncateSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import {
  closeFd,
  guardMemory,
  mapAnywhere,
  memfd,
  openFds,
  readAside,
  unmapAnywhere,
} from '../../src/sys/index.ts';
import { libc } from '../../src/sys/libc.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { RawGuest } from '../support/raw-guest.ts';
import { until } from '../support/until.ts';
import { Stage } from './stage.ts';

const skip = process.arch === 'x64' ? false : 'nothing is guarded on this machine';
const SAYS = /the file of guest memory was made shorter while it was in use/;

describe('a memory file that is made shorter under the switch', { skip }, () => {
  let stage: Stage;
  before(async () => {
    stage = await Stage.start();
  });
  after(() => stage.close());

  /** A guest on the hostile port whose memory takes no seals. */
  async function unsealed(options: { megabytes?: number; stride?: number } = {}): Promise<RawGuest> {
    stage.forget();
    const guest = new RawGuest(stage.path(), stage.lease.poller, { sealable: false, ...options });
    await guest.start();
    assert.equal(stage.port.memory[0]!.sealed, false);
    return guest;
  }

  /** Others send to it until the switch has noticed: who touches nothing notices nothing. */
  async function disconnected(guest: RawGuest): Promise<void> {
    let sent = 0;
    await until(() => {
      if (sent < 60) stage.healthy.a.send(frame(BROADCAST, mac(3), 600, sent++));
      return stage.errors.some((error) => SAYS.test(error));
    }, 'the port says what happened');
    await guest.close();
    await stage.unharmed();
  }

  test('to nothing, while a worker polls its rings', async () => {
    const guest = await unsealed();
    ftruncateSync(guest.fd, 0);
    await disconnected(guest);
    assert.match(stage.port.lastError!, /^region at guest address 0x40000000: /);
  });

  test('by its buffers, which a worker copies from', async () => {
    const guest = await unsealed();
    for (let i = 0; i < 64; i++) guest.describe(1, i, { address: guest.buffer(i), length: 1500 });
    ftruncateSync(guest.fd, 0x4000);
    guest.offer(1, ...Array(64).keys());
    await disconnected(guest);
  });

  test('by its buffers, which a worker copies to', async () => {
    const guest = await unsealed();
    guest.lend();
    ftruncateSync(guest.fd, 0x4000);
    await disconnected(guest);
  });

  test('again and again, with every round of the workers in another place', async () => {
    for (let i = 0; i < 8; i++) {
      const guest = await unsealed();
      guest.lend();
      guest.send(...Array.from({ length: 20 }, (_, n) => frame(BROADCAST, mac(4), 1000, n)));
      ftruncateSync(guest.fd, (i % 4) * 4096);
      await disconnected(guest);
    }
  });

  test('of a guest that is looked at through windows', async () => {
    const guest = await unsealed({ megabytes: 8192, stride: 32 << 20 });
    assert.equal(stage.port.memory[0]!.reached, 'windows');
    guest.lend();
    stage.healthy.a.send(frame(BROADCAST, mac(3), 600));
    await until(() => guest.usedIdx(0) > 0, 'a window has been opened');
    ftruncateSync(guest.fd, 2 << 20);
    await disconnected(guest);
  });
});

describe('memory that is guarded', { skip }, () => {
  const PAGE = 4096;
  /** Two pages of a file that has none any more. */
  function cut() {
    const fd = memfd('cut', 2 * PAGE, { sealable: false });
    const address = mapAnywhere(fd, 0n, BigInt(2 * PAGE));
    libc.memmove(address, Buffer.alloc(2 * PAGE, 7), 2 * PAGE);
    ftruncateSync(fd, 0);
    return { fd, address };
  }

  test('reads as zeros, on this thread and on others, and says that it was hit', async () => {
    const fds = openFds();
    const { fd, address } = cut();
    const guard = guardMemory(address, BigInt(2 * PAGE), PAGE);
    const other = guardMemory(1n << 20n, 4096n, PAGE);
    assert.equal(guard.hit, false);
    const bytes = Buffer.alloc(16, 1);
    libc.memmove(bytes, address, 16);
    assert.deepEqual(bytes, Buffer.alloc(16));
    assert.deepEqual(await readAside(address + BigInt(PAGE), 16), Buffer.alloc(16));
    libc.memmove(address, Buffer.alloc(PAGE, 3), PAGE);
    assert.deepEqual([guard.hit, other.hit], [true, false]);
    guard.release();
    guard.release();
    assert.equal(guard.hit, false);
    other.release();
    unmapAnywhere(address, BigInt(2 * PAGE));
    closeFd(fd);
    assert.equal(openFds(), fds);
  });

  test('in pages of 2 MiB', (t) => {
    const [MFD_CLOEXEC_HUGETLB, HUGE] = [1 | 4, 2 << 20];
    const fd = libc.memfdCreate('cut', MFD_CLOEXEC_HUGETLB);
    if (fd === -1) return t.skip('this kernel has no hugetlb memory files');
    ftruncateSync(fd, HUGE);
    let address: bigint;
    try {
      address = mapAnywhere(fd, 0n, BigInt(HUGE));
    } catch {
      closeFd(fd);
      return t.skip('no page of 2 MiB is free');
    }
    const guard = guardMemory(address, BigInt(HUGE), HUGE);
    ftruncateSync(fd, 0);
    const bytes = Buffer.alloc(16, 1);
    libc.memmove(bytes, address + BigInt(HUGE - 16), 16);
    assert.deepEqual(bytes, Buffer.alloc(16));
    assert.equal(guard.hit, true);
    guard.release();
    unmapAnywhere(address, BigInt(HUGE));
    closeFd(fd);
  });

  test('beside memory that is not: that ends the process as ever', async () => {
    const module = JSON.stringify(new URL('../../src/sys/index.js', import.meta.url).href);
    const program = `
      import { ftruncateSync } from 'node:fs';
      import { copyMemory, guardMemory, mapAnywhere, memfd } from ${module};
      const fd = memfd('cut', 8192, { sealable: false });
      const address = mapAnywhere(fd, 0n, 8192n);
      guardMemory(address, 4096n, 4096);
      ftruncateSync(fd, 0);
      copyMemory(address + 8n, address, 8);
      console.log('one');
      copyMemory(address + 4096n, address, 8);
      console.log('two');
    `;
    const child = spawn(process.execPath, ['--input-type=module', '-e', program]);
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
    const [, signal] = await once(child, 'close');
    assert.equal(output, 'one\n');
    assert.equal(signal, 'SIGBUS');
  });

  test('takes up no more entries than are guarded at a time', () => {
    for (let i = 0; i < 200_000; i++) guardMemory(BigInt(i) << 20n, 4096n, PAGE).release();
    const { fd, address } = cut();
    const guard = guardMemory(address, BigInt(2 * PAGE), PAGE);
    libc.memmove(Buffer.alloc(8), address, 8);
    assert.equal(guard.hit, true);
    guard.release();
    unmapAnywhere(address, BigInt(2 * PAGE));
    closeFd(fd);
  });
});
