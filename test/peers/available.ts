/**
 * Which peers this machine has. Tests ask with `{ skip: skipWithout('dpdk', 'ovs') }`; setup.ts reports the rest.
 */
import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DEVICES_GUEST, GUEST, type Recipe, recipeHash, VDPA_GUEST } from './guest-recipe.ts';

export type Peer =
  | 'hugepages'
  | 'dpdk'
  | 'ovs'
  | 'qemu'
  | 'genericQemu'
  | 'guestKernel'
  | 'kernelDevices'
  | 'vdpaDevices'
  | 'libvirtSchema'
  | 'passt'
  | 'tshark';

/** The repository's root, from dist/test/peers. */
export const root = fileURLToPath(new URL('../../..', import.meta.url));
/** What setup.ts fetched and built. */
export const cache = join(root, '.peers');

/** A Linux guest that guest-image.ts built, or will build, from its recipe. */
export class GuestImage {
  readonly recipe: Recipe;
  readonly folder: string;
  readonly kernel: string;
  readonly initramfs: string;

  constructor(recipe: Recipe) {
    this.recipe = recipe;
    this.folder = join(cache, `guest-${recipeHash(recipe)}`);
    this.kernel = join(this.folder, 'vmlinuz');
    this.initramfs = join(this.folder, 'initramfs.gz');
  }

  /** True when the image is there and is what the recipe says. */
  get built(): boolean {
    return existsSync(this.kernel) && existsSync(this.initramfs);
  }
}

export const guestImage = new GuestImage(GUEST);
export const devicesImage = new GuestImage(DEVICES_GUEST);
export const vdpaImage = new GuestImage(VDPA_GUEST);
/** What libvirt checks domains against, by libvirt-schema.ts. */
export const libvirtSchema = join(cache, 'libvirt-schemas/domain.rng');
export const ovsVswitchd = '/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk';
/** A passt that is a vhost-user back-end, with its C library, by passt.ts. */
export const passtFolder = join(cache, 'passt');
/** Another QEMU, by generic-qemu.ts. */
export const genericQemu = join(cache, 'qemu-generic');
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
    genericQemu: need(
      existsSync(genericQemu),
      'a QEMU with a generic vhost-user device is not there: run "node dist/test/peers/setup.js" where apt-get can download from Debian',
    ),
    guestKernel: need(
      guestImage.built,
      'the guest kernel is not there: run "node dist/test/peers/setup.js" where apt-get can download',
    ),
    kernelDevices: need(
      devicesImage.built,
      'the guest kernel with vhost-net, vDPA and VDUSE is not there: run "node dist/test/peers/setup.js" where apt-get can download from Debian',
    ),
    vdpaDevices: need(
      vdpaImage.built,
      'the guest kernel with vDPA devices is not there: run "node dist/test/peers/setup.js" where apt-get can download Linux 6.12 from Debian, and gcc and make are installed',
    ),
    libvirtSchema: need(
      existsSync(libvirtSchema) && which('xmllint'),
      'libvirt\'s schema or xmllint is not there: run "node dist/test/peers/setup.js" where apt-get can download and install libxml2-utils',
    ),
    tshark: need(which('tshark'), 'tshark is not installed: package tshark'),
    passt: need(
      existsSync(passtFolder) && which('ip'),
      'passt or the program ip is not there: run "node dist/test/peers/setup.js" where apt-get can download from Debian and install iproute2',
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
