/** Frames between the rings of ports that are no guests and descriptors of the kernel. */
export type { EndSetup } from './channel.ts';
export { type Framing, Pair } from './pair.ts';
export { IoThreads } from './threads.ts';
