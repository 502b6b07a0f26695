/** README and docs: links that lead somewhere, and tables that say what the code does. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Command } from 'commander';
import { featureWords, offeredFeatures } from '../../src/ports/features.ts';
import { switchOptionsSchema } from '../../src/switch/spec.ts';
import { Switch } from '../../src/switch/switch.ts';
import { closeFd, eventfd, type PollerLease, sharedPoller } from '../../src/sys/index.ts';
import { FLAG_REPLY, requestRule, requests } from '../../src/vhost/messages.ts';
import { vhostProtocolFeatureNames } from '../../src/virtio/features.ts';
import { root } from '../peers/available.ts';
import { RecordingDevice, serve } from '../vhost/harness.ts';

const pages = ['README.md', 'CHANGELOG.md', ...readdirSync(join(root, 'docs')).map((name) => `docs/${name}`)]
  .filter((name) => name.endsWith('.md'))
  .map((name) => ({ name, text: readFileSync(join(root, name), 'utf8') }));

/** What a page says apart from its code. */
const prose = (text: string) => text.replace(/^```.*?^```$/gms, '').replace(/`[^`\n]*`/g, '');

/** The anchors of a page's headings, as GitHub makes them. */
const anchors = (text: string) =>
  [...text.replace(/^```.*?^```$/gms, '').matchAll(/^#+ (.*)$/gm)].map(([, title = '']) =>
    title
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  );

describe('README and docs', () => {
  for (const { name, text } of pages) {
    it(`${name}: every link within the project leads somewhere`, () => {
      for (const [, link = ''] of prose(text).matchAll(/\]\(([^)\s]+)\)/g)) {
        if (/^[a-z]+:/.test(link)) continue;
        const [path = '', anchor] = link.split('#');
        const file = path === '' ? join(root, name) : resolve(root, dirname(name), path);
        assert.ok(existsSync(file), `${link}: there is no ${file}`);
        if (anchor === undefined) continue;
        assert.ok(
          anchors(readFileSync(file, 'utf8')).includes(anchor),
          `${link}: no heading of that name there`,
        );
      }
    });
  }
});

describe('docs/cli.md and docs/gen.md', () => {
  const text = pages.flatMap(({ name, text }) => (/(cli|gen)\.md$/.test(name) ? [text] : [])).join();
  const program = new Command();
  before(async () => {
    const folder = join(root, 'dist/src/cli');
    for (const file of readdirSync(folder).filter((name) => name.endsWith('.js') && name !== 'main.js')) {
      const exported: Record<string, unknown> = await import(join(folder, file));
      for (const [name, declare] of Object.entries(exported))
        if (name.startsWith('declare')) (declare as (program: Command) => void)(program);
    }
  });

  it('have each command and each option', () => {
    const missing: string[] = [];
    const look = (command: Command, words: string) => {
      // A heading may have several: "vireo port add, port del".
      if (!new RegExp(`(?:vireo |, )${words}\\b`).test(text)) missing.push(words);
      for (const { long } of command.options)
        if (long && !text.includes(long)) missing.push(`${words} ${long}`);
      for (const sub of command.commands) look(sub, `${words} ${sub.name()}`);
    };
    assert.ok(program.commands.length >= 10);
    for (const command of program.commands) look(command, command.name());
    assert.deepEqual(missing, []);
  });
});

describe('docs/library.md', () => {
  const text = readFileSync(join(root, 'docs/library.md'), 'utf8');

  it('has each function of a switch', () => {
    // Called by createSwitch, and by the control socket.
    const inner = ['constructor', 'start', 'stopCapture'];
    const names = Object.entries(Object.getOwnPropertyDescriptors(Switch.prototype))
      .filter(([name, { value }]) => typeof value === 'function' && !inner.includes(name))
      .map(([name]) => name);
    assert.ok(names.length > 20);
    assert.deepEqual(
      names.filter((name) => !text.includes(`\`${name}(`)),
      [],
    );
  });

  it('has each option of a switch, and each code of an error', () => {
    const options = Object.keys(switchOptionsSchema.shape);
    const source = readFileSync(join(root, 'src/switch/errors.ts'), 'utf8');
    const codes = [...source.matchAll(/^ {2}\| '([A-Z_]+)'/gm)].map(([, code = '']) => code);
    assert.ok(options.length > 10 && codes.length > 10);
    assert.deepEqual(
      [...options, ...codes].filter((name) => !text.includes(`\`${name}\``)),
      [],
    );
  });
});

