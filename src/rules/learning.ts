/** What a port teaches the bridge: nothing (`learning: false`), or only what an operator has entered (`locked`). */
import { z } from 'zod';
import { expected } from '../switch/schema.ts';
import type { Rule } from './rule.ts';

const told = expected('true or false');

export const learning: Rule = {
  fields: { learning: z.boolean(told), locked: z.boolean(told) },
  contradictions: ({ learning, locked }) =>
    locked === true && learning === true
      ? [{ field: 'learning', message: 'expected none beside locked=true, which learns nothing, found true' }]
      : [],
  set({ learning = true, locked = false }, { stage }) {
    stage('ingress', 'STAGE_LOCKED', locked);
    stage('ingress', 'STAGE_NO_LEARNING', !learning);
  },
};
