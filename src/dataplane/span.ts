/**
 * RSTP, as far as it is the data plane's: what a port that doesn't forward gets goes no further. The control plane
 * (src/rstp) decides whether a port discards, learns or forwards, and nothing but its word makes a port forward. BPDUs
 * go to it and come from it as control-frames.ts has it.
 *
 * A port that may lead to other bridges forwards on a lease, which the control plane renews every second. One that
 * hangs sends no BPDUs: neighbours then take the link to be free, and would close the loop that was broken there.
 */
import { now } from './clock';
import { learn, MAC_MASK } from './fdb';
import { header, Rules, STAGE_BLOCKED, STAGE_LEARNS, STAGE_NO_LEARNING } from './layout';
import { RULE_DISCARDING_IN, turnAway, withhold } from './rules';
import { frameAt, isForMany, listSlot, NOWHERE, noteAt, packetAt } from './scratch';

const GROUP: u64 = 1;

/** May nothing but BPDUs pass a port with these stages now? It has STAGE_BLOCKED or STAGE_LEASED. */
export function isBlocked(stages: u32): bool {
  return (stages & STAGE_BLOCKED) != 0 || now() > header().lease;
}

/** What comes from a port that doesn't forward goes no further, and teaches where its source is if the port learns. */
export function block(rules: Rules, port: u32, fid: u32, inVlans: bool, count: u32): void {
  const stages = rules.ingress;
  if (!isBlocked(stages)) return;
  const learns = (stages & (STAGE_BLOCKED | STAGE_LEARNS | STAGE_NO_LEARNING)) == (STAGE_BLOCKED | STAGE_LEARNS);
  for (let i: u32 = 0; i < count; i++) {
    if (packetAt(i).destination == NOWHERE) continue;
    if (learns) {
      const origin = load<u64>(frameAt(i), 6) & MAC_MASK;
      if (origin != 0 && !(origin & GROUP)) learn(origin, inVlans ? noteAt(i).fid : fid, port);
    }
    turnAway(rules, i, RULE_DISCARDING_IN);
  }
}

/** Nothing goes to a port, for this reason. What is for everybody is for those that it can go to, and isn't lost. */
export function keepBack(rules: Rules, count: u32, reason: u32): void {
  for (let i: u32 = 0; i < count; i++) {
    const which = load<u32>(listSlot(i));
    if (!isForMany(packetAt(which).destination)) withhold(rules, which, reason);
  }
}
