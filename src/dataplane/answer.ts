/** Answers to ARP requests (RFC 826) and ICMP echo requests (RFC 792) for any address, as a host would give them. */
import { addWord } from './checksum';
import { sendFrame } from './driver';
import { Task } from './generator';
import { answerScratch } from './scratch';

const ARP: u16 = 0x0608;
const IPV4: u16 = 0x0008;
/** Ethernet and IPv4: hardware and protocol type, lengths of their addresses. */
const ARP_FOR_IPV4: u64 = 0x0406_0008_0100;
const REQUEST: u16 = 0x0100;
const REPLY: u16 = 0x0200;
const ICMP: u8 = 1;
const ECHO_REQUEST: u8 = 8;
const MAC_MASK: u64 = 0xffff_ffff_ffff;
const MOST_ECHO: u32 = 16 * 1024;

/** Sends the answer to a frame on the task's ring; what isn't asked is dropped. */
export function answer(task: Task, received: usize, length: u32): void {
  if (length < 42 || length > MOST_ECHO) {
    task.dropped += 1;
    return;
  }
  // The device may still write to what came: a copy can't change between a look and its use.
  const frame = answerScratch();
  memory.copy(frame, received, length);
  const type = load<u16>(frame, 12);
  if (type == ARP && (load<u64>(frame, 14) & MAC_MASK) == ARP_FOR_IPV4 && load<u16>(frame, 20) == REQUEST) {
    if (give(task, answerArp(task, frame), length)) task.arps += 1;
  } else if (type == IPV4 && isEcho(frame, length)) {
    answerEcho(frame);
    if (give(task, frame, length)) task.echoes += 1;
  } else {
    task.dropped += 1;
  }
}

function give(task: Task, frame: usize, length: u32): bool {
  if (sendFrame(task.send, frame, length) != 1) {
    task.dropped += 1;
    return false;
  }
  task.sequence += 1;
  task.sentBytes += length;
  return true;
}

function setMac(at: usize, mac: u64): void {
  store<u32>(at, <u32>mac);
  store<u16>(at, <u16>(mac >> 32), 4);
}

/** The asked address has this port's MAC. */
function answerArp(task: Task, frame: usize): usize {
  const asker = load<u64>(frame, 22) & MAC_MASK;
  const askerAddress = load<u32>(frame, 28);
  const asked = load<u32>(frame, 38);
  setMac(frame, load<u64>(frame, 6) & MAC_MASK);
  setMac(frame + 6, task.source);
  store<u16>(frame, REPLY, 20);
  setMac(frame + 22, task.source);
  store<u32>(frame, asked, 28);
  setMac(frame + 32, asker);
  store<u32>(frame, askerAddress, 38);
  return frame;
}

/** An echo request that isn't a fragment and lies in the frame. */
function isEcho(frame: usize, length: u32): bool {
  const header = (<u32>load<u8>(frame, 14) & 15) << 2;
  const whole = <u32>bswap<u16>(load<u16>(frame, 16));
  if (load<u8>(frame, 14) >> 4 != 4 || header < 20 || whole < header + 8 || whole > length - 14) return false;
  // "More fragments", or an offset (RFC 791, 3.1).
  if (bswap<u16>(load<u16>(frame, 20)) & 0x3fff) return false;
  return load<u8>(frame, 23) == ICMP && load<u8>(frame + 14 + header) == ECHO_REQUEST;
}

/** The sums over the addresses stay as they are: only the type changes. */
function answerEcho(frame: usize): void {
  const from = load<u64>(frame, 6) & MAC_MASK;
  setMac(frame + 6, load<u64>(frame) & MAC_MASK);
  setMac(frame, from);
  const source = load<u32>(frame, 26);
  store<u32>(frame, load<u32>(frame, 30), 26);
  store<u32>(frame, source, 30);
  const icmp = frame + 14 + ((<u32>load<u8>(frame, 14) & 15) << 2);
  store<u8>(icmp, 0);
  // The word with the type is less by 8 in its first byte, so the checksum more (RFC 1624).
  store<u16>(icmp, <u16>addWord(<u32>load<u16>(icmp, 2), ECHO_REQUEST), 2);
}
