import assert from 'node:assert/strict';
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join, relative } from 'node:path';
import { after, test } from 'node:test';
import { findSwitch } from '../../src/api/client.ts';
import { Child, scratch, sleep } from '../peers/process.ts';
import { MAIN, PATIENCE, Up, vireo } from './support.ts';

const directory = scratch('cli');
after(directory.remove);
let used = 0;

/** A new directory for one test, so that what is left behind shows. */
function place(): string {
  const path = join(directory.path, String(++used));
  mkdirSync(path);
  return path;
}

/** Sends bytes to a unix socket; resolves when the other side has closed. */
function send(path: string, bytes: string | Buffer): Promise<string> {
  return new Promise((resolve) => {
    let answer = '';
    const socket = connect(path);
    socket.on('data', (chunk) => {
      answer += chunk;
    });
    socket.on('error', () => {});
    socket.on('close', () => resolve(answer));
    socket.write(bytes);
  });
}

/** A message of vhost-user in a version that doesn't exist, which ends the connection: type, flags, size. */
const wrongVersion = Buffer.from(Uint32Array.of(1, 3, 0).buffer);

test('up says in one line what listens where, runs every command, and leaves nothing behind', async () => {
  const dir = place();
  const [a, b, c, control] = ['a', 'b', 'c', 'control'].map((name) => join(dir, `${name}.sock`)) as [
    string,
    string,
    string,
    string,
  ];
  await using up = await Up.start(
    control,
    '--name',
    'lab',
    '--port',
    `vm1=vhost-user:${a}`,
    '--port',
    `vm2=vhost-user:${b},role=client,max-addresses=9`,
  );
  assert.deepEqual(up.lines, [
    `vireo: switch 'lab' ready: vm1 listens on ${a}, vm2 dials ${b}; control ${control}`,
  ]);
  assert.ok(statSync(a).isSocket());
  assert.equal(statSync(control).mode & 0o777, 0o600);

  const status = await up.json('status');
  assert.equal(status.name, 'lab');
  assert.equal(status.pid, up.child.pid);
  assert.equal(status.poll, 'adaptive');
  assert.equal(status.ports, 2);
  assert.equal(status.workers.length, 1);
  assert.match(
    await up.run('status'),
    /^switch +lab\nversion +\d.*\n(.*\n)+ports +2\n(.*\n)+\nWORKER +CPU +LOAD/,
  );

  const ports = await up.json('ports');
  assert.deepEqual(
    // biome-ignore lint/suspicious/noExplicitAny: JSON.
    ports.map(({ name, type, target, role, state }: any) => [name, type, target, role, state]),
    [
      ['vm1', 'vhost-user', a, 'server', 'listening'],
      ['vm2', 'vhost-user', b, 'client', 'dialing'],
    ],
  );
  for (const counter of ['rxPackets', 'rxBytes', 'rxDrops', 'txPackets', 'txBytes', 'txDrops']) {
    assert.equal(ports[0][counter], 0, counter);
  }
  const [header, first, second] = (await up.run('ports')).split('\n') as [string, string, string];
  assert.match(header, /^PORT +TYPE +STATE +RX PACKETS .* TARGET$/);
  assert.equal(first.indexOf(a), header.indexOf('TARGET'));
  assert.equal(second.indexOf(b), header.indexOf('TARGET'));

  const detail = await up.json('port', 'show', 'vm2');
  assert.equal(detail.addresses.limit, 9);
  assert.ok(detail.features.offered.includes('VIRTIO_F_VERSION_1'));
  const shown = await up.run('port', 'show', 'vm2');
  assert.match(shown, /^port +vm2\n/);
  assert.match(shown, /\nCounters, seen from the switch\n +PACKETS +BYTES +DROPS\n +rx +0 /);
  assert.match(shown, /\nFeatures\n +NAME +OFFERED +ACKNOWLEDGED +MISSING BECAUSE\n/);
  assert.match(shown, /\n +VIRTIO_F_VERSION_1 +yes +no/);

  assert.equal(await up.run('port'), await up.run('ports'));
  assert.equal(await up.run('port', 'list'), await up.run('ports'));

  assert.deepEqual(await up.json('fdb'), []);
  assert.deepEqual(await up.json('fdb', 'list'), []);
  assert.equal(await up.run('fdb'), 'ADDRESS  BRIDGE  VLAN  PORT  AGE\n');
  assert.equal(
    await up.run('fdb', 'add', '52:54:00:00:00:01', 'vm1', '--vlan', '7'),
    '52:54:00:00:00:01 entered for port vm1\n',
  );
  const addresses = async (...words: string[]) => (await up.json('fdb', ...words)).length;
  assert.equal(await addresses('--port', 'vm1'), 1);
  assert.equal(await addresses('--port', 'vm2'), 0);
  assert.equal(await addresses('--vlan', '7', '--bridge', 'default'), 1);
  assert.equal(await addresses('list', '--vlan', '8'), 0);
  assert.equal(await up.run('fdb', 'flush', '--static'), '1 address forgotten\n');
  assert.deepEqual(await up.json('fdb', 'flush'), { flushed: 0 });
  assert.equal(await up.run('fdb', 'flush', '--port', 'vm1'), '0 addresses forgotten\n');

  assert.equal(await up.run('port', 'add', `vm3=vhost-user:${c}`), `port vm3 listens on ${c}\n`);
  assert.ok(statSync(c).isSocket());
  assert.equal(await up.run('port', 'set', 'vm3', 'isolated=true'), 'port vm3 set: isolated=true\n');
  assert.match(await up.run('port', 'show', 'vm3'), /\nrules +isolated=true\n/);
  assert.deepEqual((await up.json('port', 'set', 'vm3', 'isolated=')).rules, {});
  assert.equal(await up.run('bridge', 'set', 'default', 'ageing=60'), 'bridge default set\n');
  assert.match(await up.run('bridge', 'list'), /^BRIDGE .*\ndefault +60 s /);
  assert.equal(await up.run('port', 'del', 'vm3'), 'port vm3 removed\n');
  assert.equal(existsSync(c), false);
  const added = await up.json('port', 'add', `vm3=vhost-user:${relative(process.cwd(), c)}`);
  assert.equal(added.target, c);
  assert.deepEqual(await up.json('port', 'del', 'vm3'), { removed: 'vm3' });

  assert.match(
    await up.run('qemu', 'vm1'),
    new RegExp(`^-chardev socket,id=chr-vm1,path=${a},reconnect=1$`, 'm'),
  );
  assert.ok(
    (await up.json('qemu', 'vm2')).arguments.includes(`socket,id=chr-vm2,path=${b},server=on,wait=off`),
  );
  assert.match(await up.run('qemu', 'vm1', '--libvirt'), /mode='client'/);
  assert.match(await up.run('qemu', 'vm2', '--cloud-hypervisor'), /vhost_mode=server/);

  assert.equal(await up.end('SIGINT'), 0);
  assert.deepEqual(up.lines.length, 1);
  assert.deepEqual(readdirSync(dir), []);
});

