/**
 * The ways through DPDK's virtio driver: what is negotiated, and so which of its functions it receives and sends
 * with (doc/guides/nics/virtio.rst, "Virtio paths Selection and Usage"). DPDK's own acceptance tests go through each
 * of them. Those ask for VLAN stripping to keep the driver from its vectorised function; since 20.05 it takes that
 * one only where vectorized=1 says so.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { Testpmd, VirtioUser } from './dpdk.ts';

export interface RingPath {
  name: string;
  options: Required<Pick<VirtioUser, 'mrgRxbuf' | 'inOrder' | 'packed'>> & Pick<VirtioUser, 'vectorized'>;
  /** Of DPDK's environment layer. */
  eal?: string[];
  /** What the driver calls its choice in its log, e.g. `vectorized Rx`. */
  rx: string;
  tx: string;
  /** What `vireo ports` shows behind kind and size of the rings. */
  rings: string;
  /** Instruction sets that the driver wants for it, as /proc/cpuinfo names them. */
  wants?: string[];
}

export const paths: readonly RingPath[] = [
  {
    name: 'split mergeable',
    options: { packed: false, mrgRxbuf: true, inOrder: false },
    rx: 'mergeable buffer Rx',
    tx: 'standard Tx',
    rings: 'mrg indirect',
  },
  {
    name: 'split non-mergeable',
    options: { packed: false, mrgRxbuf: false, inOrder: false },
    rx: 'standard Rx',
    tx: 'standard Tx',
    rings: 'indirect',
  },
  {
    name: 'split in-order mergeable',
    options: { packed: false, mrgRxbuf: true, inOrder: true },
    rx: 'inorder Rx',
    tx: 'inorder Tx',
    rings: 'mrg indirect in-order',
  },
  {
    name: 'split in-order non-mergeable',
    options: { packed: false, mrgRxbuf: false, inOrder: true },
    rx: 'inorder Rx',
    tx: 'inorder Tx',
    rings: 'indirect in-order',
  },
  {
    name: 'split vectorised',
    options: { packed: false, mrgRxbuf: false, inOrder: false, vectorized: true },
    rx: 'vectorized Rx',
    tx: 'standard Tx',
    rings: 'indirect',
  },
  {
    name: 'packed mergeable',
    options: { packed: true, mrgRxbuf: true, inOrder: false },
    rx: 'packed ring mergeable buffer Rx',
    tx: 'packed ring standard Tx',
    rings: 'mrg indirect',
  },
  {
    name: 'packed non-mergeable',
    options: { packed: true, mrgRxbuf: false, inOrder: false },
    rx: 'packed ring standard Rx',
    tx: 'packed ring standard Tx',
    rings: 'indirect',
  },
  {
    name: 'packed in-order mergeable',
    options: { packed: true, mrgRxbuf: true, inOrder: true },
    rx: 'packed ring mergeable buffer Rx',
    tx: 'packed ring standard Tx',
    rings: 'mrg indirect in-order',
  },
  {
    name: 'packed in-order non-mergeable',
    options: { packed: true, mrgRxbuf: false, inOrder: true },
    rx: 'packed ring standard Rx',
    tx: 'packed ring standard Tx',
    rings: 'indirect in-order',
  },
  {
    name: 'packed vectorised',
    options: { packed: true, mrgRxbuf: false, inOrder: true, vectorized: true },
    eal: ['--force-max-simd-bitwidth=512'],
    rx: 'packed ring vectorized Rx',
    tx: 'packed ring vectorized Tx',
    rings: 'indirect in-order',
    wants: ['avx512f', 'avx512bw', 'avx512vl'],
  },
];

/** For node:test's `skip`: false when this machine's CPU has what the path wants, else what it lacks. */
export function lacking({ name, wants = [] }: RingPath): false | string {
  const flags = /^flags\s*:(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1]?.split(' ') ?? [];
  const missing = wants.filter((flag) => !flags.includes(flag));
  return missing.length > 0 && `the path "${name}" wants a CPU with ${missing.join(', ')}`;
}

/** What the driver says that it uses for a port, the last time that it chose. Rejects when it says nothing. */
export async function chosen(pmd: Testpmd, port: number): Promise<{ rx: string; tx: string }> {
  const last = (way: 'Rx' | 'Tx') =>
    // The log isn't on the pipe that the prompt is on: it may come later.
    pmd.child.waitFor(`the ${way} path of port ${port}`, 10_000, () => {
      const said = [
        ...pmd.log.matchAll(new RegExp(`virtio: using (.+ ${way}) path on port ${port}\\b`, 'g')),
      ];
      return said.at(-1)?.[1];
    });
  return { rx: await last('Rx'), tx: await last('Tx') };
}

/** Rejects when a port of the guest, or all of them, took another way than this one. */
export async function assertPath(pmd: Testpmd, { rx, tx }: RingPath, ports: number[] = [0]): Promise<void> {
  for (const port of ports) assert.deepEqual(await chosen(pmd, port), { rx, tx });
}

/** Every combination runs with VIREO_MATRIX=full; without, where that takes minutes, a cross-section. */
export const everything = process.env.VIREO_MATRIX === 'full';
