/** Locked ports: only stations whose addresses an operator has entered for the port may send there. */
import { isPinned, MAC_MASK } from './fdb';
import { Rules } from './layout';
import { RULE_LOCKED, turnAway } from './rules';
import { frameAt, NOWHERE, noteAt, packetAt } from './scratch';

/** Turns away what comes from others; `fid` is that of all frames, unless `inVlans`. */
export function lockOut(rules: Rules, port: u32, fid: u32, inVlans: bool, count: u32): void {
  let last: u64 = u64.MAX_VALUE;
  let known = false;
  for (let i: u32 = 0; i < count; i++) {
    const packet = packetAt(i);
    if (packet.destination == NOWHERE) continue;
    const origin = load<u64>(frameAt(i), 6) & MAC_MASK;
    const own = inVlans ? noteAt(i).fid : fid;
    if (origin != last || own != fid) known = isPinned(origin, own, port);
    last = origin;
    fid = own;
    if (known) continue;
    turnAway(rules, i, RULE_LOCKED);
  }
}
