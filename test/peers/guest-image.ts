/**
 * Builds a Linux guest: Debian's own kernel, and an initramfs of busybox, a few programs, the kernel modules and an
 * init that obeys a serial console (guest-recipe.ts). Nothing is installed and no root is needed: packages are
 * downloaded and unpacked.
 */
import { execFileSync, spawnSync } from 'node:child_process';
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
import { cache, type GuestImage } from './available.ts';
import type { Recipe } from './guest-recipe.ts';
import { buildModules } from './kernel-modules.ts';
import { openSuites, unpack } from './packages.ts';

/** Downloads the packages and builds the image. Throws with apt's own words when it can't. */
export function buildImage(target: GuestImage): void {
  const { suite, kernel: series, sources = [], modules, programs, libraries, init } = target.recipe;
  mkdirSync(cache, { recursive: true });
  const work = mkdtempSync(join(cache, 'build-'));
  try {
    const options = suite === undefined ? [] : openSuites([suite], work);
    const packages = programs.map(([name, , from = name]) => from);
    const kernels = kernelPackages(options, series);
    unpack([...kernels, 'busybox-static', ...packages, ...libraries], work, options);
    const kernel = readdirSync(join(work, 'boot')).find((name) => name.startsWith('vmlinuz-'));
    if (kernel === undefined) throw new Error('the kernel package has no boot/vmlinuz-*');
    const tree = join(work, 'initramfs');
    for (const folder of ['bin', 'lib', 'lib64', 'modules']) {
      mkdirSync(join(tree, folder), { recursive: true });
    }
    const busybox = find(work, 'bin/busybox');
    copyFileSync(busybox, join(tree, 'bin/busybox'));
    copyPrograms(work, tree, programs);
    writeFileSync(join(tree, 'init'), init, { mode: 0o755 });
    const folders = [find(work, 'lib/modules')];
    if (sources.length > 0) {
      folders.push(join(work, 'built'));
      buildModules(kernels[0]!, sources, folders[1]!, options);
    }
    const order = copyModules(folders, busybox, modules, join(tree, 'modules'));
    writeFileSync(join(tree, 'modules/order'), order.join('\n'));

    const files = execFileSync('find', ['.'], { cwd: tree });
    const archive = execFileSync(busybox, ['cpio', '-o', '-H', 'newc'], {
      cwd: tree,
      input: files,
      maxBuffer: 1 << 28,
      stdio: ['pipe', 'pipe', 'ignore'],
    });
    const image = join(work, 'image');
    mkdirSync(image);
    copyFileSync(join(work, 'boot', kernel), join(image, basename(target.kernel)));
    writeFileSync(join(image, basename(target.initramfs)), gzipSync(archive));
    // Another tree with the same recipe may have been quicker.
    if (target.built) return;
    rmSync(target.folder, { recursive: true, force: true });
    renameSync(image, target.folder);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** The file of an unpacked package, in `/` or, as on newer systems, in `/usr`. */
function find(work: string, path: string): string {
  const found = [path, join('usr', path)].map((candidate) => join(work, candidate)).find(existsSync);
  if (found === undefined) throw new Error(`the packages have no ${path}`);
  return found;
}

/** Copies the programs and what their loader says that they need: the guest's own loader looks into /lib. */
function copyPrograms(work: string, tree: string, programs: Recipe['programs']): void {
  const LOADER = 'ld-linux-x86-64.so.2';
  const loader = join(find(work, 'lib/x86_64-linux-gnu'), LOADER);
  const folders = ['lib', 'usr/lib'].map((folder) => join(work, folder, 'x86_64-linux-gnu'));
  copyFileSync(loader, join(tree, 'lib64', LOADER));
  for (const [name, path] of programs) {
    const program = find(work, path);
    copyFileSync(program, join(tree, 'bin', name));
    const list = execFileSync(loader, ['--library-path', folders.join(':'), '--list', program]).toString();
    for (const [, library, file] of list.matchAll(/^\s*(lib\S+) => (\S+)/gm)) {
      if (!file?.startsWith(work))
        throw new Error(`${name} wants ${library}, which no package of the recipe has`);
      copyFileSync(file, join(tree, 'lib', library as string));
    }
  }
}

/** What Debian's (or Ubuntu's) newest kernel, or that of a series such as 6.12, is called today; `options` are apt's. */
function kernelPackages(options: string[], series?: string): string[] {
  const version = series?.replaceAll('.', '\\.') ?? '';
  const wanted = new RegExp(`Depends: (linux-(?:image|modules)-(?=\\d)${version}\\S+)`, 'g');
  const ofSeries = series === undefined ? [] : [`linux-image-${series}-amd64`];
  for (const meta of [...ofSeries, 'linux-image-amd64', 'linux-image-virtual']) {
    const { stdout } = spawnSync('apt-cache', [...options, 'depends', '--important', meta]);
    const names = [...stdout.toString().matchAll(wanted)];
    if (names.length > 0) return names.map((match) => match[1] as string);
  }
  throw new Error(`apt knows no kernel ${series ?? 'linux-image-amd64'}: run "apt-get update" as root`);
}

/** Copies the modules and what they depend on to `target`; returns their file names in the order of loading. */
function copyModules(folders: string[], busybox: string, names: string[], target: string): string[] {
  const files = new Map<string, string>();
  for (const folder of folders) {
    for (const path of readdirSync(folder, { recursive: true }) as string[]) {
      const name = /([^/]+)\.ko(\.xz)?$/.exec(path)?.[1];
      if (name !== undefined) files.set(name.replaceAll('-', '_'), join(folder, path));
    }
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
  names.forEach(add);
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