test('what the switch refuses ends a command with code 1 and its reason', async () => {
  const dir = place();
  await using up = await Up.start(
    join(dir, 'control.sock'),
    '--port',
    `vm1=vhost-user:${join(dir, 'a.sock')}`,
  );
  const cases: [args: string[], stderr: RegExp][] = [
    [['port', 'add', `vm1=vhost-user:${join(dir, 'b.sock')}`], /^vireo: .*vm1.* exists/],
    [
      ['port', 'add', 'vm2=vhost-user:/no/such/directory/b.sock'],
      /^vireo: port vm2: .*\/no\/such\/directory/,
    ],
    [['port', 'del', 'vm9'], /^vireo: no port .*vm9/],
    [['port', 'show', 'vm9'], /^vireo: no port .*vm9/],
    [['port', 'show', '../status'], /^vireo: no port /],
    [['qemu', 'vm9'], /^vireo: no port .*vm9/],
    [['fdb', '--port', 'vm9'], /^vireo: no port .*vm9/],
    [['fdb', 'flush', '--port', 'vm9'], /^vireo: no port .*vm9/],
  ];
  // A port whose other end isn't there yet is added, and says so.
  assert.equal(
    await up.run('port', 'add', 'to-lab=patch:from-lab'),
    "port to-lab is patch:from-lab, but: the other end, patch port from-lab, isn't there\n",
  );
  assert.equal(await up.run('port', 'del', 'to-lab'), 'port to-lab removed\n');
  const wrong: [args: string[], stderr: RegExp][] = [
    [['port', 'set', 'vm1', 'isolated=often'], /^vireo: isolated: expected true or false, found "often"/],
    [['port', 'set', 'vm1', 'queues=2'], /^vireo: queues: expected a field that can be set/],
    [['port', 'set', 'vm1', 'isolated'], /^vireo: expected key=value, .* found "isolated"/],
    [
      ['port', 'set', 'vm1', 'isolated=true', 'isolated=false'],
      /^vireo: expected isolated once, found it again as "isolated=false"/,
    ],
    [['bridge', 'set', 'default', 'ageing'], /^vireo: expected key=value, .* found "ageing"/],
  ];
  for (const [args, stderr] of wrong) {
    const result = await vireo([...args, '--control', join(dir, 'control.sock')]);
    assert.equal(result.code, 2, args.join(' '));
    assert.match(result.stderr, stderr);
  }
  for (const [args, stderr] of cases) {
    const run = await vireo([...args, '--control', up.control]);
    assert.equal(run.code, 1, args.join(' '));
    assert.equal(run.stdout, '');
    assert.match(run.stderr, stderr);
    assert.equal(run.stderr.split('\n').length, 2);
  }
});

