/**
 * Who may be a member of a bond, and what may be set for it. Rules of a member are those of its cable: link,
 * rates and impairment; whatever is about who is behind a port is the bond's.
 */
import { lineIn, lineOut } from '../rules/impairment.ts';
import { RULE_FIELDS } from '../rules/index.ts';
import { link } from '../rules/link.ts';
import { rateIn } from '../rules/rate-in.ts';
import { rateOut } from '../rules/rate-out.ts';
import { show } from '../switch/schema.ts';
import type { PortSpec } from '../switch/types.ts';

export const MOST_MEMBERS = 16;

/** The names of a bond's members, in its target; none for other ports. */
export const membersOf = ({ type, target }: Pick<PortSpec, 'type' | 'target'>): string[] =>
  type === 'bond' ? target.split('+') : [];

/** The bond that has a port as a member. */
export const bondOf = (name: string, ports: Iterable<PortSpec>): PortSpec | undefined =>
  [...ports].find((port) => membersOf(port).includes(name));

const CABLE = new Set([link, rateIn, rateOut, lineIn, lineOut].flatMap(({ fields }) => Object.keys(fields)));

/** Fields of a port that it can't have as a member. */
export const fieldsOfBond = (port: PortSpec): (keyof PortSpec)[] =>
  (['bridge', 'maxAddresses', ...RULE_FIELDS] as const).filter(
    (field) => port[field] !== undefined && !CABLE.has(field),
  );

/** What is wrong with a bond's members among the other ports of its switch; undefined: nothing. */
export function memberFault(bond: PortSpec, others: readonly PortSpec[]): string | undefined {
  for (const name of membersOf(bond)) {
    const port = others.find((other) => other.name === name);
    if (port === undefined) {
      const known = others.filter(({ type }) => type !== 'bond').map((other) => other.name);
      return `expected ports that are there (${known.slice(0, 20).join(', ') || 'there are none'}), found ${show(name)}`;
    }
    if (port.type === 'bond') return `expected ports that are no bonds, found ${show(name)}`;
    const rival = bondOf(
      name,
      others.filter((other) => other.name !== bond.name),
    );
    if (rival) return `expected ports of no other bond, found ${show(name)}, which ${rival.name} has`;
    const fields = fieldsOfBond(port);
    if (fields.length > 0)
      return `expected members without ${fields.join(', ')}, which a bond has for them, found ${show(name)}`;
  }
  return undefined;
}
