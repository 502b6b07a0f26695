/**
 * A Linux guest whose kernel has the character devices that this machine's kernel may lack: /dev/vhost-net,
 * /dev/vhost-vdpa-N and /dev/vduse, with TAPs and the program `vdpa`. The host's files are there, the project's among
 * them (guest-recipe.ts says how): `host` and `node` are commands for LinuxGuest.run that run the host's programs on
 * the guest's kernel. What they write stays in the guest. Where the guest is emulated, Node takes two seconds to start.
 */
import type { TestContext } from 'node:test';
import { devicesImage, root } from './available.ts';
import { type GuestOptions, LinuxGuest } from './qemu.ts';

/** Boots it, by default with 1 GiB and two CPUs. */
export async function startDevicesGuest(options: GuestOptions = {}): Promise<LinuxGuest> {
  const files = 'local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap';
  const guest = await LinuxGuest.start({
    image: devicesImage,
    memory: 1024,
    cpus: 2,
    // The data plane wants vectors (SSE 4.1).
    cpu: 'max',
    ...options,
    options: ['-virtfs', files, ...(options.options ?? [])],
  });
  // What runs on the host's files reaches the guest's own programs there.
  await guest.ok(
    'mkdir -p /host/guest && mount -o bind / /host/guest && mount -o bind /proc /host/guest/proc',
  );
  return guest;
}

/** A command that runs a line of the host's shell, in the project's folder. */
export function host(line: string): string {
  const script = `cd '${root}' && ${line}`.replaceAll("'", "'\\''");
  return `NO_COLOR=1 PATH='${process.env.PATH}' chroot /host /bin/sh -c '${script}'`;
}

/** A command that runs a program of the project with its arguments: `node('dist/test/…/program.js 1 2')`. */
export function node(program: string): string {
  return host(`'${process.execPath}' ${program}`);
}

/**
 * Runs a file of tests, test/guest/NAME.ts, within the guest, and repeats its results in the test `t`: each of its tests
 * is a line. Rejects with its whole output where one fails, or none ran.
 */
export async function runInGuest(t: TestContext, guest: LinuxGuest, file: string): Promise<void> {
  const { output, status } = await guest.run(node(`--test-reporter=spec ${file}`), 500_000);
  for (const [line] of output.matchAll(/^\s*[✔✖].*$/gm)) t.diagnostic(line);
  if (status !== 0 || !/^ℹ pass [1-9]/m.test(output)) throw new Error(`${file} in the guest:\n${output}`);
}
