/**
 * `vireo qemu`: the options that plug a guest into a port, for QEMU, libvirt or Cloud Hypervisor.
 *
 * One side of a vhost-user socket listens, the other dials: the guest's side takes the role that the port
 * doesn't have. Guest memory must be shared, else the switch can't reach it.
 */
import { createHash } from 'node:crypto';
import { type Command, InvalidArgumentError, Option } from 'commander';
import type { PortStatus } from '../switch/types.ts';
import {
  type ClientOptions,
  connect,
  optionsOf,
  print,
  speaksToSwitch,
  UsageError,
  withExamples,
} from './command.ts';

interface Guest {
  /** MiB. */
  memory: number;
  mac: string;
  /** Pairs; default 1. */
  queues?: number;
}

/** What the guest's side is told: options with their values, or lines of XML; and what to know about them. */
interface Plug {
  options?: [option: string, value: string][];
  xml?: string[];
  notes: string[];
}

export function declareQemu(program: Command): void {
  const command = speaksToSwitch(
    program
      .command('qemu')
      .description('print the options that plug a guest into a port')
      .argument('<port>', "the port's name")
      .option('--libvirt', "print elements of libvirt's domain XML")
      .option('--cloud-hypervisor', 'print options of Cloud Hypervisor')
      .addOption(
        new Option('--memory <size>', "the guest's memory, such as 512M or 2G")
          .argParser(readMemory)
          .default(512, '512M'),
      )
      .addOption(
        new Option('--queues <pairs>', "the guest's queue pairs, 1 to 128")
          .argParser(readQueues)
          .default(1, '1'),
      )
      .option(
        '--mac <address>',
        "the guest's MAC address; default: one derived from the port's name",
        readMac,
      ),
  );
  command.addHelpText(
    'after',
    '\nThe options go to standard output, what there is to know goes to standard error.',
  );
  withExamples(
    command,
    'qemu-system-x86_64 -enable-kvm disk.img $(vireo qemu vm1 --memory 2G)',
    'vireo qemu vm1 --libvirt',
    'cloud-hypervisor --kernel vmlinux $(vireo qemu vm1 --cloud-hypervisor)',
  );
  command.action(async (name: string) => {
    type Options = ClientOptions &
      Partial<Guest> & { memory: number; libvirt?: boolean; cloudHypervisor?: boolean };
    const options = optionsOf<Options>(command);
    const { libvirt, cloudHypervisor } = options;
    if (libvirt && cloudHypervisor) throw new UsageError('give --libvirt or --cloud-hypervisor, not both');
    const port = await (await connect(options)).port(name);
    if (port.type !== 'vhost-user')
      throw new UsageError(`port ${name} is no socket for a guest: ${port.type}:${port.target}`);
    const guest = { memory: options.memory, mac: options.mac ?? macOf(name), queues: options.queues };
    const plug = (libvirt ? libvirtPlug : cloudHypervisor ? cloudHypervisorPlug : qemuPlug)(port, guest);
    const { options: words = [], xml = [], notes } = plug;
    const answer = words.length > 0 ? { arguments: words.flat() } : { xml: xml.join('\n') };
    print(options, { port: name, ...answer, notes }, () => {
      const lines = [...words.map(([option, value]) => `${option} ${shellWord(value)}`), ...xml];
      return `${lines.join('\n')}\n`;
    });
    if (!options.json) process.stderr.write(notes.map((note) => `note: ${note}\n`).join(''));
  });
}

/** MiB from `512M`, `2G`, or a plain number of MiB. */
function readMemory(text: string): number {
  const [, digits, unit = 'M'] = /^(\d{1,7})([MG])?$/i.exec(text) ?? [];
  const size = Number(digits) * (unit.toUpperCase() === 'G' ? 1024 : 1);
  if (size > 0) return size;
  throw new InvalidArgumentError('Expected a size such as 512M or 2G.');
}

function readQueues(text: string): number {
  const pairs = /^\d{1,3}$/.test(text) ? Number(text) : 0;
  if (pairs >= 1 && pairs <= 128) return pairs;
  throw new InvalidArgumentError('Expected a number from 1 to 128.');
}

