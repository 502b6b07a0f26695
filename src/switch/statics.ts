/** What an operator has entered for good, from the control plane: where each is in a table of the data plane now. */
import type { SwitchError } from './errors.ts';

/** Where something is: the port's index in the data plane, and the filtering identifier. */
export interface Place {
  slot: number;
  fid: number;
}

/** The table that it is entered into. */
export interface StaticTable<Spec> {
  /** Do two take each other's place, where their identifiers are the same? */
  isSame(one: Spec, other: Spec): boolean;
  /** False: there is no room. */
  enter(spec: Spec, place: Place): boolean | number;
  leave(spec: Spec, place: Place): void;
  /** Why one can't be entered: the field and a sentence. */
  taken(spec: Spec, rival: Spec): SwitchError;
  full(spec: Spec): SwitchError;
}

export class Statics<Spec> {
  readonly #table: StaticTable<Spec>;
  #all: { spec: Spec; place: Place | undefined }[] = [];

  constructor(table: StaticTable<Spec>) {
    this.#table = table;
  }

  list(): Spec[] {
    return this.#all.map(({ spec }) => spec);
  }

  /** Enters one; without a place it is in no table yet. Throws a SwitchError where it is entered already, or finds no room. */
  add(spec: Spec, place: Place | undefined): void {
    const rival = place && this.#at(spec, place.fid);
    if (rival) throw this.#table.taken(spec, rival.spec);
    if (place && !this.#table.enter(spec, place)) throw this.#table.full(spec);
    this.#all.push({ spec, place });
  }

  #at(wanted: Spec, fid: number) {
    return this.#all.find(({ spec, place }) => place?.fid === fid && this.#table.isSame(spec, wanted));
  }

  /** Takes away those that are meant; returns them. */
  remove(isMeant: (spec: Spec, place: Place | undefined) => boolean): Spec[] {
    const meant = this.#all.filter(({ spec, place }) => isMeant(spec, place));
    for (const { spec, place } of meant) if (place) this.#table.leave(spec, place);
    this.#all = this.#all.filter((one) => !meant.includes(one));
    return meant.map(({ spec }) => spec);
  }

  /**
   * Brings all to where they belong now. One whose place another one has is nowhere until that goes, as is one that
   * finds no room.
   */
  refresh(placeOf: (spec: Spec) => Place | undefined): void {
    for (const one of this.#all) {
      const place = placeOf(one.spec);
      if (place?.fid === one.place?.fid && place?.slot === one.place?.slot) continue;
      if (one.place) this.#table.leave(one.spec, one.place);
      one.place = undefined;
      if (place && !this.#at(one.spec, place.fid) && this.#table.enter(one.spec, place)) one.place = place;
    }
  }
}
