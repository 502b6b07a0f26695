/** `vireo apply` and `vireo config show`, as a person uses them. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratch } from '../peers/process.ts';
import { Up, vireo } from './support.ts';

test('a switch is shown as a file, and brought to another one', async () => {
  const { path, remove } = scratch('apply');
  const at = (name: string) => join(path, name);
  try {
    await using up = await Up.start(
      at('control'),
      ...['a', 'b'].flatMap((name) => ['--port', `${name}=vhost-user:${at(name)},role=client`]),
    );
    writeFileSync(at('now.yaml'), await up.run('config', 'show'));
    assert.equal(await up.run('apply', at('now.yaml')), 'nothing to do, 2 ports as before\n');

    const wanted = ['ageing: 60', 'ports:', `  - b=vhost-user:${at('b')}`, `  - c=vhost-user:${at('c')}`];
    writeFileSync(at('next.yaml'), wanted.join('\n'));
    assert.equal(
      await up.run('apply', at('next.yaml')),
      'port a removed\nport b changed\nport c added\nageing changed\n0 ports as before\n',
    );
    const config = await up.json('config', 'show');
    assert.equal(config.ageing, 60);
    assert.deepEqual(
      config.ports.map(({ name }: { name: string }) => name),
      ['b', 'c'],
    );

    // A mirror: added, changed in place by hand, and by a file.
    assert.equal(await up.run('mirror', 'add', 'span', 'from=b', 'to=c'), 'mirror span added\n');
    assert.match(
      await up.run('mirror', 'set', 'span', 'direction=in', 'from=b'),
      /^mirror +span\nfrom +b\nVLANs +all\ndirection +in\nto +c\n/,
    );
    assert.match(await up.run('mirror', 'set', 'span', 'direction='), /direction +both\n/);
    const none = await vireo(['mirror', 'set', 'span', 'to=', '--control', at('control')]);
    assert.match(none.stderr, /^vireo: to: expected a port, a VLAN .*, found nothing/);
    const mirrors = ['mirrors:', '  - { name: span, from: b, vlans: 10, to: c }'];
    writeFileSync(at('mirror.yaml'), [...wanted, ...mirrors].join('\n'));
    assert.equal(await up.run('apply', at('mirror.yaml')), 'mirror span changed\n2 ports as before\n');
    writeFileSync(at('mirror.yaml'), [...wanted, 'mirrors: []'].join('\n'));
    assert.equal(await up.run('apply', at('mirror.yaml')), 'mirror span removed\n2 ports as before\n');

    // A port that can't be made: told, and a failure.
    writeFileSync(at('file'), '');
    writeFileSync(at('bad.yaml'), `ports: ["c=vhost-user:${at('c')}", "d=vhost-user:${at('file')}"]`);
    const failed = await vireo(['apply', at('bad.yaml'), '--control', at('control'), '--json']);
    assert.equal(failed.code, 1);
    const applied = JSON.parse(failed.stdout);
    assert.deepEqual(applied.removed, ['b']);
    assert.equal(applied.failed[0].port, 'd');

    // A file with faults: nothing is done, and each is told with its place.
    writeFileSync(at('faulty.yaml'), 'ports:\n  - name: x\n    typ: vhost-user\n');
    const faulty = await vireo(['apply', at('faulty.yaml'), '--control', at('control')]);
    assert.notEqual(faulty.code, 0);
    assert.match(faulty.stderr, /faulty\.yaml:3:5: ports\[0\]\.typ: unknown key/);
    const restart = await vireo(['apply', at('workers.yaml'), '--control', at('control')]);
    assert.match(restart.stderr, /workers\.yaml: can't be read: no such file/);
    writeFileSync(at('workers.yaml'), 'workers: 2\n');
    const fixed = await vireo(['apply', at('workers.yaml'), '--control', at('control')]);
    assert.match(fixed.stderr, /^vireo: workers: expected 1, which a running switch can't change, found 2/);
  } finally {
    remove();
  }
});
