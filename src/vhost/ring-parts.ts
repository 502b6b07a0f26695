/** The three parts of a ring in the front-end's memory, and where they lie in the arena. */
import type { VringStruct } from '../arena/index.ts';
import * as packed from '../virtio/packed-ring.ts';
import * as split from '../virtio/split-ring.ts';
import type { VringSetup } from './device.ts';
import type { MemoryTable } from './memory-table.ts';

/** By Vring field: where the front-end names them, their bytes and alignment. */
const SPLIT_PARTS = [
  ['desc', 'descUser', split.descLength, split.DESC_ALIGN, 'descriptor table'],
  ['avail', 'availUser', split.availLength, split.AVAIL_ALIGN, 'available ring'],
  ['used', 'usedUser', split.usedLength, split.USED_ALIGN, 'used ring'],
] as const;
const PACKED_PARTS = [
  ['desc', 'descUser', packed.descLength, packed.DESC_ALIGN, 'descriptor ring'],
  ['avail', 'availUser', packed.eventLength, packed.EVENT_ALIGN, "driver's event suppression structure"],
  ['used', 'usedUser', packed.eventLength, packed.EVENT_ALIGN, "device's event suppression structure"],
] as const;

export type RingParts = typeof SPLIT_PARTS | typeof PACKED_PARTS;

export const ringParts = (isPacked: boolean): RingParts => (isPacked ? PACKED_PARTS : SPLIT_PARTS);

/** Finds the parts of queue `index` in the arena. Throws an Error that names the part and what is wrong with it. */
export function placeParts(
  { index, vring }: { index: number; vring: VringStruct },
  setup: VringSetup,
  parts: RingParts,
  memory: MemoryTable,
): void {
  for (const [field, user, length, align, name] of parts) {
    const address = setup[user];
    const at = memory.fromUser(address, length(setup.size), `${index} ${field}`);
    const where = `${name} at user address 0x${address.toString(16)}, ${length(setup.size)} bytes`;
    if (at === undefined) throw new Error(`${where}: not inside one region of the memory table`);
    if (address % BigInt(align) !== 0n || at % align !== 0)
      throw new Error(`${where}: not aligned to ${align} bytes`);
    vring.set(field, at);
  }
}

/** Of a packed ring the base holds places in the ring. Throws an Error where they are none. */
export function checkPackedBase({ base, size }: VringSetup): void {
  const places = [base & 0x7fff, (base >>> 16) & 0x7fff];
  if (places.some((place) => place >= size))
    throw new Error(`base 0x${base.toString(16)} is outside of a packed ring of ${size} entries`);
}
