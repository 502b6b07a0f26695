/** The XML that `vireo qemu --libvirt` prints, against libvirt's own schema. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { libvirtPlug } from '../../src/cli/qemu.ts';
import { libvirtSchema, skipWithout } from './available.ts';

/** A domain with the printed elements where the note says that they belong. */
function domain(xml: string[]): string {
  const at = xml.findIndex((line) => line.startsWith('<interface'));
  return [
    "<domain type='kvm'><name>vm1</name>",
    ...xml.slice(0, at),
    "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>",
    ...xml.slice(at),
    '</devices></domain>',
  ].join('\n');
}

const check = (text: string) =>
  execFileSync('xmllint', ['--noout', '--relaxng', libvirtSchema, '-'], { input: text, stdio: 'pipe' });

test("libvirt's schema accepts what is printed", { skip: skipWithout('libvirtSchema') }, () => {
  for (const role of ['server', 'client'] as const) {
    const port = { name: 'vm1', target: `/tmp/<&'".sock`, role };
    const text = domain(libvirtPlug(port, { memory: 512, mac: '52:54:00:00:00:01' }).xml ?? []);
    check(text);
    assert.throws(() => check(text.replace(/mode='\w+'/, "mode='both'")), /fails to validate/);
  }
});
