/** The addresses that an operator has entered into the forwarding database. */
import type { Arena } from '../arena/index.ts';
import { SwitchError } from './errors.ts';
import { Statics } from './statics.ts';
import type { AddressSpec } from './types.ts';

export function staticAddresses({ dataplane }: Arena): Statics<AddressSpec> {
  const { pin, unpin } = dataplane.functions;
  return new Statics({
    isSame: (one, other) => one.mac === other.mac,
    enter: ({ mac }, { fid, slot }) => pin(keyOf(mac), fid, slot),
    leave: ({ mac }, { fid }) => unpin(keyOf(mac), fid),
    taken: ({ mac }, { port }) =>
      new SwitchError(
        'BAD_SPEC',
        `mac: ${mac} is entered for port ${port} already: take that away first`,
        'mac',
      ),
    full: ({ mac }) => new SwitchError('LIMIT', `the forwarding database has no room for ${mac}`),
  });
}

/** The address as a frame's bytes are loaded, little-endian. */
const keyOf = (mac: string): bigint => BigInt(Buffer.from(mac.replaceAll(':', ''), 'hex').readUIntLE(0, 6));
