/** `vireo apply`: brings a running switch to what a file says, by what differs. */
import type { Command } from 'commander';
import type { Applied } from '../switch/types.ts';
import { connect, optionsOf, print, speaksToSwitch, withExamples } from './command.ts';
import { readFileOptions } from './config-file.ts';

export function declareApply(program: Command): void {
  const command = speaksToSwitch(
    program
      .command('apply')
      .argument('<file>', 'a YAML file as for `vireo up`')
      .description(
        'change a running switch to what the file says: only what differs is touched, and ports that the ' +
          "file doesn't have are removed; what it has no word of (ports as a whole, a setting) stays",
      ),
  );
  withExamples(command, 'vireo apply vireo.yaml', 'vireo config show > vireo.yaml');
  command.action(async (file: string) => {
    const options = optionsOf(command);
    const wanted = await readFileOptions(file);
    const applied = await (await connect(options)).apply(wanted);
    print(options, applied, () => appliedText(applied));
    if (applied.failed.length + applied.mirrors.failed.length > 0) process.exitCode = 1;
  });
}

function appliedText({
  added,
  removed,
  changed,
  unchanged,
  bridges,
  fdb,
  groups,
  mirrors,
  settings,
  failed,
}: Applied): string {
  const lines = [
    ...bridges.added.map((name) => `bridge ${name} added`),
    ...bridges.changed.map((name) => `bridge ${name} changed`),
    ...removed.map((port) => `port ${port} removed`),
    ...changed.map((port) => `port ${port} changed`),
    ...added.map((port) => `port ${port} added`),
    ...bridges.removed.map((name) => `bridge ${name} removed`),
    ...fdb.removed.map((mac) => `address ${mac} removed`),
    ...fdb.added.map((mac) => `address ${mac} added`),
    ...groups.removed.map((group) => `group ${group} removed`),
    ...groups.added.map((group) => `group ${group} added`),
    ...mirrors.removed.map((name) => `mirror ${name} removed`),
    ...mirrors.changed.map((name) => `mirror ${name} changed`),
    ...mirrors.added.map((name) => `mirror ${name} added`),
    ...settings.map((name) => `${name} changed`),
    ...failed.map(({ port, error }) => `port ${port} failed: ${error}`),
    ...mirrors.failed.map(({ mirror, error }) => `mirror ${mirror} failed: ${error}`),
  ];
  const kept = `${unchanged.length} port${unchanged.length === 1 ? '' : 's'} as before`;
  return `${[...lines, lines.length === 0 ? `nothing to do, ${kept}` : kept].join('\n')}\n`;
}
