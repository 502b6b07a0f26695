/** The link of a port, up or down, by itself or with that of another one. The switch knows which it is (`unplugged`). */
import { z } from 'zod';
import { expected, show } from '../switch/schema.ts';
import type { Rule } from './rule.ts';

const told = expected('the name of another port, such as "uplink"');

export const link: Rule = {
  fields: {
    link: z.enum(['up', 'down'], expected('"up" or "down"')),
    linkFollows: z.string(told).regex(/^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/, told),
  },
  derived: ['unplugged'],
  contradictions: ({ name, linkFollows }) =>
    linkFollows === name
      ? [{ field: 'linkFollows', message: `expected the name of another port, found ${show(linkFollows)}` }]
      : [],
  set({ unplugged = false }, { stage }) {
    stage('ingress', 'STAGE_UNPLUGGED', unplugged);
    stage('egress', 'STAGE_UNPLUGGED', unplugged);
  },
};
