/** Drops what a guest sends beyond its rate. A frame counts with all its bytes, a large segment as the one it is. */
import { close, holdsFor, open, take } from './bucket';
import { now } from './clock';
import { Bucket, BUCKET_STRIDE, Rules } from './layout';
import { RULE_RATE_IN, turnAway } from './rules';
import { NOWHERE, packetAt } from './scratch';

/** Lets those of the first `count` frames of the burst go on that the port's buckets have tokens for. */
export function police(rules: Rules, count: u32): void {
  const bits = changetype<Bucket>(rules.police);
  const packets = changetype<Bucket>(rules.police + BUCKET_STRIDE);
  const byBits = bits.rate != 0;
  const byPackets = packets.rate != 0;
  const time = now();
  if (byBits) open(bits, time);
  if (byPackets) open(packets, time);
  for (let i: u32 = 0; i < count; i++) {
    const packet = packetAt(i);
    if (packet.destination == NOWHERE) continue;
    // Neither pays for what the other turns away.
    if ((byBits && !holdsFor(bits, <u64>packet.length << 3)) || (byPackets && !take(packets, 1))) {
      turnAway(rules, i, RULE_RATE_IN);
    } else if (byBits) {
      take(bits, <u64>packet.length << 3);
    }
  }
  if (byPackets) close(packets);
  if (byBits) close(bits);
}
