/**
 * BPDUs as bytes (IEEE 802.1D-2004, 9.3), in the Ethernet frames with LLC that carry them: configuration messages and
 * topology change notifications of STP, and the one kind of RSTP.
 */
import type { Times, Vector } from './priority.ts';

/** The role of the port that sent a message (9.2.9). */
export type SentRole = 'alternate' | 'root' | 'designated';

/** A message as it is sent. One of STP has no roles: who sends it is a designated port. */
export type Bpdu =
  | { kind: 'notification' }
  | ({ kind: 'stp'; tcAck: boolean } & Content)
  | ({
      kind: 'rstp';
      role: SentRole;
      proposal: boolean;
      learning: boolean;
      forwarding: boolean;
      agreement: boolean;
    } & Content);

interface Content {
  vector: Vector;
  times: Times;
  /** The topology has changed. */
  tc: boolean;
}

/** 01-80-C2-00-00-00, which no bridge passes on (table 7-10). */
const GROUP = Buffer.from('0180c2000000', 'hex');
/** Of the LLC of BPDUs, in both directions, and unnumbered information (7.12.3). */
const LLC = [0x42, 0x42, 0x03];
const ETHERNET_BYTES = 14;
/** Of Ethernet, without the checksum. */
const SHORTEST = 60;
const STP_BYTES = 35;
const RSTP_BYTES = 36;
const NOTIFICATION_BYTES = 4;
/** Who takes frames apart gets no more of them (src/dataplane/control-frames.ts). */
const SNAPSHOT = 128;

const TYPE_STP = 0x00;
const TYPE_RSTP = 0x02;
const TYPE_NOTIFICATION = 0x80;

const TC = 0x01;
const PROPOSAL = 0x02;
const LEARNING = 0x10;
const FORWARDING = 0x20;
const AGREEMENT = 0x40;
const TC_ACK = 0x80;
const ROLES = [undefined, 'alternate', 'root', 'designated'] as const;

/** Of a port cost or time that is sent, and what it may be (17.14; 802.1D-1998, table 8-3). */
const LIMITS = { maxAge: [6, 40], helloTime: [1, 10], forwardDelay: [4, 30] } as const;

const clamp = (value: number, [least, most]: readonly [number, number]) =>
  Math.min(Math.max(value, least), most);

/**
 * The message in a frame, or of a long one in its first 128 bytes; or in a few words why there is none (9.3.4). Times
 * are rounded to whole seconds, and brought to what the standard allows.
 */
export function readBpdu(frame: Buffer): Bpdu | string {
  if (frame.length < ETHERNET_BYTES + LLC.length) return 'too short';
  const bytes = frame.readUInt16BE(12);
  const isWhole = frame.length < SNAPSHOT;
  if (bytes < LLC.length || bytes > 1500 || (isWhole && bytes > frame.length - ETHERNET_BYTES))
    return `a length of ${bytes} bytes`;
  if (LLC.some((byte, i) => frame[ETHERNET_BYTES + i] !== byte)) return 'no BPDU';
  const bpdu = frame.subarray(ETHERNET_BYTES + LLC.length, ETHERNET_BYTES + bytes);
  if (bpdu.length < NOTIFICATION_BYTES) return 'too short';
  if (bpdu.readUInt16BE(0) !== 0) return `protocol ${bpdu.readUInt16BE(0)}`;
  const [version, type] = [bpdu[2]!, bpdu[3]!];
  if (type === TYPE_NOTIFICATION) return { kind: 'notification' };
  if (type !== TYPE_STP && type !== TYPE_RSTP) return `type ${type}`;
  if (type === TYPE_RSTP && version < 2) return `a message of RSTP in version ${version}`;
  if (bpdu.length < (type === TYPE_RSTP ? RSTP_BYTES : STP_BYTES)) return 'too short';
  const flags = bpdu[4]!;
  const content = {
    vector: {
      root: bpdu.readBigUInt64BE(5),
      cost: bpdu.readUInt32BE(13),
      bridge: bpdu.readBigUInt64BE(17),
      port: bpdu.readUInt16BE(25),
    },
    times: {
      messageAge: seconds(bpdu, 27),
      maxAge: clamp(seconds(bpdu, 29), LIMITS.maxAge),
      helloTime: clamp(seconds(bpdu, 31), LIMITS.helloTime),
      forwardDelay: clamp(seconds(bpdu, 33), LIMITS.forwardDelay),
    },
    tc: (flags & TC) !== 0,
  };
  const role = type === TYPE_RSTP ? ROLES[(flags >> 2) & 3] : undefined;
  // One of an unknown role is taken as one of STP (9.2.9).
  if (role === undefined) {
    if (content.times.messageAge >= content.times.maxAge) return 'too old';
    return { kind: 'stp', tcAck: (flags & TC_ACK) !== 0, ...content };
  }
  return {
    kind: 'rstp',
    role,
    proposal: (flags & PROPOSAL) !== 0,
    learning: (flags & LEARNING) !== 0,
    forwarding: (flags & FORWARDING) !== 0,
    agreement: (flags & AGREEMENT) !== 0,
    ...content,
  };
}

/** Is a frame for bridges? */
export const isBpdu = (frame: Buffer): boolean => frame.subarray(0, GROUP.length).equals(GROUP);

/** Times are sent in 1/256 s (9.2.8). */
const seconds = (bpdu: Buffer, at: number) => Math.round(bpdu.readUInt16BE(at) / 256);

/** The frame that carries a message; `source` is the address of who sends it. */
export function writeBpdu(bpdu: Bpdu, source: Buffer): Buffer {
  const bytes = { notification: NOTIFICATION_BYTES, stp: STP_BYTES, rstp: RSTP_BYTES }[bpdu.kind];
  const frame = Buffer.alloc(SHORTEST);
  GROUP.copy(frame, 0);
  source.copy(frame, 6);
  frame.writeUInt16BE(LLC.length + bytes, 12);
  frame.set(LLC, ETHERNET_BYTES);
  // Protocol 0; and behind the times of RSTP no part of version 1 (9.3.3).
  const at = frame.subarray(ETHERNET_BYTES + LLC.length);
  if (bpdu.kind === 'notification') {
    at[3] = TYPE_NOTIFICATION;
    return frame;
  }
  at[2] = bpdu.kind === 'rstp' ? 2 : 0;
  at[3] = bpdu.kind === 'rstp' ? TYPE_RSTP : TYPE_STP;
  at[4] = flagsOf(bpdu);
  const { vector, times } = bpdu;
  at.writeBigUInt64BE(vector.root, 5);
  at.writeUInt32BE(vector.cost, 13);
  at.writeBigUInt64BE(vector.bridge, 17);
  at.writeUInt16BE(vector.port, 25);
  for (const [i, time] of [times.messageAge, times.maxAge, times.helloTime, times.forwardDelay].entries())
    at.writeUInt16BE(Math.min(time * 256, 0xffff), 27 + 2 * i);
  return frame;
}

function flagsOf(bpdu: Exclude<Bpdu, { kind: 'notification' }>): number {
  const tc = bpdu.tc ? TC : 0;
  if (bpdu.kind === 'stp') return tc | (bpdu.tcAck ? TC_ACK : 0);
  return (
    tc |
    (bpdu.proposal ? PROPOSAL : 0) |
    (ROLES.indexOf(bpdu.role) << 2) |
    (bpdu.learning ? LEARNING : 0) |
    (bpdu.forwarding ? FORWARDING : 0) |
    (bpdu.agreement ? AGREEMENT : 0)
  );
}
