/** The generator for programs: open its ports, and run after run on them (docs/gen.md). */

export { type Expectations, unmet } from './expect.ts';
export { Generator, type RunOptions } from './generator.ts';
export * from './rfc2544.ts';
export * from './types.ts';
