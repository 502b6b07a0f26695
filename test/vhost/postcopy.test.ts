/**
 * POSTCOPY_ADVISE, POSTCOPY_LISTEN and POSTCOPY_END: a guest whose memory comes as it is touched, and front-ends that
 * leave, or leave a thread of the switch waiting. Two guests beside it exchange frames all the time.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { after, before, describe, type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { createSwitch } from '../../src/index.ts';
import {
  closeFd,
  faultingThreads,
  mapAnywhere,
  memfd,
  readAside,
  unmapAnywhere,
} from '../../src/sys/index.ts';
import * as m from '../../src/vhost/messages.ts';
import { Postcopy } from '../../src/vhost/postcopy.ts';
import { features } from '../../src/virtio/features.ts';
import { Stage } from '../hostile/stage.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { LateGuest, PAGEFAULT } from '../support/late-guest.ts';
import { RawGuest } from '../support/raw-guest.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

const R = m.requests;
const PAGE = 4096;
/** The user of a frame, and its number. */
const sent = (i: number) => frame(BROADCAST, mac(9), 600 + i, i);

let stage: Stage;
before(async () => {
  stage = await Stage.start({ features: '+postcopy' });
});
after(() => stage.close());

function late(t: TestContext): LateGuest {
  const guest = new LateGuest(stage.path());
  t.after(() => guest.close());
  stage.forget();
  return guest;
}

/** The frames of the late guest that another one of the switch has got. */
class Receiver {
  readonly got: Buffer[] = [];
  readonly guest: RawGuest;
  constructor(guest: RawGuest) {
    this.guest = guest;
  }
  look(): void {
    for (const bytes of this.guest.received()) if (mac(9).equals(bytes.subarray(6, 12))) this.got.push(bytes);
  }
}

describe('a guest whose memory comes later', () => {
  for (const how of ['table', 'slots'] as const) {
    test(`its rings and buffers are asked for as they are touched, memory as ${how}`, async (t) => {
      const path = sockets(t);
      await stage.vswitch.addPort({ name: 'rx', type: 'vhost-user', target: path('rx') });
      const receiver = new Receiver(new RawGuest(path('rx'), stage.lease.poller));
      await receiver.guest.start();
      receiver.guest.lend();
      const guest = late(t);
      await guest.listen();
      guest.queue(...Array.from({ length: 5 }, (_, i) => sent(i)));
      await guest.share(how);
      assert.notEqual(guest.base, 0n);
      guest.describe();
      assert.equal(await guest.number(R.SET_VRING_KICK, m.encodeVringIndex(1, false)), 1n);
      assert.match(
        stage.port.lastError!,
        /SET_VRING_KICK: queue 1 can't start before the front-end has acknowledged/,
      );
      assert.equal(guest.pages, 0, 'nothing is touched before the front-end knows where it lies');
      guest.know(how);
      // One of the buffers has come by itself: nobody has to ask for it.
      guest.bring(LateGuest.buffer(3));
      guest.start();
      await until(() => {
        guest.serve();
        receiver.look();
        return receiver.got.length === 5 && guest.usedIdx === 5;
      }, 'all frames come');
      for (const [i, bytes] of receiver.got.entries()) assert.ok(bytes.equals(sent(i)), `frame ${i}`);
      assert.deepEqual(
        guest.asked.filter((offset) => offset >= LateGuest.buffer(0)),
        [0, 1, 2, 4].map(LateGuest.buffer),
      );
      assert.equal(await guest.number(R.POSTCOPY_END), 0n);
      guest.asked.length = 0;
      // What has not come by now is empty, as in any file.
      guest.queue(sent(5));
      for (const offset of [0, LateGuest.avail]) guest.bring(offset);
      await until(() => guest.usedIdx === 6, 'the next buffer is taken');
      guest.serve();
      assert.deepEqual(guest.asked, []);
      guest.close();
      await receiver.guest.close();
      await stage.vswitch.removePort('rx');
      await stage.unharmed();
    });
  }

  test('memory that changes while a queue runs: the queue waits until the front-end knows it', async (t) => {
    const guest = late(t);
    await guest.listen();
    await guest.share();
    guest.know();
    guest.start();
    await until(() => {
      guest.serve();
      // From then on its worker has all that it looks at.
      return stage.port.queues[1]?.state === 'running' && guest.asked.includes(LateGuest.avail);
    }, 'the queue runs');
    await guest.share();
    await guest.share();
    guest.queue(sent(0));
    for (const offset of [0, LateGuest.avail, LateGuest.buffer(0)]) guest.bring(offset);
    await stage.healthy.flows(200);
    assert.equal(guest.usedIdx, 0);
    guest.know();
    await until(() => {
      guest.serve();
      return guest.usedIdx === 1;
    }, 'it goes on');
    assert.equal(await guest.number(R.POSTCOPY_END), 0n);
    guest.close();
    await stage.unharmed();
  });

  test('a worker waits for a page, and messages of others are answered', async (t) => {
    const path = sockets(t);
    await stage.vswitch.addPort({ name: 'other', type: 'vhost-user', target: path('other') });
    const guest = late(t);
    await stuckWorker(guest);
    const other = new LateGuest(path('other'));
    assert.equal((await other.ask(R.GET_FEATURES)).payload.length, 8);
    const end = guest.number(R.POSTCOPY_END);
    assert.equal(await end, 0n, 'END is answered, and the worker goes on');
    other.close();
    guest.close();
    await stage.vswitch.removePort('other');
    await stage.unharmed();
  });

  test("a ring's start waits for a page, and another guest starts meanwhile", async (t) => {
    const path = sockets(t);
    await stage.vswitch.addPort({ name: 'other', type: 'vhost-user', target: path('other') });
    const guest = late(t);
    await stuckStart(guest);
    const other = new RawGuest(path('other'), stage.lease.poller);
    await other.start();
    assert.equal(stage.vswitch.port('other').state, 'up');
    assert.notEqual(stage.port.queues[1]?.state, 'running');
    guest.close();
    await other.close();
    await stage.vswitch.removePort('other');
    await stage.unharmed();
  });
});

