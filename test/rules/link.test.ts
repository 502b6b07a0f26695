/**
 * The link of a port, down by itself or with that of another: nothing passes, and the guest hears of it, by its device
 * where that has a word for it, else by a back-end that goes.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { createSwitch, type PortSpec } from '../../src/index.ts';
import { closeFd, openFds, sharedPoller, socketPair } from '../../src/sys/index.ts';
import { backendRequests, encodeU64, FLAG_REPLY } from '../../src/vhost/messages.ts';
import { features as F } from '../../src/virtio/features.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { happens } from '../support/link.ts';
import { ip, ownNetwork } from '../support/network.ts';
import { RawGuest } from '../support/raw-guest.ts';
import { sockets } from '../support/sockets.ts';
import { Traffic } from '../support/traffic.ts';
import { until } from '../support/until.ts';
import { RawEnd } from '../vhost/harness.ts';
import { lab } from './lab.ts';

test('a guest that can be told stays, and whatever it sends goes nowhere', async (t) => {
  const path = sockets(t);
  const lease = sharedPoller();
  t.after(() => lease.release());
  await using vswitch = await createSwitch({
    ports: ['a', 'b', 'c'].map((name) => ({
      name,
      type: 'vhost-user',
      target: path(name),
      features: '+config',
    })),
  });
  const wanted = F.VIRTIO_F_VERSION_1 | F.VIRTIO_NET_F_MRG_RXBUF | F.VIRTIO_NET_F_STATUS;
  const a = new RawGuest(path('a'), lease.poller, { features: wanted });
  t.after(() => a.close());
  await a.start();
  a.lend();
  const [near, far] = socketPair();
  await a.session.setBackendChannel(near);
  closeFd(near);
  const channel = new RawEnd(far);
  t.after(() => channel.close());
  await using b = await VirtioUser.open({ path: path('b') });
  await using c = await VirtioUser.open({ path: path('c') });
  const set = async (link: 'up' | 'down' | null) => {
    await vswitch.setPort('a', { link });
    const message = await channel.next();
    assert.equal(message?.request, backendRequests.CONFIG_CHANGE_MSG);
    channel.message(backendRequests.CONFIG_CHANGE_MSG, encodeU64(0n), { flags: FLAG_REPLY });
    return (await a.session.config())!.linkUp;
  };
  /** A frame that a guest gets once those before it have gone somewhere or nowhere. */
  const gets = (guest: VirtioUser, bytes: Buffer) =>
    until(() => {
      const came = guest.receive();
      if (came) assert.ok(bytes.equals(came), Buffer.from(came).toString('hex'));
      return came;
    }, 'the next frame comes');
  const from = (station: number, salt: number) => frame(BROADCAST, mac(station), 60, salt);
  a.send(from(1, 1));
  for (const guest of [b, c]) await gets(guest, from(1, 1));
  b.send(from(2, 2));
  await gets(c, from(2, 2));
  await until(() => a.received().length === 1, 'a gets it, too');

  assert.equal(await set('down'), false);
  const { state, note, rules } = vswitch.port('a');
  assert.deepEqual({ state, note, rules }, { state: 'down', note: 'set down', rules: { link: 'down' } });
  assert.equal(vswitch.ports()[0]!.state, 'down');
  a.send(from(1, 3), frame(mac(2), mac(1)));
  await until(() => vswitch.port('a').drops.linkDownIn === 2, 'what it sends is turned away');
  b.send(frame(mac(1), mac(2)));
  b.send(from(2, 4));
  await gets(c, from(2, 4));
  assert.deepEqual(vswitch.port('a').drops, { linkDownIn: 2, linkDownOut: 1 });
  assert.deepEqual([a.received(), b.receive()], [[], undefined]);
  // It is told once.
  await vswitch.setPort('a', { link: 'down', isolated: false });

  assert.equal(await set(null), true);
  assert.equal(vswitch.port('a').state, 'up');
  assert.equal(vswitch.port('a').connections, 1);
  a.send(from(1, 5));
  await gets(b, from(1, 5));
});

for (const role of ['server', 'client'] as const) {
  test(`from a guest that can't be told the back-end goes, the port as ${role}`, async (t) => {
    const path = sockets(t);
    const port = (name: string, more: Partial<PortSpec> = {}): PortSpec => ({ name, type: 'vhost-user', target: path(name), ...more }); // biome-ignore format: a line
    await using vswitch = await createSwitch({ ports: [port('a', { role }), port('b'), port('c')] });
    const traffic = await Traffic.start({ path: path('b') }, { path: path('c') });
    const theirs = role === 'server' ? 'client' : 'server';
    const reconnect = { initialDelay: 5, maxDelay: 20 };
    const a = await VirtioUser.open({ path: path('a'), role: theirs, reconnect, timeout: 60_000 });
    t.after(() => a.close());
    await until(() => vswitch.port('a').state === 'up', 'a is up');
    let first = 0;
    for (let turn = 1; turn <= 3; turn++) {
      const down = happens(a, 'linkDown');
      await vswitch.setPort('a', { link: 'down' });
      await down;
      await until(() => vswitch.port('a').rings === '', 'its rings are gone');
      if (role === 'server')
        assert.ok(!existsSync(path('a')), 'nobody finds a back-end that does not answer');
      if (turn === 1) first = openFds();
      // Who dials has a descriptor more for moments.
      if (turn === 3) await until(() => openFds() <= first, 'no descriptor was left');
      const up = happens(a, 'linkUp');
      await vswitch.setPort('a', { link: 'up' });
      await up;
      await until(() => vswitch.port('a').state === 'up', 'a is up again');
      assert.equal(vswitch.port('a').connections, 1 + turn);
    }
    // Set while it is away, and taken back before the connection has ended.
    await Promise.all([vswitch.setPort('a', { link: 'down' }), vswitch.setPort('a', { link: 'up' })]);
    await until(() => vswitch.port('a').state === 'up' && a.linkUp, 'a is up once more');
    await vswitch.setPort('a', { link: 'down' });
    await vswitch.removePort('a');
    await traffic.stop();
  });
}

