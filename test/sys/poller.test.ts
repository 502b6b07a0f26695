import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  closeFd,
  drain,
  EPOLLIN,
  EPOLLOUT,
  EPOLLRDHUP,
  eventfd,
  openFds,
  Poller,
  receive,
  send,
  sharedPoller,
  signal,
  socketPair,
} from '../../src/sys/index.ts';
import { randomFrom, runProcess } from './support.ts';

/** Waits until the poller has handled everything that was ready before: it has then seen this, too, twice. */
async function settled(poller: Poller): Promise<void> {
  for (let i = 0; i < 2; i++) {
    const fd = eventfd(1);
    await new Promise<void>((resolve) => poller.add(fd, EPOLLIN, () => resolve(poller.remove(fd))));
    closeFd(fd);
  }
}

test('every descriptor has its own callback', async () => {
  const before = openFds();
  const poller = new Poller();
  const fds = Array.from({ length: 150 }, () => eventfd());
  const calls = new Map<number, number>();
  for (const fd of fds) {
    poller.add(fd, EPOLLIN, (events) => {
      assert.equal(events, EPOLLIN);
      assert.equal(drain(fd), true);
      calls.set(fd, (calls.get(fd) ?? 0) + 1);
    });
  }
  await settled(poller);
  assert.equal(calls.size, 0);
  for (const fd of fds) signal(fd);
  await settled(poller);
  await settled(poller);
  assert.deepEqual(calls, new Map(fds.map((fd) => [fd, 1])));
  for (const fd of fds) poller.remove(fd);
  await poller.close();
  for (const fd of fds) closeFd(fd);
  assert.equal(openFds(), before);
});

test('a conversation over a socket, to its end', async () => {
  const poller = new Poller();
  const [near, far] = socketPair();
  const heard: string[] = [];
  const buffer = new Uint8Array(64);
  poller.add(far, EPOLLIN, () => {
    const got = receive(far, buffer);
    assert.ok(typeof got === 'object');
    send(far, Buffer.from(buffer.subarray(0, got.bytes)).reverse());
  });
  const end = new Promise<number>((resolve) => {
    poller.add(near, EPOLLIN | EPOLLRDHUP, (events) => {
      const got = receive(near, buffer);
      if (got === 'closed') {
        poller.remove(near);
        resolve(events);
        return;
      }
      assert.ok(typeof got === 'object');
      heard.push(Buffer.from(buffer.subarray(0, got.bytes)).toString());
      if (heard.length < 100) send(near, Buffer.from(`word ${heard.length}`));
      else {
        poller.remove(far);
        closeFd(far);
      }
    });
  });
  send(near, Buffer.from('word 0'));
  assert.ok((await end) & EPOLLRDHUP);
  assert.equal(heard.length, 100);
  assert.equal(heard[99], '99 drow');
  await poller.close();
  closeFd(near);
});

test('what is not taken is told again', async () => {
  await using poller = new Poller();
  const fd = eventfd(1);
  let calls = 0;
  await new Promise<void>((resolve) => {
    poller.add(fd, EPOLLIN, () => {
      if (++calls < 3) return;
      drain(fd);
      resolve();
    });
  });
  await settled(poller);
  assert.equal(calls, 3);
  poller.remove(fd);
  closeFd(fd);
});

test('modify changes the events and keeps the callback', async () => {
  await using poller = new Poller();
  const [a, b] = socketPair();
  const seen: number[] = [];
  await new Promise<void>((resolve) => {
    poller.add(a, EPOLLOUT, (events) => {
      seen.push(events);
      poller.modify(a, EPOLLIN);
      resolve();
    });
  });
  await settled(poller);
  send(b, Buffer.from('x'));
  await settled(poller);
  assert.equal(seen[0], EPOLLOUT);
  assert.ok(seen.length > 1 && seen.slice(1).every((events) => events === EPOLLIN));
  poller.remove(a);
  closeFd(a);
  closeFd(b);
  assert.throws(() => poller.modify(a, EPOLLIN), { code: 'EBADF' });
});

test('a descriptor removed by an earlier callback of the round gets no callback', async () => {
  await using poller = new Poller();
  const pair = [eventfd(), eventfd()];
  const called: number[] = [];
  for (const fd of pair) {
    poller.add(fd, EPOLLIN, () => {
      called.push(fd);
      for (const each of pair) {
        poller.remove(each);
        closeFd(each);
      }
    });
  }
  for (const fd of pair) signal(fd);
  await settled(poller);
  assert.equal(called.length, 1);
});

test('a number that is used again gets no event of its former owner', async () => {
  await using poller = new Poller();
  const pair = [eventfd(), eventfd()];
  const called: string[] = [];
  for (const fd of pair) {
    poller.add(fd, EPOLLIN, () => {
      called.push('first owner');
      drain(fd);
      if (called.length > 1) return;
      const other = pair.find((each) => each !== fd)!;
      poller.remove(other);
      closeFd(other);
      const reused = eventfd();
      assert.equal(reused, other);
      poller.add(reused, EPOLLIN, () => {
        called.push('second owner');
        drain(reused);
      });
    });
  }
  for (const fd of pair) signal(fd);
  await settled(poller);
  assert.deepEqual(called, ['first owner']);
  for (const fd of pair) signal(fd);
  await settled(poller);
  assert.deepEqual(called.sort(), ['first owner', 'first owner', 'second owner']);
  for (const fd of pair) {
    poller.remove(fd);
    closeFd(fd);
  }
});

