/** The demonstration as a person starts it: what it shows, and that it leaves nothing behind. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { cpuSeconds, until } from '../peers/process.ts';

const MAIN = fileURLToPath(new URL('../../demo/main.js', import.meta.url));
const PATIENCE = 60_000;

/** The demonstration in a directory for temporary files of its own; `args` are its options. */
class Demo {
  output = '';
  errors = '';
  readonly directory = mkdtempSync(join(tmpdir(), 'demo-'));
  readonly child;
  readonly exited: Promise<number | null>;

  constructor(...args: string[]) {
    this.child = spawn(process.execPath, [MAIN, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, TMPDIR: this.directory },
    });
    this.child.stdout.setEncoding('utf8').on('data', (text: string) => {
      this.output += text;
    });
    this.child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.errors += text;
    });
    this.exited = new Promise((resolve) => this.child.on('close', resolve));
  }

  /** Every process that has this demonstration's directory in its environment: itself and its guests. */
  processes(): number[] {
    return readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .filter((pid) => {
        try {
          return readFileSync(`/proc/${pid}/environ`, 'utf8').includes(`TMPDIR=${this.directory}\0`);
        } catch {
          return false;
        }
      })
      .map(Number);
  }

  /** Waits until the table has its `count`-th line for a port that is up. */
  async lines(count: number): Promise<void> {
    await until('lines of the table', PATIENCE, () => {
      if (this.child.exitCode !== null) throw new Error(`the demonstration has ended: ${this.errors}`);
      return this.output.split('\n').filter((line) => line.includes('vm1 up')).length >= count;
    });
  }

  assertNothingLeft(): void {
    assert.deepEqual(readdirSync(this.directory), []);
    assert.deepEqual(this.processes(), []);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill('SIGKILL');
    await this.exited;
    await until('the end of the guests', PATIENCE, () => this.processes().length === 0);
    rmSync(this.directory, { recursive: true, force: true });
  }
}

describe('the demonstration', () => {
  it('exchanges frames in both directions and accounts for each of them', async () => {
    await using demo = new Demo('--seconds', '2', '--json', '--size', '256');
    assert.equal(await demo.exited, 0, demo.errors);
    const result = JSON.parse(demo.output);
    assert.ok(result.seconds >= 2);
    assert.equal(result.node, process.version);
    assert.equal(result.frameBytes, 256);
    assert.equal(result.workers.length, 1);
    assert.ok(result.workers[0].cpuPercent > 0);
    assert.deepEqual(
      result.ports.map((port: { name: string; state: string }) => [port.name, port.state]),
      [
        ['vm1', 'up'],
        ['vm2', 'up'],
      ],
    );
    const [one, two] = result.ports;
    for (const [from, to] of [
      [one, two],
      [two, one],
    ]) {
      assert.ok(from.rxPacketsPerSecond > 0 && from.rxBitsPerSecond > 0);
      assert.ok(from.rxPackets > 0);
      assert.equal(from.rxBytes, 256 * from.rxPackets);
      // The guest's own count and the switch's agree, and what did not arrive was dropped and counted.
      assert.equal(from.guest.txPackets, from.rxPackets);
      assert.equal(to.guest.rxPackets, to.txPackets);
      const lost = from.guest.txPackets - to.guest.rxPackets;
      assert.equal(lost, from.rxDrops + to.txDrops);
      assert.ok(to.guest.gaps <= lost, `${to.guest.gaps} gaps, ${lost} frames lost`);
    }
    demo.assertNothingLeft();
  });

  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    it(`shows a line a second until ${signal}, then leaves nothing behind`, async () => {
      await using demo = new Demo();
      await demo.lines(2);
      assert.equal(demo.processes().length, 3);
      demo.child.kill(signal);
      assert.equal(await demo.exited, 0, demo.errors);
      assert.match(demo.output, /vm1 up: from guest [\d.]+ [kMG]?pps .*vm2 up: .*worker 0: \d+ % of a CPU/);
      assert.equal(demo.errors, '');
      demo.assertNothingLeft();
    });
  }

  it('tells what was measured when it is interrupted with --json', async () => {
    await using demo = new Demo('--json');
    const guests = () => demo.processes().filter((pid) => pid !== demo.child.pid);
    // A process of Node that does nothing is started with less.
    const work = () => guests().length === 2 && guests().every((pid) => cpuSeconds(pid) > 1);
    await until('traffic', PATIENCE, work);
    demo.child.kill('SIGINT');
    demo.child.kill('SIGINT');
    assert.equal(await demo.exited, 0, demo.errors);
    for (const port of JSON.parse(demo.output).ports) assert.ok(port.rxPackets > 0 && port.txPackets > 0);
    demo.assertNothingLeft();
  });

  it('takes its guests along when it is killed', async () => {
    await using demo = new Demo();
    await demo.lines(1);
    assert.equal(demo.processes().length, 3);
    demo.child.kill('SIGKILL');
    await until('the end of the guests', PATIENCE, () => demo.processes().length === 0);
  });

  it('fails when a guest is killed, and takes the other one along', async () => {
    await using demo = new Demo();
    await demo.lines(1);
    const guest = demo.processes().find((pid) => pid !== demo.child.pid);
    process.kill(guest!, 'SIGKILL');
    assert.equal(await demo.exited, 1);
    assert.match(demo.errors, /the guest program on vm[12] has ended/);
    demo.assertNothingLeft();
  });

  for (const [args, message] of [
    [['--seconds', 'x'], /--seconds wants a number above 0, not "x"/],
    [['--size', '63'], /--size wants a whole number from 64 to 1518, not "63"/],
    [['--colour'], /'--colour'/],
  ] as const) {
    it(`refuses ${args.join(' ')}`, async () => {
      await using demo = new Demo(...args);
      assert.equal(await demo.exited, 2);
      assert.match(demo.errors, message);
      demo.assertNothingLeft();
    });
  }
});
