/** Port information machine (17.27): what the port knows of the best message on its link, and from whom. */
import type { Bpdu } from '../bpdu.ts';
import { HELLO_TIME, type Port } from '../port.ts';
import { compare, isSuperior, sameTimes, type Vector } from '../priority.ts';

type Content = Exclude<Bpdu, { kind: 'notification' }>;

export function inform(port: Port): boolean {
  const { states } = port;
  if (!port.portEnabled) return port.infoIs !== 'disabled' || port.rcvdMsg ? disable(port) : false;
  switch (states.information) {
    case 'DISABLED':
      return age(port);
    case 'AGED':
      return port.selected && port.updtInfo ? update(port) : false;
    case 'CURRENT':
      if (port.selected && port.updtInfo) return update(port);
      if (port.updtInfo) return false;
      if (port.rcvdMsg) return take(port);
      return port.infoIs === 'received' && port.rcvdInfoWhile === 0 ? age(port) : false;
  }
}

function disable(port: Port): boolean {
  port.states.information = 'DISABLED';
  port.rcvdMsg = false;
  port.proposing = port.proposed = port.agree = port.agreed = false;
  port.rcvdInfoWhile = 0;
  port.infoIs = 'disabled';
  port.reselect = true;
  port.selected = false;
  return true;
}

function age(port: Port): boolean {
  port.states.information = 'AGED';
  port.infoIs = 'aged';
  port.reselect = true;
  port.selected = false;
  return true;
}

/** The port has something to say that is better than what it heard. */
function update(port: Port): boolean {
  port.states.information = 'CURRENT';
  port.proposing = port.proposed = false;
  port.agreed &&= port.infoIs === 'mine' && isBetterOrSame(port.designatedVector, port.portVector);
  port.synced &&= port.agreed;
  port.portVector = port.designatedVector;
  port.portTimes = port.designatedTimes;
  port.updtInfo = false;
  port.infoIs = 'mine';
  port.newInfo = true;
  return true;
}

const isBetterOrSame = (one: Vector, other: Vector) => compare(one, other) <= 0;

/** A message has come: RECEIVE, and where that leads to. */
function take(port: Port): boolean {
  const message = port.message!;
  port.rcvdMsg = false;
  if (message.kind === 'notification') {
    port.rcvdTcn = true;
    return true;
  }
  const { vector, times } = message;
  const known = compare(vector, port.portVector) === 0 && sameTimes(times, port.portTimes);
  const isSame = compare(vector, port.portVector) === 0;
  // One of STP is sent by a designated port.
  if (message.kind === 'stp' || message.role === 'designated') {
    if (known) repeated(port, message);
    else if (isSuperior(vector, port.portVector)) superior(port, message);
    else dispute(port, message);
  } else if (isSame || !isSuperior(vector, port.portVector)) {
    answer(port, message);
  }
  return true;
}

function superior(port: Port, message: Content): void {
  port.agreed = port.proposing = false;
  recordProposal(port, message);
  setTcFlags(port, message);
  port.agree &&= port.infoIs === 'received' && isBetterOrSame(message.vector, port.portVector);
  port.portVector = message.vector;
  port.portTimes = message.times;
  updateRcvdInfoWhile(port);
  port.infoIs = 'received';
  port.reselect = true;
  port.selected = false;
}

function repeated(port: Port, message: Content): void {
  recordProposal(port, message);
  setTcFlags(port, message);
  updateRcvdInfoWhile(port);
}

/**
 * A designated port says what is worse than what this one says, and forwards for all that: it doesn't hear us. As in
 * 802.1Q (13.29.13), which corrects what 802.1D has here.
 */
function dispute(port: Port, message: Content): void {
  if (message.kind !== 'rstp' || !message.learning) return;
  port.disputed = true;
  port.agreed = false;
}

/** From a port that isn't designated, recordAgreement(). */
function answer(port: Port, message: Content): void {
  port.agreed = port.pointToPoint && message.kind === 'rstp' && message.agreement;
  if (port.agreed) port.proposing = false;
  setTcFlags(port, message);
}

function recordProposal(port: Port, message: Content): void {
  if (message.kind === 'rstp' && message.role === 'designated' && message.proposal) port.proposed = true;
}

function setTcFlags(port: Port, message: Content): void {
  if (message.tc) port.rcvdTc = true;
  if (message.kind === 'stp' && message.tcAck) port.rcvdTcAck = true;
}

/** Three times the sender's hello time, unless the message is too old (17.21.23). */
function updateRcvdInfoWhile(port: Port): void {
  const { messageAge, maxAge, helloTime } = port.portTimes;
  port.rcvdInfoWhile = messageAge + 1 <= maxAge ? 3 * (helloTime || HELLO_TIME) : 0;
}
