/**
 * Mirrors with kernels at all ends: two that talk to each other through a switch of its own process, and one behind a
 * veth pair whose tshark gets the copies. What tshark sees is what the switch says it has copied, to the frame.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createSocket, type Socket } from 'node:dgram';
import { join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import type { MirrorStatus } from '../../src/index.ts';
import { plug } from '../support/cable.ts';
import { ip, Namespace, ownNetwork } from '../support/network.ts';
import { crossWhole, endIn } from '../support/tcp.ts';
import { skipWithout } from './available.ts';
import { type Child, until } from './process.ts';
import { program, Vireo } from './vireo.ts';

const NEAR = '10.0.0.3';
const PORT = 7000;
const BYTES = 4 << 20;

describe('mirrors between kernels', { skip: ownNetwork() || skipWithout('tshark') }, () => {
  let vireo: Vireo;
  let there: Namespace;
  let watcher: Namespace;
  let echo: Socket;

  const cli = (...words: string[]) =>
    execFileSync(process.execPath, [program, ...words, '--control', vireo.control.path]).toString();
  const up = (name: string) =>
    until(`${name} is up`, 60_000, async () => (await vireo.control.port(name)).state === 'up');

  before(async () => {
    [there, watcher] = await Promise.all([Namespace.open(), Namespace.open()]);
    plug(there);
    ip('link add mon0 type veth peer name mon1');
    ip(`link set mon1 netns ${watcher.id}`);
    ip('link set mon0 up');
    watcher.ip('link set mon1 up');
    vireo = await Vireo.start({ ports: [] });
    await vireo.control.addPort({ name: 'up', type: 'af-packet', target: 'veth0' });
    await vireo.control.addPort({ name: 'host', type: 'tap', target: 'vt0' });
    // On a bridge of its own: without a mirror it gets nothing there, whatever the kernels say to all.
    await vireo.control.addBridge({ name: 'aside' });
    await vireo.control.addPort({ name: 'mon', type: 'af-packet', target: 'mon0', bridge: 'aside' });
    for (const name of ['up', 'host', 'mon']) await up(name);
    ip(`addr add ${NEAR}/24 dev vt0`);
    echo = createSocket('udp4', (message, from) => echo.send(message, from.port, from.address));
    echo.bind(PORT, NEAR);
    await talk(1, 10);
  });
  after(async () => {
    echo?.close();
    await vireo?.close();
    await Promise.all([there, watcher].map((namespace) => namespace?.[Symbol.asyncDispose]()));
  });

  /** Has so many datagrams of so many bytes go from there to here, each answered before the next; rejects without. */
  async function talk(count: number, bytes: number): Promise<void> {
    const child = there.start(
      process.execPath,
      '-e',
      `const socket = require('node:dgram').createSocket('udp4');
      let left = ${count};
      const next = () => (left-- > 0 ? socket.send(Buffer.alloc(${bytes}), ${PORT}, '${NEAR}') : socket.close());
      socket.on('message', next);
      next();
      setTimeout(() => process.exit(1), 20000).unref();`,
    );
    assert.equal(await child.exited, 0, `${count} datagrams are answered`);
  }

  /** tshark in the watcher's namespace: what comes by the veth pair, a line each. */
  async function watch(t: TestContext, filter: string): Promise<{ rows(): string[][] }> {
    const fields = ['ip.src', 'udp.length', 'tcp.len'].flatMap((field) => ['-e', field]);
    const quiet = ['-l', '-n', '-Q', '-B', '64', '-T', 'fields'];
    const tshark: Child = watcher.start(
      'tshark',
      '-i',
      'mon1',
      '-f',
      `inbound and ${filter}`,
      ...quiet,
      ...fields,
    );
    t.after(() => tshark.end('SIGINT'));
    const rows = () =>
      tshark.output
        .split('\n')
        .map((line) => line.split('\t'))
        .filter((row) => row.length === 3);
    return { rows };
  }

  const status = async (name: string): Promise<MirrorStatus> =>
    JSON.parse(cli('mirror', 'show', name, '--json'));
  /** Datagrams of so many bytes: from there, and from here. */
  const seen = (rows: string[][], bytes: number) =>
    ['10.0.0.2', NEAR].map(
      (from) => rows.filter(([source, length]) => source === from && Number(length) === bytes + 8).length,
    );

  /** tshark takes a while to begin. */
  async function ready(seen: () => unknown): Promise<void> {
    await until('tshark sees frames', 60_000, async () => {
      await talk(1, 10);
      return seen();
    });
  }

  test('each way and both, to the frame, and nothing when the mirror is gone', async (t) => {
    assert.equal(cli('mirror', 'add', 'm', 'from=up', 'to=mon'), 'mirror m added\n');
    const { rows } = await watch(t, `udp port ${PORT}`);
    await ready(() => rows().length > 0);
    for (const [direction, requests, replies, bytes] of [
      ['in', 50, 0, 100],
      ['out', 0, 50, 200],
      ['both', 50, 50, 300],
    ] as const) {
      cli('mirror', 'del', 'm');
      await vireo.control.addMirror({ name: 'm', from: 'up', direction, to: 'mon' });
      await talk(50, bytes);
      // One more behind them by a mirror of both: what has come before that was all.
      await vireo.control.removeMirror('m');
      await vireo.control.addMirror({ name: 'm', from: 'up', to: 'mon' });
      await talk(1, bytes + 1);
      await until('tshark has seen them', 60_000, async () => seen(rows(), bytes + 1)[1] === 1);
      assert.deepEqual(seen(rows(), bytes), [requests, replies], direction);
    }
    assert.match(
      cli('mirror'),
      /^MIRROR +FROM +VLANS +WAY +TO +COPIED +LOST +ERROR\nm +up +- +both +mon +\d+ +0$/m,
    );
    assert.match(cli('port', 'show', 'mon'), /monitor +copies of m/);
    cli('mirror', 'del', 'm');
    const { txPackets } = await vireo.control.port('mon');
    await talk(20, 400);
    assert.equal((await vireo.control.port('mon')).txPackets, txPackets);
    assert.deepEqual(seen(rows(), 400), [0, 0]);
  });

  test('TCP in large segments is seen as it went, and crosses as without', async (t) => {
    await vireo.control.addMirror({ name: 'm', from: 'host', to: 'mon' });
    const { rows } = await watch(t, 'tcp');
    await until('tshark listens', 60_000, async () => {
      // A port that nobody listens on: a segment each way.
      const [enter, ...rest] = there.enter;
      const words = ['bash', '-c', `(exec 3<>/dev/tcp/${NEAR}/9) 2>/dev/null || true`];
      execFileSync(enter!, [...rest, ...words]);
      return rows().length > 0;
    });
    await crossWhole(t, NEAR, BYTES, endIn(there, NEAR, BYTES));
    const { copied, lost } = await status('m');
    t.diagnostic(`${copied} frames copied, ${lost} lost`);
    if (lost === 0) {
      const carried = (from: string) =>
        rows().reduce((sum, [source, , length]) => sum + (source === from ? Number(length) : 0), 0);
      await until(
        'tshark has seen all of it',
        60_000,
        async () => carried(NEAR) >= BYTES && carried('10.0.0.2') >= BYTES,
      );
    }
    await vireo.control.removeMirror('m');
  });

  test('a file has both ends of the transfer, and tshark finds no checksum wrong', async (t) => {
    const path = join(vireo.directory, 'm.pcapng');
    cli('mirror', 'add', 'f', 'from=host+up', 'direction=in', `to=file:${path}`);
    await crossWhole(t, NEAR, BYTES, endIn(there, NEAR, BYTES));
    // The kernels may have more to say to each other.
    for (const port of ['host', 'up']) await vireo.control.setPort(port, { link: 'down' });
    const { copied, lost } = await status('f');
    cli('mirror', 'del', 'f');
    const check = ['-o', 'tcp.check_checksum:TRUE', '-o', 'ip.check_checksum:TRUE'];
    const fields = ['frame.interface_name', '_ws.malformed', 'tcp.checksum.status', 'tcp.len'].flatMap(
      (field) => ['-e', field],
    );
    const rows = execFileSync('tshark', ['-r', path, '-n', ...check, '-T', 'fields', ...fields], {
      maxBuffer: 1 << 28,
    })
      .toString()
      .trimEnd()
      .split('\n')
      .map((line) => line.split('\t'));
    assert.equal(rows.length, copied);
    for (const [, malformed, checksum] of rows) assert.deepEqual([malformed, checksum === '0'], ['', false]);
    assert.ok(rows.some(([, , checksum]) => checksum === '1'));
    if (lost > 0) return;
    for (const port of ['host', 'up'])
      assert.ok(
        rows.reduce((sum, [name, , , length]) => sum + (name === port ? Number(length) : 0), 0) >= BYTES,
        port,
      );
  });
});
