/** How a port is treated where its bridge looks at who joins which groups (`snooping`): see docs/groups.md. */
import { z } from 'zod';
import { MAX_GROUPS_PER_PORT } from '../switch/groups.ts';
import { expected, wholeNumber } from '../switch/schema.ts';
import type { Rule } from './rule.ts';

export const groups: Rule = {
  fields: {
    multicastRouter: z.enum(['auto', 'always', 'never'], expected('"auto", "always" or "never"')),
    fastLeave: z.boolean(expected('true or false')),
    maxGroups: wholeNumber(0, 2048),
  },
  set({ multicastRouter = 'auto', fastLeave, maxGroups }, { structures, slot }) {
    const port = structures.port(slot);
    const router = { auto: 0, always: 'GROUPS_ROUTER', never: 'GROUPS_NO_ROUTER' }[multicastRouter];
    port.set(
      'groupFlags',
      (fastLeave ? structures.constant('GROUPS_FAST_LEAVE') : 0) |
        (typeof router === 'string' ? structures.constant(router) : 0),
    );
    port.set('groupLimit', maxGroups ?? MAX_GROUPS_PER_PORT);
  },
};
