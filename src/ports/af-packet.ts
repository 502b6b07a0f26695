/**
 * An interface of the host that the switch takes over, such as a network card: what it receives comes here, and what
 * is for its network goes out by it, through packet sockets (packet(7)), one a queue pair. The kernel's stack stays on
 * the interface, unless it is kept from it. Frames lie in rings that the kernel shares with us; where it has no memory
 * for these, each is a message.
 */
import type { EndSetup } from '../io/index.ts';
import type { PortSpec } from '../switch/types.ts';
import {
  closeFd,
  interfaceMtu,
  lacksPacketRight,
  mapPacketRings,
  openPacketSender,
  openPacketSockets,
  type PacketRings,
  packetDrops,
  packetRingRoom,
} from '../sys/index.ts';
import { features as F } from '../virtio/features.ts';
import type { Taken, Way } from './interface.ts';
import type { PortContext } from './port.ts';

/** Both rings of a queue: 4 MiB. */
const RINGS: PacketRings = { slots: 1024, slot: 2048 };
const ETHERNET_HEADER = 14;

/** What the kernel may leave undone in a frame that it gives, and what it takes undone. */
const OFFLOADS =
  F.VIRTIO_NET_F_CSUM |
  F.VIRTIO_NET_F_HOST_TSO4 |
  F.VIRTIO_NET_F_HOST_TSO6 |
  F.VIRTIO_NET_F_HOST_ECN |
  F.VIRTIO_NET_F_HOST_UFO |
  F.VIRTIO_NET_F_HOST_USO |
  F.VIRTIO_NET_F_GUEST_CSUM |
  F.VIRTIO_NET_F_GUEST_TSO4 |
  F.VIRTIO_NET_F_GUEST_TSO6 |
  F.VIRTIO_NET_F_GUEST_ECN;

export function packetSockets({ target: name, queues = 1 }: PortSpec, context: PortContext): Way {
  return {
    queues,
    framing: { prefix: 10, messages: 'many', control: true, offloads: OFFLOADS },
    take: (index) => take(name, index, queues, context),
  };
}

function take(name: string, index: number, queues: number, context: PortContext): Taken {
  try {
    return takeRings(name, index, queues, context);
  } catch (error) {
    if (lacksPacketRight(error))
      throw new Error(
        `interface ${name}: a packet socket takes the capability CAP_NET_RAW: run the switch by ` +
          '`systemd-run -p AmbientCapabilities=CAP_NET_RAW ...`, or as root',
        { cause: error },
      );
    return takeMessages(index, queues, (error as Error).message);
  }
}

/** Throws an Error where there is no room for the rings, or the kernel has none; nothing is left behind then. */
function takeRings(name: string, index: number, queues: number, { arena, structures }: PortContext): Taken {
  const undo: (() => void)[] = [];
  const close = () => {
    for (const step of undo.splice(0).reverse()) step();
  };
  try {
    const fds = openPacketSockets(index, queues, RINGS);
    for (const fd of fds) undo.push(() => closeFd(fd));
    const structs = fds.map((fd) => {
      const mapped = arena.reserve(packetRingRoom(RINGS));
      undo.push(() => arena.unmap(mapped));
      mapPacketRings(fd, RINGS, arena.base + BigInt(mapped.start));
      const table = arena.takeTable(structures.constant('PACKET_QUEUE_STRIDE'));
      undo.push(() => arena.freeTable(table));
      const struct = structures.packetQueue(table.start);
      struct.set('rx', mapped.start);
      struct.set('tx', mapped.start + packetRingRoom(RINGS) / 2);
      struct.set('slots', RINGS.slots);
      struct.set('slot', RINGS.slot);
      return struct;
    });
    const ends = fds.map((fd, i): EndSetup => {
      const sendFd = openPacketSender(index);
      undo.push(() => closeFd(sendFd));
      return { kind: 'packet', fd, sendFd, rings: structs[i]!.at };
    });
    const follow = () => {
      // What is longer the kernel refuses if it is a message.
      for (const struct of structs) struct.set('longest', (interfaceMtu(name) ?? 0) + ETHERNET_HEADER);
    };
    follow();
    return { ends, note: 'by rings', drops: countDrops(fds), follow, close };
  } catch (error) {
    close();
    throw error;
  }
}

function takeMessages(index: number, queues: number, reason: string): Taken {
  const fds = openPacketSockets(index, queues);
  return {
    ends: fds.map((fd) => ({ kind: 'messages', fd })),
    note: `by messages, which are slower, for want of rings: ${reason}`,
    drops: countDrops(fds),
    close: () => fds.forEach(closeFd),
  };
}

/** Frames that found no room, since now. */
function countDrops(fds: readonly number[]): () => Record<string, number> {
  let ringFull = 0;
  return () => {
    ringFull += fds.reduce((sum, fd) => sum + packetDrops(fd), 0);
    return { ...(ringFull > 0 && { ringFull }) };
  };
}