/** Resolves when a worker waits for the first buffer, which doesn't come. */
async function stuckWorker(guest: LateGuest): Promise<void> {
  await guest.listen();
  guest.queue(sent(0), sent(1));
  await guest.share();
  guest.know();
  guest.start();
  await guest.waitFor(LateGuest.buffer(0));
}

/** Resolves when the start of the ring waits for its used ring, which doesn't come. */
async function stuckStart(guest: LateGuest): Promise<void> {
  await guest.listen();
  await guest.share();
  guest.know();
  guest.start();
  await guest.waitFor(LateGuest.used);
}

describe('a front-end that brings no page', () => {
  for (const [what, stuck] of [
    ['a worker waits', stuckWorker],
    ["a ring's start waits", stuckStart],
  ] as const) {
    test(`leaves while ${what}: nothing is written to the guest's memory, others go on`, async (t) => {
      const guest = late(t);
      await stuck(guest);
      const { pages } = guest;
      guest.leave();
      await stage.listening();
      assert.equal(guest.pages, pages);
      guest.close();
      await stage.unharmed();
    });

    test(`the port is removed while ${what}`, async (t) => {
      const guest = late(t);
      await stuck(guest);
      const { target } = stage.port;
      await stage.vswitch.removePort('bad');
      await stage.healthy.flows();
      await stage.vswitch.addPort({ name: 'bad', type: 'vhost-user', target, features: '+postcopy' });
      guest.close();
      await stage.unharmed();
    });
  }

  test('the switch closes while a worker waits', async (t) => {
    const path = sockets(t);
    const ports = [
      { name: 'late', type: 'vhost-user' as const, target: path('late'), features: '+postcopy' },
      { name: 'rx', type: 'vhost-user' as const, target: path('rx') },
    ];
    const vswitch = await createSwitch({ ports });
    const guest = new LateGuest(path('late'));
    t.after(() => guest.close());
    const receiver = new RawGuest(path('rx'), stage.lease.poller);
    await receiver.start();
    await stuckWorker(guest);
    await vswitch.close();
    await receiver.close();
  });
});

