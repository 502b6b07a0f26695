/** What each kind of rule is made of, and what it is given to bring the data plane to it. */
import type { z } from 'zod';
import type { Arena, RulesStruct, Structures } from '../arena/index.ts';
import type { PortSpec } from '../switch/types.ts';

/** A port's specification, with what the switch knows beside it. */
export interface RuledPort extends PortSpec {
  /** Its bridge has VLANs. */
  vlanAware?: boolean;
  /** Bit n: frames to 01-80-C2-00-00-0n go to the control plane. */
  protocols?: number;
  /** It is in a spanning tree. */
  spanned?: boolean;
  /** Its link is down. */
  unplugged?: boolean;
  /** Where the data plane finds how it sends, as a bond, and whose it is, as a member of one. */
  bondAt?: number;
  memberAt?: number;
}

/** What only the switch knows. */
export type Beside = Pick<RuledPort, 'protocols' | 'bondAt' | 'memberAt'>;

/** A kind of rule: fields of a port's specification, and what the data plane does with them. */
export interface Rule {
  /** The fields, each optional, with what they may be. */
  readonly fields: Partial<Record<keyof PortSpec, z.ZodType>>;
  /** What else it depends on. */
  readonly derived?: readonly (keyof RuledPort)[];
  /** What contradicts itself, though each field by itself is right: the field, and what was expected and found. */
  contradictions?(port: PortSpec): { field: keyof PortSpec; message: string }[];
  /** Brings the data plane to what the port's specification says. Called at first, and when one of the fields changes. */
  set(port: RuledPort, table: RuleTable): void;
}

/** The rules of one port in the data plane. What is set is seen by the workers from their next burst on. */
export interface RuleTable {
  readonly arena: Arena;
  readonly structures: Structures;
  readonly rules: RulesStruct;
  /** Index of the port in the data plane. */
  readonly slot: number;
  /** Switches a stage (a constant STAGE_… of layout.ts) on or off, for frames from the port or for those to it. */
  stage(way: 'ingress' | 'egress', stage: string, on: boolean): void;
  /**
   * Zeroed room in the arena, in bytes, for what a field of Rules points to. It is freed, once no worker can look at
   * it any more, when the same owner takes other room or none (0), and with the port. Throws ArenaFullError.
   */
  room(owner: string, length: number): number;
}