test('with --json, up prints an object a line: ready, then events', async () => {
  const dir = place();
  const target = join(dir, 'a.sock');
  await using up = await Up.start(join(dir, 'control.sock'), '--json', '--port', `vm1=vhost-user:${target}`);
  const { time, ...ready } = JSON.parse(up.lines[0]!);
  assert.ok(Math.abs(Date.now() - Date.parse(time)) < 3_600_000);
  assert.deepEqual(ready, {
    event: 'ready',
    name: 'vireo',
    pid: up.child.pid,
    control: up.control,
    ports: [{ name: 'vm1', type: 'vhost-user', target, role: 'server', state: 'listening' }],
  });
  await send(target, wrongVersion);
  const error = JSON.parse(await up.line(/"portError"/));
  assert.equal(error.port, 'vm1');
  assert.equal(typeof error.error, 'string');
  assert.equal((await up.client.port('vm1')).lastError, error.error);
  assert.equal(await up.end(), 0);
  for (const line of up.lines) assert.equal(typeof JSON.parse(line).event, 'string');
});

test('events are lines in words, and outlive the reader of the output', async () => {
  const dir = place();
  const target = join(dir, 'a.sock');
  await using up = await Up.start(join(dir, 'control.sock'), '--port', `vm1=vhost-user:${target}`);
  await send(target, wrongVersion);
  assert.match(await up.line(/vm1: /), /^vireo: vm1: .+/);
  up.child.process.stdout?.destroy();
  await send(target, wrongVersion);
  while ((await up.client.port('vm1')).connections < 2) await sleep(20);
  assert.equal(await up.end(), 0);
  assert.deepEqual(readdirSync(dir), []);
});

