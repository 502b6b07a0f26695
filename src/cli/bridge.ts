/** `vireo bridge`, `add`, `set`, `del` and `show`: the bridges of a switch. */
import type { Command } from 'commander';
import type { BridgeChange, BridgeSpec, BridgeStatus, RstpBridgeStatus } from '../switch/types.ts';
import { connect, lists, optionsOf, print, speaksToSwitch, withExamples } from './command.ts';
import { count, duration, pairs, table } from './table.ts';

const FIELDS = `
Settings of a bridge:
  ageing=SECONDS       after which an address that was not seen is forgotten (default: the switch's)
  reserved=filter|pass what becomes of STP, LACP, LLDP and other frames to 01-80-C2-00-00-0X
                       (default: a bridge with two ports passes them on, any other doesn't)
  snooping=true        frames for groups go to who has joined them: IGMP and MLD snooping
  querier=true         with snooping: the switch asks who is in which group, where no router does
  rstp=true            no loops: RSTP, and STP with neighbours that speak that; its BPDUs are filtered
  priority=N           the bridge with the lowest is the root: a multiple of 4096 (default: 32768)
  mac=MAC              its address in RSTP (default: drawn at start)
  max-age=, forward-delay=SECONDS  which hold while it is the root (default: 20 and 15)`;

/** Fields from `key=value` each; a key without a value goes back to its default. */
async function readFields(words: string[]): Promise<BridgeChange> {
  const { parseFields } = await import('../switch/spec.ts');
  return parseFields(words, 'ageing=60');
}

export function declareBridge(program: Command): void {
  const bridge = program
    .command('bridge')
    .description('list the bridges, or add, change, remove or show one');
  withExamples(
    bridge,
    'vireo bridge',
    'vireo bridge add lab ageing=60',
    'vireo port add vm3=vhost-user:/tmp/c.sock,bridge=lab',
  );
  lists(bridge, 'the bridges', speaksToSwitch, async (command) => {
    const options = optionsOf(command);
    const bridges = await (await connect(options)).bridges();
    print(options, bridges, () =>
      table(
        [
          { title: 'BRIDGE' },
          { title: 'AGEING', right: true },
          { title: 'VLANS' },
          { title: 'ADDRESSES', right: true },
          { title: 'PORTS' },
        ],
        bridges.map(({ name, ageing, vlans, addresses, ports }) => [
          name,
          `${ageing} s`,
          vlans ? 'yes' : 'no',
          count(addresses),
          ports.join(' ') || '-',
        ]),
      ),
    );
  });

  const add = speaksToSwitch(
    bridge
      .command('add')
      .description('add a bridge; ports come to it by bridge=NAME')
      .argument('<name>', "the bridge's name")
      .argument('[key=value...]', 'its settings, see below'),
  );
  add.addHelpText('after', FIELDS);
  withExamples(add, 'vireo bridge add lab', 'vireo bridge add lab ageing=60');
  add.action(async (name: string, words: string[]) => {
    const options = optionsOf(add);
    const spec = { name, ...(await readFields(words)) } as BridgeSpec;
    const added = await (await connect(options)).addBridge(spec);
    print(options, added, () => `bridge ${added.name} added\n`);
  });

  const set = speaksToSwitch(
    bridge
      .command('set')
      .description('set a bridge anew, while its guests go on')
      .argument('<name>', "the bridge's name")
      .argument('<key=value...>', 'what to set; a key without a value goes back to its default'),
  );
  set.addHelpText('after', FIELDS);
  withExamples(set, 'vireo bridge set lab ageing=60', 'vireo bridge set default rstp=true priority=4096');
  set.action(async (name: string, words: string[]) => {
    const options = optionsOf(set);
    const change = await readFields(words);
    const changed = await (await connect(options)).setBridge(name, change);
    print(options, changed, () => `bridge ${name} set\n`);
  });

  const del = speaksToSwitch(
    bridge
      .command('del')
      .description('remove a bridge that has no ports')
      .argument('<name>', "the bridge's name"),
  );
  withExamples(del, 'vireo bridge del lab');
  del.action(async (name: string) => {
    const options = optionsOf(del);
    await (await connect(options)).removeBridge(name);
    print(options, { removed: name }, () => `bridge ${name} removed\n`);
  });

  const show = speaksToSwitch(
    bridge.command('show').description('show a bridge').argument('<name>', "the bridge's name"),
  );
  withExamples(show, 'vireo bridge show lab', 'vireo bridge show lab --json');
  show.action(async (name: string) => {
    const options = optionsOf(show);
    const found = await (await connect(options)).bridge(name);
    print(options, found, () => bridgeText(found));
  });
}

const bridgeText = (bridge: BridgeStatus): string => {
  const { name, ageing, vlans, reserved, snooping, querier, addresses, ports, spanningTree } = bridge;
  const text = pairs([
    ['bridge', name],
    ['ageing', `${ageing} s`],
    ['VLANs', vlans ? 'yes' : 'none'],
    ['reserved', reserved === 'pass' ? 'STP, LACP, LLDP … pass' : 'STP, LACP, LLDP … are filtered'],
    ['snooping', snooping ? (querier ? 'yes, and asks' : 'yes') : 'no'],
    ['addresses', count(addresses)],
    ['ports', ports.join(' ') || 'none'],
  ]);
  return spanningTree ? `${text}\n${treeText(spanningTree)}` : text;
};

/** A bridge's part in a spanning tree, and its ports'. */
function treeText(tree: RstpBridgeStatus): string {
  const { id, root, rootPort, rootCost, topologyChanges, sinceTopologyChange } = tree;
  const since = sinceTopologyChange === null ? '' : `, the last one ${duration(sinceTopologyChange)} ago`;
  const told = pairs(
    [
      ['bridge', id],
      [
        'root',
        rootPort === null ? `${root}, this bridge` : `${root} by ${rootPort}, cost ${count(rootCost)}`,
      ],
      ['times', `hello ${tree.helloTime} s, max age ${tree.maxAge} s, forward delay ${tree.forwardDelay} s`],
      ['topology changes', `${count(topologyChanges)}${since}`],
    ],
    '  ',
  );
  const columns = [{ title: 'PORT' }, { title: 'ROLE' }, { title: 'STATE' }, { title: 'COST', right: true }];
  const rows = tree.ports.map(({ name, role, state, pathCost }) => [name, role, state, count(pathCost)]);
  return `Spanning tree\n${told}${rows.length > 0 ? `\n${table(columns, rows, '  ')}` : ''}`;
}
