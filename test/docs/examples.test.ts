/** The examples of docs/library.md and docs/virtio-user.md, run as they stand there, beside DPDK where it is there. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { createSwitch, type Switch } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { root, skipWithout } from '../peers/available.ts';
import { Testpmd, virtioUser } from '../peers/dpdk.ts';
import { Child, scratch, until } from '../peers/process.ts';

const PATIENCE = 30_000;
const MACS = [
  [0x52, 0x54, 0, 0, 0, 1],
  [0x52, 0x54, 0, 0, 0, 2],
] as const;

function frame(to: readonly number[], from: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(100);
  bytes.set([...to, ...from, 0x88, 0xb5]);
  return bytes;
}

describe('docs/examples', () => {
  it('stand in docs/library.md or docs/virtio-user.md, word for word', () => {
    const pages = ['library', 'virtio-user'].map((page) =>
      readFileSync(join(root, `docs/${page}.md`), 'utf8'),
    );
    for (const file of readdirSync(join(root, 'docs/examples'))) {
      const example = readFileSync(join(root, 'docs/examples', file), 'utf8');
      assert.ok(
        pages.some((text) => text.includes(`\`\`\`ts\n${example}\`\`\``)),
        `no page shows ${file} as it is`,
      );
    }
  });

  it('two-ports.ts switches frames between two guests and tells what happened', async () => {
    const { path, remove } = scratch('examples');
    const child = new Child(process.execPath, [join(root, 'dist/docs/examples/two-ports.js'), path]);
    try {
      const saw = (text: string) =>
        child.waitFor(text, PATIENCE, () => (child.output.includes(text) ? true : undefined));
      await saw('plug guests into');
      const one = await VirtioUser.open({ path: join(path, 'vm1.sock') });
      await using two = await VirtioUser.open({ path: join(path, 'vm2.sock') });
      await saw('vm1: a guest runs');
      await saw('vm2: a guest runs');

      const there = frame(MACS[1], MACS[0]);
      const back = frame(MACS[0], MACS[1]);
      assert.ok(one.send(there));
      assert.ok(await two.wait(PATIENCE));
      assert.deepEqual(two.receive(), there);
      assert.ok(two.send(back));
      assert.ok(await one.wait(PATIENCE));
      assert.deepEqual(one.receive(), back);

      await one.close();
      assert.equal(await child.exited, 0, child.output);
      const lines = child.output.split('\n');
      assert.ok(lines.some((line) => line.startsWith('vm1: its guest is gone: ')));
      assert.ok(lines.includes('vm1: 1 packets from the guest, 1 to it, 0 dropped'));
      assert.ok(lines.includes('vm2: 1 packets from the guest, 1 to it, 0 dropped'));
      assert.ok(lines.includes('52:54:00:00:00:01 is behind vm1'));
      assert.ok(lines.includes('52:54:00:00:00:02 is behind vm2'));
      assert.deepEqual(readdirSync(path), []);
    } finally {
      await child.end('SIGKILL');
      remove();
    }
  });

  it('arp-responder.ts answers for its address, and for no other', async () => {
    await using stage = await Stage.start('arp-responder', '192.0.2.7');
    const [, mac = ''] = await stage.saw(/192\.0\.2\.7 is at (.*)\n/);
    await using asker = await VirtioUser.open({ path: stage.socket('vm2'), mac: '02:00:00:00:00:09' });
    const request = (last: number) =>
      Buffer.from(
        `ffffffffffff02000000000908060001080006040001020000000009c0000209000000000000c000020${last}`,
        'hex',
      );
    let reply: Buffer | undefined;
    while (!reply) {
      asker.sendBurst([request(8), request(7)]);
      if (await asker.wait(1000)) reply = Buffer.from(asker.receive()!);
    }
    const octets = mac.replaceAll(':', '');
    assert.equal(
      reply.toString('hex'),
      `020000000009${octets}08060001080006040002${octets}c0000207020000000009c0000209`,
    );
    await stage.end();
  });

  it('echo-server.ts sends back what DPDK sends, on two queues', { skip: skipWithout('dpdk') }, async () => {
    await using stage = await Stage.start('echo-server', '2');
    const [, mac = ''] = await stage.saw(/echo at (.*)\n/);
    await using guest = await stage.dpdk([
      '--forward-mode=mac',
      `--eth-peer=0,${mac}`,
      '--port-topology=loop',
    ]);
    await guest.waitForLinks();
    // The burst goes round for as long as both send back what comes.
    await guest.command('start tx_first');
    await until('many rounds', PATIENCE, async () => ((await guest.stats())[0]?.rxPackets ?? 0) > 500);
    await guest.command('stop');
    await stage.end();
    const [, came, back] = await stage.saw(/(\d+) frames came, (\d+) went back/);
    assert.ok(Number(came) > 500 && Number(back) > 500, stage.output);
  });

  it('sniffer.ts tells of every frame that DPDK sends', { skip: skipWithout('dpdk') }, async () => {
    await using stage = await Stage.start('sniffer', '64');
    await stage.saw(/listening as /);
    await using guest = await stage.dpdk([
      '--forward-mode=txonly',
      '--eth-peer=0,ff:ff:ff:ff:ff:ff',
      '--txpkts=100',
    ]);
    await guest.waitForLinks();
    await guest.command('start');
    await stage.saw(/rx_q0_broadcast_packets: \d+/);
    assert.equal(await stage.exited, 0, stage.output);
    const lines = stage.output
      .split('\n')
      .filter((line) => line === `${DPDK_MAC} > ff:ff:ff:ff:ff:ff, type 0x0800, 100 bytes`);
    assert.ok(lines.length >= 64, `${lines.length} lines`);
    assert.match(stage.output, /rx_q0_size_65_127_packets: \d+/);
  });
});

const DPDK_MAC = '02:00:00:00:00:dd';

/** A switch with two ports, and an example as the guest of the first. */
class Stage {
  readonly #directory: ReturnType<typeof scratch>;
  readonly #vswitch: Switch;
  readonly #child: Child;

