/**
 * What many ports cost: the rate between two guests on a switch of two ports and on one of 256, the others connected
 * and quiet. The guests that are measured are DPDK's, the quiet ones our own virtio-user devices.
 */
import { join } from 'node:path';
import { VirtioUser } from '../src/virtio-user/device.ts';
import { skipWithout } from '../test/peers/available.ts';
import { Vireo } from '../test/peers/vireo.ts';
import { Distance } from './distance.ts';
import { BURSTS, GUEST_CPU, measure, RunningLoad, SWITCH_CPU } from './load.ts';
import { machine, type Spread, showSpread, spread, table, writeSection } from './report.ts';

const COUNTS = [2, 256] as const;
const SIZE = 64;

export interface Result {
  machine: string;
  turns: number;
  /** By number of ports: nanoseconds a packet of 64 B, both directions summed. */
  cost: Record<number, Spread>;
  /** The cost with 256 ports to the cost with two, of each turn. */
  ratio: Spread;
}

export async function ports(turns: number, seconds: number, say: (line: string) => void): Promise<Result> {
  const missing = skipWithout('dpdk');
  if (missing !== false) throw new Error(missing);
  const costs: Record<number, number[]> = {};
  const distance = new Distance([SWITCH_CPU, GUEST_CPU]);
  for (let turn = 0; turn < turns; turn++) {
    for (const count of COUNTS) {
      const found = await cost(count, seconds, distance, say);
      costs[count] = [...(costs[count] ?? []), found];
      say(`turn ${turn + 1} of ${turns}: ${count} ports, ${found.toFixed(1)} ns a packet`);
    }
  }
  await distance.close();
  const [few = [], many = []] = COUNTS.map((count) => costs[count]);
  return {
    machine: machine(),
    turns,
    cost: Object.fromEntries(COUNTS.map((count) => [count, spread(costs[count] ?? [])])),
    ratio: spread(many.map((cost, turn) => cost / (few[turn] ?? Number.NaN))),
  };
}

async function cost(
  count: number,
  seconds: number,
  distance: Distance,
  say: (line: string) => void,
): Promise<number> {
  const names = Array.from({ length: count }, (_, index) => `p${index}`);
  await using vireo = await Vireo.start({ ports: names, poll: 'busy', cpu: SWITCH_CPU });
  const paths = names.map((name) => join(vireo.directory, name));
  const quiet: VirtioUser[] = [];
  try {
    for (const path of paths.slice(2)) quiet.push(await VirtioUser.open({ path }));
    const subject = { name: `${count} ports`, pid: vireo.child.pid };
    const [one = '', two = ''] = paths;
    await using load = await RunningLoad.start(
      subject,
      [one, two],
      { size: SIZE, bursts: BURSTS, distance },
      say,
    );
    const [found] = await measure([load], seconds);
    return 1e9 / (found?.near ?? found?.far ?? Number.NaN);
  } finally {
    for (const device of quiet) await device.close();
  }
}

export function renderPorts({ cost, ratio, turns }: Result): string {
  const rows = COUNTS.map((count) => [`${count} ports`, showSpread(cost[count] as Spread, 1)]);
  return [
    `Nanoseconds a packet of ${SIZE} B between two ports, the others connected and quiet: median (least to most) of ${turns} turns.`,
    table(['', 'ns'], rows),
    `256 ports cost ${showSpread(ratio)} times what two do.`,
  ].join('\n\n');
}

export function documentPorts(result: Result): void {
  writeSection('ports', ['## Many ports', `Machine: ${result.machine}.`, renderPorts(result)].join('\n\n'));
}
