/** `vireo capture`, as a person uses it: lines, JSON, a file, and what it refuses. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { BlockReader } from '../../src/capture/pcapng.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { scratch } from '../peers/process.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { until } from '../support/until.ts';
import { Up, vireo } from './support.ts';

test('frames are shown a line each, as JSON, and written to a file', async () => {
  const { path, remove } = scratch('capture');
  const at = (name: string) => join(path, name);
  try {
    await using up = await Up.start(
      at('control'),
      ...['a', 'b'].flatMap((name) => ['--port', `${name}=vhost-user:${at(name)}`]),
    );
    await using guest = await VirtioUser.open({ path: at('a') });
    const control = ['--control', at('control')];
    /** Sends until the capture has ended. */
    const during = async (...words: string[]) => {
      let ended = false;
      const run = vireo(['capture', 'a', ...words, '--count', '3', ...control]).finally(() => {
        ended = true;
      });
      await until(() => {
        guest.send(frame(BROADCAST, mac(1), 60));
        return ended;
      }, 'the capture ends');
      return run;
    };

    const lines = await during();
    const line =
      /^\d\d:\d\d:\d\d\.\d{9} a In {2}02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff: ethertype 0x88b5, length 60$/;
    assert.equal(lines.code, 0);
    assert.equal(lines.stdout.trimEnd().split('\n').length, 3);
    for (const text of lines.stdout.trimEnd().split('\n')) assert.match(text, line);
    assert.match(lines.stderr, /^3 frames captured, \d+ lost by the capture\n$/);

    const json = await during('--json', 'broadcast', 'and', 'greater 60', '--snaplen', '20');
    for (const text of json.stdout.trimEnd().split('\n')) {
      const { port, direction, length, captured } = JSON.parse(text);
      assert.deepEqual(
        { port, direction, length, captured },
        { port: 'a', direction: 'in', length: 60, captured: 20 },
      );
    }

    assert.equal((await during('-w', at('file.pcapng'))).stdout, '');
    const said = [...new BlockReader().read(readFileSync(at('file.pcapng')))];
    assert.deepEqual(
      said.map(({ kind }) => kind),
      ['interface', 'packet', 'packet', 'packet', 'statistics'],
    );

    const refused = async (words: string[], code: number, pattern: RegExp) => {
      const run = await vireo(['capture', ...words, ...control]);
      assert.match(run.stderr, pattern);
      assert.equal(run.code, code);
    };
    await refused(['x'], 1, /^vireo: no port is named "x"; there are: a, b\n$/);
    await refused(
      ['any', '--filter', 'tcp prot 80'],
      2,
      /^vireo: filter: expected "and" or "or", found "prot", at column 5\n$/,
    );
    await refused(['any', '-w', at('none/file')], 1, /none\/file/);
    await refused(['any', '--count', '0'], 2, /Expected a whole number/);
    assert.equal((await vireo(['capture', 'a', '--seconds', '1', '--filter', 'arp', ...control])).code, 0);
    assert.deepEqual((await up.client.port('a')).rules, {});
  } finally {
    remove();
  }
});