  private constructor(directory: ReturnType<typeof scratch>, vswitch: Switch, child: Child) {
    this.#directory = directory;
    this.#vswitch = vswitch;
    this.#child = child;
  }

  static async start(example: string, ...args: string[]): Promise<Stage> {
    const directory = scratch('examples');
    const ports = ['vm1', 'vm2'].map((name) => ({
      name,
      type: 'vhost-user' as const,
      target: join(directory.path, `${name}.sock`),
    }));
    const vswitch = await createSwitch({ ports });
    const program = join(root, `dist/docs/examples/${example}.js`);
    return new Stage(directory, vswitch, new Child(process.execPath, [program, ports[0]!.target, ...args]));
  }

  socket(port: string): string {
    return join(this.#directory.path, `${port}.sock`);
  }

  /** DPDK's driver as the guest of the other port. */
  dpdk(args: string[]): Promise<Testpmd> {
    return Testpmd.start({ vdevs: [virtioUser(0, { path: this.socket('vm2'), mac: DPDK_MAC })], args });
  }

  get output(): string {
    return this.#child.output;
  }

  get exited(): Promise<number | null> {
    return this.#child.exited;
  }

  /** Waits until the example has said something like it. */
  saw(words: RegExp): Promise<RegExpExecArray> {
    return this.#child.waitFor(String(words), PATIENCE, () => words.exec(this.output) ?? undefined);
  }

  /** Asks the example to end, as it should. */
  async end(): Promise<void> {
    this.#child.process.kill('SIGTERM');
    assert.equal(await this.#child.exited, 0, this.output);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#child.end('SIGKILL');
    await this.#vswitch.close();
    this.#directory.remove();
  }
}
