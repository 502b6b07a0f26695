/** The addresses that an operator has entered, from the control plane: where each is in the forwarding database now. */
import type { Arena } from '../arena/index.ts';
import { SwitchError } from './errors.ts';
import type { AddressSpec } from './types.ts';

/** Where an address is: the port's index in the data plane, and the filtering identifier. */
export interface Place {
  slot: number;
  fid: number;
}

export class StaticAddresses {
  readonly #arena: Arena;
  #all: { spec: AddressSpec; place: Place | undefined }[] = [];

  constructor(arena: Arena) {
    this.#arena = arena;
  }

  list(): AddressSpec[] {
    return this.#all.map(({ spec }) => spec);
  }

  /** Enters an address. Throws a SwitchError: BAD_SPEC where it is entered already, LIMIT where there is no room. */
  add(spec: AddressSpec, place: Place): void {
    const rival = this.#at(spec.mac, place.fid);
    if (rival) {
      const message = `mac: ${spec.mac} is entered for port ${rival.spec.port} already: take that away first`;
      throw new SwitchError('BAD_SPEC', message, 'mac');
    }
    const { pin } = this.#arena.dataplane.functions;
    if (!pin(keyOf(spec.mac), place.fid, place.slot))
      throw new SwitchError('LIMIT', `the forwarding database has no room for ${spec.mac}`);
    this.#all.push({ spec, place });
  }

  #at(mac: string, fid: number) {
    return this.#all.find(({ spec, place }) => spec.mac === mac && place?.fid === fid);
  }

  /** Takes away those that are meant; returns them. */
  remove(isMeant: (spec: AddressSpec, place: Place | undefined) => boolean): AddressSpec[] {
    const meant = this.#all.filter(({ spec, place }) => isMeant(spec, place));
    for (const { spec, place } of meant)
      if (place) this.#arena.dataplane.functions.unpin(keyOf(spec.mac), place.fid);
    this.#all = this.#all.filter((one) => !meant.includes(one));
    return meant.map(({ spec }) => spec);
  }

  /**
   * Brings all to where they belong now. One whose place another one has is nowhere until that goes, as is one that
   * finds no room.
   */
  refresh(placeOf: (spec: AddressSpec) => Place | undefined): void {
    const { pin, unpin } = this.#arena.dataplane.functions;
    for (const one of this.#all) {
      const place = placeOf(one.spec);
      if (place?.fid === one.place?.fid && place?.slot === one.place?.slot) continue;
      if (one.place) unpin(keyOf(one.spec.mac), one.place.fid);
      one.place = undefined;
      if (place && !this.#at(one.spec.mac, place.fid) && pin(keyOf(one.spec.mac), place.fid, place.slot))
        one.place = place;
    }
  }
}

/** The address as a frame's bytes are loaded, little-endian. */
const keyOf = (mac: string): bigint => BigInt(Buffer.from(mac.replaceAll(':', ''), 'hex').readUIntLE(0, 6));
