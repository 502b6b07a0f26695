/** The links of ports: whether frames pass, by what the other end says and by what is set (`link`, `linkFollows`). */
import { BondPort } from '../bond/bond.ts';
import type { Rstp } from '../rstp/rstp.ts';
import { isMember, isUp, type PortRecord, type PortTable, ruled } from './port-table.ts';
import type { PortSpec } from './types.ts';

export class Links {
  readonly #ports: PortTable;
  readonly #rstp: Rstp;

  constructor(ports: PortTable, rstp: Rstp) {
    this.#ports = ports;
    this.#rstp = rstp;
  }

  /** A port finds that frames pass, or none any more. */
  carrier(record: PortRecord, carrier: boolean): void {
    record.carrier = carrier;
    this.#changed(record);
    this.settle();
  }

  /** Is a port's link down by what is set for it? */
  isUnplugged({ link, linkFollows }: PortSpec): boolean {
    if (link === 'down') return true;
    if (linkFollows === undefined) return false;
    const other = this.#ports.get(linkFollows);
    return !other?.carrier || other.spec.link === 'down';
  }

  /** Brings all links to what is set for them, and to those that they follow. */
  settle(): void {
    for (const entry of this.#ports.list()) {
      const unplugged = this.isUnplugged(entry.spec);
      if (unplugged === entry.unplugged) continue;
      entry.unplugged = unplugged;
      // Stages alone: the fields that say so have made room for them before.
      entry.rules.write(ruled(entry));
      entry.port.setLink?.(!unplugged);
      this.#changed(entry);
    }
  }

  #changed(record: PortRecord): void {
    const { name } = record.spec;
    this.#rstp.link(name);
    const bond = isMember(record) && this.#ports.bondOf(name)?.port;
    if (bond instanceof BondPort) bond.linkChanged(name, isUp(record));
  }
}
