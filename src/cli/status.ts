/** `vireo status`: the switch as a whole and its workers. */
import type { Command } from 'commander';
import type { SwitchStatus } from '../switch/types.ts';
import { connect, optionsOf, print, speaksToSwitch, withExamples } from './command.ts';
import { bytes, count, duration, pairs, table } from './table.ts';

export function declareStatus(program: Command): void {
  const command = speaksToSwitch(
    program.command('status').description('show a running switch and its workers'),
  );
  withExamples(command, 'vireo status', 'vireo status --name lab --json');
  command.action(async () => {
    const options = optionsOf(command);
    const status = await (await connect(options)).status();
    print(options, status, () => statusText(status));
  });
}

function statusText(status: SwitchStatus): string {
  const { fdb } = status;
  const summary = pairs([
    ['switch', status.name],
    ['version', `${status.version} on Node ${status.node.replace(/^v/, '')}`],
    ['pid', String(status.pid)],
    ['up for', duration(status.uptime)],
    ['ports', String(status.ports)],
    ['polling', status.poll],
    [
      'addresses',
      `${count(fdb.entries)} of ${count(fdb.limit)}, at most ${count(fdb.maxAddressesPerPort)} a port`,
    ],
    ['ageing', `${fdb.ageing} s`],
    ['memory', bytes(status.residentBytes)],
  ]);
  const workers = table(
    [
      { title: 'WORKER', right: true },
      { title: 'CPU', right: true },
      { title: 'LOAD', right: true },
      { title: 'QUEUES', right: true },
    ],
    status.workers.map((worker) => [
      String(worker.id),
      worker.cpu === null ? 'any' : String(worker.cpu),
      `${worker.cpuPercent.toFixed(1)} %`,
      String(worker.queues),
    ]),
  );
  return `${summary}\n${workers}`;
}