test('a command whose output cannot be written says so, a switch goes on without it', async () => {
  const dir = place();
  const control = join(dir, 'control.sock');
  const up = new Child('/bin/sh', [
    '-c',
    'exec "$@" >/dev/full',
    'sh',
    process.execPath,
    MAIN,
    'up',
    '--control',
    control,
  ]);
  while (!existsSync(control) && up.running) await sleep(10);
  const client = await findSwitch({ control });
  assert.equal((await client.status()).name, 'vireo');
  up.process.kill('SIGTERM');
  assert.equal(await up.exited, 1);
  assert.match(up.output, /^vireo: the output can't be written: ENOSPC/);
  assert.deepEqual(readdirSync(dir), []);
});

test('a file and options make one switch, options first', async () => {
  const dir = place();
  const file = join(dir, 'lab.yaml');
  writeFileSync(
    file,
    `name: file
workers: 2
ageing: 77
maxAddressesPerPort: 5
ports:
  - { name: vm1, type: vhost-user, target: ${join(dir, 'a.sock')} }
`,
  );
  const more = `vm2=vhost-user:${join(dir, 'b.sock')}`;
  await using up = await Up.start(
    join(dir, 'c.sock'),
    file,
    '--workers',
    '1',
    '--port',
    more,
    '--name',
    'line',
  );
  const status = await up.client.status();
  assert.equal(status.name, 'line');
  assert.equal(status.workers.length, 1);
  assert.equal(status.fdb.ageing, 77);
  assert.equal(status.fdb.maxAddressesPerPort, 5);
  assert.deepEqual(
    (await up.client.ports()).map(({ name }) => name),
    ['vm1', 'vm2'],
  );
  assert.equal((await up.client.port('vm1')).addresses.limit, 5);
});

test('sockets in use are refused, those of a killed switch are replaced', async () => {
  const dir = place();
  const [target, control] = [join(dir, 'a.sock'), join(dir, 'control.sock')];
  const args = ['up', '--control', control, '--port', `vm1=vhost-user:${target}`];
  await using first = await Up.start(control, '--port', `vm1=vhost-user:${target}`);

  const sameTarget = await vireo(['up', '--control', join(dir, 'other.sock'), ...args.slice(3)]);
  assert.equal(sameTarget.code, 1);
  assert.match(sameTarget.stderr, new RegExp(`^vireo: port vm1: .*${target}`));
  const sameControl = await vireo(args.slice(0, 3));
  assert.equal(sameControl.code, 1);
  assert.match(
    sameControl.stderr,
    new RegExp(`^vireo: the control socket ${control} can't be used: a switch runs`),
  );
  assert.deepEqual(readdirSync(dir).sort(), ['a.sock', 'control.sock']);
  assert.equal((await first.client.port('vm1')).state, 'listening');

  assert.equal(await first.end('SIGKILL'), null);
  assert.deepEqual(readdirSync(dir).sort(), ['a.sock', 'control.sock']);
  const gone = await vireo(['status', '--control', control]);
  assert.equal(gone.code, 1);
  assert.match(
    gone.stderr,
    /^vireo: no switch listens on .*: start one with `vireo up`, or name its control socket/,
  );
  await using second = await Up.start(control, '--port', `vm1=vhost-user:${target}`);
  assert.equal((await second.client.port('vm1')).state, 'listening');
  assert.equal(await second.end('SIGTERM'), 0);
  assert.deepEqual(readdirSync(dir), []);
});

test('a signal that comes twice at once, as from npx and timeout, is one; a later one ends the program', async () => {
  const program = `
    import { setTimeout as sleep } from 'node:timers/promises';
    import { firstSignal } from ${JSON.stringify(new URL('../../src/cli/signal.js', import.meta.url).href)};
    setInterval(() => {}, 1000);
    const stopped = firstSignal();
    process.kill(process.pid, 'SIGTERM');
    await stopped;
    process.kill(process.pid, 'SIGTERM');
    await sleep(20);
    console.log('still there');
    await sleep(1000);
    process.kill(process.pid, 'SIGTERM');`;
  const child = new Child(process.execPath, ['--input-type=module', '-e', program]);
  assert.equal(await child.exited, null);
  assert.equal(child.output, 'still there\n');
});

test('a signal before the switch is ready ends it cleanly too', async () => {
  const dir = place();
  const control = join(dir, 'control.sock');
  const child = new Child(process.execPath, [
    MAIN,
    'up',
    '--control',
    control,
    '--port',
    `a=vhost-user:${dir}/a`,
  ]);
  // The port listens before the control socket does: between the two, the switch isn't ready.
  while (!existsSync(join(dir, 'a')) && child.running) await sleep(1);
  child.process.kill('SIGTERM');
  assert.equal(await child.exited, 0, child.output);
  assert.deepEqual(readdirSync(dir), []);
});

test('clients that send nonsense to the control socket change nothing', async () => {
  const dir = place();
  await using up = await Up.start(
    join(dir, 'control.sock'),
    '--port',
    `vm1=vhost-user:${join(dir, 'a.sock')}`,
  );
  const head = 'POST /v1/ports HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n';
  const answers = await Promise.all([
    send(up.control, Buffer.alloc(100_000, 0xff)),
    send(up.control, `${head}content-length: x\r\n\r\n`),
    send(up.control, `GET /${'x'.repeat(100_000)} HTTP/1.1\r\n\r\n`),
    send(up.control, `${head}connection: close\r\ncontent-length: 4\r\n\r\n{{{{`),
    send(up.control, 'GET /v9 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n'),
    send(up.control, `${head}connection: close\r\ncontent-length: 1048577\r\n\r\n${' '.repeat(1_048_577)}`),
    // Never finished: ended by the server's own bound.
    send(up.control, 'GET /v1/status HTTP/1.1\r\nhost: '),
  ]);
  assert.deepEqual(
    answers.map((answer) => answer.slice(9, 12)),
    ['400', '400', '431', '400', '404', '413', '408'],
  );
  assert.deepEqual((await up.client.ports()).length, 1);
  assert.equal(await up.end(), 0);
});

test('a wrong command line has code 2, a wrong file code 1, each fault named', async () => {
  const dir = place();
  const control = join(dir, 'control.sock');
  const file = join(dir, 'vireo.yaml');
  writeFileSync(file, 'workers: 99\nports:\n  - name: vm1\n    role: sever\n');
  const cases: [args: string[], code: number, stderr: RegExp][] = [
    [[], 2, /^Usage: vireo /],
    [['bogus'], 2, /^vireo: unknown command 'bogus'/],
    [['up', '--bogus'], 2, /^vireo: unknown option '--bogus'/],
    [['up', 'a', 'b'], 2, /^vireo: too many arguments/],
    [['up', '--port'], 2, /^vireo: option '--port <spec>' argument missing/],
    [['up', '--port', 'vm1'], 2, /^vireo: port 'vm1': expected NAME=TYPE:TARGET/],
    [
      ['up', '--port', 'vm1=vhost-user:/a,role=sever'],
      2,
      /role: expected "server" or "client", found "sever"/,
    ],
    [['up', '--port', `vm1=vhost-user:${'x'.repeat(108)}`], 2, /target: expected the path of a unix socket/],
    [
      ['up', '--port', 'a=vhost-user:/a', '--port', 'a=vhost-user:/b'],
      2,
      /^vireo: ports\[1\]\.name: .*its own/,
    ],
    [['up', '--workers', '0'], 2, /Expected a whole number from 1 to 32/],
    [['up', '--workers', '2', '--cpus', '1'], 2, /^vireo: cpus: expected a CPU for each of the 2 workers/],
    [['up', '--cpus', '3-1'], 2, /Expected CPU numbers such as 0,2-3/],
    [['up', '--cpus', '0-3,2'], 2, /A CPU is given twice/],
    [['up', '--poll', 'fast'], 2, /Allowed choices are adaptive, busy/],
    [['up', '--name', '../x'], 2, /^vireo: name: expected a switch's name/],
    [['port', 'add', 'vm1'], 2, /^vireo: port 'vm1': expected NAME=TYPE:TARGET/],
    [['port', 'add'], 2, /^vireo: missing required argument 'spec'\n\(vireo port add --help tells more\)/],
    [['port', 'lst'], 2, /^vireo: unknown command 'port lst'; there are: list, add, set, del, show$/m],
    [['fdb', 'show'], 2, /^vireo: unknown command 'fdb show'; there are: list, add, del, flush$/m],
    [['capture', 'any', 'arp', '--filter', 'ip'], 2, /^vireo: give the filter .*, not both/],
    [['qemu', 'vm1', '--memory', 'much'], 2, /Expected a size such as 512M or 2G/],
    [['qemu', 'vm1', '--mac', '01:00:00:00:00:01'], 2, /It is a multicast address/],
    [['qemu', 'vm1', '--libvirt', '--cloud-hypervisor'], 2, /not both/],
    [['up', dir], 1, /: expected a YAML file, found a directory$/m],
    [['up', join(dir, 'none.yaml')], 1, /none\.yaml: can't be read: no such file or directory$/m],
    [
      ['up', '--port', 'vm1=vhost-user:/no/such/directory/a.sock'],
      1,
      /^vireo: port vm1: .*\/no\/such\/directory/,
    ],
  ];
  for (const [args, code, stderr] of cases) {
    const runs =
      args[0] === 'up' && !args.includes('--bogus') ? ['up', '--control', control, ...args.slice(1)] : args;
    const run = await vireo(runs);
    assert.equal(run.code, code, `vireo ${args.join(' ')}: ${run.stderr}`);
    assert.match(run.stderr, stderr);
    assert.equal(run.stdout, '');
  }
  const run = await vireo(['up', file, '--control', control]);
  assert.equal(run.code, 1);
  assert.deepEqual(
    run.stderr.split('\n').map((line) => line.replace(/: expected.*/, '')),
    [
      `${file}:1:10: workers`,
      `${file}:3:5: ports[0].type`,
      `${file}:3:5: ports[0].target`,
      `${file}:4:11: ports[0].role`,
      '',
    ],
  );
  assert.deepEqual(readdirSync(dir), ['vireo.yaml']);
});

test('help and version are no errors, and every help has examples', async () => {
  const version = await vireo(['--version']);
  assert.equal(version.code, 0);
  assert.match(version.stdout, /^\d+\.\d+\.\d+\n$/);
  const commands = [
    [],
    ['up'],
    ['status'],
    ['ports'],
    ['port'],
    ['port', 'add'],
    ['port', 'del'],
    ['port', 'set'],
    ['port', 'show'],
  ];
  for (const command of [...commands, ['fdb'], ['fdb', 'list'], ['fdb', 'flush'], ['qemu']]) {
    const help = await vireo([...command, '--help']);
    assert.equal(help.code, 0);
    assert.match(help.stdout, /\nExamples:\n {2}\$ .*vireo /);
    assert.equal(help.stderr, '');
  }
});

/** A user without rights: ourselves, or nobody when we are root. Undefined when that user can't run the program. */
async function plainUser(): Promise<{ uid?: number } | undefined> {
  if (process.getuid?.() !== 0) return {};
  const run = await vireo(['--version'], { uid: 65_534 }).catch(() => undefined);
  return run?.code === 0 ? { uid: 65_534 } : undefined;
}

test('a user without rights runs switches, and commands find the only one', async (context) => {
  const user = await plainUser();
  if (user === undefined) return context.skip('user 65534 may not read the program');
  const dir = place();
  chmodSync(directory.path, 0o711);
  if (user.uid !== undefined) chownSync(dir, user.uid, user.uid);
  const options = { ...user, env: { ...process.env, XDG_RUNTIME_DIR: dir } };
  const program = (args: string[]) =>
    new Child(
      'setpriv',
      [
        ...(user.uid === undefined ? [] : ['--reuid', String(user.uid), '--clear-groups']),
        '--',
        process.execPath,
        MAIN,
        ...args,
      ],
      { env: { XDG_RUNTIME_DIR: dir } },
    );
  const ready = (child: Child) =>
    child.waitFor('ready', PATIENCE, () => (/ready/.test(child.output) ? child.output : undefined));

  const none = await vireo(['status'], options);
  assert.equal(none.code, 1);
  assert.match(none.stderr, /^vireo: no switch runs here: start one with `vireo up`/);

  const one = program(['up', '--name', 'one', '--port', `vm1=vhost-user:${join(dir, 'a.sock')}`]);
  assert.match(await ready(one), new RegExp(`; control ${join(dir, 'vireo', 'one.sock')}\n$`));
  assert.equal(statSync(join(dir, 'vireo')).mode & 0o777, 0o700);
  assert.match((await vireo(['status'], options)).stdout, /^switch +one\n/);

  const again = await vireo(['up', '--name', 'one'], options);
  assert.equal(again.code, 1);
  assert.match(again.stderr, /a switch runs there; name this one other than 'one' with --name/);

  const two = program(['up', '--name', 'two']);
  assert.match(await ready(two), /ready: no ports yet, `vireo port add` adds one; control /);
  const several = await vireo(['ports'], options);
  assert.equal(several.code, 1);
  assert.equal(
    several.stderr,
    'vireo: several switches run here: choose one with --name one or --name two\n',
  );
  assert.equal(JSON.parse((await vireo(['status', '--name', 'two', '--json'], options)).stdout).name, 'two');
  const other = await vireo(['status', '--name', 'three'], options);
  assert.match(other.stderr, /^vireo: no switch named 'three' runs here: start one with `vireo up`/);

  for (const child of [one, two]) {
    child.process.kill('SIGINT');
    assert.equal(await child.exited, 0, child.output);
  }
  assert.deepEqual(readdirSync(join(dir, 'vireo')), []);
});
