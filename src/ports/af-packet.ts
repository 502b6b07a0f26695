/**
 * An interface of the host that the switch takes over, such as a network card: what it receives comes here, and what
 * is for its network goes out by it, through packet sockets (packet(7)), one a queue pair. The kernel's stack stays on
 * the interface, unless it is kept from it.
 */
import type { PortSpec } from '../switch/types.ts';
import { closeFd, lacksPacketRight, openPacketSockets } from '../sys/index.ts';
import { features as F } from '../virtio/features.ts';
import type { Taken, Way } from './interface.ts';

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

export function packetSockets({ target: name, queues = 1 }: PortSpec): Way {
  return {
    queues,
    framing: { prefix: 10, messages: 'many', control: true, offloads: OFFLOADS },
    take: (index) => take(name, index, queues),
  };
}

function take(name: string, index: number, queues: number): Taken {
  try {
    const fds = openPacketSockets(index, queues);
    return {
      ends: fds.map((fd) => ({ kind: 'messages', fd })),
      close: () => fds.forEach(closeFd),
    };
  } catch (error) {
    if (!lacksPacketRight(error)) throw error;
    throw new Error(
      `interface ${name}: a packet socket takes the capability CAP_NET_RAW: run the switch by ` +
        '`systemd-run -p AmbientCapabilities=CAP_NET_RAW ...`, or as root',
      { cause: error },
    );
  }
}
