/** Isolation: a port that is isolated reaches only ports that aren't, such as an uplink. */
import { z } from 'zod';
import { expected } from '../switch/schema.ts';
import type { Rule } from './rule.ts';

export const isolation: Rule = {
  fields: { isolated: z.boolean(expected('true or false')) },
  set({ isolated = false }, { rules, stage }) {
    rules.set('isolated', isolated ? 1 : 0);
    stage('ingress', 'STAGE_ISOLATION', isolated);
  },
};
