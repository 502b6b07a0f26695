/** What the commands share: their options, the way to a switch, output, and errors with an exit code. */
import { type Command, InvalidArgumentError } from 'commander';
import type { ControlClient } from '../api/client.ts';

/** Options that choose the switch and the form of the answer. */
export interface ClientOptions {
  name?: string;
  control?: string;
  json?: boolean;
}

/** An error of the command line itself: exit code 2. */
export class UsageError extends Error {}

/** An error whose lines say by themselves where they belong, e.g. a file's name first. */
export class PlainError extends Error {}

/** Adds the options of every command that speaks to a running switch. */
export function speaksToSwitch(command: Command): Command {
  return command
    .option('--name <name>', 'the switch to speak to, when several run here')
    .option('--control <path>', 'its control socket, when it has one of its own')
    .option('--json', 'print JSON');
}

/** Adds examples, one a line, to a command's help. */
export function withExamples(command: Command, ...examples: string[]): Command {
  return command.addHelpText(
    'after',
    `\nExamples:\n${examples.map((example) => `  $ ${example}\n`).join('')}`,
  );
}

/**
 * Makes a command that has subcommands list what there is, by itself and as its subcommand `list`. `run` gets the
 * command that was called, for its options. Another word behind it is a subcommand that there isn't.
 */
export function lists(
  command: Command,
  what: string,
  withOptions: (command: Command) => Command,
  run: (command: Command) => Promise<void>,
): void {
  const list = withOptions(command.command('list').description(`list ${what}, as without a command`));
  withExamples(list, `vireo ${command.name()} list`, `vireo ${command.name()} list --json`);
  list.action(() => run(list));
  withOptions(command).allowExcessArguments();
  command.action(async () => {
    const [word] = command.args;
    if (word !== undefined) {
      const known = command.commands.map((one) => one.name()).join(', ');
      throw new UsageError(`unknown command '${command.name()} ${word}'; there are: ${known}`);
    }
    await run(command);
  });
}

/** The options of a command, its parents' included: `vireo fdb --json flush` is `vireo fdb flush --json`. */
export function optionsOf<T extends ClientOptions>(command: Command): T {
  return command.optsWithGlobals<T>();
}

/** A client of the switch that the options choose. */
export async function connect(options: ClientOptions): Promise<ControlClient> {
  const { findSwitch } = await import('../api/client.ts');
  return findSwitch(options);
}

/** Prints an answer, as JSON where the options say so, else as the text. */
export function print(options: ClientOptions, value: unknown, text: () => string): void {
  process.stdout.write(options.json ? `${JSON.stringify(value, null, 2)}\n` : text());
}

/** An option's value that must be a whole number. */
export function wholeNumber(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d+$/.test(text) && value >= min && value <= max) return value;
    throw new InvalidArgumentError(`Expected a whole number from ${min} to ${max}.`);
  };
}

/** CPU numbers from `0,2-3`. */
export function readCpus(text: string): number[] {
  const cpus = text.split(',').flatMap((part) => {
    const [, first, last = first] = /^(\d{1,4})(?:-(\d{1,4}))?$/.exec(part) ?? [];
    const from = Number(first);
    const to = Number(last);
    if (!(from <= to && to < 1024)) throw new InvalidArgumentError('Expected CPU numbers such as 0,2-3.');
    return Array.from({ length: to - from + 1 }, (_, index) => from + index);
  });
  if (new Set(cpus).size < cpus.length) throw new InvalidArgumentError('A CPU is given twice.');
  return cpus;
}
