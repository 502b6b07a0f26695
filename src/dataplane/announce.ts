/**
 * Announces a guest that has moved here (vhost-user, VHOST_USER_SEND_RARP): a RARP request (RFC 903) in the guest's
 * name goes through the bridge as if the guest had sent it. So this switch learns the new place, and every other
 * one that the frame is flooded to.
 *
 * The control plane writes port and address to a worker's area, and waits until the worker has taken them.
 */
import { bridge } from './bridge';
import { nothingUndone } from './frames';
import { portAt, Vring, Worker } from './layout';
import { frameAt, packetAt, worker } from './scratch';

/** Shortest Ethernet frame, without its checksum. */
const LENGTH: u32 = 60;

/** Sends what the control plane asked this worker to. */
export function announce(): void {
  const self = worker();
  const port = portAt(self.announcePort - 1);
  const mac = self.announceMac;
  const frame = frameAt(0);
  // The header says nothing but "one buffer", as of any frame without offloads (5.1.6.1).
  store<u64>(frame - 16, 0);
  store<u64>(frame - 8, 0x0001_0000_0000_0000);
  memory.fill(frame, 0, LENGTH);
  store<u64>(frame, 0xffff_ffff_ffff | (mac << 48));
  store<u32>(frame, <u32>(mac >> 16), 8);
  // EtherType 0x8035; Ethernet and IPv4 addresses of 6 and 4 bytes; operation 3, request reverse.
  store<u16>(frame, 0x3580, 12);
  store<u64>(frame, 0x0300_0406_0008_0100, 14);
  store<u32>(frame, <u32>mac, 22);
  store<u16>(frame, <u16>(mac >> 32), 26);
  store<u32>(frame, <u32>mac, 32);
  store<u16>(frame, <u16>(mac >> 32), 36);
  const packet = packetAt(0);
  packet.length = LENGTH;
  packet.single = 1;
  packet.at = frame;
  packet.destination = 0;
  packet.offload = 0;
  self.skip = 0;
  nothingUndone();
  bridge(changetype<Vring>(port.ring), 1);
  atomic.store<u32>(changetype<usize>(self) + offsetof<Worker>('announcePort'), 0);
}
