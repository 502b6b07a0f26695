import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { ConfigError, parseConfig, readConfig } from '../../src/switch/config.ts';
import { SwitchError } from '../../src/switch/errors.ts';
import { formatPortSpec } from '../../src/switch/one-line.ts';
import { checkPortSpec, checkSwitchOptions, parsePortSpec } from '../../src/switch/spec.ts';
import type { PortSpec } from '../../src/switch/types.ts';

const directory = mkdtempSync(join(tmpdir(), 'vireo-config-'));
after(() => rmSync(directory, { recursive: true }));

function write(name: string, content: string | Buffer): string {
  const file = join(directory, name);
  writeFileSync(file, content);
  return file;
}

/** The error that a call throws, which must be a SwitchError `BAD_SPEC`. */
function refused(call: () => unknown): SwitchError {
  try {
    call();
  } catch (error) {
    assert.ok(error instanceof SwitchError, String(error));
    assert.equal(error.code, 'BAD_SPEC');
    return error;
  }
  return assert.fail('nothing was thrown');
}

const faults = (text: string) => refused(() => parseConfig(text, 'vireo.yaml')).message.split('\n');

test('a port in one line has all its fields', () => {
  assert.deepEqual(parsePortSpec('vm1=vhost-user:/tmp/a.sock'), {
    name: 'vm1',
    type: 'vhost-user',
    target: '/tmp/a.sock',
  });
  assert.deepEqual(parsePortSpec('vm1=vhost-user:/tmp/a=b:c.sock,role=client,max-addresses=100'), {
    name: 'vm1',
    type: 'vhost-user',
    target: '/tmp/a=b:c.sock',
    role: 'client',
    maxAddresses: 100,
  });
});

