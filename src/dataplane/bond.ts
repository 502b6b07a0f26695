/**
 * Bonds: a port made of other ports, its members (IEEE 802.1AX, link aggregation). The bridge knows the bond alone:
 * what comes from a member is from the bond (enter), and what is for the bond leaves by one member (leave), the one
 * that is active or the one of its flow, so that frames of a flow keep their order. Rules of a member are those of its
 * cable; all others are the bond's.
 *
 * The control plane decides which members are used (src/bond): it rewrites the table, whose entries name a member at
 * any moment, and opens and closes members to what comes. A bond that has no member to use has no `pairs`.
 */
import { addressHash, flowHash } from './flow';
import { Bond, FLOWS, BondMember, portAt, Rules, STAGE_BOND, STAGE_MEMBER } from './layout';
import { RULE_BOND_CLOSED, rulesOf, turnAway } from './rules';
import { frameAt, listSlot, NOWHERE, memberSlot, packetAt } from './scratch';
import { deliver } from './spread';

/** Bond.hash */
const NO_HASH: u32 = 0;
const ADDRESSES: u32 = 1;

/** What came from a member is from its bond from here on, if the member is open; returns the bond. */
export function enter(rules: Rules, count: u32): u32 {
  const member = changetype<BondMember>(rules.member);
  if (!member.open) {
    for (let i: u32 = 0; i < count; i++) {
      if (packetAt(i).destination != NOWHERE) turnAway(rules, i, RULE_BOND_CLOSED);
    }
  }
  return member.bond;
}

/** The member that a frame leaves a bond by. Its rings go by other bits of the hash: else some would get nothing. */
@inline
function memberOf(bond: Bond, frame: usize, length: u32): u32 {
  const hash = bond.hash == ADDRESSES ? addressHash(frame) : flowHash(frame, length);
  return load<u32>(tableOf(bond) + (<usize>(hash >> 7 & (FLOWS - 1)) << 2));
}

@inline function tableOf(bond: Bond): usize { return changetype<usize>(bond) + offsetof<Bond>(); }

/** Sends frames of the burst, all or those in the worker's list, by the members of a bond that has some. */
export function leave(rules: Rules, count: u32, every: bool): void {
  const bond = changetype<Bond>(rules.bond);
  if (bond.hash == NO_HASH) {
    deliver(portAt(load<u32>(tableOf(bond))), count, every);
    return;
  }
  for (let i: u32 = 0; i < count; i++) {
    const which = every ? i : load<u32>(listSlot(i));
    store<u32>(memberSlot(i), which);
    store<u32>(memberSlot(i), memberOf(bond, frameAt(which), packetAt(which).length), 4);
  }
  // A burst for each member that occurs, in the order of the frames.
  for (let i: u32 = 0; i < count; i++) {
    const member = load<u32>(memberSlot(i), 4);
    if (member == NOWHERE) continue;
    let n: u32 = 0;
    for (let j = i; j < count; j++) {
      if (load<u32>(memberSlot(j), 4) != member) continue;
      store<u32>(memberSlot(j), NOWHERE, 4);
      store<u32>(listSlot(n++), load<u32>(memberSlot(j)));
    }
    deliver(portAt(member), n, false);
  }
}

/** The port that the bridge takes another for: the bond of a member, any other port itself. */
export function faceOf(port: u32): u32 {
  const rules = rulesOf(port);
  if (changetype<usize>(rules) == 0 || !(rules.ingress & STAGE_MEMBER)) return port;
  return changetype<BondMember>(rules.member).bond;
}

/** The port that a frame for another one leaves by: a member of a bond, any other port itself. */
export function exitOf(port: u32, frame: usize, length: u32): u32 {
  const rules = rulesOf(port);
  if (changetype<usize>(rules) == 0 || !(rules.egress & STAGE_BOND) || portAt(port).pairs == 0) return port;
  const bond = changetype<Bond>(rules.bond);
  return bond.hash == NO_HASH ? load<u32>(tableOf(bond)) : memberOf(bond, frame, length);
}
