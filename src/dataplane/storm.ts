/**
 * Storm control: how much of what is for many a port may send. Frames that go to all ports, because they are for
 * everybody, for a group, or for an address that isn't known, take tokens from a bucket of their kind.
 */
import { close, open, take } from './bucket';
import { now } from './clock';
import { BUCKET_STRIDE, Bucket, Rules, Storm, STORM_BROADCAST, STORM_MULTICAST, STORM_UNKNOWN } from './layout';
import { MAC_MASK } from './fdb';
import { RULE_STORM_BROADCAST, turnAway } from './rules';
import { frameAt, isForMany, packetAt } from './scratch';

/** Turns away, of the first `count` frames of the burst, what is too much. */
export function calm(rules: Rules, count: u32): void {
  const storm = changetype<Storm>(rules.storm);
  for (let kind = STORM_BROADCAST; kind <= STORM_UNKNOWN; kind++) {
    if (!(storm.kinds >> kind & 1)) continue;
    let bucket: Bucket | null = null;
    for (let i: u32 = 0; i < count; i++) {
      const packet = packetAt(i);
      if (!isForMany(packet.destination) || kindOf(frameAt(i)) != kind) continue;
      if (bucket === null) {
        bucket = changetype<Bucket>(rules.storm + BUCKET_STRIDE * (1 + <usize>kind));
        open(bucket, now());
      }
      if (take(bucket, storm.bits >> kind & 1 ? <u64>packet.length << 3 : 1)) continue;
      turnAway(rules, i, RULE_STORM_BROADCAST + kind);
    }
    if (bucket !== null) close(bucket);
  }
}

@inline
function kindOf(frame: usize): u32 {
  const destination = load<u64>(frame) & MAC_MASK;
  if (destination == MAC_MASK) return STORM_BROADCAST;
  return destination & 1 ? STORM_MULTICAST : STORM_UNKNOWN;
}
