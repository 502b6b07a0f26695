/**
 * A VXLAN tunnel to one remote (RFC 7348): frames in UDP datagrams, behind a header that names the network.
 *
 * What comes is taken from the remote's address alone, from any port of it, as VXLAN's senders choose theirs by the
 * flow; what goes has a port of ours, the same for all.
 */
import type { Framing } from '../io/index.ts';
import type { PortSpec, PortState } from '../switch/types.ts';
import { closeFd, udpSocket } from '../sys/index.ts';
import { type UdpTarget, udpTarget } from './addresses.ts';
import type { End, Link } from './kernel-port.ts';

/** RFC 7348, 5. */
const PORT = 4789;

export class VxlanEnd implements End {
  readonly queues = 1;
  readonly framing: Framing;
  readonly role = null;
  readonly state: PortState = 'up';
  readonly connections = 0;
  readonly #fd: number;
  readonly #sendFd: number;

  /** Throws a SystemError that names the address. */
  constructor(spec: PortSpec) {
    const remote = udpTarget(spec.target) as UdpTarget;
    const any = remote.address.includes(':') ? '::' : '0.0.0.0';
    const local = (spec.local !== undefined && udpTarget(spec.local)) || { address: any, port: undefined };
    this.framing = { prefix: 8, messages: 'many', offloads: 0n, vni: spec.vni ?? 0 };
    this.#fd = udpSocket({ ...local, port: local.port ?? PORT }, { ...remote, port: 0 });
    try {
      this.#sendFd = udpSocket({ ...local, port: 0 }, { ...remote, port: remote.port ?? PORT });
    } catch (error) {
      closeFd(this.#fd);
      throw error;
    }
  }

  start(link: Link): void {
    const end = { kind: 'messages', fd: this.#fd, sendFd: this.#sendFd } as const;
    // First: what a ring that isn't enabled takes is lost.
    link.set(true);
    link.open([end], (reason) => link.error(reason));
  }

  async close(): Promise<void> {
    closeFd(this.#fd);
    closeFd(this.#sendFd);
  }
}