test('a guest that comes while the link is down is served, and let go', async (t) => {
  const path = sockets(t);
  await using vswitch = await createSwitch({
    ports: [{ name: 'a', type: 'vhost-user', target: path('a'), link: 'down' }],
  });
  assert.equal(vswitch.port('a').state, 'down');
  const reconnect = { initialDelay: 5, maxDelay: 20 };
  const a = await VirtioUser.open({ path: path('a'), reconnect, timeout: 60_000 });
  t.after(() => a.close());
  await until(() => !a.linkUp, 'its link goes down');
  assert.equal(vswitch.port('a').connections, 1);
  await vswitch.setPort('a', { link: 'up' });
  await until(() => a.linkUp && vswitch.port('a').state === 'up', 'it is up');
});

test('a socket that somebody else has taken is told, and waited for', async (t) => {
  const path = sockets(t);
  const spec: PortSpec = { name: 'a', type: 'vhost-user', target: path('a') };
  await using vswitch = await createSwitch({ ports: [spec] });
  await using a = await VirtioUser.open({ path: path('a') });
  await until(() => vswitch.port('a').state === 'up', 'a is up');
  await vswitch.setPort('a', { link: 'down' });
  await until(() => !a.linkUp, 'it is let go');
  const second = await createSwitch({ ports: [spec] });
  const told = once(vswitch, 'portError');
  await vswitch.setPort('a', { link: 'up' });
  assert.match((await told)[0].error, /a\.sock/);
  await second.close();
  await until(() => vswitch.port('a').state === 'listening', 'the port has its socket again');
  const b = await VirtioUser.open({ path: path('a') });
  await b.close();
});

test('links follow another one: down with it, up with it, and never in a circle', async (t) => {
  const { vswitch, guests } = await lab(
    t,
    {
      lan: {},
      a: { linkFollows: 'lan' },
      b: {},
      c: {},
    },
    {},
    { reconnect: { initialDelay: 5, maxDelay: 20 }, timeout: 60_000 },
  );
  const { a, b, c, lan } = guests as Record<string, VirtioUser>;
  assert.ok(a!.linkUp && b!.linkUp && c!.linkUp);
  const down = happens(a!, 'linkDown');
  await lan!.close();
  await down;
  assert.equal(vswitch.port('a').note, 'down with that of lan');
  assert.ok(b!.linkUp && c!.linkUp);
  const up = happens(a!, 'linkUp');
  const next = await VirtioUser.open({ path: vswitch.port('lan').target });
  t.after(() => next.close());
  await up;
  for (const change of [
    () => vswitch.setPort('lan', { link: 'down' }),
    () => vswitch.setPort('a', { linkFollows: 'nobody' }),
  ]) {
    const gone = happens(a!, 'linkDown');
    await change();
    await gone;
    const back = happens(a!, 'linkUp');
    await vswitch.setPort('a', { linkFollows: 'c' });
    await back;
    await until(() => vswitch.port('a').state === 'up', 'a is up');
  }
  const left = happens(a!, 'linkDown');
  await vswitch.removePort('c');
  await left;
  await assert.rejects(
    vswitch.setPort('b', { linkFollows: 'a' }),
    /linkFollows: expected a port whose link follows none, found "a", which follows c/,
  );
  await assert.rejects(
    vswitch.addPort({ name: 'c', type: 'null', target: '', linkFollows: 'b' }),
    /linkFollows: expected a port whose link follows none, found "b", and a follows this one/,
  );
  await assert.rejects(vswitch.setPort('a', { linkFollows: 'a' }), /linkFollows: expected the name of another port, found "a"/); // biome-ignore format: a line
  await assert.rejects(vswitch.setPort('a', { link: 'off' as 'up' }), /link: expected "up" or "down", found "off"/); // biome-ignore format: a line
});

test('an interface of the host loses its carrier', { skip: ownNetwork() }, async (t) => {
  const path = sockets(t);
  await using vswitch = await createSwitch({
    ports: [
      { name: 'host', type: 'tap', target: 'vt0' },
      { name: 'a', type: 'vhost-user', target: path('a'), linkFollows: 'host' },
    ],
  });
  const reconnect = { initialDelay: 5, maxDelay: 20 };
  await using a = await VirtioUser.open({ path: path('a'), reconnect, timeout: 60_000 });
  await until(() => a.linkUp && vswitch.port('a').state === 'up', 'both are up');
  await vswitch.setPort('host', { link: 'down' });
  assert.match(ip('link show vt0'), /NO-CARRIER/);
  await until(() => !a.linkUp, 'the guest hears of it');
  await vswitch.setPort('host', { link: 'up' });
  assert.doesNotMatch(ip('link show vt0'), /NO-CARRIER/);
  await until(() => a.linkUp, 'and of its end');
  // An interface that nobody has set up is as good as a cable that is cut.
  ip('link set vt0 down');
  await until(() => !a.linkUp, 'the guest hears of that');
  ip('link set vt0 up');
  await until(() => a.linkUp, 'it is up again');
});
