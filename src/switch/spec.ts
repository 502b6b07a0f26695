/**
 * What a person may configure, checked once for the library, the command line, the file and the API: the
 * schemas of a port, in one line too (one-line.ts), and of a switch with all that it has.
 *
 * A value is checked as a whole and every fault is told: where it is, what was expected, what was found
 * (problems.ts).
 */
import { z } from 'zod';
import { MOST_MEMBERS, memberFault, membersOf } from '../bond/members.ts';
import { dgramTarget, udpTarget } from '../ports/addresses.ts';
import { choiceFaults, featureWords } from '../ports/features.ts';
import { DEFAULTS } from '../rstp/defaults.ts';
import { contradictions, RULE_FIELDS, RULES } from '../rules/index.ts';
import { vlanList } from '../rules/vlan.ts';
import { MAX_INTERFACE_NAME } from '../sys/index.ts';
import { MAX_MTU, MIN_MTU } from '../virtio/net-config.ts';
import { DEFAULT_BRIDGE } from './bridges.ts';
import { SwitchError } from './errors.ts';
import { groupAddress } from './groups.ts';
import { camel, kebab } from './keys.ts';
import { mirrorFaults } from './mirrors.ts';
import { EXAMPLE, splitPort, typed } from './one-line.ts';
import { didYouMean, MOST_UNKNOWN_KEYS, type Problem, problemsOf, refuse } from './problems.ts';
import { expected, show, stationAddress, wholeNumber } from './schema.ts';
import type {
  AddressSpec,
  BridgeSpec,
  CaptureOptions,
  GroupSpec,
  MirrorSpec,
  PortChange,
  PortSpec,
  PortType,
  SwitchOptions,
} from './types.ts';

/** Bytes of a path in `struct sockaddr_un`, the final zero apart: unix(7). */
const MAX_SOCKET_PATH = 107;
const PCAP_MODES = ['read', 'write'] as const;
const BOND_MODES = ['active-backup', 'balance', 'lacp'] as const;
const quoted = (words: readonly string[]) => words.map((word) => `"${word}"`).join(', ');
const MODES_TOLD = `${quoted(PCAP_MODES)} (pcap), or ${quoted(BOND_MODES)} (bond)`;
const MAX_ADDRESSES = 65_536;
const MAX_PORTS = 2048;
/** As in DPDK's vhost library. */
const MAX_QUEUE_PAIRS = 128;

const name = (whose: string, example: string) => {
  const told = expected(
    `${whose} name of 1 to 63 letters, digits, "_", "." or "-" that starts with a letter or digit, ` +
      `such as "${example}"`,
  );
  return z.string(told).regex(/^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/, told);
};

/** A control character is a slip, and would write to the terminals that show the path. */
const isPrintable = (path: string): boolean =>
  ![...path].some((character) => character < ' ' || character === '\x7f');

const socketPath = (() => {
  const told = expected(`the path of a unix socket, 1 to ${MAX_SOCKET_PATH} bytes, such as "/tmp/vm1.sock"`);
  const fits = (path: string) =>
    path !== '' && Buffer.byteLength(path) <= MAX_SOCKET_PATH && isPrintable(path);
  return z.string(told).refine(fits, told);
})();

