/** What a port hears: messages one by one, which protocol the neighbour speaks, and whether there is one at all. */
import { MIGRATE_TIME, type Port } from '../port.ts';

/** Port receive machine (17.23). */
export function receiveMessage(port: Port): boolean {
  if (!port.portEnabled) {
    if (!port.rcvdBpdu && port.edgeDelayWhile === MIGRATE_TIME) return false;
    port.states.receive = 'DISCARD';
    port.rcvdBpdu = port.rcvdRstp = port.rcvdStp = port.rcvdMsg = false;
    port.edgeDelayWhile = MIGRATE_TIME;
    return true;
  }
  if (!port.rcvdBpdu || (port.states.receive === 'RECEIVE' && port.rcvdMsg)) return false;
  port.states.receive = 'RECEIVE';
  port.rcvdRstp = port.message!.kind === 'rstp';
  port.rcvdStp = !port.rcvdRstp;
  port.operEdge = port.rcvdBpdu = false;
  port.rcvdMsg = true;
  port.edgeDelayWhile = MIGRATE_TIME;
  return true;
}

/** Port protocol migration machine (17.24). */
export function migrate(port: Port): boolean {
  const { states } = port;
  switch (states.migration) {
    case 'CHECKING_RSTP':
      if (port.mdelayWhile === 0) return sense(port);
      if (port.mdelayWhile === MIGRATE_TIME || port.portEnabled) return false;
      return check(port);
    case 'SELECTING_STP':
      return port.mdelayWhile === 0 || !port.portEnabled || port.mcheck ? sense(port) : false;
    case 'SENSING':
      if (!port.portEnabled || port.mcheck || (!port.sendRstp && port.rcvdRstp)) return check(port);
      if (!port.sendRstp || !port.rcvdStp) return false;
      states.migration = 'SELECTING_STP';
      port.sendRstp = false;
      port.mdelayWhile = MIGRATE_TIME;
      return true;
  }
}

function check(port: Port): boolean {
  port.states.migration = 'CHECKING_RSTP';
  port.mcheck = false;
  port.sendRstp = true;
  port.mdelayWhile = MIGRATE_TIME;
  return true;
}

function sense(port: Port): boolean {
  port.states.migration = 'SENSING';
  port.rcvdRstp = port.rcvdStp = false;
  return true;
}

/** Bridge detection machine (17.25). */
export function detect(port: Port): boolean {
  const { states, edge } = port;
  if (states.detection === 'EDGE') {
    if ((port.portEnabled || edge === true) && port.operEdge) return false;
    states.detection = 'NOT_EDGE';
    port.operEdge = false;
    return true;
  }
  const alone = port.edgeDelayWhile === 0 && edge !== false && port.sendRstp && port.proposing;
  if (!(!port.portEnabled && edge === true) && !alone) return false;
  states.detection = 'EDGE';
  port.operEdge = true;
  return true;
}
