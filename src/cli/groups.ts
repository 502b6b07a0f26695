/** `vireo groups`: who has joined which groups, where the routers are, and entering ports into groups for good. */
import type { Command } from 'commander';
import type { AddressFilter, GroupMember, GroupsStatus } from '../switch/types.ts';
import {
  type ClientOptions,
  connect,
  optionsOf,
  print,
  speaksToSwitch,
  wholeNumber,
  withExamples,
} from './command.ts';
import { table } from './table.ts';

type Filter = ClientOptions & AddressFilter;

const filterOf = ({ port, bridge, vlan }: Filter): AddressFilter => ({
  ...(port !== undefined && { port }),
  ...(bridge !== undefined && { bridge }),
  ...(vlan !== undefined && { vlan }),
});

const filtered = (command: Command): Command =>
  command
    .option('--port <name>', 'only those of this port')
    .option('--bridge <name>', 'only those of this bridge')
    .option('--vlan <n>', 'only those in this VLAN', wholeNumber(0, 4094));

const vlanText = (vlan: number) => (vlan === 0 ? '-' : String(vlan));
const endText = ({ expires }: GroupMember) => (expires === null ? 'static' : `${expires} s`);

function groupsText({ groups, routers }: GroupsStatus): string {
  const text = table(
    [
      { title: 'GROUP' },
      { title: 'BRIDGE' },
      { title: 'VLAN', right: true },
      { title: 'PORT' },
      { title: 'EXPIRES', right: true },
    ],
    groups.flatMap(({ group, bridge, vlan, ports }) =>
      ports.map((member) => [group, bridge, vlanText(vlan), member.port, endText(member)]),
    ),
  );
  if (routers.length === 0) return text;
  const list = table(
    [
      { title: 'ROUTERS' },
      { title: 'BRIDGE' },
      { title: 'VLAN', right: true },
      { title: 'PORT' },
      { title: 'EXPIRES', right: true },
      { title: 'QUERIER' },
    ],
    routers.flatMap(({ family, bridge, vlan, ports, querier }) =>
      ports.map((member) => [
        family,
        bridge,
        vlanText(vlan),
        member.port,
        endText(member),
        querier?.port === member.port ? querier.address : '',
      ]),
    ),
  );
  return `${text}\n${list}`;
}

export function declareGroups(program: Command): void {
  const groups = filtered(
    speaksToSwitch(
      program
        .command('groups')
        .description(
          'list who has joined which groups, and where routers are, on bridges with snooping=true',
        ),
    ),
  );
  withExamples(
    groups,
    'vireo bridge set default snooping=true',
    'vireo groups',
    'vireo groups --vlan 10 --json',
    'vireo groups add 239.1.1.1 vm1',
  );
  groups.action(async () => {
    const options = optionsOf<Filter>(groups);
    const found = await (await connect(options)).groups(filterOf(options));
    print(options, found, () => groupsText(found));
  });

  const add = speaksToSwitch(
    groups
      .command('add')
      .description('enter a port into a group for good: it gets its frames, and is in `vireo config show`')
      .argument('<group>', 'the address of the group')
      .argument('<port>', 'the port'),
  );
  add.option(
    '--vlan <n>',
    "the group's VLAN (default: that of the port's frames without a tag)",
    wholeNumber(0, 4094),
  );
  withExamples(add, 'vireo groups add 239.1.1.1 vm1', 'vireo groups add ff3e::1 up --vlan 10');
  add.action(async (group: string, port: string) => {
    const options = optionsOf<Filter>(add);
    const { vlan } = options;
    const spec = { group, port, ...(vlan !== undefined && { vlan }) };
    const client = await connect(options);
    const { group: entered } = await client.addGroup(spec);
    const { groups: known } = await client.groups({ port });
    const waits = known.some((entry) => entry.group === entered)
      ? ''
      : '; its bridge has no snooping=true yet';
    print(options, spec, () => `port ${port} entered into ${entered}${waits}\n`);
  });

  const del = filtered(
    speaksToSwitch(
      groups
        .command('del')
        .description('take ports out of a group that they were entered into')
        .argument('<group>', 'the address of the group'),
    ),
  );
  withExamples(del, 'vireo groups del 239.1.1.1', 'vireo groups del 239.1.1.1 --port vm1');
  del.action(async (group: string) => {
    const options = optionsOf<Filter>(del);
    await (await connect(options)).removeGroup(group, filterOf(options));
    print(options, { removed: group }, () => `${group} taken away\n`);
  });
}