test('a choice of features is a list in one line, and is checked word by word', () => {
  for (const [text, features] of [
    ['features=-packed', '-packed'],
    ['features=-packed,-in_order,+event-idx', '-packed,-in_order,+event-idx'],
    ['features=-packed,,-in-order', '-packed,-in-order'],
  ] as const) {
    const spec = parsePortSpec(`vm1=vhost-user:/tmp/a.sock,${text},max-addresses=5`);
    assert.equal(spec.features, features);
    assert.equal(spec.maxAddresses, 5);
    assert.deepEqual(parsePortSpec(formatPortSpec(spec)), spec);
  }
  const cases: [features: unknown, message: RegExp][] = [
    ['-pakced', /^features: no feature is called "pakced"; a port's features are .*in-order, packed/],
    ['packed', /^features: "packed" has no sign: \+word or -word; a port's features are/],
    ['-packed,', /^features: "" has no sign/],
    ['', /^features: "" has no sign/],
    ['-a,-b', /^features: no feature is called "a"; no feature is called "b"; a port's/],
    [`-${'x'.repeat(500)}`, /^features: no feature is called "x{60}"; /],
    ['-,'.repeat(400), /^features: (no feature is called ""; ){20}a port's/],
    [7, /^features: expected features with a sign each, such as "-packed,-in-order", found 7$/],
    [['-packed'], /^features: expected features .* found a list$/],
  ];
  for (const [features, message] of cases) {
    const spec = { name: 'a', type: 'vhost-user', target: '/a', features };
    const error = refused(() => checkPortSpec(spec));
    assert.match(error.message, message);
    assert.equal(error.field, 'features');
  }
  assert.match(
    faults('ports:\n  - name: a\n    type: vhost-user\n    target: /a\n    features: -packd\n')[0]!,
    /^vireo.yaml:5:15: ports\[0\].features: no feature is called "packd"; a port's/,
  );
  assert.match(faults('ports:\n  - a=vhost-user:/a,features=-packd\n')[0]!, /^vireo.yaml:2:\d+: .*packd/);
});

test('a port written in one line reads back as it was', () => {
  const targets = ['/tmp/a', ',', 'a,', ',,a,,,b', 'a=b:c', 'ünï cødé', `/${'x'.repeat(106)}`];
  for (const target of targets) {
    for (const role of [undefined, 'server', 'client'] as const) {
      for (const maxAddresses of [undefined, 1, 65_536]) {
        const spec: PortSpec = { name: 'p-1_a.b', type: 'vhost-user', target };
        if (role !== undefined) spec.role = role;
        if (maxAddresses !== undefined) spec.maxAddresses = maxAddresses;
        assert.deepEqual(parsePortSpec(formatPortSpec(spec)), spec);
      }
    }
  }
});

test('a faulty line names the field, what was expected and what was found', () => {
  const cases: [text: string, field: string | undefined, message: RegExp][] = [
    ['vm1', undefined, /^expected NAME=TYPE:TARGET, such as "vm1=vhost-user:.*", found "vm1"$/],
    ['vm1=/tmp/a.sock', undefined, /^expected NAME=TYPE:TARGET/],
    ['', undefined, /found ""$/],
    ['vm1=vhost-user:/a,role', undefined, /^expected key=value after a comma, .* found "role"$/],
    ['vm1=vhost-user:/a,', undefined, /^expected key=value after a comma, .* found ""$/],
    ['vm1=vhost-user:/a,role=client,role=server', undefined, /expected role once/],
    ['vm1=vhost-user:/a,name=vm2', undefined, /expected name once/],
    ['vm1=vhost-user:/a,role=sever', 'role', /^role: expected "server" or "client", found "sever"$/],
    ['vm1=tun:/a', 'type', /^type: expected one of vhost-user, vduse, tap, .*, found "tun"$/],
    [
      'vm1=tap:',
      'target',
      /^target: expected the name of a network interface, 1 to 15 letters, .* found ""$/,
    ],
    ['vm1=tap:a/b', 'target', /^target: expected the name of a network interface/],
    ['vm1=tap:abcdefghijklmnop', 'target', /^target: expected the name of a network interface/],
    ['vm1=tap:vireo0,role=client', 'role', /^role: expected none for a port of type tap, found "client"$/],
    ['vm1=stream:', 'target', /^target: expected the path of a unix socket/],
    ['vm1=stream:/a,queues=2', 'queues', /^queues: expected none for a port of type stream, found 2$/],
    ['vm1=user:eth0', 'target', /^target: expected nothing behind the colon, .* found "eth0"$/],
    ['vm1=user:,options=a\tb', 'options', /^options: expected options of passt/],
    ['vm1=vxlan:host', 'target', /^target: expected an IP address, with a port or without, .* found "host"$/],
    ['vm1=vxlan:10.0.0.1:70000', 'target', /^target: expected an IP address/],
    ['vm1=vxlan:10.0.0.1,vni=16777216', 'vni', /^vni: expected a whole number from 0 to 16777215, found/],
    ['vm1=null:x', 'target', /^target: expected nothing behind the colon, .* found "x"$/],
    ['vm1=null:,queues=2', 'queues', /^queues: expected none for a port of type null, found 2$/],
    ['=vhost-user:/a', 'name', /^name: expected a port's name of 1 to 63 .* found ""$/],
    ['-x=vhost-user:/a', 'name', /^name: /],
    [`${'n'.repeat(64)}=vhost-user:/a`, 'name', /^name: /],
    ['vm1=vhost-user:', 'target', /^target: expected the path of a unix socket, 1 to 107 bytes/],
    [`vm1=vhost-user:/${'x'.repeat(107)}`, 'target', /^target: .* and more$/],
    [`vm1=vhost-user:/${'ü'.repeat(54)}`, 'target', /^target: /],
    ['vm1=vhost-user:/tmp/\u001b[2J', 'target', /found "\/tmp\/\\u001b\[2J"$/],
    ['vm1=vhost-user:/a,max-addresses=many', 'max-addresses', /whole number from 1 to 65536, found "many"$/],
    ['vm1=vhost-user:/a,max-addresses=0', 'max-addresses', /found 0$/],
    ['vm1=vhost-user:/a,max-adresses=5', 'max-adresses', /unknown key, did you mean max-addresses\?$/],
    [
      'vm1=vhost-user:/a,colour=red',
      'colour',
      /unknown key, expected one of name, type, target, role, max-add/,
    ],
    ['vm1=vhost-user:/a,__proto__=red', '__proto__', /unknown key/],
    ['x'.repeat(100_000), undefined, /at most 1024 characters/],
    ['vm1=vhost-user:/a\0b', undefined, /none of them zero/],
  ];
  for (const [text, field, message] of cases) {
    const error = refused(() => parsePortSpec(text));
    assert.match(error.message, message);
    assert.equal(error.field, field);
  }
});

test('all faults of a port are told at once', () => {
  const { message } = refused(() => checkPortSpec({ name: 1, type: 'x', target: null, role: [], more: 1 }));
  for (const field of ['name', 'type', 'target', 'role', 'more'])
    assert.match(message, new RegExp(`${field}: `));
});

test('what is no port is refused by name', () => {
  for (const value of [null, undefined, 7, [], true]) {
    assert.match(refused(() => checkPortSpec(value)).message, /^expected a port: a map/);
  }
});

test('options of a switch are checked together', () => {
  assert.deepEqual(checkSwitchOptions({}), {});
  assert.deepEqual(checkSwitchOptions({ workers: 2, cpus: [0, 1], ports: ['a=vhost-user:/a'] }), {
    workers: 2,
    cpus: [0, 1],
    ports: [{ name: 'a', type: 'vhost-user', target: '/a' }],
  });
  const cases: [options: unknown, field: string][] = [
    [{ workers: 2, cpus: [0] }, 'cpus'],
    [{ cpus: [] }, 'cpus'],
    [{ cpus: [1, 1] }, 'cpus'],
    [{ cpus: [1.5] }, 'cpus[0]'],
    [{ workers: 33 }, 'workers'],
    [{ workers: '2' }, 'workers'],
    [{ poll: 'fast' }, 'poll'],
    [{ ageing: 0 }, 'ageing'],
    [{ ageing: Number.NaN }, 'ageing'],
    [{ maxAddressesPerPort: 65_537 }, 'maxAddressesPerPort'],
    [{ maxPorts: 2049 }, 'maxPorts'],
    [{ name: '../x' }, 'name'],
    [{ ports: {} }, 'ports'],
    [{ ports: [{ name: 'a', type: 'vhost-user' }] }, 'ports[0].target'],
    [{ ports: ['a=vhost-user:/a', 'a=vhost-user:/b'] }, 'ports[1].name'],
    [{ ports: ['a=vhost-user:/a', 'b=vhost-user:/a'] }, 'ports[1].target'],
    [JSON.parse('{"__proto__":{"workers":3}}'), '__proto__'],
  ];
  for (const [options, field] of cases) assert.equal(refused(() => checkSwitchOptions(options)).field, field);
});

test('a file gives the options of a switch, ports as maps and as lines', () => {
  const file = write(
    'good.yaml',
    `# a laboratory
name: lab
workers: 2
cpus: [0, 2]
poll: busy
ageing: 60
ports:
  - name: vm1
    type: vhost-user
    target: /tmp/a.sock
    maxAddresses: 10
  - vm2=vhost-user:/tmp/b.sock,role=client
`,
  );
  assert.deepEqual(readConfig(file), {
    name: 'lab',
    workers: 2,
    cpus: [0, 2],
    poll: 'busy',
    ageing: 60,
    ports: [
      { name: 'vm1', type: 'vhost-user', target: '/tmp/a.sock', maxAddresses: 10 },
      { name: 'vm2', type: 'vhost-user', target: '/tmp/b.sock', role: 'client' },
    ],
  });
  assert.deepEqual(readConfig(write('empty.yaml', '')), {});
});

test('each fault of a file has its line, column and field, in order, all at once', () => {
  assert.deepEqual(
    faults(`name: lab
worker: 2
workers: 40
ports:
  - name: vm1
    type: vhost-user
    role: sever
  - vm2=vhost-user:/tmp/b.sock
  - { name: vm1, type: tun, target: /tmp/b.sock, max-addresses: 3 }
`),
    [
      'vireo.yaml:2:1: worker: unknown key, did you mean workers?',
      'vireo.yaml:3:10: workers: expected a whole number from 1 to 32, found 40',
      'vireo.yaml:5:5: ports[0].target: expected the path of a unix socket, 1 to 107 bytes, ' +
        'such as "/tmp/vm1.sock", found nothing',
      'vireo.yaml:7:11: ports[0].role: expected "server" or "client", found "sever"',
      'vireo.yaml:9:13: ports[2].name: expected a name of its own, found "vm1", which ports[0] has',
      'vireo.yaml:9:24: ports[2].type: expected one of vhost-user, vduse, tap, af-packet, af-xdp, stream, dgram, pcap, vxlan, user, patch, bond, null, found "tun"',
      'vireo.yaml:9:37: ports[2].target: expected a target of its own, found "/tmp/b.sock", which ports[1] has',
      'vireo.yaml:9:50: ports[2].max-addresses: unknown key, did you mean maxAddresses?',
    ],
  );
});

test('faults of the text have their place too', () => {
  assert.match(faults('ports:\n  - vm3\n')[0]!, /^vireo.yaml:2:5: ports\[0\]: expected NAME=TYPE:TARGET/);
  assert.match(faults('- a\n')[0]!, /^vireo.yaml:1:1: expected the options of a switch: .* found a list$/);
  assert.match(faults('name: a\nports: [\n')[0]!, /^vireo.yaml:3:1: /);
  assert.match(faults('name: a\nname: b\n')[0]!, /^vireo.yaml:2:1: name: expected once, found again$/);
  assert.match(faults('name: !text a\n')[0]!, /^vireo.yaml:1:7: Unresolved tag/);
  assert.match(faults('name: a\n---\nname: b\n')[0]!, /^vireo.yaml:2:1: /);
  assert.match(faults('__proto__:\n  workers: 2\n')[0]!, /^vireo.yaml:1:1: __proto__: unknown key/);
});

test('a fault behind an alias is told at its anchor', () => {
  const text = 'ports:\n  - &port { name: a, type: tun, target: /tmp/a }\n  - *port\n';
  assert.match(faults(text).join('\n'), /^vireo.yaml:2:28: ports\[1\].type: expected one of/m);
});

test('texts made to exhaust the parser end with an error', () => {
  const alias = (name: string, of: string) => `${name}: &${name} [${Array(9).fill(`*${of}`)}]\n`;
  const bomb = `a: &a [1,2,3,4,5,6,7,8,9]\n${alias('b', 'a')}${alias('c', 'b')}${alias('d', 'c')}${alias('e', 'd')}`;
  assert.match(faults(bomb)[0]!, /^vireo.yaml: can't be read as YAML: .*alias/i);
  for (const opening of ['[', '{', '- ', '? ']) {
    assert.match(faults(opening.repeat(50_000))[0]!, /nested too deep$/);
  }
  const keys = Array.from({ length: 30_000 }, (_, i) => `k${i.toString(36)}:`).join('\n');
  assert.match(faults(keys)[0]!, /^vireo.yaml:1:1: k0: unknown key/);
  assert.match(
    faults(`ports:\n${'- 1\n'.repeat(30_000)}`)[0]!,
    /^vireo.yaml:2:3: ports\[0\]: expected a port/,
  );
  assert.ok(faults('&a [*a]').length > 0);
});

test('what is no configuration file is named', () => {
  const told = (file: string) => {
    const error = refused(() => readConfig(file));
    assert.ok(error instanceof ConfigError);
    assert.ok(error.message.startsWith(file));
    return error.message.slice(file.length);
  };
  assert.equal(told(directory), ': expected a YAML file, found a directory');
  assert.equal(told(join(directory, 'nothing.yaml')), ": can't be read: no such file or directory");
  const fifo = join(directory, 'fifo');
  execFileSync('mkfifo', [fifo]);
  assert.equal(told(fifo), ': expected a YAML file, found a device, pipe or socket');
  const huge = write('huge.yaml', '');
  truncateSync(huge, 2 ** 40);
  assert.equal(told(huge), `: expected a file of at most 262144 bytes, found ${2 ** 40} bytes`);
  const binary = write('binary.yaml', Buffer.from('name: a\nports:\n - \xff\xfe', 'latin1'));
  assert.match(told(binary), /^:3:4: expected text in UTF-8/);
});

test('what people write wrongly is told with its place, and with what to write', () => {
  // Columns are checked above.
  const told = (text: string) => faults(text).map((line) => line.replace(/:\d+: /, ': '));
  const ports = (...lines: string[]) => told(['ports:', ...lines.map((line) => `  - ${line}`)].join('\n'));
  const vm1 = '{ name: vm1, type: vhost-user, target: /tmp/a.sock';
  assert.deepEqual(ports(`${vm1}, vlan: 10, trunk: 10+20 }`), [
    'vireo.yaml:2: ports[0].trunk: expected none beside vlan=10, the one VLAN of the port, found 10+20',
  ]);
  assert.deepEqual(ports(`${vm1}, rate-in: 1Mbit }`, 'vm2=vhost-user:/tmp/b.sock,vlans=10'), [
    'vireo.yaml:2: ports[0].rate-in: unknown key, did you mean rateIn?',
    'vireo.yaml:3: ports[1].vlans: unknown key, did you mean vlan?',
  ]);
  assert.deepEqual(ports(`${vm1}, rateOut: 100, delayOut: 10 }`), [
    'vireo.yaml:2: ports[0].rateOut: expected a rate of bits such as "100Mbit", 1kbit to 1000Gbit, found 100',
    'vireo.yaml:2: ports[0].delayOut: expected a duration such as "10ms", 0ns to 60s, found 10',
  ]);
  assert.deepEqual(ports(`${vm1} }`, '{ name: vm1, type: vhost-user, target: /tmp/b.sock }'), [
    'vireo.yaml:3: ports[1].name: expected a name of its own, found "vm1", which ports[0] has',
  ]);
  assert.deepEqual(told(`bridges: [name: lab]\nports:\n  - ${vm1}, bridge: Lab }`), [
    'vireo.yaml:3: ports[0].bridge: expected one of the bridges default, lab, found "Lab"',
  ]);
  const entered =
    'fdb:\n  - { mac: 52:54:00:12:34:56, port: vm2 }\ngroups:\n  - { group: 239.1.1.1, port: vm3 }';
  assert.deepEqual(told(`ports:\n  - ${vm1} }\n${entered}`), [
    'vireo.yaml:4: fdb[0].port: expected a port that is there (vm1), found "vm2"',
    'vireo.yaml:6: groups[0].port: expected a port that is there (vm1), found "vm3"',
  ]);
  // Of ports that run.
  assert.equal(parseConfig(entered, 'vireo.yaml').fdb!.length, 1);
  assert.deepEqual(told('ports:\n  vm1:\n    type: vhost-user'), [
    'vireo.yaml:2: ports: expected a list of ports, each behind a "-", found a map',
  ]);
  const [indented, ...others] = told('ports:\n- name: vm1\n  type: vhost-user\n   vlan: 10\n');
  assert.match(
    indented!,
    /^vireo.yaml:3: expected "key: value", indented as the lines that it belongs to, found/,
  );
  assert.deepEqual(others, []);
});
