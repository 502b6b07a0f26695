/**
 * What an operator has set for the frames of a port: the stages that a frame goes through between the ring that it
 * comes from and the rings that it goes to. Frames of a port without rules never come here.
 *
 *   admit()    the stages for frames from a port, before it is decided where they go
 *   reaches()  may a frame from one port go to another?
 *   depart()   the stages for frames to a port, before they are written to its rings
 *
 * Each stage has a file of its own and a bit (STAGE_…). One that turns frames away counts them by reason.
 */
import { handUp } from './control-frames';
import { screen } from './guard';
import {
  Port, portAt, PORTS, PORT_STRIDE, Rules, STAGE_BLOCKED, STAGE_CAPTURE, STAGE_GUARD, STAGE_ISOLATION, STAGE_LEASED, STAGE_LINE,
  STAGE_LOCKED, STAGE_MIRROR, STAGE_MONITOR, STAGE_POLICE, STAGE_PROTOCOLS, STAGE_SHAPE, STAGE_UNPLUGGED, STAGE_VLAN,
} from './layout';
import { fromLine, intoLine } from './line';
import { lockOut } from './locked';
import { AS_IT_IS, copying, mirrorIn, reserve, silence } from './mirror';
import { police } from './police';
import { listSlot, NOWHERE, packetAt } from './scratch';
import { shape } from './shape';
import { block, isBlocked, keepBack } from './span';
import { unplug } from './unplugged';
import { classify, dress } from './vlan';
import { explainIn, watchIn, watchRefused } from './watch';

/** Reasons, in the order of src/rules/reasons.ts. */
export const RULE_ISOLATED: u32 = 0;
export const RULE_VLAN_NOT_ADMITTED: u32 = 1;
export const RULE_VLAN_NOT_MEMBER: u32 = 2;
export const RULE_VLAN_INNER_TAG: u32 = 3;
export const RULE_VLAN_TOO_LONG: u32 = 4;
export const RULE_RATE_IN: u32 = 5;
export const RULE_QUEUE_OUT: u32 = 6;
export const RULE_LOSS_IN: u32 = 7;
export const RULE_LOSS_OUT: u32 = 8;
export const RULE_LIMIT_IN: u32 = 9;
export const RULE_LIMIT_OUT: u32 = 10;
export const RULE_SPOOFED_MAC: u32 = 11;
export const RULE_SPOOFED_IP: u32 = 12;
export const RULE_SPOOFED_ARP: u32 = 13;
export const RULE_SPOOFED_ND: u32 = 14;
export const RULE_ROUTER_ADVERTISEMENT: u32 = 15;
export const RULE_DHCP_SERVER: u32 = 16;
export const RULE_HIDDEN_HEADERS: u32 = 17;
/** And of the other kinds (STORM_…) behind it. */
export const RULE_STORM_BROADCAST: u32 = 18;
export const RULE_LOCKED: u32 = 21;
export const RULE_PROTOCOL_OVERFLOW: u32 = 22;
export const RULE_DISCARDING_IN: u32 = 23;
export const RULE_DISCARDING_OUT: u32 = 24;
/** The control plane counts another one, 25: bad BPDUs. */
export const RULE_BOND_CLOSED: u32 = 26;
export const RULE_FROM_MONITOR: u32 = 27;
export const RULE_TO_MONITOR: u32 = 28;
/** The control plane counts another one, 29: bad LACPDUs. */
export const RULE_LINK_DOWN_IN: u32 = 30;
export const RULE_LINK_DOWN_OUT: u32 = 31;

/** Bits of a filtering identifier below the bridge's: a VLAN's number. */
export const VLAN_BITS: u32 = 12;

/** The filtering identifier of frames without a VLAN on a bridge. */
@inline export function fidOf(bridge: u32): u32 { return bridge << VLAN_BITS; }

/** The rules of a port, null where it has none. */
@inline export function rulesOf(port: u32): Rules { return changetype<Rules>(portAt(port).rules); }

