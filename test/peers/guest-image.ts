/**
 * The Linux guest: Debian's own kernel, and an initramfs of busybox, the kernel modules and an init that obeys a
 * serial console. Nothing is installed and no root is needed: packages are downloaded and unpacked.
 *
 * The second serial port is the guest's shell. A request is a line: a number, a blank, a command in base64. The
 * answer is what the command printed, then the byte 0x1e, the number, a blank, the exit status and a newline; number
 * 0 says that the shell is ready. The first serial port is the kernel's console.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { cache, guestInitramfs, guestKernel } from './available.ts';

/** Loaded by init, with what they depend on, where the kernel doesn't have them built in. */
const MODULES = ['virtio_pci', 'virtio_net'];

const INIT = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mount -t tmpfs tmpfs /tmp
for module in $(cat /modules/order); do insmod /modules/$module; done
ip link set lo up
cat > /shell <<'END'
exec < /dev/ttyS1 > /dev/ttyS1 2>&1
stty raw -echo isig
trap : INT
printf '\\0360 0\\n'
while read -r number command; do
  (eval "$(echo "$command" | base64 -d)") < /dev/null
  printf '\\036%s %d\\n' "$number" $?
done
END
while :; do setsid sh /shell; done
`;

/** Files of the recipe: a change makes a new image. */
const recipe = createHash('sha256').update(INIT).update(MODULES.join()).digest('hex');
const stamp = join(cache, 'recipe');

/** True when the image is there and is what this file would build. */
export function imageIsCurrent(): boolean {
  return [guestKernel, guestInitramfs, stamp].every(existsSync) && readFileSync(stamp, 'utf8') === recipe;
}

/** Downloads the kernel and busybox and builds the image. Throws with apt's own words when it can't. */
export function buildImage(): void {
  mkdirSync(cache, { recursive: true });
  const work = mkdtempSync(join(cache, 'build-'));
  try {
    for (const name of [...kernelPackages(), 'busybox-static']) unpack(name, work);
    const kernel = readdirSync(join(work, 'boot')).find((name) => name.startsWith('vmlinuz-'));
    if (kernel === undefined) throw new Error('the kernel package has no boot/vmlinuz-*');
    const tree = join(work, 'initramfs');
    mkdirSync(join(tree, 'bin'), { recursive: true });
    mkdirSync(join(tree, 'modules'));
    const busybox = ['bin/busybox', 'usr/bin/busybox'].map((path) => join(work, path)).find(existsSync);
    if (busybox === undefined) throw new Error('the package busybox-static has no bin/busybox');
    copyFileSync(busybox, join(tree, 'bin/busybox'));
    writeFileSync(join(tree, 'init'), INIT, { mode: 0o755 });
    const order = modules(work, busybox, join(tree, 'modules'));
    writeFileSync(join(tree, 'modules/order'), order.join('\n'));

    const files = execFileSync('find', ['.'], { cwd: tree });
    const archive = execFileSync(busybox, ['cpio', '-o', '-H', 'newc'], {
      cwd: tree,
      input: files,
      maxBuffer: 1 << 28,
      stdio: ['pipe', 'pipe', 'ignore'],
    });
    copyFileSync(join(work, 'boot', kernel), join(work, 'vmlinuz'));
    writeFileSync(join(work, 'initramfs.gz'), gzipSync(archive));
    renameSync(join(work, 'vmlinuz'), guestKernel);
    renameSync(join(work, 'initramfs.gz'), guestInitramfs);
    writeFileSync(stamp, recipe);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** What Debian's (or Ubuntu's) newest kernel is called today. */
function kernelPackages(): string[] {
  for (const meta of ['linux-image-amd64', 'linux-image-virtual']) {
    const text = execFileSync('apt-cache', ['depends', '--important', meta], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const names = [...text.toString().matchAll(/Depends: (linux-(?:image|modules)-\d\S+)/g)];
    if (names.length > 0) return names.map((match) => match[1] as string);
  }
  throw new Error('apt knows no package linux-image-amd64: run "apt-get update" as root');
}

function unpack(name: string, folder: string): void {
  const before = new Set(readdirSync(folder));
  execFileSync('apt-get', ['download', '-q', '-o', 'APT::Sandbox::User=root', name], {
    cwd: folder,
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const file = readdirSync(folder).find((entry) => entry.endsWith('.deb') && !before.has(entry));
  if (file === undefined) throw new Error(`apt-get download ${name} left no file`);
  execFileSync('dpkg-deb', ['-x', file, '.'], { cwd: folder });
}

/** Copies the modules and what they depend on to `target`; returns their file names in the order of loading. */
function modules(work: string, busybox: string, target: string): string[] {
  const library = ['lib/modules', 'usr/lib/modules'].map((path) => join(work, path)).find(existsSync);
  const files = new Map<string, string>();
  for (const path of library === undefined ? [] : (readdirSync(library, { recursive: true }) as string[])) {
    const name = /([^/]+)\.ko(\.xz)?$/.exec(path)?.[1];
    if (name !== undefined) files.set(name.replaceAll('-', '_'), join(library ?? '', path));
  }
  const order: string[] = [];
  const add = (name: string) => {
    const path = files.get(name);
    const file = `${name}.ko`;
    // Not among the files: built into the kernel.
    if (path === undefined || order.includes(file)) return;
    const content = path.endsWith('.xz')
      ? execFileSync(busybox, ['unxz', '-c', path], { maxBuffer: 1 << 26 })
      : readFileSync(path);
    for (const needed of dependencies(content)) add(needed);
    writeFileSync(join(target, basename(file)), content);
    order.push(file);
  };
  MODULES.forEach(add);
  return order;
}

/** The names in the module's own `depends=` (section .modinfo: strings that end with a zero). */
function dependencies(module: Buffer): string[] {
  const at = module.indexOf('\0depends=');
  if (at < 0) return [];
  const start = at + '\0depends='.length;
  const names = module.toString('latin1', start, module.indexOf(0, start));
  return names
    .split(',')
    .filter((name) => name !== '')
    .map((name) => name.replaceAll('-', '_'));
}
