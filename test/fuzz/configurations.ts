/**
 * Configurations as a person writes them, in YAML, and as a program sends them, in JSON, with values exchanged, keys
 * misspelt and bytes changed: each is taken or refused with a sentence for each fault, and what is taken comes back
 * the same when it is written out and read again.
 */
import assert from 'node:assert/strict';
import { parse, stringify } from 'yaml';
import { parseConfig } from '../../src/switch/config.ts';
import { SwitchError } from '../../src/switch/errors.ts';
import { formatPortSpec } from '../../src/switch/one-line.ts';
import {
  changeBridgeSpec,
  changeMirrorSpec,
  changePortSpec,
  checkAddressSpec,
  checkBridgeSpec,
  checkCaptureOptions,
  checkGroupSpec,
  checkMirrorSpec,
  checkPortSpec,
  examineSwitchOptions,
  parsePortSpec,
} from '../../src/switch/spec.ts';
import type { BridgeSpec, MirrorSpec, PortSpec, SwitchOptions } from '../../src/switch/types.ts';
import type { Random } from '../support/random.ts';

const PORTS: readonly PortSpec[] = [
  {
    name: 'a',
    type: 'vhost-user',
    target: '/tmp/a.sock',
    role: 'client',
    features: '-packed',
    queues: 2,
    vlan: 10,
  },
  { name: 'b', type: 'vhost-user', target: '/tmp/b,b.sock', trunk: '10+20-30', native: 5, tags: '802.1ad' },
  { name: 'c', type: 'tap', target: 'vireo0', rateIn: '1Mbit+1kpps', burstIn: '64KiB', rateOut: '1Gbit' },
  {
    name: 'd',
    type: 'null',
    target: '',
    delayIn: '1ms',
    jitterIn: '1us',
    lossOut: '0.1%',
    seed: 3,
    isolated: true,
  },
  {
    name: 'e',
    type: 'null',
    target: '',
    stormBroadcast: '10pps',
    allowMac: '52:54:00:00:00:01',
    allowIp: 'fd00::/8',
  },
  { name: 'f', type: 'vxlan', target: '[2001:db8::1]:4789', vni: 7, qinq: 40 },
  { name: 'g', type: 'pcap', target: '/tmp/g.pcap', mode: 'read', timing: '10pps', loop: 0 },
  { name: 'h', type: 'dgram', target: '127.0.0.1:5000', remote: '127.0.0.1:5001', bridge: 'lab', edge: true },
  { name: 'i', type: 'bond', target: 'c+d', mode: 'lacp', lacpRate: 'fast', hash: 'l2' },
  { name: 'j', type: 'patch', target: 'k', linkFollows: 'a' },
];
const BRIDGES: readonly BridgeSpec[] = [
  { name: 'lab', rstp: true, priority: 4096, mac: '52:54:00:00:00:aa', maxAge: 10, forwardDelay: 6 },
  { name: 'default', snooping: true, querier: true, ageing: 60 },
];
const MIRRORS: readonly MirrorSpec[] = [
  { name: 'm', from: 'a+b', vlans: '10+20', direction: 'in', to: 'e' },
  { name: 'n', to: 'file:/tmp/n.pcapng' },
];
const WHOLE: SwitchOptions = {
  name: 'lab', workers: 2, cpus: [0, 1], ageing: 60, maxAddressesPerPort: 9, bridges: [...BRIDGES], ports: [...PORTS],
  fdb: [{ mac: '52:54:00:00:00:03', port: 'a', vlan: 10 }], groups: [{ group: '239.1.2.3', port: 'b' }],
  mirrors: [...MIRRORS],
}; // biome-ignore format: a table

/** Values that are somewhere else right, or nowhere. */
const ODD: readonly unknown[] = [
  null, true, false, 0, -1, 1.5, 4095, 65_536, 2 ** 53, 1e308, '', ' ', 'a', 'all', '10+', '4095', '1-', '100', '1Mbit',
  '99999999Gbit', '1e9pps', '-1ms', '200%', 'vlan:0', 'vlan:4095', 'file:', 'any', '52:54:00:00:00:01', 'ff:ff:ff:ff:ff:ff',
  '::', '255.255.255.255/33', '\u0000', 'é'.repeat(99), 'x'.repeat(2000), '__proto__', [], {}, [[]], [null], { name: 'a' },
]; // biome-ignore format: a table

type Tree = Record<string, unknown> | unknown[];

