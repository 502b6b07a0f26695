/** Where what an operator enters for a port belongs: addresses of the forwarding database, and groups. */
import { vlansOf } from '../rules/vlan.ts';
import type { Bridges } from './bridges.ts';
import { SwitchError } from './errors.ts';
import { isMember, type PortTable } from './port-table.ts';
import type { Place } from './statics.ts';
import type { AddressFilter } from './types.ts';

/** What is entered for a port. */
interface Entered {
  port: string;
  vlan?: number;
}

export class Places {
  readonly #ports: PortTable;
  readonly #bridges: Bridges;

  constructor(ports: PortTable, bridges: Bridges) {
    this.#ports = ports;
    this.#bridges = bridges;
  }

  /** Undefined: nowhere, as its port is now. */
  of({ port, vlan }: Entered): Place | undefined {
    const entry = this.#ports.get(port);
    const own = vlan ?? (entry?.vlanAware ? vlansOf(entry.spec).pvid : 0);
    if (!entry || own === undefined || isMember(entry)) return undefined;
    return { slot: entry.slot, fid: (this.#bridges.index(entry.spec.bridge) << 12) | own };
  }

  /** For something new, `what` it is. Throws a SwitchError, NO_SUCH_PORT or BAD_SPEC. */
  checked(spec: Entered, what: string): Place {
    const entry = this.#ports.find(spec.port);
    const bond = this.#ports.bondOf(spec.port)?.spec.name;
    if (bond !== undefined)
      throw new SwitchError(
        'BAD_SPEC',
        `port: expected none that is a member of ${bond}, found ${spec.port}: name ${bond}`,
        'port',
      );
    const place = this.of(spec);
    const told = (message: string) => new SwitchError('BAD_SPEC', `vlan: ${message}`, 'vlan');
    if (!place)
      throw told(`expected the VLAN of ${what}, port ${spec.port} has none for frames without a tag`);
    if (entry.vlanAware && !vlansOf(entry.spec).members.has(place.fid & 0xfff))
      throw told(`expected a VLAN that port ${spec.port} is in, found ${place.fid & 0xfff}`);
    return place;
  }

  /** Tells what a filter has, by the port and the place. Throws a SwitchError, NO_SUCH_PORT or NO_SUCH_BRIDGE. */
  matcher(filter: AddressFilter): (spec: Entered, place: Place | undefined) => boolean {
    const port = filter.port === undefined ? undefined : this.#ports.find(filter.port).spec.name;
    const bridge =
      filter.bridge === undefined ? undefined : this.#bridges.index(this.#bridges.get(filter.bridge).name);
    return (spec, place) =>
      (port === undefined || spec.port === port) &&
      (bridge === undefined || (place !== undefined && place.fid >>> 12 === bridge)) &&
      (filter.vlan === undefined || (place !== undefined && (place.fid & 0xfff) === filter.vlan));
  }
}
