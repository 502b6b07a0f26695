/**
 * The mirrors of a switch, from the control plane: what is set for each, and how it is wired in the data plane
 * (src/dataplane/mirror.ts) with the ports that are there. One to a file is a capture.
 */
import type { Arena, MirrorStruct, Range, Structures } from '../arena/index.ts';
import { bondOf } from '../bond/members.ts';
import type { Choice } from '../capture/capture.ts';
import type { CaptureFile } from '../capture/file.ts';
import type { PortRules } from '../rules/index.ts';
import { readVlans } from '../rules/vlan.ts';
import { closingError, SwitchError } from './errors.ts';
import { show } from './schema.ts';
import type { MirrorSpec, MirrorStatus, PortSpec } from './types.ts';

/** Mirrors that a switch may have. */
const MOST = 64;
const WAYS = { in: 1, out: 2, both: 3 };

/** A port that is there, with its place in the data plane. */
export interface MirrorPort {
  spec: PortSpec;
  slot: number;
  rules: PortRules;
}

interface Mirror {
  spec: MirrorSpec;
  file?: CaptureFile;
  /** Unless it is one to a file. */
  struct?: MirrorStruct;
  rooms: Range[];
  /** The list of ports that it copies to, and their places. */
  list?: Range;
  slots: number[];
  /** What it was before it was set anew, until no worker copies by that; what it has counted. */
  former?: Mirror | undefined;
  counted: Counts;
}

interface Counts {
  copied: bigint;
  lost: bigint;
}

/** Where copies go. */
export function targetOf({ to }: Pick<MirrorSpec, 'to'>): { port?: string; vlan?: number; file?: string } {
  if (to.startsWith('file:')) return { file: to.slice('file:'.length) };
  return to.startsWith('vlan:') ? { vlan: Number(to.slice('vlan:'.length)) } : { port: to };
}

/** The ports that are named; undefined: any. */
const sourcesOf = ({ from = 'any' }: MirrorSpec): string[] | undefined =>
  from === 'any' ? undefined : from.split('+');

/** Bits of VLANs, as the data plane has them. */
export const VLAN_WORDS = 128;
export function vlanBits(vlans: Iterable<number>): Uint32Array {
  const bits = new Uint32Array(VLAN_WORDS);
  for (const vlan of vlans) bits[vlan >>> 5]! |= 1 << (vlan & 31);
  return bits;
}

/** What is wrong with a mirror beside others, on a switch with these ports (undefined: they aren't known). */
export function mirrorFaults(
  spec: MirrorSpec,
  others: readonly MirrorSpec[],
  ports: readonly PortSpec[] | undefined,
): { field: keyof MirrorSpec; message: string }[] {
  const faults: { field: keyof MirrorSpec; message: string }[] = [];
  const add = (field: keyof MirrorSpec, message: string) => faults.push({ field, message });
  const { port, vlan, file } = targetOf(spec);
  const sources = sourcesOf(spec) ?? [];
  const known = ports?.map(({ name }) => name);
  const told = (known ?? []).slice(0, 10).join(', ') || 'none';
  for (const source of sources) {
    if (known !== undefined && !known.includes(source))
      add('from', `expected ports that are there (${told}), found ${show(source)}`);
    if (source === port) add('from', `expected ports other than ${source}, which the copies go to`);
    const mirror = others.find((other) => targetOf(other).port === source);
    if (mirror)
      add('from', `expected ports that no mirror copies to, found ${source} of mirror ${mirror.name}`);
  }
  if (port !== undefined) {
    if (known !== undefined && !known.includes(port))
      add('to', `expected a port that is there (${told}), "vlan:N" or "file:PATH", found ${show(port)}`);
    if (ports?.find(({ name }) => name === port)?.type === 'patch')
      add('to', `expected no patch port, behind which the copies would be switched, found ${show(port)}`);
    const bond = bondOf(port, ports ?? []);
    if (bond) add('to', `expected a port that is no member of a bond, found ${port} of ${bond.name}`);
    const mirror = others.find((other) => sourcesOf(other)?.includes(port));
    if (mirror)
      add('to', `expected a port that no mirror copies from, found ${port} of mirror ${mirror.name}`);
  }
  if (vlan !== undefined && spec.vlans !== undefined && readVlans(spec.vlans)?.has(vlan))
    add('to', `expected a VLAN that isn't copied, found ${vlan}`);
  const writer = others.find((other) => file !== undefined && targetOf(other).file === file);
  if (writer) add('to', `expected a file of its own, found ${show(file)} of mirror ${writer.name}`);
  return faults;
}

