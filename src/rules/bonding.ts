/** What a port is in a bond: a bond itself, or a member of one. The switch says where the data plane finds that. */
import type { Rule } from './rule.ts';

export const bonding: Rule = {
  fields: {},
  derived: ['bondAt', 'memberAt'],
  set({ bondAt = 0, memberAt = 0 }, { rules, stage }) {
    if (bondAt !== 0) rules.set('bond', bondAt);
    if (memberAt !== 0) rules.set('member', memberAt);
    stage('egress', 'STAGE_BOND', bondAt !== 0);
    stage('ingress', 'STAGE_MEMBER', memberAt !== 0);
  },
};
