/**
 * Coverage of the data plane: its WebAssembly with a note at the start of every basic block, in a part of the arena
 * that nobody uses (src/dataplane/layout.ts: below the header).
 *
 * A block begins where a function does, at each branch of an `if`, in the body of a loop, and behind whatever may
 * have jumped away. Binaryen comes with the AssemblyScript compiler and is taken from there.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import type { Arena } from '../../src/arena/index.ts';

const WASM = new URL('../../src/dataplane/dataplane.wasm', import.meta.url);
/** A byte a block. */
const NOTES = 0x8000;
const MOST = 0x8000;

type Expression = number;
interface Info {
  id: number;
  type: number;
  [field: string]: unknown;
}
/** As much of Binaryen as is used here. */
interface Binaryen {
  ConstId: number;
  NopId: number;
  UnreachableId: number;
  BlockId: number;
  IfId: number;
  LoopId: number;
  BreakId: number;
  SwitchId: number;
  Features: { All: number };
  readBinaryWithFeatures(bytes: Uint8Array, features: number): Module;
  getExpressionId(expression: Expression): number;
  getExpressionType(expression: Expression): number;
  getExpressionInfo(expression: Expression): Info;
  Block: { insertChildAt(block: Expression, index: number, child: Expression): void };
  If: {
    setIfTrue(e: Expression, branch: Expression): void;
    setIfFalse(e: Expression, branch: Expression): void;
  };
  Loop: { setBody(e: Expression, body: Expression): void };
  Function: { getBody(f: number): Expression; setBody(f: number, body: Expression): void };
}
interface Module {
  getNumFunctions(): number;
  getFunctionByIndex(index: number): number;
  block(label: string | null, children: Expression[], type: number): Expression;
  i32: {
    const(value: number): Expression;
    store8(offset: number, align: number, at: Expression, value: Expression): Expression;
  };
  validate(): number;
  emitBinary(): Uint8Array;
}

/** Fields of an expression that are expressions themselves, whatever its kind. */
const PARTS = [
  'condition',
  'value',
  'left',
  'right',
  'ptr',
  'ifTrue',
  'ifFalse',
  'body',
  'dest',
  'source',
  'size',
];

export interface Instrumented {
  module: WebAssembly.Module;
  /** Basic blocks in all. */
  blocks: number;
}

/** Compiles the data plane with notes in it. */
export async function instrument(): Promise<Instrumented> {
  const compiler = createRequire(import.meta.resolve('assemblyscript'));
  const { default: b } = (await import(pathToFileURL(compiler.resolve('binaryen')).href)) as {
    default: Binaryen;
  };
  const module = b.readBinaryWithFeatures(readFileSync(WASM), b.Features.All);
  let blocks = 0;
  const note = () => module.i32.store8(0, 1, module.i32.const(NOTES + blocks++), module.i32.const(1));
  const noted = (e: Expression) => module.block(null, [note(), e], b.getExpressionType(e));

  const leaves = [b.ConstId, b.NopId, b.UnreachableId];
  const visit = (e: Expression): void => {
    if (leaves.includes(b.getExpressionId(e))) return;
    const info = b.getExpressionInfo(e);
    if (info.id === b.BlockId) {
      const children = info.children as Expression[];
      for (const child of children) visit(child);
      let shift = 0;
      for (const [i, child] of children.entries()) {
        const id = b.getExpressionId(child);
        const jumps = [b.BreakId, b.SwitchId, b.IfId, b.LoopId, b.BlockId].includes(id);
        if (jumps && i + 1 < children.length) b.Block.insertChildAt(e, i + 1 + shift++, note());
      }
      return;
    }
    for (const part of PARTS) if (info[part]) visit(info[part] as Expression);
    for (const operand of (info.operands as Expression[] | undefined) ?? []) visit(operand);
    if (info.id === b.IfId) {
      b.If.setIfTrue(e, noted(info.ifTrue as Expression));
      if (info.ifFalse) b.If.setIfFalse(e, noted(info.ifFalse as Expression));
    }
    if (info.id === b.LoopId) b.Loop.setBody(e, noted(info.body as Expression));
  };
  for (let i = 0; i < module.getNumFunctions(); i++) {
    const f = module.getFunctionByIndex(i);
    const body = b.Function.getBody(f);
    if (!body) continue;
    visit(body);
    b.Function.setBody(f, noted(body));
  }
  if (blocks > MOST) throw new Error(`${blocks} blocks are more than there is room for notes: ${MOST}`);
  if (!module.validate()) throw new Error('the data plane with notes in it is not valid');
  return { module: new WebAssembly.Module(Uint8Array.from(module.emitBinary())), blocks };
}

/** Blocks of the data plane that ran in any of these arenas. */
export function blocksHit(arenas: readonly Arena[]): Set<number> {
  const notes = arenas.map(({ u8 }) => u8.subarray(NOTES, NOTES + MOST));
  const hit = new Set<number>();
  for (let i = 0; i < MOST; i++) if (notes.some((bytes) => bytes[i] !== 0)) hit.add(i);
  return hit;
}