/** VDUSE_NAME_MAX allows more; this is a name for files, too. */
const deviceName = (() => {
  const told = expected(
    'the name of a vDPA device, 1 to 63 letters, digits, "_", "." or "-", not "control", such as "vdpa0"',
  );
  return z.string(told).regex(/^(?!control$)[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/, told);
})();

const featureChoice = z
  .string(expected('features with a sign each, such as "-packed,-in-order"'))
  .superRefine((choice, context) => {
    const faults = choiceFaults(choice).slice(0, MOST_UNKNOWN_KEYS);
    if (faults.length === 0) return;
    const known = `a port's features are ${featureWords.join(', ')}`;
    context.addIssue({ code: 'custom', message: `${faults.join('; ')}; ${known}` });
  });

/** The kernel's rule for names of interfaces (dev_valid_name), but for characters that nobody means. */
const interfaceName = (() => {
  const told = expected(
    `the name of a network interface, 1 to ${MAX_INTERFACE_NAME} letters, digits, "_", "." or "-", such as "vireo0"`,
  );
  return z.string(told).regex(/^(?!\.{1,2}$)[A-Za-z0-9_.-]{1,15}$/, told);
})();

const udpAddress = (() => {
  const told = expected('an IP address, with a port or without, such as "192.0.2.1" or "[2001:db8::1]:4789"');
  return z.string(told).refine((text) => udpTarget(text) !== undefined, told);
})();

/** A path, or an address that has its port: where a datagram socket is. */
const datagramAddress = (() => {
  const told = expected(
    'the path of a unix socket, or an IP address and a port, such as "/tmp/vm1.sock" or "127.0.0.1:5000"',
  );
  const fits = (text: string) =>
    dgramTarget(text) !== undefined && (/:/.test(text) || socketPath.safeParse(text).success);
  return z.string(told).refine(fits, told);
})();

const filePath = (() => {
  const told = expected('the path of a file, such as "/tmp/vm1.pcap"');
  return z.string(told).min(1, told).max(1000, told).refine(isPrintable, told);
})();

const timing = (() => {
  const told = expected('"recorded", "fast", or packets a second such as "1000pps"');
  return z.string(told).regex(/^(recorded|fast|[1-9]\d{0,8}pps)$/, told);
})();

const memberList = (() => {
  const told = expected(`the names of 1 to ${MOST_MEMBERS} ports, each once, such as "eth1+eth2"`);
  const fits = (text: string) => {
    const names = text.split('+');
    return (
      names.length <= MOST_MEMBERS &&
      new Set(names).size === names.length &&
      names.every((one) => name("a port's", 'eth1').safeParse(one).success)
    );
  };
  return z.string(told).refine(fits, told);
})();

const nothing = z.literal('', expected('nothing behind the colon, such as "net=user:"'));

interface Kind {
  /** What a port's target is. */
  target: z.ZodType;
  /** The options that it may have beside name, type, target and maxAddresses. */
  options: readonly (keyof PortSpec)[];
  /** Several ports may have the same target. */
  shared?: true;
}

const KINDS: Record<PortType, Kind> = {
  'vhost-user': {
    target: socketPath,
    options: ['role', 'features', 'queues', 'mac', 'mtu', 'speed', 'sealed'],
  },
  vduse: { target: deviceName, options: ['features', 'queues', 'mac', 'mtu', 'speed'] },
  tap: { target: interfaceName, options: ['queues'] },
  'af-packet': { target: interfaceName, options: ['queues'] },
  'af-xdp': { target: interfaceName, options: ['queues'] },
  stream: { target: socketPath, options: ['role'] },
  dgram: { target: datagramAddress, options: ['remote'] },
  pcap: { target: filePath, options: ['mode', 'timing', 'loop'] },
  vxlan: { target: udpAddress, options: ['vni', 'local'] },
  user: { target: nothing, options: ['options'], shared: true },
  // Two that lead to one are told when they meet.
  patch: { target: name("another patch port's", 'patch2'), options: [], shared: true },
  bond: { target: memberList, options: ['mode', 'primary', 'hash', 'lacpRate', 'mac'] },
  null: { target: nothing, options: [], shared: true },
};
const TYPES = Object.keys(KINDS) as PortType[];
const COMMON: readonly string[] = ['name', 'type', 'target', 'maxAddresses', 'bridge', ...RULE_FIELDS];
/** What can be set anew while the port is there. */
export const SETTABLE: readonly string[] = ['maxAddresses', 'bridge', ...RULE_FIELDS];

const passtOptions = (() => {
  const told = expected('options of passt, such as "--tcp-ports 2222:22"');
  return z
    .string(told)
    .max(1000, told)
    .regex(/^[ -~]*$/, told);
})();

const ruleFields = Object.fromEntries(
  RULES.flatMap(({ fields }) => Object.entries(fields)).map(([field, schema]) => [field, schema.optional()]),
);

const portObject = z.strictObject(
  {
    name: name("a port's", 'vm1'),
    type: z.enum(TYPES, expected(`one of ${TYPES.join(', ')}`)),
    // What it has to be the type says: checkType.
    target: z.any().optional(),
    role: z.enum(['server', 'client'], expected('"server" or "client"')).optional(),
    maxAddresses: wholeNumber(1, MAX_ADDRESSES).optional(),
    bridge: name("a bridge's", 'lab').optional(),
    features: featureChoice.optional(),
    queues: wholeNumber(1, MAX_QUEUE_PAIRS).optional(),
    mac: stationAddress.optional(),
    mtu: wholeNumber(MIN_MTU, MAX_MTU).optional(),
    speed: wholeNumber(1, 0x7fff_ffff, ' of Mbit/s').optional(),
    sealed: z.boolean(expected('true or false')).optional(),
    options: passtOptions.optional(),
    vni: wholeNumber(0, 0xff_ffff).optional(),
    local: udpAddress.optional(),
    remote: datagramAddress.optional(),
    // Which of them a type has is checkType's.
    mode: z.enum([...PCAP_MODES, ...BOND_MODES], expected(MODES_TOLD)).optional(),
    primary: name("a port's", 'eth1').optional(),
    lacpRate: z.enum(['slow', 'fast'], expected('"slow" or "fast"')).optional(),
    hash: z.enum(['l2', 'l3+4'], expected('"l2" or "l3+4"')).optional(),
    timing: timing.optional(),
    loop: wholeNumber(0, 1_000_000_000, ' of times, 0 for ever').optional(),
    ...ruleFields,
  },
  expected(`a port: a map with name, type and target, or one line such as "${EXAMPLE}"`),
);

const portKeys = Object.keys(portObject.shape);

/** What depends on a port's type: its target, and its options. */
function checkType(port: unknown, context: z.RefinementCtx): void {
  if (typeof port !== 'object' || port === null || Array.isArray(port)) return;
  const { type, target, queues, features, remote, mode, timing, loop } = port as Record<string, unknown>;
  const add = (field: string, message: string) =>
    context.addIssue({ code: 'custom', path: [field], message });
  const isKnown = TYPES.some((known) => known === type);
  const kind = KINDS[isKnown ? (type as PortType) : 'vhost-user'];
  const faults = kind.target.safeParse(target).error?.issues ?? [];
  for (const { message } of faults.slice(0, 1)) add('target', message);
  if (!isKnown) return;
  if (type === 'patch' && target === (port as { name?: unknown }).name)
    add('target', `expected the name of another port, found ${show(target)}`);
  for (const [key, value] of Object.entries(port)) {
    if (COMMON.includes(key) || kind.options.some((option) => option === key) || !portKeys.includes(key))
      continue;
    add(key, `expected none for a port of type ${type}, found ${show(value)}`);
  }
  // Fields that are wrong by themselves are told already.
  if (portObject.safeParse(port).success)
    for (const { field, message } of contradictions(port as PortSpec)) add(field, message);
  if (type === 'dgram') {
    const [ours, theirs] = [target, remote].map((text) =>
      typeof text === 'string' ? dgramTarget(text) : undefined,
    );
    if (ours?.udp && remote === undefined)
      add(
        'remote',
        'expected the address and port of the other side, such as "127.0.0.1:5001", found nothing',
      );
    if (
      ours &&
      theirs &&
      (!ours.udp !== !theirs.udp || ours.udp?.address.includes(':') !== theirs.udp?.address.includes(':'))
    )
      add('remote', `expected a socket of the same family as the target's, found ${show(remote)}`);
  }
  if (type === 'pcap' && mode === 'write')
    for (const [field, value] of Object.entries({ timing, loop }))
      if (value !== undefined) add(field, `expected none with mode=write, found ${show(value)}`);
  for (const { kind, modes } of [
    { kind: 'pcap', modes: PCAP_MODES },
    { kind: 'bond', modes: BOND_MODES },
  ])
    if (type === kind && mode !== undefined && ![...modes].some((one) => one === mode))
      add('mode', `expected one of ${quoted(modes)}, found ${show(mode)}`);
  if (type === 'bond') checkBond(port as PortSpec, add);
  const words = typeof features === 'string' ? features.toLowerCase().split(',') : [];
  if (
    type === 'vhost-user' &&
    queues === MAX_QUEUE_PAIRS &&
    words.some((word) => /^\+ctrl[-_]vq$/.test(word))
  )
    add('queues', 'expected 127 at most with +ctrl-vq: of 256 queues the protocol has no number for another');
  if (type !== 'vduse') return;
  if (typeof queues === 'number' && queues > 1)
    add('queues', `expected 1: the kernel's VDUSE gives a network device no control queue, found ${queues}`);
  for (const word of words) {
    if (/^-(version[-_]1|iommu)$/.test(word))
      add('features', `expected no ${word}: the kernel takes no VDUSE device without`);
    if (/^\+(ctrl[-_]vq|mq)$/.test(word))
      add('features', `expected no ${word}: the kernel takes no VDUSE network device with a control queue`);
  }
}

function checkBond(
  { mode = 'active-backup', ...bond }: PortSpec,
  add: (field: string, message: string) => void,
) {
  const { name, primary, hash, lacpRate, mac } = bond;
  if (mode !== 'lacp')
    for (const [field, value] of Object.entries({ lacpRate, mac }))
      if (value !== undefined) add(field, `expected none with mode=${mode}, found ${show(value)}`);
  if (typeof bond.target !== 'string') return;
  const members = membersOf(bond);
  if (members.includes(name)) add('target', `expected names of other ports, found ${show(bond.target)}`);
  if (primary !== undefined && mode !== 'active-backup')
    add('primary', `expected none with mode=${mode}, found ${show(primary)}`);
  else if (primary !== undefined && !members.includes(primary))
    add('primary', `expected one of the members ${members.join(', ')}, found ${show(primary)}`);
  if (hash !== undefined && mode === 'active-backup')
    add('hash', `expected none with mode=active-backup, found ${show(hash)}`);
}

/** A port: an object, or its form in one line. */
export const portSpecSchema = z.preprocess(
  (value, context) => {
    if (typeof value !== 'string') return value;
    try {
      return splitPort(value);
    } catch (error) {
      context.issues.push({ code: 'custom', message: (error as Error).message, input: value });
      return value;
    }
  },
  portObject.superRefine(checkType, { when: () => true }),
);

/** May another port have the same target? */
export function isShared({ type }: Pick<PortSpec, 'type'>): boolean {
  return KINDS[type]?.shared === true;
}

/** Ports must differ in name and, but for some kinds, in their target. */
function checkDistinct(ports: unknown, context: z.RefinementCtx): void {
  if (!Array.isArray(ports)) return;
  for (const field of ['name', 'target'] as const) {
    const seen = new Map<string, number>();
    ports.forEach((port, index) => {
      const value: unknown = port?.[field];
      if (typeof value !== 'string' || (field === 'target' && isShared(port))) return;
      const first = seen.get(value);
      if (first === undefined) seen.set(value, index);
      else {
        const message = `expected a ${field} of its own, found ${show(value)}, which ports[${first}] has`;
        context.addIssue({ code: 'custom', path: [index, field], message });
      }
    });
  }
}

const cpuList = z
  .array(wholeNumber(0, 1023), expected('a list of CPU numbers, such as [0, 2, 3]'))
  .min(1, expected('at least one CPU'))
  .refine((cpus) => new Set(cpus).size === cpus.length, expected('each CPU once'));

const ageing = wholeNumber(1, 1_000_000, ' of seconds');

const bridgePriority = (() => {
  const told = expected('a multiple of 4096 from 0 to 61440');
  return z.int(told).min(0, told).max(61_440, told).multipleOf(4096, told);
})();

const bridgeObject = z.strictObject(
  {
    name: name("a bridge's", 'lab'),
    ageing: ageing.optional(),
    reserved: z.enum(['auto', 'pass', 'filter'], expected('"auto", "pass" or "filter"')).optional(),
    snooping: z.boolean(expected('true or false')).optional(),
    rstp: z.boolean(expected('true or false')).optional(),
    priority: bridgePriority.optional(),
    mac: stationAddress.optional(),
    maxAge: wholeNumber(6, 40, ' of seconds').optional(),
    forwardDelay: wholeNumber(4, 30, ' of seconds').optional(),
    querier: z.boolean(expected('true or false')).optional(),
  },
  expected('a bridge: a map with name, such as { name: lab }'),
);
const bridgeKeys = Object.keys(bridgeObject.shape);

const bridgeSchema = bridgeObject.superRefine((bridge, context) => {
  const { rstp, reserved, maxAge, forwardDelay, snooping, querier } = bridge;
  const add = (field: string, message: string) =>
    context.addIssue({ code: 'custom', path: [field], message });
  if (querier && !snooping) add('querier', 'expected none without snooping=true, found true');
  if (rstp && reserved === 'pass')
    add('reserved', 'expected none beside rstp=true, for which the bridge keeps BPDUs, found "pass"');
  // IEEE 802.1D-2004, 17.14: who forgets sooner than others have been told makes loops.
  const least = (maxAge ?? DEFAULTS.maxAge) / 2 + 1;
  if ((forwardDelay ?? DEFAULTS.forwardDelay) < least)
    add(
      forwardDelay === undefined ? 'maxAge' : 'forwardDelay',
      `expected a forwardDelay of at least maxAge / 2 + 1, ${least} s, found ${forwardDelay ?? DEFAULTS.forwardDelay}`,
    );
});

const addressObject = z.strictObject(
  {
    mac: stationAddress.transform((mac) => mac.toLowerCase()),
    port: name("a port's", 'vm1'),
    vlan: wholeNumber(0, 4094).optional(),
  },
  expected('an address: a map with mac and port'),
);
const addressKeys = Object.keys(addressObject.shape);

const groupObject = z.strictObject(
  {
    group: (() => {
      const told = expected(
        'the address of a group that is joined, from 224.0.1.0 on or of IPv6, such as "239.1.1.1" or "ff3e::1"',
      );
      return z
        .string(told)
        .refine((text) => groupAddress(text) !== undefined, told)
        .transform((text) => groupAddress(text)!);
    })(),
    port: name("a port's", 'vm1'),
    vlan: wholeNumber(0, 4094).optional(),
  },
  expected('a port in a group: a map with group and port'),
);
const groupKeys = Object.keys(groupObject.shape);

const mirrorSources = (() => {
  const told = expected('names of ports, joined by "+", such as "vm1+vm2", or "any"');
  const isName = (word: string) => name("a port's", 'vm1').safeParse(word).success;
  const isList = (text: string) => {
    const words = text.split('+');
    return words.every(isName) && new Set(words).size === words.length;
  };
  return z.string(told).max(10_000, told).refine(isList, told);
})();

const mirrorTarget = (() => {
  const told = expected(
    'a port, a VLAN from 1 to 4094 or a file, such as "mon", "vlan:900" or "file:/tmp/a.pcapng"',
  );
  const fits = (text: string) => {
    if (text.startsWith('file:')) return filePath.safeParse(text.slice('file:'.length)).success;
    const [, vlan] = /^vlan:(\d{1,4})$/.exec(text) ?? [];
    if (vlan !== undefined) return Number(vlan) >= 1 && Number(vlan) <= 4094;
    return name("a port's", 'mon').safeParse(text).success;
  };
  return z.string(told).refine(fits, told);
})();

const mirrorObject = z.strictObject(
  {
    name: name("a mirror's", 'span1'),
    from: mirrorSources.optional(),
    vlans: vlanList.optional(),
    direction: z.enum(['in', 'out', 'both'], expected('"in", "out" or "both"')).optional(),
    to: mirrorTarget,
  },
  expected('a mirror: a map with name and to'),
);
const mirrorKeys = Object.keys(mirrorObject.shape);

/** Bridges, and mirrors, must differ in name. */
function checkNames(bridges: { name: string }[], context: z.RefinementCtx): void {
  const seen = new Set<string>();
  for (const [index, { name }] of bridges.entries()) {
    const message = `expected a name of its own, found ${show(name)} again`;
    if (seen.has(name)) context.addIssue({ code: 'custom', path: [index, 'name'], message });
    seen.add(name);
  }
}

const switchObject = z.strictObject(
  {
    name: name("a switch's", 'vireo').optional(),
    workers: wholeNumber(1, 32).optional(),
    cpus: cpuList.optional(),
    poll: z.enum(['adaptive', 'busy'], expected('"adaptive" or "busy"')).optional(),
    ageing: ageing.optional(),
    maxAddressesPerPort: wholeNumber(1, MAX_ADDRESSES).optional(),
    maxPorts: wholeNumber(1, MAX_PORTS).optional(),
    bridges: z
      .array(bridgeSchema, expected('a list of bridges, each behind a "-"'))
      .superRefine(checkNames)
      .optional(),
    ports: z
      .array(portSpecSchema, expected('a list of ports, each behind a "-"'))
      // Also when a port is faulty elsewhere: all faults are told at once.
      .superRefine(checkDistinct, { when: () => true })
      .optional(),
    fdb: z.array(addressObject, expected('a list of addresses')).optional(),
    groups: z.array(groupObject, expected('a list of groups with a port each')).optional(),
    mirrors: z.array(mirrorObject, expected('a list of mirrors')).superRefine(checkNames).optional(),
  },
  expected('the options of a switch: a map with name, workers, ports …'),
);

/** A switch and the ports it starts with. */
export const switchOptionsSchema = switchObject.superRefine((options, context) => {
  const { workers, cpus, bridges, ports } = options;
  for (const [index, port] of ((ports ?? []) as PortSpec[]).entries()) {
    const message = memberFault(port, ports as PortSpec[]);
    if (message !== undefined)
      context.addIssue({ code: 'custom', path: ['ports', index, 'target'], message });
  }
  const mirrors = (options.mirrors ?? []) as MirrorSpec[];
  for (const [index, mirror] of mirrors.entries()) {
    const faults = mirrorFaults(mirror, mirrors.slice(0, index), ports as PortSpec[] | undefined);
    for (const { field, message } of faults)
      context.addIssue({ code: 'custom', path: ['mirrors', index, field], message });
  }
  // Without a list of them those of the running switch count: so with bridges, below.
  const names = ports && (ports as PortSpec[]).map(({ name }) => name);
  for (const list of ['fdb', 'groups'] as const)
    for (const [index, { port }] of (names && options[list] ? options[list] : []).entries()) {
      if (names!.includes(port)) continue;
      const there = names!.slice(0, 10).join(', ') || 'none';
      const message = `expected a port that is there (${there}), found ${show(port)}`;
      context.addIssue({ code: 'custom', path: [list, index, 'port'], message });
    }
  const known = [DEFAULT_BRIDGE, ...(bridges ?? []).map(({ name }) => name)];
  for (const [index, { bridge }] of bridges === undefined ? [] : ((ports ?? []) as PortSpec[]).entries()) {
    if (bridge === undefined || known.includes(bridge)) continue;
    const message = `expected one of the bridges ${known.join(', ')}, found ${show(bridge)}`;
    context.addIssue({ code: 'custom', path: ['ports', index, 'bridge'], message });
  }
  if (workers === undefined || cpus === undefined || cpus.length >= workers) return;
  const message = `expected a CPU for each of the ${workers} workers, found ${cpus.length}`;
  context.addIssue({ code: 'custom', path: ['cpus'], message });
});

/** Known keys in the lists of a switch. */
const KEYS_IN = {
  ports: portKeys,
  bridges: bridgeKeys,
  fdb: addressKeys,
  groups: groupKeys,
  mirrors: mirrorKeys,
};

/** Checks the options of a whole switch without throwing: the options, or all that is wrong with them. */
export function examineSwitchOptions(value: unknown): SwitchOptions | Problem[] {
  const result = switchOptionsSchema.safeParse(value);
  return result.success
    ? (result.data as SwitchOptions)
    : problemsOf(result.error, Object.keys(switchObject.shape), KEYS_IN);
}

/** The options of a switch, checked. Throws SwitchError `BAD_SPEC` that names every faulty field. */
export function checkSwitchOptions(value: unknown): SwitchOptions {
  const result = examineSwitchOptions(value);
  return Array.isArray(result) ? refuse(result) : result;
}

/**
 * A port, checked. Throws SwitchError `BAD_SPEC` that names every faulty field, in the form that the port was
 * given in.
 */
export function checkPortSpec(value: unknown): PortSpec {
  const result = portSpecSchema.safeParse(value);
  if (result.success) return result.data as PortSpec;
  const inText = typeof value === 'string';
  const problems = problemsOf(result.error, inText ? portKeys.map(kebab) : portKeys);
  if (!inText) return refuse(problems);
  return refuse(
    problems.map((problem) => ({ ...problem, path: problem.path.map((key) => kebab(String(key))) })),
  );
}

/**
 * A port from its one-line form `NAME=TYPE:TARGET[,key=value…]`, e.g.
 * `vm1=vhost-user:/tmp/vm1.sock,role=client,max-addresses=100`.
 * Throws SwitchError `BAD_SPEC` that names every faulty field.
 */
export const parsePortSpec: (text: string) => PortSpec = checkPortSpec;

/**
 * Fields to set anew, from `key=value` each; a key without a value goes back to its default. Throws SwitchError
 * `BAD_SPEC` for what has not that form; the fields are checked with what they are for.
 */
export const parsePortChange = (words: readonly string[]): PortChange => parseFields(words, 'isolated=true');

/** The same for anything that has fields; `example` is one of them. */
export function parseFields(words: readonly string[], example: string): Record<string, unknown> {
  const change: Record<string, unknown> = {};
  for (const word of words) {
    const [, key, value] = /^([^=]+)=(.*)$/s.exec(word) ?? [];
    if (key === undefined || value === undefined)
      throw new SwitchError('BAD_SPEC', `expected key=value, such as ${example}, found ${show(word)}`);
    if (Object.hasOwn(change, camel(key)))
      throw new SwitchError('BAD_SPEC', `expected ${key} once, found it again as ${show(word)}`);
    Object.defineProperty(change, camel(key), {
      value: value === '' ? null : typed(value),
      enumerable: true,
    });
  }
  return change;
}

/** Throws SwitchError `BAD_SPEC` for what is no map. */
function fieldsToSet(change: unknown, example: string): object {
  if (typeof change === 'object' && change !== null && !Array.isArray(change)) return change;
  throw new SwitchError('BAD_SPEC', `expected the fields to set, such as ${example}, found ${show(change)}`);
}

/** With some fields set anew; null takes one away. */
const changed = (spec: object, fields: object): object =>
  Object.fromEntries(Object.entries({ ...spec, ...fields }).filter(([, value]) => value !== null));

function changedButName(spec: object, change: unknown, example: string): object {
  const fields = fieldsToSet(change, example);
  if (!Object.hasOwn(fields, 'name')) return changed(spec, fields);
  throw new SwitchError('BAD_SPEC', `name: it stays; expected the fields to set, such as ${example}`, 'name');
}

/** The port with some fields set anew, checked. Throws SwitchError `BAD_SPEC` that names every faulty field. */
export function changePortSpec(spec: PortSpec, change: unknown): PortSpec {
  const fields = fieldsToSet(change, '{ "isolated": true }');
  for (const field of Object.keys(fields)) {
    if (SETTABLE.includes(field)) continue;
    const why = portKeys.includes(field)
      ? `expected a field that can be set while the port is there (${SETTABLE.join(', ')}): remove the port and add it anew`
      : `unknown key, ${didYouMean(field, SETTABLE)}`;
    throw new SwitchError('BAD_SPEC', `${field.slice(0, 60)}: ${why}`, field.slice(0, 60));
  }
  return checkPortSpec(changed(spec, fields));
}

function checked<T>(schema: z.ZodType, keys: readonly string[], value: unknown): T {
  const result = schema.safeParse(value);
  return result.success ? (result.data as T) : refuse(problemsOf(result.error, keys));
}

/** A bridge, checked. Throws SwitchError `BAD_SPEC` that names every faulty field. */
export function checkBridgeSpec(value: unknown): BridgeSpec {
  return checked<BridgeSpec>(bridgeSchema, bridgeKeys, value);
}

/** An address to be entered, checked. Throws SwitchError `BAD_SPEC` that names every faulty field. */
export function checkAddressSpec(value: unknown): AddressSpec {
  return checked<AddressSpec>(addressObject, addressKeys, value);
}

/** A port to be entered into a group, checked. Throws SwitchError `BAD_SPEC` that names every faulty field. */
export function checkGroupSpec(value: unknown): GroupSpec {
  return checked<GroupSpec>(groupObject, groupKeys, value);
}

/** A mirror, checked by itself. Throws SwitchError `BAD_SPEC` that names every faulty field. */
export function checkMirrorSpec(value: unknown): MirrorSpec {
  return checked<MirrorSpec>(mirrorObject, mirrorKeys, value);
}

/** The bridge with some fields set anew, checked. Throws SwitchError `BAD_SPEC` that names every faulty field. */
export function changeBridgeSpec(spec: BridgeSpec, change: unknown): BridgeSpec {
  return checkBridgeSpec(changedButName(spec, change, '{ "ageing": 60 }'));
}

/** The mirror with some fields set anew, checked by itself. Throws SwitchError `BAD_SPEC` that names every faulty field. */
export function changeMirrorSpec(spec: MirrorSpec, change: unknown): MirrorSpec {
  return checkMirrorSpec(changedButName(spec, change, '{ "direction": "in" }'));
}

const captureObject = z.strictObject(
  {
    port: z.string(expected('the name of a port, or "any"')),
    filter: z.string(expected('a filter such as "tcp port 80"')).optional(),
    snaplen: wholeNumber(1, 262_144, ' of bytes').optional(),
    count: wholeNumber(1, Number.MAX_SAFE_INTEGER).optional(),
    seconds: wholeNumber(1, 31_536_000).optional(),
  },
  expected('what to capture: a map with port'),
);

/** What to capture, checked but for its filter. Throws SwitchError `BAD_SPEC` that names every faulty field. */
export function checkCaptureOptions(value: unknown): CaptureOptions {
  return checked<CaptureOptions>(captureObject, Object.keys(captureObject.shape), value);
}
