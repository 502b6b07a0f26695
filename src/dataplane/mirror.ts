/**
 * Mirrors (SPAN): copies of the frames that come from a port (STAGE_MIRROR of Rules.ingress), before anything is done
 * with them, and of those that have gone to one (of Rules.egress), in the form that they have there. They go to a port
 * that gets nothing else (STAGE_MONITOR), as they are, or into a VLAN that is there for them (RSPAN).
 *
 * A copy is written as any frame is, through shaping and impairment of the port that it goes to. Whoever takes copies
 * too slowly loses copies; the frames themselves have nothing to do with that. Copies are not mirrored again.
 */
import { Mirror, Port, portAt, Rules } from './layout';
import { fidOf, RULE_FROM_MONITOR, RULE_TO_MONITOR, turnAway, withhold } from './rules';
import { chosenSlot, FLOOD, keptSlot, listSlot, NOWHERE, packetAt } from './scratch';
import { deliver } from './spread';
import { beginGuests, endGuests, giveBack, isIn, lend, vlanOf } from './vlan';
import { beginCopies, endWatch, unsent, WAY_IN, WAY_OUT } from './watch';

/** What is on its way is a copy: as it is on its port, or in the VLAN of its mirror; 0: it is none. */
export const AS_IT_IS: u32 = 1;
export const IN_VLAN: u32 = 2;
export let copying: u32 = 0;

/** An entry of a list that begins with their number. */
@inline function entry(list: usize, index: u32): u32 { return load<u32>(list + 4 + (<usize>index << 2)); }

/** Copies the frames of the burst, which came from a port. */
export function mirrorIn(from: Port, rules: Rules, count: u32): void {
  let kept: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    if (packetAt(i).destination != NOWHERE) store<u32>(keptSlot(kept++), i);
  }
  mirror(from, rules, kept, WAY_IN);
}

/** Remembers the frames, all or those in the worker's list, that go to a port now: writing them spends the list. */
export function keepList(count: u32, every: bool): void {
  for (let i: u32 = 0; i < count; i++) store<u32>(keptSlot(i), every ? i : load<u32>(listSlot(i)));
}

/** Makes the frames that keepList() has remembered the worker's list again. */
export function recallList(count: u32): void {
  for (let i: u32 = 0; i < count; i++) store<u32>(listSlot(i), load<u32>(keptSlot(i)));
}

/** Copies the frames that keepList() has remembered. */
export function mirrorOut(to: Port, rules: Rules, count: u32): void {
  mirror(to, rules, count, WAY_OUT);
}

function mirror(port: Port, rules: Rules, count: u32, way: u32): void {
  const list = rules.mirrors;
  for (let m: u32 = 0; m < load<u32>(list); m++) {
    const mirror = changetype<Mirror>(<usize>entry(list, m));
    if (!(mirror.ways & way)) continue;
    const chosen = choose(mirror, rules, count);
    if (chosen == 0) continue;
    if (mirror.vlan == 0) {
      copying = AS_IT_IS;
      send(mirror, port, chosen);
    } else {
      copying = IN_VLAN;
      const noted = beginGuests();
      for (let i: u32 = 0; i < chosen; i++) lend(rules, load<u32>(chosenSlot(i)), fidOf(port.bridge) | mirror.vlan);
      send(mirror, port, chosen);
      for (let i: u32 = 0; i < chosen; i++) giveBack(load<u32>(chosenSlot(i)));
      endGuests(noted);
    }
    copying = 0;
  }
}

/** Lists the frames that a mirror wants; returns how many. */
function choose(mirror: Mirror, rules: Rules, count: u32): u32 {
  let chosen: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    const which = load<u32>(keptSlot(i));
    if ((mirror.vlans | mirror.vlan) != 0) {
      const vid = vlanOf(rules, which);
      // What comes in the mirror's own VLAN is copies.
      if (mirror.vlan != 0 && vid == mirror.vlan) continue;
      if (mirror.vlans != 0 && !isIn(mirror.vlans, vid)) continue;
    }
    store<u32>(chosenSlot(chosen++), which);
  }
  return chosen;
}

/** Sends the chosen frames to each port that the mirror copies to. */
function send(mirror: Mirror, port: Port, count: u32): void {
  const ports = mirror.ports;
  let copied: u64 = 0;
  let lost: u64 = 0;
  for (let p: u32 = 0; p < load<u32>(ports); p++) {
    const to = portAt(entry(ports, p));
    // A VLAN is one bridge's, and nobody is to hear himself. Without a guest that is no loss, as of what is flooded.
    if (mirror.vlan != 0 && (to == port || to.bridge != port.bridge || to.pairs == 0)) continue;
    for (let i: u32 = 0; i < count; i++) store<u32>(listSlot(i), load<u32>(chosenSlot(i)));
    beginCopies(mirror);
    deliver(to, count, false);
    endWatch();
    copied += count - unsent;
    lost += unsent;
  }
  atomic.add<u64>(changetype<usize>(mirror) + offsetof<Mirror>('copied'), copied);
  if (lost != 0) atomic.add<u64>(changetype<usize>(mirror) + offsetof<Mirror>('lost'), lost);
}

/** Turns away what comes from a port that is there for copies. */
export function silence(rules: Rules, count: u32): void {
  for (let i: u32 = 0; i < count; i++) {
    if (packetAt(i).destination != NOWHERE) turnAway(rules, i, RULE_FROM_MONITOR);
  }
}

/** Turns away what is no copy, and goes to such a port. What is for everybody isn't for a monitor: no loss. */
export function reserve(rules: Rules, count: u32): void {
  for (let i: u32 = 0; i < count; i++) {
    const which = load<u32>(listSlot(i));
    if (packetAt(which).destination != FLOOD) withhold(rules, which, RULE_TO_MONITOR);
  }
}
