/** `vireo gen` from a shell: what it prints, how it ends, and what it refuses. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { GenResult, Rfc2544Result } from '../../src/gen/index.ts';
import { createSwitch, type Switch } from '../../src/index.ts';
import { readPcap } from '../peers/pcap.ts';
import { Child, scratch } from '../peers/process.ts';
import { MAIN, PATIENCE, vireo } from './support.ts';

const directory = scratch('gen-cli');
const at = (name: string) => join(directory.path, name);
const A = ['--port', at('a')];
const B = ['--port', at('b')];
let vswitch: Switch;

before(async () => {
  vswitch = await createSwitch({
    ports: ['a', 'b'].map((name) => ({ name, type: 'vhost-user', target: at(name) })),
  });
});
after(async () => {
  await vswitch.close();
  directory.remove();
});

describe('vireo gen', () => {
  test('sends, counts, and prints JSON alone', async () => {
    const run = await vireo([
      'gen',
      ...A,
      ...B,
      '--rate',
      '5kpps',
      '--count',
      '500',
      '--expect-loss',
      '0',
      '--json',
    ]);
    assert.equal(run.code, 0, run.stderr);
    const result = JSON.parse(run.stdout) as GenResult;
    assert.deepEqual([result.sent, result.received, result.lost, result.ended], [1000, 1000, 0, 'count']);
    assert.ok(result.latency!.p50 <= result.latency!.most);
  });

  test('prints lines while it runs where no terminal is, and a table in the end', async () => {
    const run = await vireo([
      'gen', '--port', `${at('a')},mode=txonly`, '--port', `${at('b')},mode=rxonly,packed`,
      '--rate', '2kpps', '--seconds', '1', '--interval', '0.2', '--size', 'imix', '--capture', at('cli.pcap'),
    ]); // biome-ignore format: a command line
    assert.equal(run.code, 0, run.stderr);
    assert.match(run.stdout, /^\[[#.]{20}\] +\d+ % \d\.\d s: out .*pps .*bit\/s, in .*pps/m);
    assert.match(run.stdout, /PORT +MODE +SENT +RECEIVED/);
    assert.match(run.stdout, /\nlost +0 \(0\.00 %\)\n/);
    assert.ok(!run.stdout.includes('\x1b'), 'no codes of a terminal');
    assert.ok(readPcap(readFileSync(at('cli.pcap'))).length > 0);
  });

  test('exits with 1 and says which expectation was not met', async () => {
    const run = await vireo([
      'gen', ...A, ...B, '--rate', '1kpps', '--count', '100',
      '--expect-rate', '1gpps', '--expect-latency', 'p50=0ns', '--expect-loss', '0',
    ]); // biome-ignore format: a command line
    assert.equal(run.code, 1);
    assert.match(
      run.stderr,
      /^vireo: expected at least 1\.00 Gpps received, found .*pps\nvireo: expected a latency \(p50\) of at most 0 ns, found .*\n$/,
    );
    assert.match(run.stdout, /PORT/, 'what was measured is told all the same');
  });

  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    test(`${signal}: what was measured so far, and exit code 0`, async () => {
      const child = new Child(process.execPath, [
        MAIN,
        'gen',
        ...A,
        ...B,
        '--rate',
        '1kpps',
        '--interval',
        '0.1',
      ]);
      await child.waitFor('a line of progress', PATIENCE, () =>
        / in [1-9]/.test(child.output) ? true : undefined,
      );
      child.process.kill(signal);
      assert.equal(await child.exited, 0, child.output);
      assert.match(child.output, /\nended +by a signal\n/);
    });
  }

  test('rfc2544: a table, and JSON', async () => {
    const run = await vireo([
      'gen', 'rfc2544', ...A, ...B, '--sizes', '64', '--trial', '0.1', '--precision', '0.5', '--loss', '100%', '--json',
    ]); // biome-ignore format: a command line
    assert.equal(run.code, 0, run.stderr);
    const { sizes } = JSON.parse(run.stdout) as Rfc2544Result;
    assert.equal(sizes.length, 1);
    assert.ok(sizes[0]!.packetsPerSecond > 0);
    assert.deepEqual(
      sizes[0]!.trials.map(({ passed }) => passed),
      [true],
      'with every loss allowed the first passes',
    );
    const told = await vireo([
      'gen', 'rfc2544', ...A, ...B, '--sizes', '128', '--trial', '0.1', '--precision', '0.5', '--both',
    ]); // biome-ignore format: a command line
    assert.equal(told.code, 0, told.stderr);
    assert.match(told.stdout, /^128 B, full speed: .*pps sent, .* lost, (passed|failed)\n/);
    assert.match(told.stdout, /BYTES +RATE/);
  });
});

describe('refused, with what was expected', () => {
  const cut = at('cut.pcap');
  before(() => writeFileSync(cut, Buffer.from('4d3cb2a1020004000000000000000000000004000100000000', 'hex')));
  const wrong: [string[], RegExp, number?][] = [
    [['gen'], /--port: at least one port expected/],
    [['gen', ...A, '--mode', 'fast'], /Allowed choices are txonly, rxonly, io/],
    [['gen', ...A, '--rate', '1000'], /Expected a rate such as 1Mpps.*found "1000"/],
    [['gen', ...A, '--size', '64,x'], /Expected frame sizes such as/],
    [['gen', ...A, '--seconds', '0'], /Expected a time up to/],
    [['gen', ...A, '--src-ip', '10.0.0.1', '--dst-ip', 'fd00::1'], /addresses of one version of IP/],
    [['gen', ...A, '--ipv6', '--dst-ip', '10.0.0.1'], /--ipv6: expected IPv6 addresses/],
    [['gen', ...A, ...B, '--capture', 'x.pcap'], /--capture: 2 ports receive/],
    [['gen', ...A, '--rate', 'recorded'], /--rate recorded: only with --replay/],
    [['gen', '--port', `${at('a')},mode=txonly,capture=x`], /a port that is txonly receives nothing/],
    [['gen', '--port', `${at('a')},speed=9`], /Expected one of role, queues/],
    [['gen', 'rfc2544', ...A], /two ports expected, found 1/],
    [['gen', 'rfc2544', ...A, '--port', `${at('b')},mode=io`], /neither mode nor capture/],
    [['gen', ...A, '--cpus', '1000', '--count', '1'], /CPU 1000/, 1],
    [['gen', '--port', at('nobody'), '--count', '1'], /nobody: .*ENOENT/, 1],
    [['gen', '--port', `${at('a')},queues=9999`], /Queues: expected a whole number from 1 to 128/],
    [['gen', ...A, '--size', '42', '--count', '1'], /size 42: frames with a stamp over IPv4 have 58 to/, 1],
    [['gen', ...A, '--mode', 'txonly', '--replay', at('none.pcap')], /none\.pcap: ENOENT/, 1],
    [
      ['gen', ...A, '--mode', 'txonly', '--replay', cut],
      /cut\.pcap: the file ends within a header at byte 2[48]/,
      1,
    ],
  ];
  for (const [args, message, code = 2] of wrong)
    test(args.slice(1).join(' ').replaceAll(directory.path, '…') || 'no port', async () => {
      const run = await vireo(args);
      assert.match(run.stderr, message);
      assert.equal(run.code, code);
      assert.ok(!existsSync('x.pcap'));
    });
});
