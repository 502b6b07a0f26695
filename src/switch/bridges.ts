/** The bridges of a switch: their names, their numbers in the data plane, and what is set for each. */
import type { Structures } from '../arena/index.ts';
import { SwitchError } from './errors.ts';
import type { GroupTables } from './groups.ts';
import { show } from './schema.ts';
import type { BridgeSpec, PortSpec } from './types.ts';

/** The bridge that is always there, and that ports without another are on. */
export const DEFAULT_BRIDGE = 'default';

/** The name of the bridge that a port is on. */
export const bridgeOf = ({ bridge = DEFAULT_BRIDGE }: Pick<PortSpec, 'bridge'>): string => bridge;

export class Bridges {
  readonly #structures: Structures;
  readonly #groups: GroupTables;
  readonly #bridges = new Map<string, { index: number; spec: BridgeSpec }>();
  /** How many ports each has. */
  #ports = new Map<string, number>();

  constructor(structures: Structures, groups: GroupTables) {
    this.#structures = structures;
    this.#groups = groups;
    this.#bridges.set(DEFAULT_BRIDGE, { index: 0, spec: { name: DEFAULT_BRIDGE } });
  }

  /** All of them, the default one first. */
  list(): BridgeSpec[] {
    return [...this.#bridges.values()].map(({ spec }) => spec);
  }

  /** Number of a bridge in the data plane. Throws a SwitchError, BAD_SPEC, where a port names one that isn't there. */
  index(name = DEFAULT_BRIDGE): number {
    const bridge = this.#bridges.get(name);
    if (bridge) return bridge.index;
    const known = [...this.#bridges.keys()].join(', ');
    throw new SwitchError(
      'BAD_SPEC',
      `bridge: expected a bridge that is there (${known}), found ${show(name)}: \`vireo bridge add\` makes one`,
      'bridge',
    );
  }

  /** The bridge with this number. */
  name(index: number): string {
    for (const [name, bridge] of this.#bridges) if (bridge.index === index) return name;
    return DEFAULT_BRIDGE;
  }

  /** Throws a SwitchError, NO_SUCH_BRIDGE. */
  get(name: string): BridgeSpec {
    const bridge = this.#bridges.get(name);
    if (bridge) return bridge.spec;
    const known = [...this.#bridges.keys()].join(', ');
    throw new SwitchError(
      'NO_SUCH_BRIDGE',
      `no bridge is named ${JSON.stringify(name)}; there are: ${known}`,
      'name',
    );
  }

  /** Throws a SwitchError, BRIDGE_EXISTS or LIMIT: then nothing has changed. */
  add(spec: BridgeSpec): void {
    if (this.#bridges.has(spec.name)) {
      const message = `a bridge named ${JSON.stringify(spec.name)} exists: choose another name`;
      throw new SwitchError('BRIDGE_EXISTS', message, 'name');
    }
    const most = this.#structures.constant('MAX_BRIDGES');
    const taken = new Set([...this.#bridges.values()].map(({ index }) => index));
    let index = 0;
    while (taken.has(index)) index++;
    if (index >= most)
      throw new SwitchError('LIMIT', `the switch has ${most} bridges, which is its limit: remove one`);
    this.#groups.set(index, spec.snooping === true, spec.querier === true);
    this.#bridges.set(spec.name, { index, spec });
    this.#write(spec);
  }

  /** Sets a bridge anew. Throws a SwitchError, LIMIT: then nothing has changed. */
  set(spec: BridgeSpec): void {
    this.get(spec.name);
    const bridge = this.#bridges.get(spec.name)!;
    this.#groups.set(bridge.index, spec.snooping === true, spec.querier === true);
    bridge.spec = spec;
    this.#write(spec);
  }

  remove(name: string): void {
    if (name === DEFAULT_BRIDGE)
      throw new SwitchError('BAD_SPEC', `name: expected a bridge other than the default one`, 'name');
    this.#groups.set(this.index(this.get(name).name), false);
    this.#bridges.delete(name);
  }

  /** Tells which ports there are: what a bridge does with reserved addresses depends on their number. */
  count(ports: Iterable<PortSpec>): void {
    this.#ports = new Map();
    for (const port of ports) this.#ports.set(bridgeOf(port), (this.#ports.get(bridgeOf(port)) ?? 0) + 1);
    for (const spec of this.list()) this.#write(spec);
  }

  /** What becomes of frames to addresses that are reserved for bridges. */
  reserved(name: string): 'pass' | 'filter' {
    const { reserved = 'auto', rstp = false } = this.get(name);
    if (reserved !== 'auto') return reserved;
    if (rstp) return 'filter';
    return (this.#ports.get(name) ?? 0) > 2 ? 'filter' : 'pass';
  }

  #write({ name, ageing = 0 }: BridgeSpec): void {
    const { index } = this.#bridges.get(name)!;
    this.#structures.bridge(index).set('ageing', ageing);
    this.#structures.bridge(index).set('filters', this.reserved(name) === 'filter' ? 1 : 0);
  }
}
