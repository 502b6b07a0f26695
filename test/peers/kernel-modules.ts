/**
 * Builds modules that Debian's kernel goes without, of Debian's own source of that kernel: with its headers, its
 * configuration and its tools, unpacked beside it, and this machine's compiler.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { unpack } from './packages.ts';

/**
 * Builds each .c of `sources` as a module for the kernel of the package `image`, all in `folder`, which isn't there yet.
 * Throws with the words of apt or of the compiler; `options` are apt's.
 */
export function buildModules(image: string, sources: string[], folder: string, options: string[]): void {
  const [, release, version] = /^linux-image-((\d\S*)-[a-z0-9]+)$/.exec(image) ?? [];
  if (release === undefined || version === undefined)
    throw new Error(`${image}: the package of a Debian kernel expected`);
  const [headers, common] = [`linux-headers-${release}`, `linux-headers-${version}-common`];
  const source = `linux-source-${/^\d+\.\d+/.exec(version)}`;
  mkdirSync(folder);
  unpack([headers, common, `linux-kbuild-${version}`, source], folder, options);

  const src = join(folder, 'usr/src');
  // It names a place where these headers aren't.
  writeFileSync(join(src, headers, 'Makefile'), `include ${join(src, common, 'Makefile')}\n`);
  // With it the build would want one tool more, for types that BPF could look up.
  rmSync(join(src, headers, 'vmlinux'), { force: true });

  // The archive has 80,000 files: it isn't read further than to the last of these.
  const tar = ['-xJf', join(src, `${source}.tar.xz`), '--occurrence=1', '--transform', 's,.*/,,'];
  run('tar', [...tar, '-C', folder, ...sources.map((path) => join(source, path))]);
  const objects = sources.filter((path) => path.endsWith('.c')).map((path) => `${basename(path, '.c')}.o`);
  writeFileSync(join(folder, 'Makefile'), `obj-m := ${objects.join(' ')}\n`);
  run('make', ['-C', join(src, headers), `M=${folder}`, 'CC=gcc', 'modules']);
}

function run(program: string, args: string[]): void {
  execFileSync(program, args, { stdio: ['ignore', 'ignore', 'pipe'], maxBuffer: 1 << 26 });
}
