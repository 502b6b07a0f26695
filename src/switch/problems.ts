/** The faults of a configuration: where each is, and in which words it is told. */
import type { z } from 'zod';
import { SwitchError } from './errors.ts';

/** One fault of a configuration. */
export interface Problem {
  /** The way to the faulty value, e.g. `['ports', 0, 'role']`; empty for the value as a whole. */
  path: (string | number)[];
  /** True when the key at the end of `path` is at fault, not its value. */
  unknownKey: boolean;
  /** What was expected and what was found, without the field's name. */
  message: string;
}

/** Unknown keys and words are told up to here: whoever sends more has another problem. */
export const MOST_UNKNOWN_KEYS = 20;

/** Edits (a letter more, less or another) from one word to the other. */
function distance(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, column) => column);
  for (let i = 1; i <= from.length; i++) {
    const next = [i];
    for (let j = 1; j <= to.length; j++) {
      const other = row[j - 1]! + (from[i - 1] === to[j - 1] ? 0 : 1);
      next.push(Math.min(other, row[j]! + 1, next[j - 1]! + 1));
    }
    row = next;
  }
  return row[to.length]!;
}

/** What an unknown key was perhaps meant to be, as the end of a sentence. */
export function didYouMean(key: string, known: readonly string[]): string {
  const plain = (word: string) => word.toLowerCase().replace(/[_-]/g, '');
  const near = known
    .map((word) => ({ word, edits: key.length > 40 ? 40 : distance(plain(key), plain(word)) }))
    .sort((a, b) => a.edits - b.edits)[0];
  if (near !== undefined && near.edits <= 2) return `did you mean ${near.word}?`;
  return `expected one of ${known.join(', ')}`;
}

/**
 * The faults that a schema found in a value, each told once; `keys` are those that the value may have, `keysIn` those
 * of what is in its lists.
 */
export function problemsOf(
  error: z.ZodError,
  keys: readonly string[],
  keysIn: Record<string, readonly string[]> = {},
): Problem[] {
  const problems = new Map<string, Problem>();
  const add = (problem: Problem) => problems.set(JSON.stringify([problem.path, problem.message]), problem);
  for (const issue of error.issues) {
    const path = issue.path as (string | number)[];
    if (issue.code !== 'unrecognized_keys') {
      add({ path, unknownKey: false, message: issue.message });
      continue;
    }
    const known = path.length === 0 ? keys : (keysIn[path[0]!] ?? []);
    for (const key of issue.keys.slice(0, MOST_UNKNOWN_KEYS)) {
      add({ path: [...path, key], unknownKey: true, message: `unknown key, ${didYouMean(key, known)}` });
    }
  }
  return [...problems.values()];
}

/** The field as people write it: `ports[0].role`; empty for the value as a whole. */
export function fieldName(path: (string | number)[]): string {
  return path
    .map((key, depth) => (typeof key === 'number' ? `[${key}]` : depth === 0 ? key : `.${key}`))
    .join('');
}

/** Throws all of them as one SwitchError, BAD_SPEC. */
export function refuse(problems: Problem[]): never {
  const told = problems.map(({ path, message }) => (path.length > 0 ? `${fieldName(path)}: ` : '') + message);
  throw new SwitchError('BAD_SPEC', told.join('; '), fieldName(problems[0]?.path ?? []) || undefined);
}
