/** MAC addresses for what has none: of devices, bonds and bridges. */
import { randomBytes } from 'node:crypto';

/** One of the kind that is administered locally, and of one station (IEEE 802, 8.2), as text. */
export function randomMac(): string {
  const octets = randomBytes(6);
  octets[0] = (octets[0]! & 0xfc) | 2;
  return octets.toString('hex').replace(/..(?!$)/g, '$&:');
}
