/**
 * What the Linux guests are made of: the one that is a peer of ports, of this machine's own release, the one whose
 * newer kernel has the character devices of vhost and VDUSE, and the one with vDPA devices. An image lies in a folder
 * named by the hash of its recipe, so that trees with different recipes can share the cache.
 *
 * The second serial port is the guest's shell. A request is a line: a number, a blank, a command in base64. The
 * answer is what the command printed, then the byte 0x1e, the number, a blank, the exit status and a newline; number
 * 0 says that the shell is ready. The first serial port is the kernel's console.
 */
import { createHash } from 'node:crypto';

export interface Recipe {
  /** A release of Debian; undefined: this machine's own. */
  suite?: string | undefined;
  /** The kernel's series, `6.12`; undefined: the release's own. */
  kernel?: string;
  /** Of the kernel's source, what is built because Debian's kernel goes without: each .c is a module. */
  sources?: string[];
  /** Loaded by init in this order, with what they depend on, where the kernel doesn't have them built in. */
  modules: string[];
  /** Programs beside busybox: the name of each, the path in its package, and the package where it has another name. */
  programs: [name: string, path: string, from?: string][];
  /** Packages of the shared libraries of those. */
  libraries: string[];
  init: string;
}

const PROGRAMS: Recipe['programs'] = [
  ['ethtool', 'sbin/ethtool'],
  // Loads TCP with large writes and, unlike its better known kin, needs nothing but the C library.
  ['nuttcp', 'usr/bin/nuttcp'],
];

/** `more` comes before the shell. */
const init = (more: string) => `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mount -t tmpfs tmpfs /tmp
for module in $(cat /modules/order); do insmod /modules/$module; done
ip link set lo up
${more}cat > /shell <<'END'
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

export const GUEST: Recipe = {
  // bonding makes a bond0 without members.
  modules: ['virtio_pci', 'virtio_net', '8021q', 'bonding'],
  programs: PROGRAMS,
  libraries: ['libc6', 'libmnl0'],
  init: init(''),
};

const HOST_FILES = ['virtio_pci', 'virtio_net', '9pnet_virtio', '9p', 'overlay'];

/**
 * In this one /host is the host's tree of files, seen through a layer in the guest's memory that takes what is written:
 * `chroot /host` runs the host's programs, Node among them, on the guest's kernel.
 */
export const DEVICES_GUEST: Recipe = {
  suite: 'trixie',
  modules: [...HOST_FILES, 'bridge', 'tun', 'vhost_net', 'vdpa', 'vduse', 'vhost_vdpa', 'virtio_vdpa'],
  programs: [...PROGRAMS, ['vdpa', 'sbin/vdpa', 'iproute2']],
  libraries: ['libc6', 'libmnl0', 'libcap2'],
  init: init(`mkdir -p /files /layer /host
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose,ro host /files
mount -t tmpfs tmpfs /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/files,upperdir=/layer/upper,workdir=/layer/work overlay /host
for folder in dev proc sys; do mount -o bind /$folder /host/$folder; done
`),
};

/**
 * The same with vDPA devices that have a control queue: the kernel's simulator (vdpa_sim_net), and QEMU's own network
 * cards, which vp_vdpa puts on the vDPA bus.
 */
export const VDPA_GUEST: Recipe = {
  ...DEVICES_GUEST,
  suite: undefined,
  kernel: '6.12',
  sources: [
    'drivers/vhost/vringh.c',
    ...['vdpa_sim.c', 'vdpa_sim.h', 'vdpa_sim_net.c'].map((file) => `drivers/vdpa/vdpa_sim/${file}`),
    'drivers/vdpa/virtio_pci/vp_vdpa.c',
  ],
  modules: [...HOST_FILES, 'vhost_vdpa', 'vdpa_sim_net', 'vp_vdpa'],
};

/** Tells recipes apart. */
export function recipeHash({ suite, kernel, sources, modules, programs, libraries, init }: Recipe): string {
  const more = [suite, kernel, sources].filter((part) => part !== undefined);
  const parts = [modules, programs, libraries, init, ...more];
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex').slice(0, 12);
}
