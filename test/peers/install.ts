/**
 * Brings the peers onto this machine, as far as it may: Debian packages (root), hugepages (root), the guest's image
 * (anyone). What is there is left alone, so that a second run does nothing.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import {
  devicesImage,
  genericQemu,
  guestImage,
  libvirtSchema,
  type Peer,
  passtFolder,
  peers,
  vdpaImage,
  which,
} from './available.ts';
import { fetchGenericQemu } from './generic-qemu.ts';
import { buildImage } from './guest-image.ts';
import { fetchSchema } from './libvirt-schema.ts';
import { fetchPasst } from './passt.ts';
import { accelerator } from './qemu.ts';

/** Debian's packages for each peer. */
const PACKAGES: Record<Peer, string[]> = {
  hugepages: [],
  dpdk: ['dpdk', 'dpdk-dev'],
  ovs: ['openvswitch-switch-dpdk'],
  qemu: ['qemu-system-x86'],
  genericQemu: [],
  guestKernel: [],
  kernelDevices: [],
  // To build modules; the last one is what the kernel's own tool for it is linked with.
  vdpaDevices: ['gcc', 'make', 'libelf1'],
  libvirtSchema: ['libxml2-utils'],
  passt: ['iproute2'],
  tshark: ['tshark'],
};

/** 2 MiB pages for as many peers as run side by side. */
const PAGES = 1024;
const NR_HUGEPAGES = '/proc/sys/vm/nr_hugepages';
const POLICY = '/usr/sbin/policy-rc.d';

/** Installs what is missing of `wanted`. `say` gets a line before each step that takes time, and each failure. */
export function install(wanted: Peer[], say: (line: string) => void): void {
  const isRoot = process.getuid?.() === 0;
  const apt = which('apt-get') !== undefined;
  if (isRoot && wanted.some((peer) => peer === 'hugepages' || peer === 'dpdk' || peer === 'ovs'))
    setHugepages();
  const missing = wanted.filter((peer) => peers()[peer] !== true);
  const packages = missing.flatMap((peer) => PACKAGES[peer]);
  const schema = wanted.includes('libvirtSchema') && !existsSync(libvirtSchema);
  const passt = wanted.includes('passt') && !existsSync(passtFolder);
  const x64 = process.arch === 'x64';
  const image = wanted.includes('guestKernel') && x64 && !guestImage.built;
  const devices = wanted.includes('kernelDevices') && x64 && !devicesImage.built;
  const vdpa = wanted.includes('vdpaDevices') && x64 && !vdpaImage.built;
  if (isRoot && apt && (packages.length > 0 || image || schema)) {
    attempt(say, 'apt-get update', () => run('apt-get', ['update', '-q']));
    if (packages.length > 0) {
      attempt(say, `apt-get install ${packages.join(' ')}`, () =>
        withoutServices(() =>
          run('apt-get', [
            'install',
            '-q',
            '-y',
            '--no-install-recommends',
            '-oDPkg::Lock::Timeout=120',
            ...packages,
          ]),
        ),
      );
    }
  }
  if (apt && image)
    attempt(say, 'downloading the guest kernel and building its initramfs', () => buildImage(guestImage));
  if (apt && devices)
    attempt(say, 'downloading the kernel with vhost-net, vDPA and VDUSE', () => buildImage(devicesImage));
  if (apt && vdpa)
    attempt(say, 'downloading a kernel, and building its modules for vDPA devices', () =>
      buildImage(vdpaImage),
    );
  if (apt && x64 && wanted.includes('genericQemu') && !existsSync(genericQemu))
    attempt(say, 'downloading a QEMU with a generic vhost-user device', fetchGenericQemu);
  if (apt && schema) attempt(say, "downloading libvirt's schema", fetchSchema);
  if (apt && passt) attempt(say, 'downloading passt', fetchPasst);
  const found = peers();
  if (found.qemu === true && found.guestKernel === true && wanted.includes('qemu')) accelerator();
}

function attempt(say: (line: string) => void, what: string, act: () => void): void {
  say(`${what} ...`);
  try {
    act();
  } catch (error) {
    say(`${what} failed: ${error instanceof Error ? error.message.trim() : error}`);
  }
}

function run(program: string, args: string[]): void {
  execFileSync(program, args, {
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
    stdio: ['ignore', 'ignore', 'pipe'],
    maxBuffer: 1 << 26,
  });
}

/** Raises the number of 2 MiB pages to what the peers want, if that is at most a quarter of the memory. */
function setHugepages(): void {
  const total = Number(/MemTotal:\s+(\d+) kB/.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1]) / 2048;
  const pages = Math.min(PAGES, Math.floor(total / 4));
  try {
    if (Number(readFileSync(NR_HUGEPAGES, 'utf8')) < pages) writeFileSync(NR_HUGEPAGES, String(pages));
  } catch {
    // Read-only, as in a container: peers() says what is missing.
  }
}

/** Packages bring services (Open vSwitch, DPDK's binder); Debian's policy hook keeps them from being started. */
function withoutServices(act: () => void): void {
  if (existsSync(POLICY)) {
    act();
    return;
  }
  writeFileSync(POLICY, '#!/bin/sh\nexit 101\n', { mode: 0o755 });
  try {
    act();
  } finally {
    rmSync(POLICY);
  }
}
