/** `vireo fdb`: the addresses that the switch knows, entering some for good, and forgetting them. */
import type { Command } from 'commander';
import { connect, lists, optionsOf, print, speaksToSwitch, withExamples } from './command.ts';
import { type PlaceOptions, placeOf, vlanText, withPlace, withVlan } from './place.ts';
import { count, table } from './table.ts';

type Options = PlaceOptions & { static?: boolean };

export function declareFdb(program: Command): void {
  const fdb = program
    .command('fdb')
    .description('list the forwarding database: which address is behind which port, learned or entered');
  withExamples(
    fdb,
    'vireo fdb',
    'vireo fdb --port vm1 --json',
    'vireo fdb add 52:54:00:12:34:56 vm1',
    'vireo fdb flush --port vm1',
  );
  const withOptions = (command: Command) => withPlace(speaksToSwitch(command));
  lists(fdb, 'the addresses', withOptions, async (command) => {
    const options = optionsOf<Options>(command);
    const entries = await (await connect(options)).fdb(placeOf(options));
    print(options, entries, () =>
      table(
        [
          { title: 'ADDRESS' },
          { title: 'BRIDGE' },
          { title: 'VLAN', right: true },
          { title: 'PORT' },
          { title: 'AGE', right: true },
        ],
        entries.map((entry) => [
          entry.mac,
          entry.bridge,
          vlanText(entry.vlan),
          entry.port,
          entry.static ? 'static' : `${Math.floor(entry.age)} s`,
        ]),
      ),
    );
  });

  const add = speaksToSwitch(
    fdb
      .command('add')
      .description('enter an address for good: it neither ages nor moves, and is in `vireo config show`')
      .argument('<mac>', 'the address of a station')
      .argument('<port>', 'the port that it is behind'),
  );
  withVlan(add, 'its');
  withExamples(add, 'vireo fdb add 52:54:00:12:34:56 vm1', 'vireo fdb add 52:54:00:12:34:56 up --vlan 10');
  add.action(async (mac: string, port: string) => {
    const options = optionsOf<Options>(add);
    const { vlan } = options;
    const spec = { mac, port, ...(vlan !== undefined && { vlan }) };
    await (await connect(options)).addAddress(spec);
    print(options, spec, () => `${mac} entered for port ${port}\n`);
  });

  const del = withPlace(
    speaksToSwitch(
      fdb
        .command('del')
        .description('take away an address that was entered')
        .argument('<mac>', 'the address'),
    ),
  );
  withExamples(
    del,
    'vireo fdb del 52:54:00:12:34:56',
    'vireo fdb del 52:54:00:12:34:56 --vlan 10 --bridge lab',
  );
  del.action(async (mac: string) => {
    const options = optionsOf<Options>(del);
    await (await connect(options)).removeAddress(mac, placeOf(options));
    print(options, { removed: mac }, () => `${mac} taken away\n`);
  });

  const flush = withPlace(
    speaksToSwitch(fdb.command('flush').description('forget learned addresses; they are learned anew')),
  );
  flush.option('--static', 'those that were entered, too');
  withExamples(
    flush,
    'vireo fdb flush',
    'vireo fdb flush --port vm1',
    'vireo fdb flush --bridge lab --static',
  );
  flush.action(async () => {
    const options = optionsOf<Options>(flush);
    const client = await connect(options);
    const result = await client.flushFdb({ ...placeOf(options), ...(options.static && { static: true }) });
    print(
      options,
      result,
      () => `${count(result.flushed)} address${result.flushed === 1 ? '' : 'es'} forgotten\n`,
    );
  });
}
