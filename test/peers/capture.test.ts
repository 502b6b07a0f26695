/** A live capture of two Linux guests, dissected by tshark as it comes: nothing malformed, checksums right, drops named. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { skipWithout } from './available.ts';
import { Child, until } from './process.ts';
import { LinuxGuest, tcpTransfer } from './qemu.ts';
import { program, Vireo } from './vireo.ts';

const FIELDS = [
  'frame.interface_name', 'frame.protocols', '_ws.malformed', 'ip.checksum.status',
  'tcp.checksum.status', 'udp.checksum.status', 'icmp.checksum.status', 'icmpv6.checksum.status', 'frame.len',
  'frame.comment',
] as const; // biome-ignore format: a table
type Row = Record<(typeof FIELDS)[number], string>;
/** ip.checksum.status and the like. */
const BAD = '0';

/** `vireo capture … -w - | tshark -i -` */
class Live {
  readonly #capture: ChildProcess;
  readonly #tshark: Child;
  #said = '';

  constructor(vireo: Vireo, ...words: string[]) {
    const control = vireo.control.path;
    this.#capture = spawn(process.execPath, [program, 'capture', ...words, '-w', '-', '--control', control], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#capture.stderr!.on('data', (text) => {
      this.#said += text;
    });
    const check = ['ip', 'tcp', 'udp'].flatMap((name) => ['-o', `${name}.check_checksum:TRUE`]);
    const fields = FIELDS.flatMap((field) => ['-e', field]);
    // Random bytes on a port that some protocol has would be taken for that.
    const plain = ['-d', 'tcp.port==5000,data'];
    this.#tshark = new Child('tshark', [
      '-l',
      '-n',
      '-i',
      '-',
      ...check,
      ...plain,
      '-T',
      'fields',
      ...fields,
    ]);
    this.#capture.stdout!.pipe(this.#tshark.process.stdin!);
  }

  /** Ends the capture as Ctrl-C does: what tshark made of each frame, and what the capture said. */
  async end(): Promise<{ rows: Row[]; said: string }> {
    const left = once(this.#capture, 'close');
    this.#capture.kill('SIGINT');
    const [code] = await left;
    assert.equal(code, 0, this.#said);
    await this.#tshark.exited;
    return { rows: this.rows, said: this.#said };
  }

  get rows(): Row[] {
    return this.#tshark.output
      .split('\n')
      .filter((line) => line.split('\t').length === FIELDS.length)
      .map((line) => Object.fromEntries(line.split('\t').map((value, i) => [FIELDS[i], value])) as Row);
  }

  async seen(what: string, is: (row: Row) => boolean): Promise<void> {
    await until(`tshark to see ${what}`, 60_000, () => this.rows.some(is));
  }
}

describe('a live capture of two Linux guests', { skip: skipWithout('qemu', 'guestKernel', 'tshark') }, () => {
  let vireo: Vireo;
  let guests: LinuxGuest[] = [];

  before(async () => {
    vireo = await Vireo.start({ ports: ['a', 'b', 'c'] });
    guests = await Promise.all(
      ['a', 'b'].map((name, i) =>
        LinuxGuest.start({ path: join(vireo.directory, name), mac: `52:54:00:00:00:0${i + 1}` }),
      ),
    );
    await Promise.all(guests.map((guest, i) => guest.configure(`10.0.0.${i + 1}/24`)));
    await until(
      'first ping',
      60_000,
      async () => (await guests[0]!.run('ping -c 1 -W 2 10.0.0.2')).status === 0,
    );
  });
  after(async () => {
    await Promise.all(guests.map((guest) => guest.close()));
    await vireo?.close();
  });

  test('tshark finds no malformed frame and no wrong checksum, large segments and all', async () => {
    const live = new Live(vireo, 'any');
    await until('the capture runs', 60_000, async () => {
      await guests[0]!.run('ping -c 1 -W 2 10.0.0.2');
      return live.rows.some((row) => row['frame.protocols'].includes('icmp'));
    });
    const { sent, received } = await tcpTransfer(guests[0]!, { guest: guests[1]!, address: '10.0.0.2' }, 2);
    assert.equal(received, sent);
    await live.seen(
      'the transfer',
      (row) => row['frame.interface_name'] === 'b' && Number(row['frame.len']) > 1514,
    );
    const { rows, said } = await live.end();
    assert.match(said, /[1-9][\d,]* frames captured, 0 lost by the capture/);
    assert.ok(rows.length > 100, `${rows.length} frames`);
    for (const row of rows) {
      assert.equal(row['_ws.malformed'], '', JSON.stringify(row));
      for (const field of FIELDS.filter((name) => name.endsWith('.status')))
        assert.ok(!row[field].split(',').includes(BAD), JSON.stringify(row));
    }
    assert.ok(rows.some((row) => row['tcp.checksum.status'] === '1'));
    assert.deepEqual([...new Set(rows.map((row) => row['frame.interface_name']))].sort(), ['a', 'b']);
  });

  test('one port, filtered, and what a rule turns away with its reason', async () => {
    const live = new Live(vireo, 'a', '--filter', 'icmp[icmptype] = icmp-echo');
    for (const name of ['a', 'b']) await vireo.control.setPort(name, { isolated: true });
    await until('the capture runs', 60_000, async () => {
      await guests[0]!.run('ping -c 1 -W 1 10.0.0.2');
      return live.rows.some((row) => row['frame.comment'] !== '');
    });
    for (const name of ['a', 'b']) await vireo.control.setPort(name, { isolated: null });
    const { rows } = await live.end();
    for (const row of rows) {
      assert.equal(row['frame.interface_name'], 'a');
      assert.match(row['frame.protocols'], /^eth:ethertype:ip:icmp/);
      assert.match(row['frame.comment'], /^(dropped: isolated)?$/);
    }
  });
});
