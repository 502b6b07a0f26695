/**
 * A port whose link is down, because an operator has set it so or because another port's is: what its guest sends goes
 * nowhere, whatever the guest was told of the link and believes.
 */
import { Rules } from './layout';
import { RULE_LINK_DOWN_IN, turnAway } from './rules';
import { NOWHERE, packetAt } from './scratch';

export function unplug(rules: Rules, count: u32): void {
  for (let i: u32 = 0; i < count; i++) if (packetAt(i).destination != NOWHERE) turnAway(rules, i, RULE_LINK_DOWN_IN);
}
