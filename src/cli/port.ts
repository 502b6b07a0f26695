/** `vireo port add`, `set`, `del` and `show`: one port. */
import { resolve } from 'node:path';
import type { Command } from 'commander';
import { dgramTarget } from '../ports/addresses.ts';
import type { PortSpec, PortStatus } from '../switch/types.ts';
import { connect, lists, optionsOf, print, speaksToSwitch, UsageError, withExamples } from './command.ts';
import { portText, rulesText } from './port-text.ts';
import { listPorts } from './ports.ts';

const RULE_FORM = `
Rules for the frames of a port, which \`vireo port set\` changes while it is there:
  link=down            the guest's link is down
  link-follows=PORT    it is down while that port's is, such as an uplink's
  isolated=true        no frames to and from other ports that are isolated
  learning=false       what comes teaches the bridge no addresses
  locked=true          only addresses that \`vireo fdb add\` has entered for the port may send
  vlan=N               frames without a tag are in this VLAN, and no others come: an access port
  trunk=LIST           the VLANs that come and go with tags, such as 10+20-30, or all (default)
  native=N             the VLAN of a trunk's frames without a tag
  qinq=N               all frames of a customer, whatever tags they have, go in this VLAN
  tags=802.1q|802.1ad  the tags of a trunk: 0x8100 (default) or 0x88a8
  rate-in=RATE         most that the guest may send, such as 100Mbit, 10kpps, or 100Mbit+10kpps
  burst-in=BYTES       what it may send at once, such as 64KiB
  rate-out=RATE        rate of what goes to the guest, such as 100Mbit: the rest waits, by priority
  burst-out=, queue-out=BYTES  what goes at once, and what may wait in each of the 8 queues
  delay-in=, delay-out=TIME    how long frames from the guest, and to it, are under way, such as 10ms;
                       so with jitter-in= and -out=, and loss-, duplicate-, reorder-, corrupt- of a
                       share, such as loss-out=1%; limit- frames under way; seed=N: the same each time
  allow-mac=LIST       the MACs that it sends from, such as 52:54:00:12:34:56+52:54:00:12:34:57
  allow-ip=LIST        the addresses and prefixes that it sends from, such as 10.0.0.5+2001:db8::/64
  ra-guard=true        no Router Advertisements and Redirects from it
  dhcp-guard=true      no messages of DHCP and DHCPv6 servers from it
  storm-broadcast=RATE most that it sends to everybody, such as 1000pps or 10Mbit; to groups:
  storm-multicast=RATE and to addresses that aren't known:
  storm-unknown=RATE
Where its bridge has snooping=true:
  multicast-router=always|never  whether it leads to a multicast router (default: if one shows itself)
  fast-leave=true      a group that is left is left at once, without asking who else is in it
  max-groups=N         most groups that it joins (default: 256)
Where its bridge has rstp=true:
  edge=true|false      no bridge is behind it, so it forwards at once (default: if none is heard in 3 s)
  path-cost=N, port-priority=N  of ways to the root the cheapest, then the lowest (default: by speed, 128)
  point-to-point=false more than one bridge is behind it
  bpdu-guard=true      a BPDU shuts the port
  rstp=false           the port is in no tree and always forwards`;

export const PORT_FORM = `
A port is NAME=TYPE:TARGET[,key=value…]:
  NAME                 1 to 63 letters, digits, "_", "." or "-"
  TYPE:TARGET          vhost-user:PATH of the unix socket; a comma in PATH is written twice
                       vduse:DEVICE, a vDPA device of the kernel, /dev/vduse/DEVICE, which \`vdpa dev add
                       name DEVICE mgmtdev vduse\` attaches; it has one queue pair and no role
                       tap:INTERFACE of the host, attached to or made; queues=N, default 1
                       af-packet:INTERFACE of the host, such as a network card; queues=N, default 1
                       af-xdp:INTERFACE, faster; queues=N, by default as many as it receives by
                       stream:PATH of a unix socket for frames, as QEMU's -netdev stream; with a role
                       dgram:PATH or ADDRESS:PORT of ours, as QEMU's -netdev dgram; remote=PATH or ADDRESS:PORT
                       pcap:FILE that is played; timing=recorded|fast|Npps, loop=N (0: for ever); mode=write: is written
                       vxlan:ADDRESS[:PORT] of another host; vni=N, and local=ADDRESS[:PORT] of this one
                       user: what this user reaches, without root, by passt; options='…' are more of passt's
                       patch:PORT of the same kind on another bridge, which leads here
                       bond:PORT+PORT… that are one port from here on; mode=active-backup (default), primary=PORT;
                       mode=balance by flow, hash=l2|l3+4 (default); mode=lacp, lacp-rate=slow|fast, mac= too
                       null: nobody, what is sent there is forgotten
  role=server|client   server (default): listens on PATH; client: dials it, again when it is gone
  max-addresses=N      most MAC addresses learned on this port
  bridge=NAME          the bridge that it is on, one of \`vireo bridge\` (default: default)
  features=-A,-B,+C    offers the guest less or more than by default, such as -packed,-in-order
  queues=N             most queue pairs of the guest, 1 to 128 (default)
  mac=, mtu=, speed=   what the device says of itself to front-ends that ask for it; mtu is a limit for all
  sealed=true          refuses guest memory that its owner could truncate; QEMU's memory-backend-memfd can't be${RULE_FORM}`;

