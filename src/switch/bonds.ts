/** The bonds of a switch: how ports become members of one, and ports of their own again (a bond itself is in src/bond). */
import type { Structures } from '../arena/index.ts';
import type { BondContext, BondPort } from '../bond/bond.ts';
import type { Rstp } from '../rstp/rstp.ts';
import { REASONS } from '../rules/reasons.ts';
import { vlansOf } from '../rules/vlan.ts';
import { rarp } from '../vhost/announcement.ts';
import type { Workers } from '../workers/workers.ts';
import type { BridgedPorts } from './bridged-ports.ts';
import { type Bridges, bridgeOf } from './bridges.ts';
import type { Fdb } from './fdb.ts';
import type { GroupTables } from './groups.ts';
import { portStatus } from './port-status.ts';
import { type Entry, isUp, type PortTable, ruled } from './port-table.ts';
import type { PortSpec } from './types.ts';

const BAD_LACPDU = REASONS.findIndex(({ name }) => name === 'badLacpdu');

interface Options {
  structures: Structures;
  workers: Workers;
  ports: PortTable;
  bridges: Bridges;
  bridged: BridgedPorts;
  fdb: Fdb;
  groups: GroupTables;
  rstp: Rstp;
}

export class Bonds {
  readonly #options: Options;
  /** Who takes the frames that members hand over (src/rules/protocols.ts), by index in the data plane. */
  readonly #listeners = new Map<number, (frame: Buffer) => void>();

  constructor(options: Options) {
    this.#options = options;
  }

  /** What a bond is lent beside what every port is. */
  context(spec: PortSpec): Pick<BondContext, 'member' | 'moved'> {
    return {
      member: (name) => {
        const entry = this.#options.ports.get(name)!;
        return { slot: entry.slot, isUp: () => isUp(entry), status: () => portStatus(entry) };
      },
      moved: () => this.#announceBehind(spec.name),
    };
  }

  /** A frame of a protocol of bonds came from the port in `slot`. */
  receive(slot: number, frame: Buffer): void {
    this.#listeners.get(slot)?.(frame);
  }

  #members(bond: BondPort): Entry[] {
    return bond.members.map((name) => this.#options.ports.get(name)!);
  }

  /** Makes ports the members of a bond: bridges know that alone from here on. Rejects with an ArenaFullError. */
  async join(entry: Entry, bond: BondPort): Promise<void> {
    const { structures } = this.#options;
    entry.beside = { bondAt: bond.at };
    entry.rules.write(ruled(entry));
    for (const member of this.#members(bond)) {
      const memberAt = bond.memberAt(member.spec.name);
      const { protocols } = bond;
      Object.assign(member, { beside: { memberAt, protocols }, vlanAware: false, spanned: false });
      this.#listeners.set(member.slot, (frame) => {
        if (!bond.receive(member.spec.name, frame)) member.rules.count(BAD_LACPDU);
      });
      structures.port(member.slot).set('bridge', structures.constant('NO_BRIDGE'));
      member.rules.write(ruled(member));
    }
    await this.#moved(bond);
    bond.start();
  }

  /** The members of a bond are ports of their own again. */
  async part(bond: BondPort): Promise<void> {
    const { structures, workers, bridges, bridged } = this.#options;
    bond.stop();
    await workers.quiesce();
    for (const member of this.#members(bond)) {
      this.#listeners.delete(member.slot);
      // In a tree it discards from the first frame on.
      Object.assign(member, { beside: {}, spanned: bridged.isSpanned(member.spec) });
      member.rules.write(ruled(member));
      structures.port(member.slot).set('bridge', bridges.index(member.spec.bridge));
    }
    await this.#moved(bond);
  }

  /** What was learned of the members of a bond, and of the bond, is true no more. */
  async #moved(bond: BondPort): Promise<void> {
    const { workers, ports, bridged, fdb, groups } = this.#options;
    bridged.count();
    await bridged.settleVlans();
    await bridged.span();
    await workers.quiesce();
    for (const name of [...bond.members, bond.spec.name]) {
      const slot = ports.get(name)?.slot;
      if (slot === undefined) continue;
      fdb.forget(slot);
      groups.forget(slot);
    }
  }

  /** Tells who is behind a bond where all others are. */
  #announceBehind(name: string): void {
    const { workers, ports, fdb, rstp } = this.#options;
    const entry = ports.get(name);
    const state = rstp.port(name)?.state ?? 'forwarding';
    if (!entry || state !== 'forwarding') return;
    const bridge = bridgeOf(entry.spec);
    const { members, pvid } = vlansOf(entry.spec);
    const tag = entry.spec.tags === '802.1ad' ? 0x88a8 : 0x8100;
    for (const { mac, vlan, ...other } of fdb.list()) {
      if (other.bridge !== bridge || other.port === name || (entry.vlanAware && !members.has(vlan))) continue;
      const tagged = entry.vlanAware && vlan !== pvid ? { type: tag, vlan } : undefined;
      void workers.send(entry.slot, rarp(Buffer.from(mac.replaceAll(':', ''), 'hex'), tagged));
    }
  }
}