/** Changes some places of a tree that is its own. */
function damage(value: unknown, random: Random): unknown {
  const places: { in: Tree; key: string }[] = [];
  const visit = (tree: unknown) => {
    if (typeof tree !== 'object' || tree === null) return;
    for (const key of Object.keys(tree)) {
      places.push({ in: tree as Tree, key });
      visit((tree as Record<string, unknown>)[key]);
    }
  };
  visit(value);
  if (places.length === 0) return random.pick(ODD);
  for (let count = random.below(4); count > 0; count--) {
    const { in: tree, key } = random.pick(places);
    const at = tree as Record<string, unknown>;
    const kind = random.below(5);
    if (kind === 0) delete at[key];
    else if (kind === 1) at[`${key.slice(0, -1)}${random.pick(['', 's', '-in', 'In'])}`] = at[key];
    else if (kind === 2) at[key] = structuredClone(random.pick(places).in);
    else if (kind === 3 && Array.isArray(tree)) tree.push(structuredClone(random.pick(tree)));
    else at[key] = structuredClone(random.pick(ODD));
  }
  return value;
}

/** One of ours, of which each field says what is wrong. */
function refused(error: unknown): void {
  assert.ok(error instanceof SwitchError, (error as Error).stack);
  assert.ok(error.message.length > 0 && error.message.length < 200_000, `${error.message.length} characters`);
  assert.ok(['BAD_SPEC', 'NO_SUCH_PORT'].includes(error.code), error.code);
}

function tried<T>(act: () => T): T | undefined {
  try {
    return act();
  } catch (error) {
    refused(error);
    return undefined;
  }
}

function text(random: Random): void {
  const plain = {
    ...structuredClone(WHOLE),
    ports: structuredClone(PORTS.slice(0, 1 + random.below(PORTS.length))),
  };
  let bytes = Buffer.from(
    stringify(random.below(2) ? damage(plain, random) : plain, { flowCollectionPadding: false }),
  );
  for (let count = random.below(5); count > 0 && bytes.length > 0; count--) {
    const at = random.below(bytes.length);
    const kind = random.below(4);
    if (kind === 0)
      bytes[at] = random.pick([0x20, 0x0a, 0x3a, 0x2d, 0x7b, 0x5b, 0x26, 0x2a, 0x21, random.below(128)]);
    else if (kind === 1) bytes = bytes.subarray(0, at);
    else bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at & ~15)]);
  }
  const options = tried(() => parseConfig(bytes.toString('latin1'), 'fuzz.yaml'));
  if (options !== undefined) assert.deepEqual(parse(stringify(options)), parse(JSON.stringify(options)));
}

function json(random: Random): void {
  const value = damage(structuredClone(WHOLE), random);
  const options = examineSwitchOptions(value);
  if (Array.isArray(options)) {
    assert.ok(options.length > 0);
    for (const { message } of options) assert.match(message, /expected|unknown key|did you mean|at most/);
    return;
  }
  assert.deepEqual(examineSwitchOptions(structuredClone(options)), options);
}

function part(random: Random): void {
  const port = random.pick(PORTS);
  const change = damage({ ...structuredClone(random.pick(PORTS)) }, random);
  const checked = tried(() => checkPortSpec(change as PortSpec));
  if (checked !== undefined) assert.deepEqual(parsePortSpec(formatPortSpec(checked)), checked);
  tried(() => changePortSpec(port, change as object));
  tried(() => checkBridgeSpec(damage(structuredClone(random.pick(BRIDGES)), random)));
  tried(() => changeBridgeSpec(random.pick(BRIDGES), damage({ ageing: 1 }, random)));
  tried(() => checkMirrorSpec(damage(structuredClone(random.pick(MIRRORS)), random)));
  tried(() => changeMirrorSpec(random.pick(MIRRORS), damage({ direction: 'in', to: 'b' }, random)));
  tried(() => checkAddressSpec(damage({ mac: '52:54:00:00:00:03', port: 'a' }, random)));
  tried(() => checkGroupSpec(damage({ group: 'ff3e::1', port: 'a' }, random)));
  tried(() => checkCaptureOptions(damage({ port: 'any', filter: 'tcp', count: 1 }, random)));
  const line = formatPortSpec(port);
  const at = random.below(line.length);
  tried(() =>
    parsePortSpec(line.slice(0, at) + random.pick(['', ',', '=', ':', ',,', 'x']) + line.slice(at + 1)),
  );
}

export function configurations(random: Random): void {
  random.pick([text, json, part])(random);
}
