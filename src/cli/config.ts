/** `vireo config show`: what runs, as a file that makes it again. */
import type { Command } from 'commander';
import { connect, optionsOf, print, speaksToSwitch, withExamples } from './command.ts';

export function declareConfig(program: Command): void {
  const config = program.command('config').description('show the configuration of a running switch');
  const show = speaksToSwitch(
    config.command('show').description('print a YAML file that `vireo up` and `vireo apply` take'),
  );
  withExamples(config, 'vireo config show > vireo.yaml');
  withExamples(show, 'vireo config show > vireo.yaml', 'vireo config show --json | jq .ports');
  show.action(async () => {
    const options = optionsOf(show);
    const [found, { stringify }] = await Promise.all([
      connect(options).then((client) => client.config()),
      import('yaml'),
    ]);
    print(options, found, () => stringify(found));
  });
}
