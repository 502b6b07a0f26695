/**
 * A switch from a YAML file. Every fault is told with its place: `vireo.yaml:4:11: ports[0].role: expected …`.
 *
 * The text is parsed into a tree that remembers positions, turned into plain data, checked by the schema that
 * the command line and the API use too, and each fault is looked up in the tree by its path.
 */
import { isUtf8 } from 'node:buffer';
import { closeSync, constants, fstatSync, openSync, readFileSync } from 'node:fs';
import {
  type Document,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  Lexer,
  LineCounter,
  type Node,
  Parser,
  parseDocument,
  visit,
} from 'yaml';
import { SwitchError } from './errors.ts';
import { fieldName, type Problem } from './problems.ts';
import { examineSwitchOptions } from './spec.ts';
import type { SwitchOptions } from './types.ts';

/** Bytes. A switch of 256 ports takes a tenth of it. */
const MAX_FILE = 256 * 1024;
const MAX_DEPTH = 32;
/** A file that is no configuration at all isn't told line by line. */
const MOST_FAULTS = 100;

/** A fault of the text itself; `pos` is where it starts and ends. */
interface Fault {
  pos: [number, number];
  message: string;
}

/** What the parser says of lines that don't stand where they belong, in words that only it knows. */
const LAYOUT = new Set(['BAD_INDENT', 'BLOCK_AS_IMPLICIT_KEY', 'MULTILINE_IMPLICIT_KEY']);

/** The faults of the text that the parser found, one for a place. */
function textFaults({ errors, warnings }: Document.Parsed): Fault[] {
  return [...errors, ...warnings]
    .filter(({ pos }, i, all) => all.findIndex((other) => other.pos[0] === pos[0]) === i)
    .map(({ pos, code, message }) => ({
      pos,
      message: LAYOUT.has(code)
        ? `expected "key: value", indented as the lines that it belongs to, found something else (${message})`
        : message,
    }));
}

/** A file that can't be used; each line of the message is one fault, the file's name first. */
export class ConfigError extends SwitchError {
  constructor(lines: string[], field?: string) {
    super('BAD_SPEC', lines.join('\n'), field);
  }
}

/** What a failed call says without its name and arguments: `no such file or directory`. */
const reason = (error: unknown) =>
  (error as Error).message.replace(/^[A-Z0-9]+: /, '').replace(/, \w+( '.*')?$/, '');

function readText(file: string): string {
  let bytes: Buffer;
  try {
    // Non-blocking: opening a FIFO that nobody writes to would wait for ever.
    const descriptor = openSync(file, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      const stat = fstatSync(descriptor);
      if (stat.isDirectory()) throw new ConfigError([`${file}: expected a YAML file, found a directory`]);
      if (!stat.isFile())
        throw new ConfigError([`${file}: expected a YAML file, found a device, pipe or socket`]);
      if (stat.size > MAX_FILE) {
        throw new ConfigError([
          `${file}: expected a file of at most ${MAX_FILE} bytes, found ${stat.size} bytes`,
        ]);
      }
      bytes = readFileSync(descriptor);
    } finally {
      closeSync(descriptor);
    }
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    throw new ConfigError([`${file}: can't be read: ${reason(error)}`]);
  }
  const text = bytes.toString();
  if (isUtf8(bytes)) return text;
  const before = text.slice(0, text.indexOf('\ufffd')).split('\n');
  const place = `${file}:${before.length}:${before.at(-1)!.length + 1}`;
  throw new ConfigError([
    `${place}: expected text in UTF-8, found a byte that is none: save the file as UTF-8`,
  ]);
}

/** Throws when lists and maps are nested deeper than any configuration: the parser's later part recurses. */
function checkDepth(text: string): void {
  const parser = new Parser();
  for (const lexeme of new Lexer().lex(text)) {
    for (const _ of parser.next(lexeme));
    if (parser.stack.length > MAX_DEPTH) throw new Error('lists or maps are nested too deep');
  }
}

/** A key that comes twice in a map: the second would silently win. */
function repeatedKeys(document: Document.Parsed): Fault[] {
  const faults: Fault[] = [];
  visit(document, {
    Map(_, map) {
      const seen = new Set<string>();
      for (const { key } of map.items) {
        if (!isScalar(key)) continue;
        const word = String(key.value);
        const [start = 0, end = 0] = key.range ?? [];
        if (seen.has(word))
          faults.push({ pos: [start, end], message: `${word}: expected once, found again` });
        seen.add(word);
      }
    },
  });
  return faults;
}

/** Where in the text the fault lies: the node at its path, or the nearest one around it that exists. */
function offsetOf(document: Document.Parsed, problem: Problem): number {
  let node: Node | null = document.contents;
  let offset = node?.range?.[0] ?? 0;
  for (const [depth, key] of problem.path.entries()) {
    if (isAlias(node)) node = node.resolve(document) ?? null;
    let next: unknown;
    if (isSeq(node)) next = node.items[key as number];
    else if (isMap(node)) {
      const pair = node.items.find((item) => isScalar(item.key) && String(item.key.value) === String(key));
      next = problem.unknownKey && depth === problem.path.length - 1 ? pair?.key : (pair?.value ?? pair?.key);
    }
    if (next === undefined || next === null) break;
    node = next as Node;
    offset = node.range?.[0] ?? offset;
  }
  return offset;
}

/** The options of a switch from the text of a YAML file; `file` is its name in errors. Throws ConfigError. */
export function parseConfig(text: string, file: string): SwitchOptions {
  const counter = new LineCounter();
  const at = (offset: number) => {
    const { line, col } = counter.linePos(offset);
    return `${file}:${line}:${col}`;
  };
  let document: Document.Parsed;
  let data: unknown;
  try {
    checkDepth(text);
    // The parser's own search for keys that come twice takes the square of their number: uniqueKeys off.
    document = parseDocument(text, {
      lineCounter: counter,
      prettyErrors: false,
      logLevel: 'error',
      uniqueKeys: false,
    });
    const faults = textFaults(document);
    if (faults.length === 0) faults.push(...repeatedKeys(document));
    if (faults.length > 0) {
      throw new ConfigError(
        faults.slice(0, MOST_FAULTS).map(({ pos, message }) => `${at(pos[0])}: ${message}`),
      );
    }
    data = document.toJS({ maxAliasCount: 100 }) ?? {};
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    // What the parser throws instead of noting it: aliases that multiply.
    throw new ConfigError([`${file}: can't be read as YAML: ${(error as Error).message}`]);
  }

  const result = examineSwitchOptions(data);
  if (!Array.isArray(result)) return result;
  const told = result
    .map((problem) => ({ offset: offsetOf(document, problem), field: fieldName(problem.path), ...problem }))
    .sort((a, b) => a.offset - b.offset);
  const lines = told
    .slice(0, MOST_FAULTS)
    .map(({ offset, field, message }) => `${at(offset)}: ${field === '' ? '' : `${field}: `}${message}`);
  throw new ConfigError(lines, told[0]?.field || undefined);
}

/** The options of a switch from a YAML file. Throws ConfigError, which tells every fault with line and column. */
export function readConfig(file: string): SwitchOptions {
  return parseConfig(readText(file), file);
}
