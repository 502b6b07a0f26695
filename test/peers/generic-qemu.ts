/**
 * A QEMU whose generic vhost-user device can be used: it passes all virtqueues on to the back-end, the control queue
 * too, so that a Linux guest drives that of ours. QEMU has it since 10.1; here it is taken out of Debian's packages
 * with all libraries that it needs, and runs by their own loader, whatever this machine has.
 */
import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, renameSync, rmSync } from 'node:fs';
import { basename, join } from 'node:path';
import { cache, genericQemu } from './available.ts';
import { openSuites, unpack } from './packages.ts';

const SUITES = ['trixie', 'trixie-backports'];
const PROGRAM = 'qemu-system-x86_64';
const LOADER = 'ld-linux-x86-64.so.2';
/** What QEMU loads to boot a kernel that it is given. */
const FIRMWARE = [
  'usr/share/seabios/bios-256k.bin',
  'usr/share/qemu/linuxboot_dma.bin',
  'usr/share/qemu/kvmvapic.bin',
];

/** The command line up to QEMU's own options. */
export const genericQemuCommand = [
  join(genericQemu, LOADER),
  ...['--library-path', genericQemu],
  join(genericQemu, PROGRAM),
  ...['-L', genericQemu],
];

/** The options of a network card behind the socket: a device that QEMU knows nothing of but its kind. */
export function genericCard(path: string, pairs: number): string[] {
  const queues = 2 * pairs + 1;
  return [
    ...['-chardev', `socket,id=port,path=${path}`],
    '-device',
    `vhost-user-test-device-pci,chardev=port,virtio-id=1,num_vqs=${queues},vq_size=256,config_size=28,romfile=`,
  ];
}

/** Downloads 40 MB and keeps what is needed of it. Throws with apt's own words when it can't. */
export function fetchGenericQemu(): void {
  mkdirSync(cache, { recursive: true });
  const work = mkdtempSync(join(cache, 'qemu-'));
  try {
    const options = openSuites(SUITES, work);
    const wanted = ['-t', SUITES.at(-1)!, '--no-install-recommends', '-s', 'install', 'qemu-system-x86'];
    // With nothing installed there, apt names all that it takes.
    const plan = execFileSync('apt-get', [...options, ...wanted], { stdio: ['ignore', 'pipe', 'pipe'] });
    const needed = [...plan.toString().matchAll(/^Inst (\S+) \(([^ ]+) /gm)];
    if (needed.length === 0) throw new Error(`${SUITES.at(-1)} has no package qemu-system-x86`);
    unpack(
      needed.map(([, name, version]) => `${name}=${version}`),
      work,
      options,
    );
    const libraries = join(work, 'usr/lib/x86_64-linux-gnu');
    const loader = join(libraries, LOADER);
    const program = join(work, 'usr/bin', PROGRAM);
    const list = execFileSync(loader, ['--library-path', libraries, '--list', program]).toString();
    const files = [...list.matchAll(/^\s*\S+ => (\S+)/gm)].map((match) => match[1]!);
    const kept = join(work, 'kept');
    mkdirSync(kept);
    for (const file of [loader, program, ...files, ...FIRMWARE.map((path) => join(work, path))]) {
      if (!file.startsWith(work)) throw new Error(`QEMU wants ${file}, which none of its packages has`);
      copyFileSync(file, join(kept, basename(file)));
    }
    rmSync(genericQemu, { recursive: true, force: true });
    renameSync(kept, genericQemu);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}