describe('patience', () => {
  /** Memory of one page that is missing. */
  function missing(t: TestContext, options: { quiesce?: () => Promise<void> } = {}) {
    const reasons: string[] = [];
    const postcopy = new Postcopy({
      patience: 300,
      quiesce: options.quiesce ?? (async () => {}),
      onKnown: () => {},
      onGiveUp: (reason) => reasons.push(reason),
    });
    const fd = memfd('missing', PAGE);
    const address = mapAnywhere(fd, 0n, BigInt(PAGE));
    t.after(() => {
      postcopy.abandon();
      unmapAnywhere(address, BigInt(PAGE));
      closeFd(fd);
    });
    postcopy.listening = true;
    postcopy.watch([{ guestAddress: 0n, address, pages: { address, length: BigInt(PAGE) } }]);
    return { postcopy, reasons, address, fd };
  }
  const told = ['POSTCOPY: a page of guest memory did not come within 0.3 s'];

  test('with a page that is to be read or written', async (t) => {
    for (const access of ['read', 'write'] as const) {
      const { postcopy, reasons, address } = missing(t);
      const result =
        access === 'read' ? postcopy.read(address, 8) : postcopy.write(address, new Uint8Array(8));
      await assert.rejects(result, /the guest is gone, and some of its memory never came/);
      assert.deepEqual(reasons, told);
      assert.equal(postcopy.active, false);
    }
  });

  test('with a worker that waits for a page and does not pass', async (t) => {
    const { postcopy, reasons, address } = missing(t, { quiesce: () => new Promise(() => {}) });
    const touched = readAside(address, 8);
    await until(() => faultingThreads(postcopy.fd) === 1, 'a thread waits');
    assert.deepEqual(await touched, Buffer.alloc(8));
    assert.deepEqual(reasons, told);
  });

  test('has no end while workers pass', async (t) => {
    let rounds = 0;
    const quiesce = async () => void rounds++;
    const { postcopy, reasons, address } = missing(t, { quiesce });
    const touched = readAside(address, 8);
    await until(() => rounds > 60, 'twice its time is over');
    assert.deepEqual(reasons, []);
    postcopy.end();
    await touched;
  });
});

