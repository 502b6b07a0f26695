/**
 * What the Linux guest is made of. The image lies in a folder named by the hash of this, so that trees with different
 * recipes can share the cache.
 *
 * The second serial port is the guest's shell. A request is a line: a number, a blank, a command in base64. The
 * answer is what the command printed, then the byte 0x1e, the number, a blank, the exit status and a newline; number
 * 0 says that the shell is ready. The first serial port is the kernel's console.
 */
import { createHash } from 'node:crypto';

/** Loaded by init in this order, with what they depend on, where the kernel doesn't have them built in. */
export const MODULES = ['virtio_pci', 'virtio_net', '8021q'];

/** Programs beside busybox: Debian's package of each, and the path in it. */
export const PROGRAMS: [name: string, path: string][] = [
  ['ethtool', 'sbin/ethtool'],
  // Loads TCP with large writes and, unlike its better known kin, needs nothing but the C library.
  ['nuttcp', 'usr/bin/nuttcp'],
];

/** Where the shared libraries of those are. */
export const LIBRARIES = ['libc6', 'libmnl0'];

export const INIT = `#!/bin/busybox sh
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

export const recipe = createHash('sha256')
  .update(JSON.stringify([MODULES, PROGRAMS, LIBRARIES, INIT]))
  .digest('hex')
  .slice(0, 12);
