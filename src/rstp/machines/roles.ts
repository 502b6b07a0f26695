/** Port role transition machine (17.29): from the role that was selected to what the port may learn and forward. */
import { MIGRATE_TIME, type Port, type Role } from '../port.ts';
import type { Tree } from '../tree.ts';

export function changeRole(port: Port, tree: Tree): boolean {
  // Of every transition (17.29).
  if (!port.selected || port.updtInfo) return false;
  if (port.role !== port.selectedRole) return enter(port, port.selectedRole);
  switch (port.states.roles) {
    case 'DISABLE_PORT':
      return port.learning || port.forwarding ? false : settleDisabled(port);
    case 'DISABLED_PORT':
      return port.fdWhile !== port.designatedTimes.maxAge || port.sync || port.reRoot || !port.synced
        ? settleDisabled(port)
        : false;
    case 'ROOT_PORT':
      return root(port, tree);
    case 'DESIGNATED_PORT':
      return designated(port);
    case 'BLOCK_PORT':
      return port.learning || port.forwarding ? false : settleAlternate(port);
    case 'ALTERNATE_PORT':
      return alternate(port, tree);
  }
}

function enter(port: Port, role: Role): boolean {
  port.role = role;
  if (role === 'root') {
    port.states.roles = 'ROOT_PORT';
    port.rrWhile = port.designatedTimes.forwardDelay;
  } else if (role === 'designated') {
    port.states.roles = 'DESIGNATED_PORT';
  } else {
    port.learn = port.forward = false;
    port.states.roles = role === 'disabled' ? 'DISABLE_PORT' : 'BLOCK_PORT';
  }
  return true;
}

function settleDisabled(port: Port): boolean {
  port.states.roles = 'DISABLED_PORT';
  port.fdWhile = port.designatedTimes.maxAge;
  port.synced = true;
  port.rrWhile = 0;
  port.sync = port.reRoot = false;
  return true;
}

function settleAlternate(port: Port): boolean {
  port.states.roles = 'ALTERNATE_PORT';
  port.fdWhile = forwardDelay(port);
  port.synced = true;
  port.rrWhile = 0;
  port.sync = port.reRoot = false;
  return true;
}

function root(port: Port, tree: Tree): boolean {
  if (port.rrWhile !== port.designatedTimes.forwardDelay) {
    port.rrWhile = port.designatedTimes.forwardDelay;
    return true;
  }
  if (port.proposed && !port.agree) return propose(port, tree);
  if ((allSynced(tree) && !port.agree) || (port.proposed && port.agree)) {
    port.sync = false;
    return consent(port);
  }
  if (port.reRoot && port.forward) {
    port.reRoot = false;
    return true;
  }
  if (!port.forward && !port.reRoot) {
    for (const other of tree.ports) other.reRoot = true;
    return true;
  }
  const may = port.fdWhile === 0 || (reRooted(port, tree) && port.rbWhile === 0);
  return may && advance(port, () => {});
}

function designated(port: Port): boolean {
  const retiring = port.reRoot && port.rrWhile !== 0;
  if (
    ((port.sync && !port.synced) || retiring || port.disputed) &&
    !port.operEdge &&
    (port.learn || port.forward)
  ) {
    port.learn = port.forward = port.disputed = false;
    port.fdWhile = forwardDelay(port);
    return true;
  }
  if (!port.forward && !port.agreed && !port.proposing && !port.operEdge) {
    port.proposing = true;
    port.edgeDelayWhile = port.pointToPoint ? MIGRATE_TIME : port.designatedTimes.maxAge;
    port.newInfo = true;
    return true;
  }
  const quiet = !port.learning && !port.forwarding;
  if (((quiet || port.agreed || port.operEdge) && !port.synced) || (port.sync && port.synced)) {
    port.rrWhile = 0;
    port.synced = true;
    port.sync = false;
    return true;
  }
  if (port.rrWhile === 0 && port.reRoot) {
    port.reRoot = false;
    return true;
  }
  const may = (port.fdWhile === 0 || port.agreed || port.operEdge) && !retiring && !port.sync;
  return (
    may &&
    advance(port, () => {
      port.agreed = port.sendRstp;
    })
  );
}

function alternate(port: Port, tree: Tree): boolean {
  if (port.role === 'backup' && port.rbWhile !== 2 * port.designatedTimes.helloTime) {
    port.rbWhile = 2 * port.designatedTimes.helloTime;
    return true;
  }
  if (port.fdWhile !== forwardDelay(port) || port.sync || port.reRoot || !port.synced)
    return settleAlternate(port);
  if (port.proposed && !port.agree) return propose(port, tree);
  return ((allSynced(tree) && !port.agree) || (port.proposed && port.agree)) && consent(port);
}

/** …_LEARN and then …_FORWARD. */
function advance(port: Port, forwarded: () => void): boolean {
  if (!port.learn) {
    port.learn = true;
    port.fdWhile = forwardDelay(port);
    return true;
  }
  if (port.forward) return false;
  port.forward = true;
  port.fdWhile = 0;
  forwarded();
  return true;
}

/** …_PROPOSED: the neighbour asks whether it may forward, so all others have to be in step first. */
function propose(port: Port, tree: Tree): boolean {
  for (const other of tree.ports) other.sync = true;
  port.proposed = false;
  return true;
}

/** …_AGREED: it may. */
function consent(port: Port): boolean {
  port.proposed = false;
  port.agree = port.newInfo = true;
  return true;
}

/** 17.20.3 */
const allSynced = (tree: Tree): boolean =>
  [...tree.ports].every(
    ({ selected, role, selectedRole, synced }) =>
      selected && role === selectedRole && (role === 'root' || synced),
  );

/** 17.20.10 */
const reRooted = (port: Port, tree: Tree): boolean =>
  [...tree.ports].every((other) => other === port || other.rrWhile === 0);

/** 17.20.5 */
const forwardDelay = ({ sendRstp, designatedTimes }: Port): number =>
  sendRstp ? designatedTimes.helloTime : designatedTimes.forwardDelay;
