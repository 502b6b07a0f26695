/** Topology change machine (17.31): who is told when stations may be behind another port than before. */
import { HELLO_TIME, type Port } from '../port.ts';
import type { Tree } from '../tree.ts';

export function changeTopology(port: Port, tree: Tree): boolean {
  const { states } = port;
  const active = port.role === 'root' || port.role === 'designated';
  const told = port.rcvdTc || port.rcvdTcn || port.rcvdTcAck || port.tcProp;
  if (port.fdbFlush) {
    port.fdbFlush = false;
    tree.effects.flush(port);
  }
  switch (states.topology) {
    case 'INACTIVE':
      return port.learn ? learn(port) : false;
    case 'LEARNING':
      if (active && port.forward && !port.operEdge) {
        newTcWhile(port, tree);
        propagate(port, tree);
        port.newInfo = true;
        states.topology = 'ACTIVE';
        return true;
      }
      if (told) return learn(port);
      if (active || port.learn || port.learning) return false;
      states.topology = 'INACTIVE';
      port.fdbFlush = true;
      port.tcWhile = 0;
      port.tcAck = false;
      return true;
    case 'ACTIVE':
      if (!active || port.operEdge) return learn(port);
      if (!told) return false;
      if (port.rcvdTcn || port.rcvdTc) {
        if (port.rcvdTcn) newTcWhile(port, tree);
        port.rcvdTcn = port.rcvdTc = false;
        if (port.role === 'designated') port.tcAck = true;
        propagate(port, tree);
      } else if (port.tcProp) {
        newTcWhile(port, tree);
        port.fdbFlush = true;
        port.tcProp = false;
      } else {
        port.tcWhile = 0;
        port.rcvdTcAck = false;
      }
      return true;
  }
}

function learn(port: Port): boolean {
  port.states.topology = 'LEARNING';
  port.rcvdTc = port.rcvdTcn = port.rcvdTcAck = port.tcProp = false;
  return true;
}

/** setTcPropTree(): all others are to tell it. */
function propagate(port: Port, tree: Tree): void {
  for (const other of tree.ports) if (other !== port) other.tcProp = true;
}

/** 17.21.7 */
function newTcWhile(port: Port, { rootTimes }: Tree): void {
  if (port.tcWhile !== 0) return;
  port.tcWhile = port.sendRstp ? HELLO_TIME + 1 : rootTimes.maxAge + rootTimes.forwardDelay;
  if (port.sendRstp) port.newInfo = true;
}