export class Mirrors {
  readonly #arena: Arena;
  readonly #structures: Structures;
  /** Is a port a part of another one, whose frames it carries? */
  readonly #isPart: (port: string) => boolean;
  readonly #mirrors = new Map<string, Mirror>();
  /** Memory of mirrors that were removed, which ports' lists have until the next wire(). */
  #gone: Range[] = [];
  /** What no field points to any more, until the workers have passed by. */
  #old: Range[] = [];
  #closed = false;

  constructor(arena: Arena, structures: Structures, isPart: (port: string) => boolean) {
    this.#arena = arena;
    this.#isPart = isPart;
    this.#structures = structures;
  }

  list(): MirrorSpec[] {
    return [...this.#mirrors.values()].map(({ spec }) => spec);
  }

  /** Throws a SwitchError, NO_SUCH_MIRROR. */
  get(name: string): MirrorSpec {
    return this.#find(name).spec;
  }

  #find(name: string): Mirror {
    const mirror = this.#mirrors.get(name);
    if (mirror) return mirror;
    const known = [...this.#mirrors.keys()].join(', ') || 'none';
    const message = `no mirror is named ${JSON.stringify(name)}; there are: ${known}`;
    throw new SwitchError('NO_SUCH_MIRROR', message, 'name');
  }

  /** Throws a SwitchError where a mirror can't be added: BAD_SPEC, MIRROR_EXISTS, LIMIT. */
  check(spec: MirrorSpec, ports: readonly PortSpec[]): void {
    if (this.#closed) throw closingError();
    if (this.#mirrors.has(spec.name)) {
      const message = `a mirror named ${JSON.stringify(spec.name)} exists: choose another name`;
      throw new SwitchError('MIRROR_EXISTS', message, 'name');
    }
    this.checkChange(spec, ports);
    if (this.#mirrors.size >= MOST)
      throw new SwitchError('LIMIT', `the switch has ${MOST} mirrors, which is its limit: remove one`);
  }

  /** Throws a SwitchError, BAD_SPEC, where the one with this name can't be as `spec` says. */
  checkChange(spec: MirrorSpec, ports: readonly PortSpec[]): void {
    const others = this.list().filter(({ name }) => name !== spec.name);
    const faults = mirrorFaults(spec, others, ports);
    if (faults.length === 0) return;
    const told = faults.map(({ field, message }) => `${field}: ${message}`).join('; ');
    throw new SwitchError('BAD_SPEC', told, faults[0]!.field);
  }

  /** Adds one that was checked; wire() brings it to work. Throws ArenaFullError. */
  add(spec: MirrorSpec, file?: CaptureFile): void {
    this.#mirrors.set(spec.name, this.#make(spec, file));
  }

  #make(spec: MirrorSpec, file?: CaptureFile): Mirror {
    const counted = { copied: 0n, lost: 0n };
    const mirror: Mirror = { spec, rooms: [], slots: [], counted, ...(file && { file }) };
    if (file) return mirror;
    try {
      const room = this.#take(mirror, this.#structures.constant('MIRROR_STRIDE'));
      mirror.struct = this.#structures.mirror(room);
      mirror.struct.set('ways', WAYS[spec.direction ?? 'both']);
      mirror.struct.set('vlan', targetOf(spec).vlan ?? 0);
      if (spec.vlans !== undefined) {
        const bits = this.#take(mirror, VLAN_WORDS * 4);
        this.#arena.u32.set(vlanBits(readVlans(spec.vlans)!), bits >>> 2);
        mirror.struct.set('vlans', bits);
      }
      return mirror;
    } catch (error) {
      for (const room of mirror.rooms) this.#arena.freeTable(room);
      throw error;
    }
  }

  /**
   * Puts one that was checked in the place of the one with its name, with a new file where it copies to another one;
   * wire() brings it to work, each port by one store, so that no copy is missed. Returns what undoes it; once it is to
   * stay, the former's file is to be ended. Throws ArenaFullError, and nothing has changed then.
   */
  set(spec: MirrorSpec, file?: CaptureFile): { undo(): void; former: CaptureFile | undefined } {
    const former = this.#find(spec.name);
    const same = former.spec.to === spec.to;
    const mirror = this.#make(spec, same ? former.file : file);
    if (same && former.file) this.#choose(former.file, spec);
    else if (same) mirror.former = former;
    const rooms = ({ rooms, list }: Mirror) => [...rooms, ...(list ? [list] : [])];
    this.#gone.push(...rooms(former));
    this.#mirrors.set(spec.name, mirror);
    const undo = () => {
      this.#gone = this.#gone.filter((room) => !rooms(former).includes(room));
      this.#gone.push(...rooms(mirror));
      this.#mirrors.set(spec.name, former);
      if (same && former.file) this.#choose(former.file, former.spec);
    };
    return { undo, former: same ? undefined : former.file };
  }

  /** Has a file get other frames from now on. */
  #choose({ capture }: CaptureFile, spec: MirrorSpec): void {
    const room = capture.choose(this.choice(spec));
    if (room) this.#gone.push(room);
  }

  #take(mirror: Mirror, length: number): number {
    const room = this.#arena.takeTable(length);
    mirror.rooms.push(room);
    return room.start;
  }

