/** `vireo mirror`, `add`, `set`, `del` and `show`: copies of ports' frames for another port, a VLAN or a file. */
import type { Command } from 'commander';
import type { MirrorChange, MirrorSpec, MirrorStatus } from '../switch/types.ts';
import { connect, lists, optionsOf, print, speaksToSwitch, withExamples } from './command.ts';
import { count, pairs, table } from './table.ts';

const FIELDS = `
A mirror has:
  to=PORT               the port that the copies go to: it gets nothing else, and nothing from it is taken
  to=vlan:N             or the ports that name VLAN N, with its tag (RSPAN)
  to=file:PATH          or a file in pcapng, written anew
  from=PORT+PORT|any    whose frames (default: any)
  vlans=10+20-30        only frames in these VLANs (default: all)
  direction=in|out|both frames from the ports, to them, or both (default)`;

/** Fields from `key=value` each; a key without a value goes back to its default. */
async function readFields(words: string[]): Promise<Record<string, unknown>> {
  const { parseFields } = await import('../switch/spec.ts');
  return parseFields(words, 'to=mon');
}

export function declareMirror(program: Command): void {
  const mirror = program
    .command('mirror')
    .description('list the mirrors (SPAN, RSPAN), or add, change, remove or show one');
  withExamples(
    mirror,
    'vireo mirror',
    'vireo mirror add span1 from=vm1+vm2 to=mon',
    'vireo mirror add rspan vlans=10 direction=in to=vlan:900',
    'vireo mirror del span1',
  );
  lists(mirror, 'the mirrors', speaksToSwitch, async (command) => {
    const options = optionsOf(command);
    const mirrors = await (await connect(options)).mirrors();
    print(options, mirrors, () =>
      table(
        [
          { title: 'MIRROR' },
          { title: 'FROM' },
          { title: 'VLANS' },
          { title: 'WAY' },
          { title: 'TO' },
          { title: 'COPIED', right: true },
          { title: 'LOST', right: true },
          { title: 'ERROR' },
        ],
        mirrors.map(({ name, from, vlans, direction, to, copied, lost, error }) => [
          name,
          from,
          vlans ?? '-',
          direction,
          to,
          count(copied),
          count(lost),
          error ?? '',
        ]),
      ),
    );
  });

  const add = speaksToSwitch(
    mirror
      .command('add')
      .description('copy frames from now on, while guests go on')
      .argument('<name>', "the mirror's name")
      .argument('<key=value...>', 'what to copy and where to, see below'),
  );
  add.addHelpText('after', FIELDS);
  withExamples(
    add,
    'vireo mirror add span1 from=vm1 to=mon',
    'vireo mirror add vlan10 vlans=10 to=file:/tmp/vlan10.pcapng',
    'vireo mirror add rspan from=vm1+vm2 to=vlan:900',
  );
  add.action(async (name: string, words: string[]) => {
    const options = optionsOf(add);
    const spec = { name, ...(await readFields(words)) } as MirrorSpec;
    const added = await (await connect(options)).addMirror(spec);
    print(options, added, () => `mirror ${added.name} added\n`);
  });

  const set = speaksToSwitch(
    mirror
      .command('set')
      .description('change a mirror, which misses no frame that it wants before and after')
      .argument('<name>', "the mirror's name")
      .argument('<key=value...>', 'what to set; a key without a value goes back to its default'),
  );
  set.addHelpText('after', FIELDS);
  withExamples(set, 'vireo mirror set span1 direction=in', 'vireo mirror set span1 from=vm1+vm2+vm3 vlans=');
  set.action(async (name: string, words: string[]) => {
    const options = optionsOf(set);
    const change = (await readFields(words)) as MirrorChange;
    const changed = await (await connect(options)).setMirror(name, change);
    print(options, changed, () => mirrorText(changed));
  });

  const del = speaksToSwitch(
    mirror.command('del').description('copy no more').argument('<name>', "the mirror's name"),
  );
  withExamples(del, 'vireo mirror del span1');
  del.action(async (name: string) => {
    const options = optionsOf(del);
    await (await connect(options)).removeMirror(name);
    print(options, { removed: name }, () => `mirror ${name} removed\n`);
  });

  const show = speaksToSwitch(
    mirror.command('show').description('show a mirror').argument('<name>', "the mirror's name"),
  );
  withExamples(show, 'vireo mirror show span1', 'vireo mirror show span1 --json');
  show.action(async (name: string) => {
    const options = optionsOf(show);
    const found = await (await connect(options)).mirror(name);
    print(options, found, () => mirrorText(found));
  });
}

const mirrorText = (mirror: MirrorStatus): string =>
  pairs([
    ['mirror', mirror.name],
    ['from', mirror.from],
    ['VLANs', mirror.vlans ?? 'all'],
    ['direction', mirror.direction],
    ['to', mirror.to],
    ...(mirror.to.startsWith('file:')
      ? []
      : [['ports', mirror.ports.join(' ') || 'none'] as [string, string]]),
    ['copied', count(mirror.copied)],
    ['lost', count(mirror.lost)],
    ['error', mirror.error ?? 'none'],
  ]);
