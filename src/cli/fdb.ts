/** `vireo fdb`: the addresses that the switch has learned, and forgetting them. */
import type { Command } from 'commander';
import { type ClientOptions, connect, optionsOf, print, speaksToSwitch, withExamples } from './command.ts';
import { count, table } from './table.ts';

export function declareFdb(program: Command): void {
  const fdb = speaksToSwitch(
    program
      .command('fdb')
      .description('list the forwarding database: which address was learned on which port'),
  );
  withExamples(fdb, 'vireo fdb', 'vireo fdb --json', 'vireo fdb flush --port vm1');
  fdb.action(async () => {
    const options = optionsOf(fdb);
    const entries = await (await connect(options)).fdb();
    print(options, entries, () =>
      table(
        [{ title: 'ADDRESS' }, { title: 'PORT' }, { title: 'AGE', right: true }],
        entries.map((entry) => [entry.mac, entry.port, `${Math.floor(entry.age)} s`]),
      ),
    );
  });

  const flush = speaksToSwitch(
    fdb.command('flush').description('forget learned addresses; they are learned anew'),
  );
  flush.option('--port <name>', 'only those learned on this port');
  withExamples(flush, 'vireo fdb flush', 'vireo fdb flush --port vm1');
  flush.action(async () => {
    const options = optionsOf<ClientOptions & { port?: string }>(flush);
    const result = await (await connect(options)).flushFdb(options.port);
    print(options, result, () => `${count(result.flushed)} addresses forgotten\n`);
  });
}
