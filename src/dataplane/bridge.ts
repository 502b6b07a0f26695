/**
 * A learning bridge (IEEE 802.1D, 7.8 and 7.9): decides on snapshots where the frames of a burst go, and sends
 * them there. Frames for one destination keep their order and go out as one burst.
 */
import { enter } from './bond';
import { forgetTime } from './clock';
import { learn, lookup, MAC_MASK, NO_PORT } from './fdb';
import {
  bridgeAt, drop, DROP_BAD_GROUP_MESSAGE, DROP_RESERVED, DROP_SAME_PORT, header, portAt, STAGE_CAPTURE, STAGE_MEMBER,
  STAGE_NO_LEARNING, STAGE_STORM, STAGE_VLAN, Vring,
} from './layout';
import { isIn, portsIn } from './groups';
import { BAD_MESSAGE } from './igmp';
import { admit, fidOf, reaches, RULE_ISOLATED, rulesOf, turnAway } from './rules';
import {
  destinationSlot, FLOOD, frameAt, isForMany, listSlot, markSlot, noteAt, NOWHERE, Packet, packetAt, PACKET_STRIDE, SNAPSHOT_STRIDE, worker,
} from './scratch';
import { forgetGroup, steer } from './snooping';
import { deliver } from './spread';
import { recordCasts } from './statistics';
import { calm } from './storm';
import { forgetNotes } from './vlan';
import { explainIn, REASON_DROP, showWatched } from './watch';

/** The group bit of an address, as loaded little-endian. */
const GROUP: u64 = 1;
/** 01-80-C2-00-00-00 to -0F, by which bridges and links speak to each other (IEEE 802.1Q, table 8-1). */
export const RESERVED: u64 = 0x0000_00c2_8001;
export const RESERVED_MASK: u64 = 0xf0ff_ffff_ffff;
/** The one for pauses, which concern a single link (IEEE 802.3, 31B). */
const PAUSE: u64 = 0x0100_00c2_8001;
/** In place of a port: the frame goes no further for its address. */
const RESERVED_PORT: u32 = 0xffff_fffd;

/** Switches the first `count` frames of this worker's burst, which came from `source`. */
export function bridge(source: Vring, count: u32): void {
  forward(source, count);
  showWatched();
}

function forward(source: Vring, count: u32): void {
  let from = source.port;
  let rules = rulesOf(from);
  let ruled = changetype<usize>(rules) != 0 && rules.ingress != 0;
  forgetNotes();
  forgetTime();
  if (ruled) {
    admit(from, rules, count);
    if (rules.ingress & STAGE_MEMBER) {
      from = enter(rules, count);
      rules = rulesOf(from);
      ruled = changetype<usize>(rules) != 0 && rules.ingress != 0;
      if (ruled) admit(from, rules, count);
    }
  }
  const inVlans = ruled && (rules.ingress & STAGE_VLAN) != 0;
  const learns = !ruled || !(rules.ingress & STAGE_NO_LEARNING);
  let fid = fidOf(portAt(from).bridge);
  groups = bridgeAt(portAt(from).bridge).groups;
  forgetGroup();
  let lastSource: u64 = 0;
  // No address: the first frame is always looked up.
  let lastDestination: u64 = u64.MAX_VALUE;
  let lastPort: u32 = NOWHERE;
  let only: u32 = NO_PORT;
  let uniform = true;
  let frame = frameAt(0);
  let at = changetype<usize>(packetAt(0));
  for (let i: u32 = 0; i < count; i++, at += PACKET_STRIDE, frame += SNAPSHOT_STRIDE) {
    const packet = changetype<Packet>(at);
    if (packet.destination == NOWHERE) {
      uniform = false;
      continue;
    }
    if (inVlans && noteAt(i).fid != fid) {
      fid = noteAt(i).fid;
      lastSource = 0;
      lastDestination = u64.MAX_VALUE;
    }
    const destination = load<u64>(frame) & MAC_MASK;
    const origin = load<u64>(frame, 6) & MAC_MASK;
    // Frames of one flow come together: they need one lookup.
    if (origin != lastSource) {
      lastSource = origin;
      if (learns && origin != 0 && !(origin & GROUP)) learn(origin, fid, from);
    }
    if (destination != lastDestination) {
      lastDestination = destination;
      const port = destination & GROUP ? NO_PORT : lookup(destination, fid);
      lastPort = port == NO_PORT ? FLOOD : port;
      if (destination & GROUP && isFiltered(from, destination)) lastPort = RESERVED_PORT;
      if (ruled && port != NO_PORT && !reaches(rules, port)) lastPort = NOWHERE;
      if (groups != 0 && destination & GROUP && lastPort == FLOOD) {
        lastPort = steer(groups, fid, from, i, inVlans && noteAt(i).form != 0);
        // The next frame to this address may be for another group.
        lastDestination = u64.MAX_VALUE;
      }
    }
    packet.destination = lastPort;
    if (lastPort == from) {
      packet.destination = NOWHERE;
      drop(source, DROP_SAME_PORT);
      if (ruled && rules.ingress & STAGE_CAPTURE) explainIn(i, REASON_DROP + DROP_SAME_PORT);
      uniform = false;
    } else if (lastPort == RESERVED_PORT) {
      packet.destination = NOWHERE;
      drop(source, DROP_RESERVED);
      if (ruled && rules.ingress & STAGE_CAPTURE) explainIn(i, REASON_DROP + DROP_RESERVED);
      uniform = false;
    } else if (lastPort == BAD_MESSAGE) {
      packet.destination = NOWHERE;
      drop(source, DROP_BAD_GROUP_MESSAGE);
      if (ruled && rules.ingress & STAGE_CAPTURE) explainIn(i, REASON_DROP + DROP_BAD_GROUP_MESSAGE);
      uniform = false;
    } else if (lastPort == NOWHERE) {
      turnAway(rules, i, RULE_ISOLATED);
      uniform = false;
    } else if (only == NO_PORT) {
      only = lastPort;
    } else if (only != lastPort) {
      uniform = false;
    }
  }
  if (only == NO_PORT) return;
  if (ruled && rules.ingress & STAGE_STORM && (isForMany(only) || !uniform)) {
    calm(rules, count);
    uniform = false;
  }
  if (uniform && !isForMany(only)) {
    deliver(portAt(only), count, true);
    return;
  }
  recordCasts(source, count);
  const destinations = collect(from, count);
  for (let d: u32 = 0; d < destinations; d++) {
    const port = load<u32>(destinationSlot(d));
    // Without a guest the port is here for what is for it alone.
    const everybody = portAt(port).pairs > 0 && (!ruled || reaches(rules, port)) ? FLOOD : port;
    let n: u32 = 0;
    for (let i: u32 = 0; i < count; i++) {
      const to = packetAt(i).destination;
      if (to == port || to == everybody || (isOfGroup(to) && everybody == FLOOD && isIn(groups, to, port))) {
        store<u32>(listSlot(n++), i);
      }
    }
    if (n > 0) deliver(portAt(port), n, false);
  }
}

