/** A configuration file as the commands read it: faults told by line and field, paths of sockets made absolute. */
import type { SwitchOptions } from '../switch/types.ts';
import { PlainError } from './command.ts';
import { withPath } from './port.ts';

/** Throws PlainError, whose lines begin with the file's name. */
export async function readFileOptions(file: string): Promise<SwitchOptions> {
  const { readConfig } = await import('../switch/config.ts');
  try {
    const options = readConfig(file);
    // What runs the switch may be in another directory.
    return options.ports === undefined ? options : { ...options, ports: options.ports.map(withPath) };
  } catch (error) {
    throw new PlainError((error as Error).message);
  }
}