  /** Takes one away, and ends its file; its memory goes with the next settle(), behind a wire(). */
  async remove(name: string): Promise<void> {
    const { file, rooms, list } = this.#find(name);
    this.#mirrors.delete(name);
    this.#gone.push(...rooms, ...(list ? [list] : []));
    await file?.close();
  }

  /** What a mirror to a file wants to see. */
  choice(spec: MirrorSpec): Choice {
    return {
      wants: (port) => this.#sees(spec, port),
      ways: WAYS[spec.direction ?? 'both'],
      ...(spec.vlans !== undefined && { vlans: vlanBits(readVlans(spec.vlans)!) }),
    };
  }

  #sees(spec: MirrorSpec, port: string): boolean {
    return sourcesOf(spec)?.includes(port) ?? (!this.monitors().has(port) && !this.#isPart(port));
  }

  /** Names of the ports that are there for copies. */
  monitors(): Set<string> {
    return new Set(this.list().flatMap((spec) => targetOf(spec).port ?? []));
  }

  /** The mirrors that can't be without a port. */
  needing(port: string): string[] {
    return this.list()
      .filter((spec) => targetOf(spec).port === port || sourcesOf(spec)?.includes(port))
      .map(({ name }) => name);
  }

  /**
   * Brings the data plane to what the mirrors and these ports are; settle() must follow. Returns the ports that are
   * monitors from now on. Throws ArenaFullError.
   */
  wire(ports: readonly MirrorPort[]): MirrorPort[] {
    const monitors = this.monitors();
    for (const mirror of this.#mirrors.values()) if (mirror.struct) this.#aim(mirror, ports);
    const fresh: MirrorPort[] = [];
    for (const port of ports) {
      const { name } = port.spec;
      const monitor = monitors.has(name);
      const at = [...this.#mirrors.values()].flatMap(({ spec, struct, list }) => {
        return struct && list && this.#sees(spec, name) ? [{ at: struct.at, ways: struct.get('ways') }] : [];
      });
      if (port.rules.mirror(at, monitor)) fresh.push(port);
    }
    this.#old.push(...this.#gone.splice(0));
    return fresh;
  }