function readMac(text: string): string {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text)) {
    throw new InvalidArgumentError('Expected an address such as 52:54:00:12:34:56.');
  }
  // IEEE 802: the lowest bit of the first octet marks a group of stations.
  if (Number.parseInt(text.slice(0, 2), 16) & 1) throw new InvalidArgumentError('It is a multicast address.');
  return text.toLowerCase();
}

/** A locally administered address of one station, always the same for a port's name. */
export function macOf(port: string): string {
  const octets = createHash('sha256').update(port).digest().subarray(0, 6);
  octets[0] = (octets[0]! & 0xfc) | 0x02;
  return [...octets].map((octet) => octet.toString(16).padStart(2, '0')).join(':');
}

type Port = Pick<PortStatus, 'name' | 'target' | 'role'>;

/** A word for a POSIX shell, quoted only where it must be. */
const shellWord = (text: string) =>
  /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;

/** A value in a list of QEMU's options: a comma is written twice. */
const qemuValue = (text: string) => text.replaceAll(',', ',,');

export function qemuPlug({ name, target, role }: Port, { memory, mac, queues = 1 }: Guest): Plug {
  const side = role === 'server' ? 'reconnect=1' : 'server=on,wait=off';
  const notes = ['the memory replaces other -m options; without share=on the switch cannot reach it'];
  if (role === 'server') {
    notes.push(
      'QEMU 9.2 and newer spell reconnect=1 as reconnect-ms=1000; the guest survives a restart of the switch',
    );
  }
  if (queues > 1) notes.push(`in the guest, ethtool -L chooses how many of the ${queues} queues it uses`);
  // A vector for each queue, one for changes of the configuration, one for the control queue.
  const several = queues > 1 ? [`,queues=${queues}`, `,mq=on,vectors=${2 * queues + 2}`] : ['', ''];
  const options: Plug['options'] = [
    ['-object', `memory-backend-memfd,id=mem,size=${memory}M,share=on`],
    ['-machine', 'memory-backend=mem'],
    ['-m', `${memory}M`],
    ['-chardev', `socket,id=chr-${name},path=${qemuValue(target)},${side}`],
    ['-netdev', `vhost-user,id=net-${name},chardev=chr-${name}${several[0]}`],
    ['-device', `virtio-net-pci,netdev=net-${name},mac=${mac}${several[1]}`],
  ];
  return { options, notes };
}

const xmlText = (text: string) => text.replace(/[&<>'"]/g, (character) => `&#${character.charCodeAt(0)};`);

export function libvirtPlug({ target, role }: Port, { memory, mac, queues = 1 }: Guest): Plug {
  // libvirt's mode is QEMU's role.
  const source =
    role === 'server'
      ? [
          `  <source type='unix' path='${xmlText(target)}' mode='client'>`,
          "    <reconnect enabled='yes' timeout='1'/>",
          '  </source>',
        ]
      : [`  <source type='unix' path='${xmlText(target)}' mode='server'/>`];
  return {
    xml: [
      `<memory unit='MiB'>${memory}</memory>`,
      '<memoryBacking>',
      "  <source type='memfd'/>",
      "  <access mode='shared'/>",
      '</memoryBacking>',
      "<interface type='vhostuser'>",
      `  <mac address='${mac}'/>`,
      ...source,
      "  <model type='virtio'/>",
      ...(queues > 1 ? [`  <driver queues='${queues}'/>`] : []),
      '</interface>',
    ],
    notes: ['<memory> and <memoryBacking> belong into <domain>, <interface> into <devices>'],
  };
}

export function cloudHypervisorPlug({ target, role }: Port, { memory, mac, queues = 1 }: Guest): Plug {
  const mode = role === 'server' ? 'client' : 'server';
  // A value with a comma is quoted.
  const socket = target.includes(',') ? `"${target}"` : target;
  // It counts both directions.
  const net = `vhost_user=true,socket=${socket},vhost_mode=${mode},num_queues=${2 * queues},queue_size=256,mac=${mac}`;
  return {
    options: [
      ['--memory', `size=${memory}M,shared=on`],
      ['--net', net],
    ],
    notes: ['without shared=on the switch cannot reach the memory of the guest'],
  };
}