test('descriptors that come and go at random hear of their own events alone', async () => {
  const before = openFds();
  const errors: unknown[] = [];
  const poller = new Poller({ onError: (error) => errors.push(error) });
  const random = randomFrom(20_240_229);
  const live = new Map<number, symbol>();
  let calls = 0;
  const take = (fd: number) => {
    poller.remove(fd);
    live.delete(fd);
    closeFd(fd);
  };
  const make = () => {
    const fd = eventfd();
    const owner = Symbol();
    live.set(fd, owner);
    poller.add(fd, EPOLLIN, () => {
      calls++;
      assert.equal(live.get(fd), owner);
      assert.equal(drain(fd), true);
      churn();
    });
  };
  const churn = () => {
    const fds = [...live.keys()];
    if (fds.length > 40) take(fds[random(fds.length)]!);
    if (fds.length > 0 && random(2) === 0) take([...live.keys()][random(live.size)]!);
    if (live.size < 60) make();
    for (let i = 0; i < 3; i++) signal([...live.keys()][random(live.size)]!);
  };
  for (let i = 0; i < 40; i++) make();
  churn();
  for (let round = 0; round < 300; round++) await settled(poller);
  assert.deepEqual(errors, []);
  assert.ok(calls > 300);
  await poller.close();
  for (const fd of live.keys()) closeFd(fd);
  assert.equal(openFds(), before);
});

test('a callback that throws is reported and stops nothing', async () => {
  const errors: unknown[] = [];
  await using poller = new Poller({ onError: (error) => errors.push(error) });
  const bad = eventfd();
  const good = eventfd();
  let calls = 0;
  poller.add(bad, EPOLLIN, () => {
    drain(bad);
    throw new Error('on purpose');
  });
  poller.add(good, EPOLLIN, () => {
    drain(good);
    calls++;
  });
  for (let i = 0; i < 3; i++) {
    signal(bad);
    signal(good);
    await settled(poller);
  }
  assert.deepEqual(
    errors.map((error) => (error as Error).message),
    ['on purpose', 'on purpose', 'on purpose'],
  );
  assert.equal(calls, 3);
  for (const fd of [bad, good]) {
    poller.remove(fd);
    closeFd(fd);
  }
});

test('without onError, what a callback throws is an uncaught exception and the poller goes on', async () => {
  const { stdout, code } = await runProcess(`
    const poller = new sys.Poller();
    process.on('uncaughtException', (error) => console.log('uncaught', error.message));
    const fd = sys.eventfd(1);
    let calls = 0;
    poller.add(fd, sys.EPOLLIN, () => {
      if (++calls < 3) throw new Error('call ' + calls);
      poller.close().then(() => console.log('closed'));
    });
  `);
  assert.equal(stdout, 'uncaught call 1\nuncaught call 2\nclosed\n');
  assert.equal(code, 0);
});

test('close ends a wait that is in flight, from outside, from a callback, and twice', async () => {
  const before = openFds();
  const idle = new Poller();
  await Promise.all([idle.close(), idle.close()]);
  await idle.close();

  const busy = new Poller();
  const fds = [eventfd(1), eventfd(1)];
  let calls = 0;
  const closed = await new Promise<Promise<void>>((resolve) => {
    for (const fd of fds) {
      busy.add(fd, EPOLLIN, () => {
        calls++;
        resolve(busy.close());
      });
    }
  });
  await closed;
  assert.equal(calls, 1);
  for (const fd of fds) closeFd(fd);
  assert.equal(openFds(), before);
});

test('a poller keeps its process alive, and process.exit ends it', async () => {
  const { stdout, code } = await runProcess(`
    new sys.Poller();
    setTimeout(() => { console.log('alive'); process.exit(3); }, 50).unref();
  `);
  assert.equal(stdout, 'alive\n');
  assert.equal(code, 3);
});

test('mistakes are refused by name', async () => {
  await using poller = new Poller();
  const fd = eventfd();
  const nothing = () => {};
  poller.add(fd, EPOLLIN, nothing);
  assert.throws(() => poller.add(fd, EPOLLIN, nothing), { code: 'EEXIST' });
  assert.throws(() => poller.add(-1, EPOLLIN, nothing), { code: 'EBADF' });
  poller.remove(fd);
  poller.remove(fd);
  poller.remove(-1);
  poller.add(fd, EPOLLIN, nothing);
  closeFd(fd);
  poller.remove(fd);
});

test('the shared poller lives from its first user to its last', async () => {
  const before = openFds();
  const a = sharedPoller();
  const b = sharedPoller();
  assert.equal(a.poller, b.poller);
  await a.release();
  await a.release();
  const fd = eventfd(1);
  await new Promise<void>((resolve) => b.poller.add(fd, EPOLLIN, () => resolve(b.poller.remove(fd))));
  await b.release();
  const c = sharedPoller();
  assert.notEqual(c.poller, a.poller);
  await c.release();
  closeFd(fd);
  assert.equal(openFds(), before);
});