/** Counts frames that a rule has turned away. Workers may count for one port at a time. */
export function refuse(rules: Rules, reason: u32, count: u64 = 1): void {
  atomic.add<u64>(rules.drops + (<usize>reason << 3), count);
}

/** Turns a frame of the burst away that came from the port with these rules. */
export function turnAway(rules: Rules, which: u32, reason: u32): void {
  packetAt(which).destination = NOWHERE;
  refuse(rules, reason);
  if (rules.ingress & STAGE_CAPTURE) explainIn(which, reason + 1);
}

/** The same for a frame that was to go to the port: the stage leaves it out of the worker's list. */
export function withhold(rules: Rules, which: u32, reason: u32): void {
  refuse(rules, reason);
  if (rules.egress & STAGE_CAPTURE) watchRefused(rules, which, reason + 1);
}

/** Takes the first `count` frames of the burst through the stages for what comes from a port. */
export function admit(port: u32, rules: Rules, count: u32): void {
  // The cable comes first: what is under way is looked at when it has arrived.
  if (rules.ingress & STAGE_LINE) fromLine(port, rules, count);
  if (rules.ingress & STAGE_CAPTURE) watchIn(rules, count);
  if (rules.ingress & STAGE_UNPLUGGED) return unplug(rules, count);
  if (rules.ingress & STAGE_MIRROR) mirrorIn(portAt(port), rules, count);
  if (rules.ingress & STAGE_MONITOR) silence(rules, count);
  if (rules.ingress & STAGE_PROTOCOLS) handUp(port, rules, count);
  if (rules.ingress & STAGE_POLICE) police(rules, count);
  if (rules.ingress & STAGE_GUARD) screen(rules, count);
  const bridge = portAt(port).bridge;
  const inVlans = (rules.ingress & STAGE_VLAN) != 0;
  if (inVlans) classify(rules, bridge, count);
  if (rules.ingress & STAGE_LOCKED) lockOut(rules, port, fidOf(bridge), inVlans, count);
  if (rules.ingress & (STAGE_BLOCKED | STAGE_LEASED)) block(rules, port, fidOf(bridge), inVlans, count);
}

/** May a frame that came from a port with rules go to another one? */
export function reaches(rules: Rules, to: u32): bool {
  if (rules.ingress & STAGE_ISOLATION) {
    const other = rulesOf(to);
    if (changetype<usize>(other) != 0 && other.isolated) return false;
  }
  return true;
}

/**
 * Takes frames of the burst, all or those in the worker's list, through the stages for what goes to a port. Those
 * that go on are in the worker's list then; returns how many.
 */
export function depart(port: Port, rules: Rules, count: u32, every: bool): u32 {
  if (every) for (let i: u32 = 0; i < count; i++) store<u32>(listSlot(i), i);
  if (rules.egress & STAGE_UNPLUGGED) {
    keepBack(rules, count, RULE_LINK_DOWN_OUT);
    return 0;
  }
  if (copying != AS_IT_IS && rules.egress & (STAGE_BLOCKED | STAGE_LEASED) && isBlocked(rules.egress)) {
    keepBack(rules, count, RULE_DISCARDING_OUT);
    return 0;
  }
  if (rules.egress & STAGE_MONITOR && !copying) {
    reserve(rules, count);
    return 0;
  }
  if (rules.egress & STAGE_VLAN && copying != AS_IT_IS) count = dress(rules, count);
  if (rules.egress & (STAGE_SHAPE | STAGE_LINE)) count = postpone(port, rules, count);
  return count;
}

/** The stages in which frames for a port wait: for its rate, then on their way. */
function postpone(to: Port, rules: Rules, count: u32): u32 {
  const port = <u32>((changetype<usize>(to) - PORTS) / PORT_STRIDE);
  if (rules.egress & STAGE_SHAPE && count != 0) count = shape(port, rules, count);
  if (!(rules.egress & STAGE_LINE)) return count;
  if (count != 0) intoLine(port, rules, count);
  return 0;
}
