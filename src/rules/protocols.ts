/** Frames of protocols that the control plane speaks: which of them the port hands over (src/dataplane/control-frames.ts). */
import type { Rule } from './rule.ts';

export const protocols: Rule = {
  fields: {},
  derived: ['protocols'],
  set({ protocols = 0 }, { rules, stage }) {
    rules.set('protocols', protocols);
    stage('ingress', 'STAGE_PROTOCOLS', protocols !== 0);
  },
};