/** A port in its one-line form, its path made absolute: what runs the switch may be in another directory. */
export async function readPort(text: string): Promise<PortSpec> {
  const { checkPortSpec, parsePortSpec } = await import('../switch/spec.ts');
  try {
    const spec = parsePortSpec(text);
    return checkPortSpec(withPath(spec));
  } catch (error) {
    throw new UsageError(`port '${text.slice(0, 200)}': ${(error as Error).message}`);
  }
}

/** A socket's path made absolute. */
export function withPath(spec: PortSpec): PortSpec {
  const { type, target, remote } = spec;
  const isPath = (text: string) => dgramTarget(text)?.path !== undefined;
  if (type === 'vhost-user' || type === 'stream' || type === 'pcap')
    return { ...spec, target: resolve(target) };
  if (type !== 'dgram' || !isPath(target)) return spec;
  return { ...spec, target: resolve(target), ...(remote !== undefined && { remote: resolve(remote) }) };
}

/** What a port does, as `listens on /tmp/a.sock`. */
export function doing({ type, role, target }: Pick<PortStatus, 'type' | 'role' | 'target'>): string {
  if (type === 'vduse') return `is /dev/vduse/${target}`;
  if (['tap', 'af-packet', 'af-xdp'].includes(type)) return `is interface ${target}`;
  if (role === null) return `is ${type}:${target}`;
  return `${role === 'server' ? 'listens on' : 'dials'} ${target}`;
}

export function declarePort(program: Command): void {
  const port = program.command('port').description('list the ports, or add, change, remove or show one');
  withExamples(
    port,
    'vireo port add vm3=vhost-user:/tmp/c.sock',
    'vireo port set vm3 isolated=true',
    'vireo port show vm3',
    'vireo port del vm3',
  );
  lists(port, 'the ports', speaksToSwitch, listPorts);

  const add = speaksToSwitch(
    port
      .command('add')
      .description('add a port to a running switch')
      .argument('<spec>', 'the port, see below'),
  );
  add.addHelpText('after', PORT_FORM);
  withExamples(
    add,
    'vireo port add vm3=vhost-user:/tmp/c.sock',
    'vireo port add vm4=vhost-user:/tmp/d.sock,role=client,max-addresses=16',
  );
  add.action(async (text: string) => {
    const options = optionsOf(add);
    const spec = await readPort(text);
    const added = await (await connect(options)).addPort(spec);
    const fault = added.lastError === null ? '' : `, but: ${added.lastError}`;
    print(options, added, () => `port ${added.name} ${doing(added)}${fault}\n`);
  });

  const set = speaksToSwitch(
    port
      .command('set')
      .description('set rules of a port anew, and its max-addresses, while its guest goes on')
      .argument('<name>', "the port's name")
      .argument('<key=value...>', 'what to set; a key without a value goes back to its default'),
  );
  set.addHelpText('after', RULE_FORM);
  withExamples(set, 'vireo port set vm1 isolated=true', 'vireo port set vm1 isolated= max-addresses=16');
  set.action(async (name: string, words: string[]) => {
    const options = optionsOf(set);
    const { parsePortChange } = await import('../switch/spec.ts');
    const change = parsePortChange(words);
    const detail = await (await connect(options)).setPort(name, change);
    print(options, detail, () => {
      const rules = rulesText(detail);
      return `port ${name} set: ${rules === '' ? 'no rules' : rules}\n`;
    });
  });

  const del = speaksToSwitch(
    port
      .command('del')
      .description('remove a port; its guest is disconnected')
      .argument('<name>', "the port's name"),
  );
  withExamples(del, 'vireo port del vm3');
  del.action(async (name: string) => {
    const options = optionsOf(del);
    await (await connect(options)).removePort(name);
    print(options, { removed: name }, () => `port ${name} removed\n`);
  });

  const show = speaksToSwitch(
    port
      .command('show')
      .description('show a port: rings, features and what is missing, memory, counters, last error')
      .argument('<name>', "the port's name"),
  );
  withExamples(show, 'vireo port show vm1', 'vireo port show vm1 --json');
  show.action(async (name: string) => {
    const options = optionsOf(show);
    const detail = await (await connect(options)).port(name);
    print(options, detail, () => portText(detail));
  });
}
