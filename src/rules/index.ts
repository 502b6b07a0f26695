/**
 * What an operator can set for the frames of a port while it runs, one file a kind. The kinds are listed here; the
 * schema of a port, `vireo port set`, the API and `vireo apply` take their fields from this list.
 */
import type { PortSpec } from '../switch/types.ts';
import { bonding } from './bonding.ts';
import { groups } from './groups.ts';
import { guard } from './guard.ts';
import { lineIn, lineOut } from './impairment.ts';
import { isolation } from './isolation.ts';
import { learning } from './learning.ts';
import { link } from './link.ts';
import { protocols } from './protocols.ts';
import { rateIn } from './rate-in.ts';
import { rateOut } from './rate-out.ts';
import { rstp, spanned } from './rstp.ts';
import type { Rule } from './rule.ts';
import { storm } from './storm.ts';
import { vlan } from './vlan.ts';

export const RULES: readonly Rule[] = [
  link,
  isolation,
  vlan,
  learning,
  rateIn,
  rateOut,
  lineIn,
  lineOut,
  guard,
  storm,
  groups,
  protocols,
  rstp,
  spanned,
  bonding,
];

/** Fields of a port's specification that can be set anew while it is there. */
export const RULE_FIELDS = RULES.flatMap(({ fields }) => Object.keys(fields)) as (keyof PortSpec)[];

/** What is wrong with the rules of a port taken together. */
export const contradictions = (port: PortSpec) => RULES.flatMap((rule) => rule.contradictions?.(port) ?? []);

export { PortRules } from './port-rules.ts';