  /** Lists where a mirror's copies go, of these ports. */
  #aim(mirror: Mirror, ports: readonly MirrorPort[]): void {
    const { port, vlan } = targetOf(mirror.spec);
    const slots = ports
      .filter(({ spec }) => (vlan === undefined ? spec.name === port : carries(spec, vlan)))
      .map(({ slot }) => slot);
    const same = slots.length === mirror.slots.length && slots.every((slot, i) => slot === mirror.slots[i]);
    if (same && mirror.list) return;
    const list = this.#arena.takeTable(4 + 4 * slots.length);
    this.#arena.u32.set([slots.length, ...slots], list.start >>> 2);
    mirror.struct!.set('ports', list.start);
    if (mirror.list) this.#old.push(mirror.list);
    Object.assign(mirror, { list, slots });
  }

  /** Frees what nothing points to any more, once no worker can look at it. */
  async settle(quiesce: () => Promise<void>): Promise<void> {
    const old = this.#old;
    this.#old = [];
    const changed = [...this.#mirrors.values()].filter(({ former }) => former);
    if (old.length > 0) await quiesce();
    for (const mirror of changed) {
      mirror.counted = countsOf({ ...mirror, struct: undefined });
      mirror.former = undefined;
    }
    for (const room of old) this.#arena.freeTable(room);
  }

  /** What there is to see of one, on a switch with these ports. Throws a SwitchError, NO_SUCH_MIRROR. */
  status(name: string, ports: readonly MirrorPort[]): MirrorStatus {
    const mirror = this.#find(name);
    const { spec, file, slots } = mirror;
    const { copied, lost } = countsOf(mirror);
    return {
      ...spec,
      from: spec.from ?? 'any',
      direction: spec.direction ?? 'both',
      ports: ports.filter(({ slot }) => slots.includes(slot)).map((port) => port.spec.name),
      copied: Number(file ? file.capture.frames : copied),
      lost: Number(file ? file.capture.lost : lost),
      error: file?.error ?? null,
    };
  }

  /** Names of the mirrors that copy a port's frames, and of those whose copies it gets. */
  at({ slot, spec }: MirrorPort): { from: string[]; to: string[] } {
    const mirrors = [...this.#mirrors.values()];
    const isSource = ({ spec: mirror }: Mirror) => this.#sees(mirror, spec.name);
    const names = (some: Mirror[]) => some.map((mirror) => mirror.spec.name);
    return {
      from: names(mirrors.filter(isSource)),
      to: names(mirrors.filter(({ slots }) => slots.includes(slot))),
    };
  }

  /** Ends the files, and takes no mirror any more. */
  async close(): Promise<void> {
    this.#closed = true;
    await Promise.all([...this.#mirrors.values()].map(({ file }) => file?.close()));
  }
}

/** Of a mirror that copies to no file: also of what it was before, but for other places that it copied to. */
function countsOf({ counted, struct, former }: Mirror): Counts {
  const before = former ? countsOf(former) : { copied: 0n, lost: 0n };
  const sum = (field: keyof Counts) => counted[field] + before[field] + (struct?.get64(field) ?? 0n);
  return { copied: sum('copied'), lost: sum('lost') };
}

/**
 * Does a port carry the copies in a mirror's VLAN? Only one that names it: a guest's port that is in all VLANs is not
 * to see what others send. A patch port leads to another bridge, which would switch them.
 */
function carries(spec: PortSpec, vlan: number): boolean {
  const named = spec.trunk !== undefined && spec.trunk !== 'all' && readVlans(spec.trunk)?.has(vlan);
  return spec.type !== 'patch' && (named || [spec.vlan, spec.native].includes(vlan));
}