/** Which groups the ports of the burst's bridge have joined; 0: frames for groups go to all. */
let groups: usize = 0;

@inline function isOfGroup(destination: u32): bool { return isForMany(destination) && destination != FLOOD; }

/** Is a group's address one that no bridge passes on, or not this one? */
@inline
function isFiltered(from: u32, destination: u64): bool {
  if ((destination & RESERVED_MASK) != RESERVED) return false;
  return destination == PAUSE || bridgeAt(portAt(from).bridge).filters != 0;
}

/** Lists the ports that the burst goes to, each once; returns how many. */
function collect(from: u32, count: u32): u32 {
  const self = worker();
  const stamp = ++self.burst;
  const bridge = portAt(from).bridge;
  let found: u32 = 0;
  let flooded = false;
  let last: u32 = FLOOD;
  for (let i: u32 = 0; i < count; i++) {
    const port = packetAt(i).destination;
    if (port == NOWHERE) continue;
    if (port == FLOOD) {
      if (flooded) continue;
      flooded = true;
      const ports = header().portCount;
      for (let p: u32 = 0; p < ports; p++) {
        // A port without a guest gets no copy of what is meant for everybody, and that is no loss.
        const to = portAt(p);
        if (p != from && to.pairs > 0 && to.bridge == bridge && load<u32>(markSlot(p)) != stamp) {
          store<u32>(markSlot(p), stamp);
          store<u32>(destinationSlot(found++), p);
        }
      }
    } else if (isOfGroup(port)) {
      if (flooded || port == last) continue;
      last = port;
      found = collectGroup(port, from, stamp, found);
    } else if (load<u32>(markSlot(port)) != stamp) {
      store<u32>(markSlot(port), stamp);
      store<u32>(destinationSlot(found++), port);
    }
  }
  return found;
}

/** The same for those that a frame for a group goes to. */
function collectGroup(destination: u32, from: u32, stamp: u32, found: u32): u32 {
  const bridge = portAt(from).bridge;
  const ports = header().portCount;
  for (let base: u32 = 0; base < ports; base += 32) {
    for (let bits = portsIn(groups, destination, base); bits != 0; bits &= bits - 1) {
      const port = base + <u32>ctz(bits);
      const to = portAt(port);
      if (port == from || to.pairs == 0 || to.bridge != bridge || load<u32>(markSlot(port)) == stamp) continue;
      store<u32>(markSlot(port), stamp);
      store<u32>(destinationSlot(found++), port);
    }
  }
  return found;
}
