/**
 * Which peers this machine has. Tests ask with `{ skip: skipWithout('dpdk', 'ovs') }`; setup.ts reports the rest.
 */
import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { recipe } from './guest-recipe.ts';

export type Peer = 'hugepages' | 'dpdk' | 'ovs' | 'qemu' | 'guestKernel' | 'libvirtSchema';

/** The repository's root, from dist/test/peers. */
export const root = fileURLToPath(new URL('../../..', import.meta.url));
/** What setup.ts fetched and built. */
export const cache = join(root, '.peers');
/** The image of the Linux guest that guest-recipe.ts describes. */
export const guestFolder = join(cache, `guest-${recipe}`);
export const guestKernel = join(guestFolder, 'vmlinuz');
export const guestInitramfs = join(guestFolder, 'initramfs.gz');
/** What libvirt checks domains against, by libvirt-schema.ts. */
export const libvirtSchema = join(cache, 'libvirt-schemas/domain.rng');
export const ovsVswitchd = '/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk';
export const qemuProgram = 'qemu-system-x86_64';

/** 2 MiB pages for the peers of one test: two processes of DPDK and OVS's packet pool. */
const PAGES = 512;

/** Where `program` lies, looked for as a shell does and in the administrator's folders; undefined if nowhere. */
export function which(program: string): string | undefined {
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin'];
  return folders.map((folder) => join(folder, program)).find(executable);
}

function executable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** 2 MiB pages that the kernel has set aside. */
export function hugepages(): number {
  try {
    return Number(readFileSync('/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages', 'utf8'));
  } catch {
    return 0;
  }
}

/** For each peer true, or in one sentence what is missing and how to get it. */
export function peers(): Record<Peer, true | string> {
  const need = (found: unknown, reason: string): true | string => (found ? true : reason);
  const pages = need(
    hugepages() >= PAGES,
    `DPDK wants ${PAGES} hugepages of 2 MiB: run "sysctl vm.nr_hugepages=1024" as root`,
  );
  const dpdk = need(which('dpdk-testpmd'), 'dpdk-testpmd is not installed: package dpdk-dev');
  const ovs = need(
    existsSync(ovsVswitchd) && which('ovsdb-server') && which('ovs-vsctl'),
    'Open vSwitch with DPDK is not installed: package openvswitch-switch-dpdk',
  );
  return {
    hugepages: pages,
    dpdk: dpdk === true ? pages : dpdk,
    ovs: ovs === true ? pages : ovs,
    qemu: need(which(qemuProgram), `${qemuProgram} is not installed: package qemu-system-x86`),
    guestKernel: need(
      existsSync(guestKernel) && existsSync(guestInitramfs),
      'the guest kernel is not there: run "node dist/test/peers/setup.js" where apt-get can download',
    ),
    libvirtSchema: need(
      existsSync(libvirtSchema) && which('xmllint'),
      'libvirt\'s schema or xmllint is not there: run "node dist/test/peers/setup.js" where apt-get can download and install libxml2-utils',
    ),
  };
}

/** For node:test's `skip`: false when all of these peers are there, else why not. */
export function skipWithout(...wanted: Peer[]): false | string {
  const found = peers();
  for (const peer of wanted) {
    const reason = found[peer];
    if (reason !== true) return reason;
  }
  return false;
}
