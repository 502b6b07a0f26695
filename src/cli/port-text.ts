/** A port as `vireo port show` tells it to a person: sections, each with what there is to say. */
import { kebab } from '../switch/keys.ts';
import type { BondMemberStatus, PortDetail, RstpPortStatus, SizeCounts } from '../switch/types.ts';
import { bytes, count, pairs, table } from './table.ts';

const SIZES: readonly (readonly [keyof SizeCounts, string])[] = [
  ['undersize', '<64'],
  ['size64', '64'],
  ['size65To127', '65-127'],
  ['size128To255', '128-255'],
  ['size256To511', '256-511'],
  ['size512To1023', '512-1023'],
  ['size1024To1518', '1024-1518'],
  ['size1519ToMax', '1519-'],
];

const groupsText = ({ joined, limit, refused }: NonNullable<PortDetail['groups']>): string =>
  `${count(joined)} joined, at most ${count(limit)}${refused > 0 ? `; ${count(refused)} times more were wanted` : ''}`;

/** The rules of a port, as `isolated=true`. */
export const rulesText = ({ rules }: PortDetail): string =>
  Object.entries(rules)
    .map(([field, value]) => `${kebab(field)}=${value}`)
    .join(' ');

/** A port in sections; those with nothing to say are left out. */
export function portText(port: PortDetail): string {
  const sections = [
    pairs([
      ['port', port.name],
      ['type', port.type],
      ['target', port.target],
      ...(port.type === 'vduse' || port.role === null ? [] : [roleLine(port)]),
      ['state', port.state],
      ['rings', port.rings || 'not negotiated'],
      ...(port.bond === undefined ? [] : [['member of', port.bond] as [string, string]]),
      ['connections', count(port.connections)],
      ...(port.mtu === null ? [] : [['mtu', count(port.mtu)] as [string, string]]),
      ...(port.driverStatus ? [['driver', port.driverStatus] as [string, string]] : []),
      ['addresses', `${count(port.addresses.learned)} learned, at most ${count(port.addresses.limit)}`],
      ...(port.groups ? [['groups', groupsText(port.groups)] as [string, string]] : []),
      ...(port.filtered > 0
        ? [
            ['filtered', `${count(port.filtered)} packets that the guest asked not to get`] as [
              string,
              string,
            ],
          ]
        : []),
      ...(rulesText(port) === '' ? [] : [['rules', rulesText(port)] as [string, string]]),
      ...(port.spanningTree ? treePairs(port.spanningTree) : []),
      ...(port.mirrors.from.length === 0
        ? []
        : [['mirrored', `by ${port.mirrors.from.join(', ')}`] as [string, string]]),
      ...(port.mirrors.to.length === 0
        ? []
        : [['monitor', `copies of ${port.mirrors.to.join(', ')}`] as [string, string]]),
      ...(port.note === undefined ? [] : [['link', port.note] as [string, string]]),
      ['last error', port.lastError ?? 'none'],
    ]),
    section(
      'Members',
      [{ title: 'PORT' }, { title: 'LINK' }, { title: 'SENDS' }, { title: 'RECEIVES' }, { title: 'LACP' }],
      (port.members ?? []).map((member) => [
        member.port,
        member.link,
        member.sends ? 'yes' : 'no',
        member.receives ? 'yes' : 'no',
        member.lacp === undefined ? '' : lacpWords(member.lacp),
      ]),
    ),
    section(
      'Counters, seen from the switch',
      [
        { title: '' },
        { title: 'PACKETS', right: true },
        { title: 'BYTES', right: true },
        { title: 'DROPS', right: true },
      ],
      [
        ['rx', count(port.rxPackets), bytes(port.rxBytes), count(port.rxDrops)],
        ['tx', count(port.txPackets), bytes(port.txBytes), count(port.txDrops)],
      ],
    ),
    section(
      'Drops',
      [{ title: 'REASON' }, { title: 'PACKETS', right: true }],
      Object.entries(port.drops).map(([reason, packets]) => [reason, count(packets)]),
    ),
    section(
      'Queues',
      [
        { title: 'QUEUE', right: true },
        { title: 'WAY' },
        { title: 'RING' },
        { title: 'SIZE', right: true },
        { title: 'STATE' },
        { title: 'ENABLED' },
        { title: 'WORKER', right: true },
        { title: 'PACKETS', right: true },
        { title: 'BYTES', right: true },
        { title: 'INTERRUPTS', right: true },
        { title: 'ERROR' },
      ],
      port.queues.map((queue) => [
        String(queue.index),
        queue.direction,
        queue.kind,
        String(queue.size),
        queue.state,
        queue.enabled ? 'yes' : 'no',
        queue.worker === null ? '-' : String(queue.worker),
        count(queue.packets),
        bytes(queue.bytes),
        count(queue.notifications),
        queue.error ?? '',
      ]),
    ),
    section(
      'Packets by size in bytes, and by whom they are for',
      [
        { title: 'QUEUE', right: true },
        ...SIZES.map(([, title]) => ({ title, right: true })),
        ...['UNICAST', 'MULTICAST', 'BROADCAST'].map((title) => ({ title, right: true })),
      ],
      port.queues
        .filter((queue) => queue.packets > 0 && queue.direction !== 'control')
        .map(({ index, sizes, casts }) => [
          String(index),
          ...SIZES.map(([size]) => count(sizes[size])),
          ...[casts.unicast, casts.multicast, casts.broadcast].map(count),
        ]),
    ),
    section(
      'Memory of the guest',
      [
        { title: 'ADDRESS', right: true },
        { title: 'SIZE', right: true },
        { title: 'PAGES', right: true },
        { title: 'REACHED' },
        { title: 'SEALED' },
      ],
      port.memory.map((region) => [
        region.guestAddress,
        bytes(region.size),
        bytes(region.pageSize),
        region.reached,
        region.sealed ? 'yes' : 'no: its owner could truncate it',
      ]),
    ),
    featureSection('Features', port.features),
    featureSection('Protocol features', { ...port.protocolFeatures, missing: [] }),
  ];
  return sections.filter((text) => text !== '').join('\n');
}

