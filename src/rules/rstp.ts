/**
 * RSTP on a port: what an operator sets, and how the port's state is brought to the data plane. Which state that is
 * src/rstp decides; a port that comes into a tree discards until it has.
 */
import { z } from 'zod';
import type { PortState } from '../rstp/port.ts';
import { expected, wholeNumber } from '../switch/schema.ts';
import type { Rule, RuleTable } from './rule.ts';

const told = expected('true or false');
const priority = expected('a multiple of 16 from 0 to 240');

export const rstp: Rule = {
  fields: {
    rstp: z.boolean(told),
    pathCost: wholeNumber(1, 200_000_000),
    portPriority: z.int(priority).min(0, priority).max(240, priority).multipleOf(16, priority),
    edge: z.union([z.literal('auto'), z.boolean()], expected('"auto", true or false')),
    pointToPoint: z.boolean(told),
    bpduGuard: z.boolean(told),
  },
  derived: ['spanned'],
  contradictions: ({ rstp, bpduGuard }) =>
    rstp === false && bpduGuard === true
      ? [{ field: 'bpduGuard', message: 'expected none beside rstp=false, which hears no BPDUs, found true' }]
      : [],
  // What the fields say is the state machines' to know.
  set() {},
};

/** A port comes into a tree, or leaves it. */
export const spanned: Rule = {
  fields: {},
  derived: ['spanned'],
  set({ spanned = false }, table) {
    setPortState(table, spanned ? 'discarding' : 'forwarding', false);
  },
};

/** Brings a port to a state; `leased`: it forwards only while the control plane lives. */
export function setPortState({ stage }: RuleTable, state: PortState, leased: boolean): void {
  for (const way of ['ingress', 'egress'] as const) {
    stage(way, 'STAGE_LEASED', state === 'forwarding' && leased);
    stage(way, 'STAGE_BLOCKED', state !== 'forwarding');
  }
  stage('ingress', 'STAGE_LEARNS', state === 'learning');
}
