/** The one address space of the data plane. */
export { Arena, ArenaFullError, type Range } from './arena.ts';
export { clock, constant, type Dataplane, fields, instantiateDataplane } from './dataplane.ts';
export { Pool } from './pool.ts';
export * from './structures.ts';
