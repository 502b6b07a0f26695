/** The schema against which libvirt checks the XML of a domain: taken out of its library's package. */
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { cache, libvirtSchema } from './available.ts';
import { unpack } from './packages.ts';

/** Downloads 2 MB and keeps the schemas. Throws with apt's own words when it can't. */
export function fetchSchema(): void {
  mkdirSync(cache, { recursive: true });
  const work = mkdtempSync(join(cache, 'libvirt-'));
  try {
    unpack(['libvirt0'], work);
    const schemas = join(work, 'usr/share/libvirt/schemas');
    if (!existsSync(schemas)) throw new Error('the package libvirt0 has no usr/share/libvirt/schemas');
    cpSync(schemas, join(libvirtSchema, '..'), { recursive: true });
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}
