/** `vireo groups`: who has joined which groups, where the routers are, and entering ports into groups for good. */
import type { Command } from 'commander';
import type { GroupMember, GroupsStatus } from '../switch/types.ts';
import { connect, lists, optionsOf, print, speaksToSwitch, withExamples } from './command.ts';
import { type PlaceOptions, placeOf, vlanText, withPlace, withVlan } from './place.ts';
import { table } from './table.ts';

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
  const groups = program
    .command('groups')
    .description('list who has joined which groups, and where routers are, on bridges with snooping=true');
  withExamples(
    groups,
    'vireo bridge set default snooping=true',
    'vireo groups',
    'vireo groups --vlan 10 --json',
    'vireo groups add 239.1.1.1 vm1',
  );
  const withOptions = (command: Command) => withPlace(speaksToSwitch(command));
  lists(groups, 'the groups and routers', withOptions, async (command) => {
    const options = optionsOf<PlaceOptions>(command);
    const found = await (await connect(options)).groups(placeOf(options));
    print(options, found, () => groupsText(found));
  });

  const add = speaksToSwitch(
    groups
      .command('add')
      .description('enter a port into a group for good: it gets its frames, and is in `vireo config show`')
      .argument('<group>', 'the address of the group')
      .argument('<port>', 'the port'),
  );
  withVlan(add, "the group's");
  withExamples(add, 'vireo groups add 239.1.1.1 vm1', 'vireo groups add ff3e::1 up --vlan 10');
  add.action(async (group: string, port: string) => {
    const options = optionsOf<PlaceOptions>(add);
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

  const del = withPlace(
    speaksToSwitch(
      groups
        .command('del')
        .description('take ports out of a group that they were entered into')
        .argument('<group>', 'the address of the group'),
    ),
  );
  withExamples(del, 'vireo groups del 239.1.1.1', 'vireo groups del 239.1.1.1 --port vm1');
  del.action(async (group: string) => {
    const options = optionsOf<PlaceOptions>(del);
    await (await connect(options)).removeGroup(group, placeOf(options));
    print(options, { removed: group }, () => `${group} taken away\n`);
  });
}
