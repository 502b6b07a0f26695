/** What is shown of a port: what it says of itself, with what the switch knows beside it. */
import { type PortRules, RULE_FIELDS } from '../rules/index.ts';
import type { Entry } from './port-table.ts';
import type { PortDetail, PortSpec, PortStatus } from './types.ts';

/** What others than the port know of it. */
type Beside = Pick<PortDetail, 'groups' | 'spanningTree' | 'bond' | 'mirrors'>;

/** A field that is there only with a value. */
export const given = <K extends string, V>(field: K, value: V | undefined) =>
  (value === undefined ? {} : { [field]: value }) as { [P in K]?: V };

/** What a port with a link that is down shows. */
const whenUnplugged = ({ unplugged, spec: { link, linkFollows } }: Entry) =>
  unplugged
    ? { state: 'down' as const, note: link === 'down' ? 'set down' : `down with that of ${linkFollows}` }
    : {};

const sum = (drops: Record<string, number>) => Object.values(drops).reduce((all, count) => all + count, 0);

/** The drops of a port, with those by its rules. */
const turnedAway = ({ rxDrops, txDrops }: PortStatus, rules: PortRules) => ({
  rxDrops: rxDrops + sum(rules.drops('rx')),
  txDrops: txDrops + sum(rules.drops('tx')),
});

/** The fields of a port's specification that are rules. */
const rulesOf = (spec: PortSpec) =>
  Object.fromEntries(
    RULE_FIELDS.filter((field) => spec[field] !== undefined).map((field) => [field, spec[field]]),
  );

/** For the table of ports. */
export function portStatus(entry: Entry): PortStatus {
  const status = entry.port.status();
  const { state = status.state } = whenUnplugged(entry);
  return { ...status, ...turnedAway(status, entry.rules), state };
}

/** Everything. */
export function portDetail(entry: Entry, beside: Beside): PortDetail {
  const { port, rules, spec } = entry;
  const detail = port.detail();
  return {
    ...detail,
    ...turnedAway(detail, rules),
    ...whenUnplugged(entry),
    drops: { ...detail.drops, ...rules.drops() },
    rules: rulesOf(spec),
    ...beside,
  };
}
