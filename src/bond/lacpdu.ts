/**
 * LACPDUs (IEEE 802.1AX-2014, 6.4.2), and the marker protocol beside them (6.5): frames to 01-80-C2-00-00-02 of the
 * type for slow protocols. What comes is a neighbour's word, and is read as such.
 */

/** 01-80-C2-00-00-02 */
const SLOW_PROTOCOLS = Buffer.from([0x01, 0x80, 0xc2, 0, 0, 2]);
const TYPE = 0x8809;
const LACP = 1;
const MARKER = 2;
/** Bytes of a frame, without its checksum: header, subtype, version, and TLVs padded to 110 bytes in all. */
const LENGTH = 124;
/** Where the TLVs of actor and partner begin, and what they are by type and length. */
const ACTOR = 16;
const PARTNER = 36;
const ACTOR_TLV = [1, 20];
const PARTNER_TLV = [2, 20];
const COLLECTOR = 56;
const COLLECTOR_TLV = [3, 16];
/** The marker's TLV, and that of an answer. */
const MARKER_TLV = [1, 16];
const MARKER_ANSWER = 2;

/** Bits of a port's state (6.4.2.3). */
export const ACTIVITY = 1;
export const TIMEOUT = 2;
export const AGGREGATION = 4;
export const SYNCHRONIZATION = 8;
export const COLLECTING = 16;
export const DISTRIBUTING = 32;
export const DEFAULTED = 64;
export const EXPIRED = 128;

/** What one end of a link says of itself, or of the other one. */
export interface LinkEnd {
  systemPriority: number;
  /** MAC of the system, such as `02:00:00:00:00:01`. */
  system: string;
  key: number;
  portPriority: number;
  port: number;
  state: number;
}

export interface Lacpdu {
  actor: LinkEnd;
  partner: LinkEnd;
}

const isSlow = (frame: Buffer, subtype: number) =>
  frame.length >= 16 &&
  frame.subarray(0, 6).equals(SLOW_PROTOCOLS) &&
  frame.readUInt16BE(12) === TYPE &&
  frame[14] === subtype;

const hasTlv = (frame: Buffer, at: number, [type, length]: number[]) =>
  frame[at] === type && frame[at + 1] === length;

/** Is the frame one of LACP, whatever else it is? */
export const isLacp = (frame: Buffer): boolean => isSlow(frame, LACP);

/** What an LACPDU says; undefined: it is none. Later versions have the same begin (6.4.2.4). */
export function readLacpdu(frame: Buffer): Lacpdu | undefined {
  const isWhole = isLacp(frame) && frame.length >= COLLECTOR && frame[15]! >= 1;
  if (!isWhole || !hasTlv(frame, ACTOR, ACTOR_TLV) || !hasTlv(frame, PARTNER, PARTNER_TLV)) return undefined;
  return { actor: readEnd(frame, ACTOR + 2), partner: readEnd(frame, PARTNER + 2) };
}

function readEnd(frame: Buffer, at: number): LinkEnd {
  return {
    systemPriority: frame.readUInt16BE(at),
    system: frame.toString('hex', at + 2, at + 8).replace(/..(?=.)/g, '$&:'),
    key: frame.readUInt16BE(at + 8),
    portPriority: frame.readUInt16BE(at + 10),
    port: frame.readUInt16BE(at + 12),
    state: frame[at + 14]!,
  };
}

/** The frame, from the address of its system. */
export function writeLacpdu({ actor, partner }: Lacpdu): Buffer {
  const frame = Buffer.alloc(LENGTH);
  frame.set(SLOW_PROTOCOLS, 0);
  frame.set(macBytes(actor.system), 6);
  frame.writeUInt16BE(TYPE, 12);
  frame.set([LACP, 1], 14);
  frame.set(ACTOR_TLV, ACTOR);
  writeEnd(frame, ACTOR + 2, actor);
  frame.set(PARTNER_TLV, PARTNER);
  writeEnd(frame, PARTNER + 2, partner);
  // CollectorMaxDelay is 0: nothing waits here.
  frame.set(COLLECTOR_TLV, COLLECTOR);
  return frame;
}

function writeEnd(frame: Buffer, at: number, end: LinkEnd): void {
  frame.writeUInt16BE(end.systemPriority, at);
  frame.set(macBytes(end.system), at + 2);
  frame.writeUInt16BE(end.key, at + 8);
  frame.writeUInt16BE(end.portPriority, at + 10);
  frame.writeUInt16BE(end.port, at + 12);
  frame[at + 14] = end.state;
}

const macBytes = (text: string) => Buffer.from(text.replaceAll(':', ''), 'hex');

/** The answer to a marker (6.5.4.2), which says that all before it has come; undefined: the frame is none. */
export function answerMarker(frame: Buffer, system: string): Buffer | undefined {
  if (!isSlow(frame, MARKER) || frame.length < 34 || !hasTlv(frame, 16, MARKER_TLV)) return undefined;
  const answer = Buffer.alloc(LENGTH);
  frame.copy(answer, 0, 0, 34);
  answer.set(macBytes(system), 6);
  answer[16] = MARKER_ANSWER;
  return answer;
}
