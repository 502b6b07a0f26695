/** Port transmit machine (17.26): what is told to the neighbour, when there is news and every hello time. */
import type { SentRole } from '../bpdu.ts';
import { HELLO_TIME, type Port, TX_HOLD_COUNT } from '../port.ts';
import type { Tree } from '../tree.ts';

export function transmit(port: Port, tree: Tree): boolean {
  if (!port.portEnabled) {
    if (port.newInfo && port.txCount === 0 && port.helloWhen === HELLO_TIME) return false;
    port.newInfo = true;
    port.txCount = 0;
    port.helloWhen = HELLO_TIME;
    return true;
  }
  if (!port.selected || port.updtInfo) return false;
  if (port.helloWhen === 0) {
    port.newInfo ||= port.role === 'designated' || (port.role === 'root' && port.tcWhile !== 0);
    port.helloWhen = HELLO_TIME;
    return true;
  }
  if (!port.newInfo || port.txCount >= TX_HOLD_COUNT || port.role === 'disabled') return false;
  // To a neighbour that speaks STP only these two have something to say.
  if (!port.sendRstp && port.role !== 'root' && port.role !== 'designated') return false;
  port.newInfo = false;
  port.txCount++;
  port.helloWhen = HELLO_TIME;
  send(port, tree);
  if (port.sendRstp || port.role === 'designated') port.tcAck = false;
  return true;
}

function send(port: Port, { effects }: Tree): void {
  const { designatedVector: vector, designatedTimes: times, role } = port;
  const tc = port.tcWhile !== 0;
  if (port.sendRstp) {
    const { proposing: proposal, agree: agreement, learning, forwarding } = port;
    const told: SentRole = role === 'root' || role === 'designated' ? role : 'alternate';
    effects.transmit(port, {
      kind: 'rstp',
      role: told,
      vector,
      times,
      tc,
      proposal,
      agreement,
      learning,
      forwarding,
    });
  } else if (role === 'root') {
    effects.transmit(port, { kind: 'notification' });
  } else {
    effects.transmit(port, { kind: 'stp', vector, times, tc, tcAck: port.tcAck });
  }
}