/** A port's part in a spanning tree. */
function treePairs(tree: RstpPortStatus): [string, string][] {
  const { role, state, pathCost, edge, speaks, shut, designatedBridge, designatedPort } = tree;
  const words = [
    `${role} ${state}`,
    `cost ${count(pathCost)}`,
    ...(edge ? ['edge'] : []),
    `speaks ${speaks}`,
  ];
  return [
    ['RSTP', shut ? 'shut: a BPDU came, which bpdu-guard=true forbids' : words.join(', ')],
    [
      'designated',
      `port ${designatedPort} of ${designatedBridge}, root ${tree.root} at cost ${count(tree.rootCost)}`,
    ],
    ['BPDUs', `${count(tree.received)} received, ${count(tree.sent)} sent`],
  ];
}

/** `distributing, partner 02:00:00:00:00:01 key 9 port 1`, or why not. */
function lacpWords({ mux, receive, partner }: NonNullable<BondMemberStatus['lacp']>): string {
  const { system, key, port } = partner;
  return receive === 'current' ? `${mux}, partner ${system} key ${key} port ${port}` : `${mux}, ${receive}`;
}

function roleLine({ role }: PortDetail): [string, string] {
  return ['role', role === 'server' ? 'server: listens for a front-end' : 'client: dials the front-end'];
}

function section(title: string, columns: Parameters<typeof table>[0], rows: string[][]): string {
  return rows.length === 0 ? '' : `${title}\n${table(columns, rows, '  ')}`;
}

/** Each feature with what became of it: acknowledged, only offered, or missing and why. */
function featureSection(title: string, features: PortDetail['features']): string {
  const acknowledged = new Set(features.acknowledged);
  const reasons = new Map(features.missing.map(({ name, reason }) => [name, reason]));
  const names = new Set([...features.offered, ...features.acknowledged, ...reasons.keys()]);
  return section(
    title,
    [{ title: 'NAME' }, { title: 'OFFERED' }, { title: 'ACKNOWLEDGED' }, { title: 'MISSING BECAUSE' }],
    [...names].map((name) => [
      name,
      features.offered.includes(name) ? 'yes' : 'no',
      acknowledged.has(name) ? 'yes' : 'no',
      reasons.get(name) ?? '',
    ]),
  );
}
