/**
 * Headers of a frame that somebody may have built to hide something in: where the network layer begins behind tags
 * and LLC, and what an IPv6 packet carries behind its extension headers. Looks at the bytes below `end` alone, passes
 * a bounded number of headers, and says when it can't see what is there.
 */

export const IPV4: u32 = 0x0800;
export const ARP: u32 = 0x0806;
export const RARP: u32 = 0x8035;
export const IPV6: u32 = 0x86dd;
/** Nothing that is sent over an Ethernet type: spanning tree and the like. */
export const NO_TYPE: u32 = 1;

export const UDP: u32 = 17;
export const ICMPV6: u32 = 58;

/** Tags and LLC headers before the network layer. */
const MOST_LAYERS: u32 = 5;
const MOST_EXTENSIONS: u32 = 8;
const ADDRESSES: u32 = 12;
const TAG: u32 = 4;
/** Types from here on; smaller numbers up to LONGEST are lengths (IEEE 802.3, 3.2.6). */
const FIRST_TYPE: u32 = 0x600;
const LONGEST: u32 = 1500;
/** Subnetwork access protocol: DSAP and SSAP, then control and an organisation, and a type (RFC 1042). */
const SNAP: u32 = 0xaaaa;
const SNAP_BYTES: u32 = 8;
const IP_SAP: u32 = 0x06;

export const IPV6_BYTES: u32 = 40;
const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
const AUTHENTICATION: u32 = 51;
const DESTINATION_OPTIONS: u32 = 60;
const MOBILITY: u32 = 135;
const HIP: u32 = 139;
const SHIM6: u32 = 140;
const OFFSET: u32 = 0xfff8;

/** Where the network layer's header begins. */
export let network: u32 = 0;
/** What an IPv6 packet carries, and where that begins. */
export let upper: u32 = 0;
export let transport: u32 = 0;
/** WHOLE, or which fragment it is: of LATER ones there is nothing in `upper`. */
export let part: u32 = 0;
export const WHOLE: u32 = 0;
export const FIRST: u32 = 1;
export const LATER: u32 = 2;

@inline export function big16(at: usize): u32 { return <u32>bswap(load<u16>(at)); }

@inline
function isTag(type: u32): bool {
  return type == 0x8100 || type == 0x88a8 || type == 0x9100 || type == 0x9200;
}

/** The Ethernet type of a frame behind tags and LLC, NO_TYPE where it has none, 0 when that can't be seen. */
export function findNetwork(frame: usize, end: u32): u32 {
  let at = ADDRESSES;
  for (let i: u32 = 0; i < MOST_LAYERS; i++) {
    if (at + 2 > end) return 0;
    const type = big16(frame + at);
    if (isTag(type)) {
      at += TAG;
    } else if (type >= FIRST_TYPE) {
      network = at + 2;
      return type;
    } else {
      if (type > LONGEST || at + 4 > end) return 0;
      // Some hosts take IP in LLC as if it had come over an Ethernet type.
      if (big16(frame + at + 2) != SNAP) {
        return <u32>load<u8>(frame + at, 2) == IP_SAP || <u32>load<u8>(frame + at, 3) == IP_SAP ? 0 : NO_TYPE;
      }
      if (at + SNAP_BYTES + 2 > end) return 0;
      // Control (3) and the organisation's number: 0, or that of IEEE 802.1H; others have types of their own.
      const organisation = bswap(load<u32>(frame + at, 4));
      if (organisation != 0x0300_0000 && organisation != 0x0300_00f8) return NO_TYPE;
      at += SNAP_BYTES;
    }
  }
  return 0;
}

/** Protocols that IPv6 carries, as IANA has them, and that hosts know: none of them is followed by a header. */
@inline
function isUpper(header: u32): bool {
  switch (header) {
    case 4: case 6: case UDP: case 33: case 41: case 46: case 47: case 50: case ICMPV6: case 59: case 88: case 89:
    case 97: case 103: case 108: case 112: case 115: case 132: case 136: case 137: case 143:
      return true;
    default:
      return false;
  }
}

/**
 * Finds what the IPv6 packet at `network` carries; false when that can't be seen: the chain goes on beyond `end`, is
 * longer than anybody's, or has a header that isn't known (RFC 7113, 3; RFC 7610, 5). The header itself is below `end`.
 */
export function findUpper(frame: usize, end: u32): bool {
  let header = <u32>load<u8>(frame + network, 6);
  let at = network + IPV6_BYTES;
  part = WHOLE;
  for (let i: u32 = 0; i < MOST_EXTENSIONS; i++) {
    if (isUpper(header)) {
      upper = header;
      transport = at;
      return true;
    }
    if (at + 8 > end) return false;
    const from = frame + at;
    const length = <u32>load<u8>(from, 1);
    switch (header) {
      case HOP_BY_HOP: case ROUTING: case DESTINATION_OPTIONS: case MOBILITY: case HIP: case SHIM6:
        at += (length + 1) << 3;
        break;
      case AUTHENTICATION:
        at += (length + 2) << 2;
        break;
      case FRAGMENT:
        // Nothing comes of it without the first one, which has the whole chain (RFC 7112).
        if (big16(from + 2) & OFFSET) {
          part = LATER;
          upper = 0;
          return true;
        }
        part = FIRST;
        at += 8;
        break;
      default:
        return false;
    }
    header = load<u8>(from);
  }
  return false;
}
