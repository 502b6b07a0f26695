/**
 * The priority of a frame, 0 to 7: that of its VLAN tag (IEEE 802.1Q, PCP), else of its DSCP, mapped as RFC 8325
 * does: expedited forwarding and voice are 6, low effort is 1, assured forwarding of the lowest class is best effort;
 * of others the class selector. Priority 1 is below 0, as 802.1Q has it.
 *
 * It is the one that the frame came with: a bridge finds it where a frame comes in (802.1Q, 6.9.3), and tags that the
 * frame loses or gets on its way out change nothing.
 */
import { frameAt, packetAt } from './scratch';
import { addedTag, NO_PRIORITY, tagPriority } from './vlan';

/** The priority of a frame of the burst. */
export function priorityOf(which: u32): u32 {
  const priority = tagPriority(which);
  if (priority != NO_PRIORITY) return priority;
  const added = addedTag(which);
  return ofHeaders(frameAt(which) + added, packetAt(which).length - added);
}

/** Snapshot of a frame of `length` bytes; of the addresses nothing is looked at. */
function ofHeaders(frame: usize, length: u32): u32 {
  // Behind a frame that is shorter the snapshot holds anything.
  if (length < 16) return 0;
  const type = load<u16>(frame, 12);
  if (type == 0x0081 || type == 0xa888) return <u32>load<u8>(frame, 14) >> 5;
  if (type == 0x0008) return ofDscp(<u32>load<u8>(frame, 15) >> 2);
  if (type == 0xdd86) return ofDscp((<u32>bswap(load<u16>(frame, 14)) >> 6) & 63);
  return 0;
}

function ofDscp(dscp: u32): u32 {
  if (dscp == 46 || dscp == 44) return 6;
  if (dscp == 8 || dscp == 1) return 1;
  return dscp < 16 ? 0 : dscp >> 3;
}

/** Its place among 8 queues: 7 goes first, 0 last. */
@inline export function rankOf(priority: u32): u32 { return priority < 2 ? priority ^ 1 : priority; }
