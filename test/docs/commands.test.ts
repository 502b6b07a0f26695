/** What the pages and the helps of commands show is taken: each command line, each port in one line, each YAML file. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, it } from 'node:test';
import { Command } from 'commander';
import { parse } from 'yaml';
import { checkBridgeSpec, checkSwitchOptions, parseFields, parsePortSpec } from '../../src/switch/spec.ts';
import { root } from '../peers/available.ts';

/** The words of one command of a shell's line, without what it is piped or redirected to; quotes are taken off. */
function wordsOf(line: string): string[] {
  const words: string[] = [];
  for (const [part] of line.matchAll(/#.*$|[|>;&)]+|(?:'[^']*'|"[^"]*"|[^\s'"|>;&)])+/g)) {
    if (/^[#|>;&)]/.test(part)) break;
    words.push(part.replace(/'([^']*)'|"([^"]*)"/g, '$1$2'));
  }
  return words;
}

/** Each command line of vireo in a text: behind a prompt, after sudo, in $(…), behind `&&`. */
function commandLines(text: string): string[] {
  return text
    .replaceAll('\\\n', ' ')
    .split('\n')
    .flatMap((line) =>
      [...line.matchAll(/(?:^|[$(|&] ?|npx |exec )vireo (?=[a-z-])/g)]
        .map(({ index, 0: found }) => line.slice(index + found.length))
        // "…" and "$@" stand for what the reader has.
        .filter((words) => !/…|\$@/.test(words)),
    );
}

const pages = ['README.md', ...readdirSync(join(root, 'docs')).map((name) => `docs/${name}`)]
  .filter((name) => name.endsWith('.md'))
  .map((name) => {
    const text = readFileSync(join(root, name), 'utf8');
    const blocks = [...text.matchAll(/^```(\w*)\n(.*?)^```$/gms)].map(([, kind = '', block = '']) => ({
      kind,
      block,
    }));
    return { name, blocks };
  });

/** Lines that show what a mistake is answered with. */
const MISTAKES = ['capture any tcp prot 80', 'up bad.yaml'];

/** The commands, which do nothing when they are called but tell with what. */
async function commands(): Promise<{ program: Command; called: (words: string[]) => Command }> {
  const program = new Command('vireo').enablePositionalOptions();
  const folder = join(root, 'dist/src/cli');
  for (const file of readdirSync(folder).filter((name) => name.endsWith('.js') && name !== 'main.js')) {
    const exported: Record<string, unknown> = await import(join(folder, file));
    for (const [name, declare] of Object.entries(exported))
      if (name.startsWith('declare')) (declare as (program: Command) => void)(program);
  }
  let last: Command | undefined;
  const quiet = (command: Command) => {
    command.exitOverride().configureOutput({ writeErr: () => {} });
    if (command.commands.length === 0 || command.options.length > 0)
      command.action(() => {
        last = command;
      });
    command.commands.forEach(quiet);
  };
  quiet(program);
  const called = (words: string[]) => {
    last = undefined;
    program.parse(words, { from: 'user' });
    assert.ok(last, 'no command was called');
    return last;
  };
  return { program, called };
}

describe('command lines', () => {
  let program: Command;
  let called: (words: string[]) => Command;
  before(async () => {
    ({ program, called } = await commands());
  });

  /** Checks the words, and what ports, bridges and fields are among them. */
  function check(line: string): void {
    const words = wordsOf(line);
    const command = called(words);
    const parent = command.parent === program ? '' : `${command.parent!.name()} `;
    const what = `${parent}${command.name()}`;
    const [first = '', ...rest] = command.args;
    if (what === 'port add') parsePortSpec(first);
    if (what === 'up') for (const spec of command.opts<{ port?: string[] }>().port ?? []) parsePortSpec(spec);
    if (what === 'port set') {
      const set = Object.entries(parseFields(rest, '')).filter(([, value]) => value !== null);
      checkSwitchOptions({ ports: [{ name: first, type: 'null', target: '', ...Object.fromEntries(set) }] });
    }
    if (what === 'bridge add' || what === 'bridge set')
      checkBridgeSpec({ name: first, ...parseFields(rest, '') });
    if (what === 'mirror add') checkSwitchOptions({ mirrors: [{ name: first, ...parseFields(rest, '') }] });
    // A word behind a command that lists is a subcommand that there isn't.
    if (command.commands.length > 0) assert.deepEqual(command.args, [], 'a subcommand');
  }

  for (const { name, blocks } of pages) {
    const lines = blocks
      .flatMap(({ block }) => commandLines(block))
      .filter((line) => !MISTAKES.includes(line));
    if (lines.length === 0) continue;
    it(`${name}: ${lines.length}`, () => {
      for (const line of lines) assert.doesNotThrow(() => check(line), `vireo ${line}`);
    });
  }

  it('in the help of each command, which has some', () => {
    const look = (command: Command) => {
      let text = '';
      command.configureOutput({ writeOut: (part) => (text += part) }).outputHelp();
      const lines = commandLines(text.slice(text.indexOf('\nExamples:')).replaceAll(/^ *\$/gm, '$'));
      if (command !== program) assert.ok(lines.length > 0, command.name());
      for (const line of lines) assert.doesNotThrow(() => check(line), `vireo ${line}`);
      command.commands.forEach(look);
    };
    look(program);
  });
});

describe('YAML files', () => {
  for (const { name, blocks } of pages) {
    const files = blocks.filter(({ kind }) => kind === 'yaml');
    if (files.length > 0)
      it(`${name}: ${files.length}`, () => {
        for (const { block } of files) assert.doesNotThrow(() => checkSwitchOptions(parse(block)), block);
      });
  }
});
