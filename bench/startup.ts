/** From the start of `vireo up`, Node's own start included, to its ready line with both sockets listening. */
import { machine, type Spread, showSpread, spread, writeSection } from './report.ts';
import { Vireo } from './vireo.ts';

export interface Result {
  machine: string;
  /** Milliseconds. */
  ready: Spread;
  turns: number;
}

export async function startup(turns: number): Promise<Result> {
  const times: number[] = [];
  for (let turn = 0; turn < turns; turn++) {
    await using vireo = await Vireo.start({ ports: ['a', 'b'], poll: 'adaptive' });
    times.push(vireo.startup);
  }
  return { machine: machine(), ready: spread(times), turns };
}

export function renderStartup({ ready, turns }: Result): string {
  return `From \`vireo up\` with two ports to the ready line: ${showSpread(ready, 0)} ms, of ${turns} starts.`;
}

export function documentStartup(result: Result): void {
  writeSection('startup', ['## Start', `Machine: ${result.machine}.`, renderStartup(result)].join('\n\n'));
}
