/**
 * What is fuzzed. An execution of a target depends on its generator alone, and thereby on one number: the same
 * number fails again.
 */
import { randomPackedCase, randomSplitCase } from '../dataplane/random-rings.ts';
import { IN_ORDER, INDIRECT, MERGEABLE, PACKED, type Plane } from '../support/plane.ts';
import type { Random } from '../support/random.ts';
import { captures } from './captures.ts';
import { configurations } from './configurations.ts';
import { commands } from './control.ts';
import { lyingDevices } from './driver.ts';
import { frames } from './frames.ts';
import { messages } from './messages.ts';
import { pdus } from './pdus.ts';
import { streams } from './streams.ts';

export interface Target {
  /** Runs once; throws when something is wrong. */
  one(random: Random): void | Promise<void>;
  close?(): Promise<void>;
}

export type MakePlane = () => Plane;

const FLAGS = [0, INDIRECT, MERGEABLE, MERGEABLE | INDIRECT, IN_ORDER | MERGEABLE | INDIRECT];

function rings(makePlane: MakePlane, randomCase: typeof randomSplitCase): Target {
  const cases = (['tx', 'rx'] as const).flatMap((which) => [
    ...FLAGS.map((flags) => randomCase(makePlane(), which, flags)),
    // Guests larger than the address space.
    ...(['windows', 'copies'] as const).map((reach) =>
      randomCase(makePlane(), which, MERGEABLE | INDIRECT, reach),
    ),
  ]);
  return { one: (random) => void random.pick(cases)(random) };
}

export const TARGETS: Readonly<Record<string, (makePlane: MakePlane) => Target | Promise<Target>>> = {
  'split-device': (makePlane) => rings(makePlane, randomSplitCase),
  'packed-device': (makePlane) => rings(makePlane, randomPackedCase),
  'split-driver': (makePlane) => ({ one: lyingDevices(makePlane, 0) }),
  'packed-driver': (makePlane) => ({ one: lyingDevices(makePlane, PACKED) }),
  frames: (makePlane) => ({ one: frames(makePlane) }),
  control: (makePlane) => ({ one: commands(makePlane) }),
  messages: () => messages(),
  captures: () => ({ one: captures }),
  streams: (makePlane) => ({ one: streams(makePlane) }),
  pdus: () => ({ one: pdus }),
  configurations: () => ({ one: configurations }),
};
