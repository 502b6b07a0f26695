/**
 * Which frames a driver wants (virtio 1.3, 5.1.6.5.1 to 5.1.6.5.3): its own address, tables of others, groups,
 * VLANs. Only a port whose driver has switched promiscuous mode off comes here.
 */
import { MAC_MASK } from './fdb';
import {
  ALL_MULTICAST, ALL_UNICAST, FILTER_ADDRESSES, FILTER_VLANS, MULTICASTS_OFFSET, NO_BROADCAST, NO_MULTICAST, NO_UNICAST,
  Reception, UNICASTS_OFFSET, VLANS_OFFSET,
} from './layout';

/** 0x8100 as it is loaded little-endian. */
const VLAN: u32 = 0x0081;

/** Does the frame, of which the snapshot has the first bytes, pass the driver's filters? */
export function passes(reception: Reception, frame: usize): bool {
  const filter = reception.filter;
  if (filter & FILTER_VLANS && <u32>load<u16>(frame, 12) == VLAN) {
    const id = <u32>bswap(load<u16>(frame, 14)) & 0xfff;
    const bits = <u32>load<u8>(changetype<usize>(reception) + VLANS_OFFSET + <usize>(id >> 3));
    if (!(bits & (1 << (id & 7)))) return false;
  }
  if (!(filter & FILTER_ADDRESSES)) return true;
  const to = load<u64>(frame) & MAC_MASK;
  if (to == MAC_MASK) return !(filter & NO_BROADCAST);
  if (to & 1) {
    if (filter & NO_MULTICAST) return false;
    return (filter & ALL_MULTICAST) != 0 || isListed(reception, MULTICASTS_OFFSET, reception.multicasts, to);
  }
  if (filter & NO_UNICAST) return false;
  if (filter & ALL_UNICAST || to == reception.mac) return true;
  return isListed(reception, UNICASTS_OFFSET, reception.unicasts, to);
}

function isListed(reception: Reception, offset: usize, count: u32, address: u64): bool {
  const list = changetype<usize>(reception) + offset;
  for (let i: u32 = 0; i < count; i++) if (load<u64>(list + (<usize>i << 3)) == address) return true;
  return false;
}