describe('docs/vhost-user.md, the tables of features', () => {
  const text = readFileSync(join(root, 'docs/vhost-user.md'), 'utf8');
  const section = text.slice(text.indexOf('\n## Features'), text.indexOf('\n## Queues'));
  const rows = [...section.matchAll(/^\| (VIRTIO|VHOST|[A-Z]+(?:_[A-Z]+)* +\|).*$/gm)].map(([row]) => row);

  it('has rows', () => assert.ok(rows.length > 30, `${rows.length} rows`));

  for (const row of rows) {
    const name = row.slice(2, row.indexOf('|', 2)).trim();
    if (name === 'VHOST_USER_PROTOCOL_F_') continue;
    it(`${name}: a test is named`, () => {
      assert.match(row, /\]\(\.\.\/test\/[^|]*\|$/);
    });
  }

  it('names every protocol feature that can be offered', () => {
    const offered = offeredFeatures({ features: featureWords.map((word) => `+${word}`).join() });
    const missing = vhostProtocolFeatureNames(offered.protocolFeatures).filter(
      (name) => !rows.some((row) => row.startsWith(`| ${name.replace('VHOST_USER_PROTOCOL_F_', '')} `)),
    );
    assert.deepEqual(missing, []);
  });
});

describe('docs/vhost-user.md, the table of messages', () => {
  const text = readFileSync(join(root, 'docs/vhost-user.md'), 'utf8');
  const rows = [...text.matchAll(/^\| +(\d+) \| (\w+) +\| (\w[^|]*\w) +\|.*\]\((.*)\) *\|$/gm)].map(
    ([, number, name, status, file]) => ({
      number: Number(number),
      name: name!,
      status: status!,
      file: file!,
    }),
  );
  let lease: PollerLease;
  before(() => {
    lease = sharedPoller();
  });
  after(() => lease.release());

  it('has every message of the protocol', () => {
    assert.deepEqual(
      rows.map(({ name, number }) => [name, number]),
      Object.entries(requests),
    );
  });

  /** Sends the message in its smallest form to a back-end: the error, if there is one, and whether it goes on. */
  async function send(number: number): Promise<{ error: string; goesOn: boolean }> {
    const device = new RecordingDevice();
    Object.assign(device, offeredFeatures({ features: featureWords.map((word) => `+${word}`).join() }));
    const { session, errors, end } = serve(lease.poller, device);
    const { size, descriptors } = requestRule(number)!;
    const bytes = typeof size === 'number' ? size : size[0];
    const count = descriptors === 'regions' || descriptors === 'vring' ? 1 : descriptors;
    const fds = Array.from({ length: typeof count === 'number' ? count : count[0] }, () => eventfd());
    const payload = new Uint8Array(bytes);
    // One region, for the memory table; nobody else minds.
    if (descriptors === 'regions') payload[0] = 1;
    end.message(number, payload, { fds });
    // Whoever goes on answers the next one.
    end.message(requests.GET_FEATURES);
    let answer = await end.next();
    if (answer?.request === number && number !== requests.GET_FEATURES) answer = await end.next();
    const goesOn = answer?.request === requests.GET_FEATURES && answer.flags === (FLAG_REPLY | 1);
    for (const fd of fds) closeFd(fd);
    end.close();
    await session.closed;
    return { error: errors[0] ?? '', goesOn };
  }

  for (const { name, status, file } of rows) {
    it(`${name}: the test named is there, and about it`, () => {
      // Refusals are proved below, one and all.
      const text = readFileSync(resolve(root, 'docs', file), 'utf8');
      assert.ok(status !== 'done' || new RegExp(`\\b${name}\\b`).test(text), `${file} never says ${name}`);
    });
  }

  for (const { number, name, status } of rows) {
    it(`${name}: ${status}`, async () => {
      const { error, goesOn } = await send(number);
      const refusal = /not offered by this back-end|was not negotiated/;
      if (status === 'done') assert.doesNotMatch(error, refusal);
      else {
        assert.match(error, refusal);
        assert.equal(goesOn, status === 'refused, goes on');
      }
    });
  }
});
