/** `vireo ports`, and `vireo port` without more: a line a port. */
import type { Command } from 'commander';
import type { PortStatus } from '../switch/types.ts';
import { connect, optionsOf, print, speaksToSwitch, withExamples } from './command.ts';
import { bytes, count, table } from './table.ts';

export function declarePorts(program: Command): void {
  const command = speaksToSwitch(
    program
      .command('ports')
      .description(
        'list the ports; counters are seen from the switch: rx came from the guest, tx went to it',
      ),
  );
  withExamples(command, 'vireo ports', "vireo ports --json | jq '.[] | [.name, .rxPackets, .txPackets]'");
  command.action(() => listPorts(command));
}

export async function listPorts(command: Command): Promise<void> {
  const options = optionsOf(command);
  const ports = await (await connect(options)).ports();
  print(options, ports, () => portsText(ports));
}

function portsText(ports: PortStatus[]): string {
  if (ports.length === 0) return 'no ports; add one with `vireo port add NAME=vhost-user:PATH`\n';
  const lines = table(
    [
      { title: 'PORT' },
      { title: 'TYPE' },
      { title: 'STATE' },
      { title: 'RX PACKETS', right: true },
      { title: 'RX BYTES', right: true },
      { title: 'RX DROPS', right: true },
      { title: 'TX PACKETS', right: true },
      { title: 'TX BYTES', right: true },
      { title: 'TX DROPS', right: true },
      { title: 'RINGS' },
      { title: 'ROLE' },
      { title: 'TARGET' },
    ],
    ports.map((port) => [
      port.name,
      port.type,
      port.state,
      count(port.rxPackets),
      bytes(port.rxBytes),
      count(port.rxDrops),
      count(port.txPackets),
      bytes(port.txBytes),
      count(port.txDrops),
      port.rings || '-',
      port.role ?? '-',
      port.target,
    ]),
  );
  const errors = ports.filter((port) => port.lastError !== null);
  if (errors.length === 0) return lines;
  const told = table(
    [{ title: 'PORT' }, { title: 'LAST ERROR' }],
    errors.map((port) => [port.name, port.lastError ?? '']),
  );
  return `${lines}\n${told}`;
}
