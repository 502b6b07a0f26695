/**
 * From a port to its rings. A guest with one queue gets the burst as it is; with several, each frame goes to the
 * ring that the port's table has for its flow, so that frames of one flow keep their order.
 *
 * The control plane rewrites the table when queues are enabled or disabled: an entry always names a ring of this
 * port, whatever moment a worker reads it at.
 */
import { transmit } from './device';
import { flowHash } from './flow';
import { FLOWS, Port, Vring } from './layout';
import { frameAt, listSlot, packetAt, spreadSlot } from './scratch';

/** Sends frames of the burst to the guest of a port: all of them (`every`), or those named by the worker's list. */
@inline
export function deliver(port: Port, count: u32, every: bool): void {
  if (port.pairs < 2) transmit(changetype<Vring>(port.ring), count, every);
  else spread(port, count, every);
}

function spread(port: Port, count: u32, every: bool): void {
  const table = port.table;
  for (let i: u32 = 0; i < count; i++) {
    const which = every ? i : load<u32>(listSlot(i));
    const flow = flowHash(frameAt(which), packetAt(which).length) & (FLOWS - 1);
    store<u32>(spreadSlot(i), which);
    store<u32>(spreadSlot(i), load<u32>(table + ((<usize>flow) << 2)), 4);
  }
  // A burst for each ring that occurs, in the order of the frames.
  for (let i: u32 = 0; i < count; i++) {
    const ring = load<u32>(spreadSlot(i), 4);
    if (ring == 0) continue;
    let n: u32 = 0;
    for (let j = i; j < count; j++) {
      if (load<u32>(spreadSlot(j), 4) != ring) continue;
      store<u32>(spreadSlot(j), 0, 4);
      store<u32>(listSlot(n++), load<u32>(spreadSlot(j)));
    }
    transmit(changetype<Vring>(<usize>ring), n, false);
  }
}