describe('what is refused', () => {
  const said = (pattern: RegExp) => assert.match(stage.port.lastError!, pattern);

  test('each message out of its order', async (t) => {
    const guest = late(t);
    assert.equal((await guest.ask(R.POSTCOPY_ADVISE)).fds.length, 0);
    said(/POSTCOPY_ADVISE: VHOST_USER_PROTOCOL_F_PAGEFAULT is not acknowledged/);
    guest.negotiate();
    assert.equal(await guest.number(R.POSTCOPY_LISTEN), 1n);
    said(/POSTCOPY_LISTEN: no POSTCOPY_ADVISE came before it/);
    assert.equal(await guest.number(R.POSTCOPY_END), 1n);
    said(/POSTCOPY_END: no POSTCOPY_ADVISE came before it/);
    // A migration that was over before it came to postcopy, and one that begins anew.
    await guest.advise();
    await guest.advise();
    assert.equal(await guest.number(R.POSTCOPY_END), 0n);
    await guest.advise();
    assert.equal(await guest.number(R.POSTCOPY_LISTEN), 0n);
    assert.equal((await guest.ask(R.POSTCOPY_ADVISE)).fds.length, 0);
    said(/POSTCOPY_ADVISE: postcopy is under way already/);
    guest.close();
    await stage.unharmed();
  });

  test('POSTCOPY_LISTEN once memory is mapped', async (t) => {
    const guest = late(t);
    guest.negotiate();
    guest.end.message(R.SET_MEM_TABLE, m.encodeMemoryTable([guest.region]), { fds: [guest.fd] });
    await guest.advise();
    assert.equal(await guest.number(R.POSTCOPY_LISTEN), 1n);
    said(/POSTCOPY_LISTEN: memory is mapped already, and may have been touched/);
    guest.close();
    await stage.unharmed();
  });

  test('a guest behind an IOMMU, and notes of buffers in work', async (t) => {
    const guest = late(t);
    guest.negotiate(features.VIRTIO_F_ACCESS_PLATFORM);
    await guest.advise();
    assert.equal(await guest.number(R.POSTCOPY_LISTEN), 1n);
    said(/POSTCOPY_LISTEN: a guest behind an IOMMU can not migrate by postcopy/);
    await guest.listen();
    const iommu = features.VHOST_USER_F_PROTOCOL_FEATURES | features.VIRTIO_F_ACCESS_PLATFORM;
    assert.equal(await guest.number(R.SET_FEATURES, m.encodeU64(iommu)), 1n);
    said(/SET_FEATURES: a guest behind an IOMMU can not migrate by postcopy/);
    const notes = m.encodeInflight({ size: 0x8000n, offset: 0n, queues: 2, queueSize: 64 });
    const answer = await guest.ask(R.SET_INFLIGHT_FD, notes, m.FLAG_NEED_REPLY, [guest.fd]);
    assert.equal(m.decodeU64(answer.payload), 1n);
    said(/SET_INFLIGHT_FD: notes of buffers in work can not be read while memory comes by postcopy/);
    guest.close();
    await stage.unharmed();
  });

  test('notes of buffers in work that were there before', async (t) => {
    const guest = late(t);
    guest.negotiate();
    const file = memfd('notes', 0x8000);
    const notes = m.encodeInflight({ size: 0x8000n, offset: 0n, queues: 2, queueSize: 64 });
    const answer = await guest.ask(R.SET_INFLIGHT_FD, notes, m.FLAG_NEED_REPLY, [file]);
    closeFd(file);
    assert.equal(m.decodeU64(answer.payload), 0n);
    await guest.listen();
    await guest.share();
    guest.know();
    guest.describe();
    assert.equal(await guest.number(R.SET_VRING_KICK, m.encodeVringIndex(1, false)), 1n);
    said(/queue 1: notes of buffers in work can not be read while memory comes by postcopy/);
    assert.equal(guest.pages, 0, 'nothing was touched');
    guest.close();
    await stage.unharmed();
  });

  test('a guest whose memory does not fit the arena', async (t) => {
    const guest = late(t);
    await guest.listen();
    const size = 8n << 30n;
    const fd = memfd('large', Number(size));
    guest.end.message(R.SET_MEM_TABLE, m.encodeMemoryTable([{ ...guest.region, size }]), { fds: [fd] });
    assert.equal(await guest.end.next(), undefined);
    said(/SET_MEM_TABLE: memory that does not fit the arena as a whole can not come by postcopy/);
    closeFd(fd);
    guest.close();
    await stage.unharmed();
  });

  test('a front-end that failed to take the addresses', async (t) => {
    const guest = late(t);
    await guest.listen();
    await guest.share();
    guest.end.message(R.SET_MEM_TABLE, m.encodeU64(7n));
    assert.equal(await guest.end.next(), undefined);
    said(/SET_MEM_TABLE: the front-end failed \(7\)/);
    guest.close();
    await stage.unharmed();
  });

  test('PAGEFAULT, by a port that does not ask for it', async (t) => {
    const path = sockets(t);
    await stage.vswitch.addPort({ name: 'plain', type: 'vhost-user', target: path('plain') });
    const guest = new LateGuest(path('plain'));
    t.after(() => guest.close());
    const offered = m.decodeU64((await guest.ask(R.GET_PROTOCOL_FEATURES)).payload);
    assert.equal(offered & PAGEFAULT, 0n);
    guest.end.message(R.POSTCOPY_ADVISE);
    assert.equal(await guest.end.next(), undefined);
    assert.match(stage.vswitch.port('plain').lastError!, /POSTCOPY_ADVISE: not offered by this back-end/);
    await stage.vswitch.removePort('plain');
  });

  test('a port that asks for it where the process may have no userfaultfd', async () => {
    const program = fileURLToPath(new URL('no-userfaultfd.js', import.meta.url));
    const child = spawn(process.execPath, [program], { stdio: ['ignore', 'pipe', 'inherit'] });
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
    await once(child, 'close');
    assert.match(output, /userfaultfd\(of this process\): EPERM, .*vm\.unprivileged_userfaultfd=1/);
    assert.match(output, /and a port without it\n$/);
  });
});
