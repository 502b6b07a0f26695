/**
 * For the programs of this folder, which run inside the guest of test/peers/devices-guest.ts: the guest's own shell, with
 * busybox's `ip` and `ping` and with `vdpa`, whatever the host has.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

const command = (line: string): [string, string[]] => ['chroot', ['/guest', '/bin/sh', '-c', line]];

/** Runs a command line that is to succeed; returns what it printed. */
export function sh(line: string): string {
  const { status, stdout, stderr } = spawnSync(...command(line), { encoding: 'utf8' });
  if (status !== 0) throw new Error(`"${line}" ended with ${status}: ${stdout}${stderr}`);
  return stdout;
}

/** Starts one; resolves with what it printed and its exit status. */
export async function start(line: string): Promise<{ output: string; status: number | null }> {
  const child: ChildProcess = spawn(...command(line), { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout!, child.stderr!]) stream.on('data', (text) => (output += text));
  return new Promise((resolve) => child.on('close', (status) => resolve({ output, status })));
}

/** Gives an interface addresses and brings it up, without the chatter of IPv6. Returns its Ethernet address. */
export function bringUp(name: string, ...addresses: string[]): Buffer {
  sh(`echo 1 > /proc/sys/net/ipv6/conf/${name}/disable_ipv6`);
  for (const address of addresses) sh(`ip addr add ${address} dev ${name}`);
  sh(`ip link set ${name} up`);
  const text = readFileSync(`/sys/class/net/${name}/address`, 'utf8').trim();
  return Buffer.from(text.replaceAll(':', ''), 'hex');
}

/** A counter of an interface, `rx_packets`. */
export function statistic(name: string, counter: string): number {
  return Number(readFileSync(`/sys/class/net/${name}/statistics/${counter}`, 'utf8'));
}
