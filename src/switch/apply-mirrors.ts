/**
 * The part of a configuration's difference that is about mirrors. One that has changed is set anew in place, so that
 * it misses nothing: before the ports that it names no more go, or else when those that it names now are there. Where
 * the others, as they are at that moment, don't allow that, it goes, and comes with those that are new.
 */
import type { Difference } from './difference.ts';
import { SwitchError } from './errors.ts';
import type { Mirrors } from './mirrors.ts';
import type { Applied, MirrorChange, MirrorSpec } from './types.ts';

export interface MirrorCommands {
  addMirror(spec: MirrorSpec): Promise<void>;
  setMirror(name: string, change: MirrorChange): Promise<void>;
  removeMirror(name: string): Promise<void>;
}

/** What the specification has no word of goes back to its default. */
const changeTo = ({ name: _, ...fields }: MirrorSpec): MirrorChange => ({
  from: null,
  vlans: null,
  direction: null,
  ...fields,
});

/**
 * Does what is to be done before ports go, and returns what does the rest when all ports are as they are to be. Both
 * note in `applied` what they have done.
 */
export async function applyMirrors(
  found: Difference,
  mirrors: Mirrors,
  vswitch: MirrorCommands,
  applied: Applied['mirrors'],
): Promise<() => Promise<void>> {
  const was = new Map(mirrors.list().map((spec) => [spec.name, spec]));
  const anew: MirrorSpec[] = [];
  const fail = (mirror: string, error: unknown) =>
    applied.failed.push({ mirror, error: (error as Error).message });
  const set = async (spec: MirrorSpec) => {
    try {
      await vswitch.setMirror(spec.name, changeTo(spec));
      applied.changed.push(spec.name);
    } catch (error) {
      if (!(error instanceof SwitchError) || error.code !== 'BAD_SPEC') return fail(spec.name, error);
      await vswitch.removeMirror(spec.name);
      anew.push(spec);
    }
  };
  for (const name of found.mirrors.remove) {
    await vswitch.removeMirror(name);
    applied.removed.push(name);
  }
  const leaving = new Set(found.remove.flatMap((port) => mirrors.needing(port)));
  for (const spec of found.mirrors.set) if (leaving.has(spec.name)) await set(spec);
  return async () => {
    for (const spec of found.mirrors.set) if (!leaving.has(spec.name)) await set(spec);
    for (const spec of [...anew, ...found.mirrors.add]) {
      const before = was.get(spec.name);
      try {
        await vswitch.addMirror(spec);
        (before ? applied.changed : applied.added).push(spec.name);
      } catch (error) {
        fail(spec.name, error);
        // Its place may be taken by now; what failed is told already.
        if (before) await vswitch.addMirror(before).catch(() => {});
      }
    }
  };
}
