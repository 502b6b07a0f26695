/** Frames of protocols that the control plane speaks: which of them the port hands over (src/dataplane/control-frames.ts). */
import type { Rule } from './rule.ts';

/** 01-80-C2-00-00-00 */
const BPDUS = 0;

export const protocols: Rule = {
  fields: {},
  derived: ['protocols', 'spanned'],
  set({ protocols = 0, spanned = false }, { rules, stage }) {
    const all = protocols | (spanned ? 1 << BPDUS : 0);
    rules.set('protocols', all);
    stage('ingress', 'STAGE_PROTOCOLS', all !== 0);
  },
};
