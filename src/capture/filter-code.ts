/** From a filter's conditions to the instructions that the data plane runs (src/dataplane/packet-filter.ts). */
import { type Condition, readFilter, type Test } from './filter.ts';

/** Instruction.op in the data plane. */
const OPS = {
  load: { 1: 0, 2: 1, 4: 2 },
  indexed: { 1: 3, 2: 4, 4: 5 },
  header: 6,
  length: 7,
  and: 8,
  compare: { '=': 9, '>': 10, '>=': 11, '&': 12 },
  end: 13,
} as const;

interface Step {
  op: number;
  k: number;
  next?: Step;
  otherwise?: Step;
}

/** The program of a filter: how many instructions, 4 bytes of padding, and 16 bytes each. Throws FilterError. */
export function compileFilter(text: string): Uint32Array {
  const steps = order(emit(readFilter(text), { op: OPS.end, k: 1 }, { op: OPS.end, k: 0 }));
  const places = new Map(steps.map((step, index) => [step, index]));
  const placeOf = (step: Step | undefined) => (step === undefined ? 0 : places.get(step)!);
  const words = new Uint32Array(2 + 4 * steps.length);
  words[0] = steps.length;
  steps.forEach(({ op, k, next, otherwise }, i) => {
    words.set([op, k, placeOf(next), placeOf(otherwise)], 2 + 4 * i);
  });
  return words;
}

/** The first instruction for a condition that leads to `yes` or `no`. */
function emit(condition: Condition, yes: Step, no: Step): Step {
  switch (condition.kind) {
    case 'and':
      return emit(condition.left, emit(condition.right, yes, no), no);
    case 'or':
      return emit(condition.left, yes, emit(condition.right, yes, no));
    case 'not':
      return emit(condition.of, no, yes);
    case 'test':
      return emitTest(condition, yes, no);
  }
}

function emitTest({ width, at, header, mask, is, value }: Test, yes: Step, no: Step): Step {
  let step: Step = { op: OPS.compare[is], k: value, next: yes, otherwise: no };
  if (mask !== undefined) step = { op: OPS.and, k: mask, next: step };
  if (width === 'length') return { op: OPS.length, k: 0, next: step };
  step = { op: (header === undefined ? OPS.load : OPS.indexed)[width], k: at, next: step };
  return header === undefined ? step : { op: OPS.header, k: header, next: step };
}

/** All instructions, the first one first. */
function order(first: Step): Step[] {
  const found = new Set<Step>();
  const open = [first];
  for (let step = open.pop(); step !== undefined; step = open.pop()) {
    if (found.has(step)) continue;
    found.add(step);
    if (step.otherwise) open.push(step.otherwise);
    if (step.next) open.push(step.next);
  }
  return [...found];
}
