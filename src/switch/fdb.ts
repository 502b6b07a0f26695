/**
 * The forwarding database, from the control plane (the data plane's side is src/dataplane/fdb.ts): what was learned,
 * and what an operator has entered for good.
 */
import type { Arena, Structures } from '../arena/index.ts';
import type { Bridges } from './bridges.ts';
import { SwitchError } from './errors.ts';
import type { Places } from './places.ts';
import type { PortTable } from './port-table.ts';
import { staticAddresses } from './static-addresses.ts';
import type { Statics } from './statics.ts';
import type { AddressFilter, AddressSpec, FdbEntry } from './types.ts';

const EVERY_PORT = 0xffff_ffff;

export class Fdb {
  readonly #arena: Arena;
  readonly #structures: Structures;
  readonly #ports: PortTable;
  readonly #bridges: Bridges;
  readonly #places: Places;
  readonly statics: Statics<AddressSpec>;

  constructor(arena: Arena, structures: Structures, ports: PortTable, bridges: Bridges, places: Places) {
    this.#arena = arena;
    this.#structures = structures;
    this.#ports = ports;
    this.#bridges = bridges;
    this.#places = places;
    this.statics = staticAddresses(arena);
  }

  /** The addresses learned and not yet too old. */
  list(): FdbEntry[] {
    const { header } = this.#structures;
    const names = this.#ports.namesBySlot();
    const at = this.#structures.constant('FDB');
    const stride = this.#structures.constant('ENTRY_STRIDE');
    const entries: FdbEntry[] = [];
    for (let i = 0; i < this.#structures.constant('FDB_SLOTS'); i++) {
      const entry = at + i * stride;
      const key = this.#arena.u64[entry >>> 3]!;
      if (key === 0n) continue;
      const port = names.get(Number(key >> 48n));
      const age = Math.max(0, header.get('now') - this.#arena.u32[(entry + 8) >>> 2]!);
      const fid = this.#arena.u32[(entry + 12) >>> 2]!;
      const bridge = this.#bridges.name((fid >>> 12) & 0xfff);
      const isStatic = fid >= this.#structures.constant('PINNED');
      const ageing = this.#bridges.get(bridge).ageing ?? header.get('ageing');
      if (port === undefined || (age > ageing && !isStatic)) continue;
      entries.push({ mac: formatMac(key), bridge, vlan: fid & 0xfff, port, static: isStatic, age });
    }
    return entries.sort((a, b) => (a.mac === b.mac ? a.vlan - b.vlan : a.mac < b.mac ? -1 : 1));
  }

  /** Forgets what was learned of a port. What a burst in work learns there is forgotten only behind workers.quiesce(). */
  forget(slot: number): void {
    this.#arena.dataplane.functions.flush(slot, 0);
  }

  /** Forgets what is too old. */
  sweep(): void {
    this.#arena.dataplane.functions.flush(EVERY_PORT, 1);
  }

  /** As Switch.flushFdb(). */
  flush(filter: AddressFilter & { static?: boolean }): number {
    const isMeant = this.#places.matcher(filter);
    const slot = filter.port === undefined ? EVERY_PORT : this.#ports.find(filter.port).slot;
    const mask = (filter.bridge === undefined ? 0 : 0xff_f000) | (filter.vlan === undefined ? 0 : 0xfff);
    const fid = (this.#bridges.index(filter.bridge) << 12) | (filter.vlan ?? 0);
    const learned = this.#arena.dataplane.functions.flush(slot, 0, fid, mask);
    if (!filter.static) return learned;
    const gone = this.statics.remove((spec, place) => place !== undefined && isMeant(spec, place));
    return learned + gone.length;
  }

  /** As Switch.addAddress(). */
  add(spec: AddressSpec): void {
    this.statics.add(spec, this.#places.checked(spec, spec.mac));
  }

  /** As Switch.removeAddress(). */
  remove(mac: string, filter: AddressFilter): void {
    const isMeant = this.#places.matcher(filter);
    const gone = this.statics.remove((spec, place) => spec.mac === mac.toLowerCase() && isMeant(spec, place));
    if (gone.length > 0) return;
    throw new SwitchError(
      'NO_SUCH_ADDRESS',
      `no address ${JSON.stringify(mac)} was entered there: \`vireo fdb\` lists them`,
      'mac',
    );
  }
}

/** The address in a forwarding entry: low 48 bits, first byte lowest. */
function formatMac(key: bigint): string {
  const bytes = Array.from({ length: 6 }, (_, i) => Number((key >> BigInt(8 * i)) & 0xffn));
  return bytes.map((byte) => byte.toString(16).padStart(2, '0')).join(':');
}
