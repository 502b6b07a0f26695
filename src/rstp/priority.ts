/** What bridges compare to agree on a tree: identifiers and priority vectors (IEEE 802.1D-2004, 17.6), and the times. */

/** A spanning tree priority vector: the smaller one, component by component, is the better. */
export interface Vector {
  /** Identifier of the bridge that is taken to be the root. */
  root: bigint;
  /** Cost of the path to it. */
  cost: number;
  /** Identifier of the bridge that says so, and of its port. */
  bridge: bigint;
  port: number;
}

/** In seconds (17.19.22). */
export interface Times {
  messageAge: number;
  maxAge: number;
  helloTime: number;
  forwardDelay: number;
}

/** The address of a bridge is the lower 48 bits of its identifier (9.2.5). */
const ADDRESS = 0xffff_ffff_ffffn;
/** The number of a port the lower 12 bits of its (9.2.7). */
const PORT_NUMBER = 0xfff;

/** `priority` is a multiple of 4096, `mac` as people write it. */
export const bridgeId = (priority: number, mac: string): bigint =>
  (BigInt(priority) << 48n) | BigInt(`0x${mac.replaceAll(':', '')}`);

/** `priority` is a multiple of 16 up to 240, `number` from 1 to 4095. */
export const portId = (priority: number, number: number): number => (priority << 8) | number;

export const addressOf = (id: bigint): bigint => id & ADDRESS;

/** As people write it, and other bridges show it: `8000.525400123456`. */
export const formatBridgeId = (id: bigint): string =>
  id.toString(16).padStart(16, '0').replace(/^..../, '$&.');

/** Below 0 where the first is better, above where it is worse, 0 where they are the same. */
export function compare(one: Vector, other: Vector): number {
  if (one.root !== other.root) return one.root < other.root ? -1 : 1;
  if (one.cost !== other.cost) return one.cost - other.cost;
  if (one.bridge !== other.bridge) return one.bridge < other.bridge ? -1 : 1;
  return one.port - other.port;
}

/**
 * Does what a message says take the place of what a port knows: because it is better, or because it comes from the
 * same port as that, and so is news of it, be it better or worse?
 */
export const isSuperior = (message: Vector, known: Vector): boolean =>
  compare(message, known) < 0 ||
  (addressOf(message.bridge) === addressOf(known.bridge) &&
    ((message.port ^ known.port) & PORT_NUMBER) === 0);

export const sameTimes = (one: Times, other: Times): boolean =>
  one.messageAge === other.messageAge &&
  one.maxAge === other.maxAge &&
  one.helloTime === other.helloTime &&
  one.forwardDelay === other.forwardDelay;
