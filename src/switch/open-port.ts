/** Opens a port by its kind. What a kind is, is in src/ports, one file each; a bond's in src/bond. */
import { type BondContext, BondPort } from '../bond/bond.ts';
import { packetSockets } from '../ports/af-packet.ts';
import { xdpSockets } from '../ports/af-xdp.ts';
import { openDgramEnd } from '../ports/dgram.ts';
import { InterfaceEnd } from '../ports/interface.ts';
import { type End, KernelPort } from '../ports/kernel-port.ts';
import { NullEnd } from '../ports/null.ts';
import { PatchEnd } from '../ports/patch.ts';
import { PcapEnd } from '../ports/pcap.ts';
import type { Port, PortContext } from '../ports/port.ts';
import { StreamEnd } from '../ports/stream.ts';
import { TapEnd } from '../ports/tap.ts';
import { UserEnd } from '../ports/user.ts';
import { VdusePort } from '../ports/vduse.ts';
import { VhostUserPort } from '../ports/vhost-user.ts';
import { VxlanEnd } from '../ports/vxlan.ts';
import type { PortSpec } from './types.ts';

/** Throws an Error that says why it can't be opened; nothing is left of it then. */
export function openPort(spec: PortSpec, context: PortContext & BondContext): Port {
  switch (spec.type) {
    case 'vhost-user':
      return new VhostUserPort(spec, context);
    case 'vduse':
      return new VdusePort(spec, context);
    case 'bond':
      return new BondPort(spec, context);
    default:
      return new KernelPort(spec, context, openEnd(spec, spec.type, context));
  }
}

/** The other end of a port that is no guest. */
function openEnd(
  spec: PortSpec,
  type: Exclude<PortSpec['type'], 'vhost-user' | 'vduse' | 'bond'>,
  context: PortContext,
): End {
  switch (type) {
    case 'tap':
      return new TapEnd(spec, context.poller);
    case 'af-packet':
      return new InterfaceEnd(spec.target, packetSockets(spec, context), context.poller);
    case 'af-xdp':
      return new InterfaceEnd(spec.target, xdpSockets(spec, context), context.poller);
    case 'stream':
      return new StreamEnd(spec, context);
    case 'dgram':
      return openDgramEnd(spec, context.poller);
    case 'pcap':
      return new PcapEnd(spec, context);
    case 'vxlan':
      return new VxlanEnd(spec);
    case 'user':
      return new UserEnd(spec, context);
    case 'patch':
      return new PatchEnd(spec, context.patches);
    case 'null':
      return new NullEnd();
  }
}
