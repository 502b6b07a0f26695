import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { ControlError, findSwitch } from '../../src/api/client.ts';
import { controlDirectory, controlPath, probe, runningSwitches } from '../../src/api/path.ts';
import type { SwitchControl } from '../../src/api/routes.ts';
import { type ControlLimits, type ControlServer, serveControl } from '../../src/api/server.ts';
import { SwitchError } from '../../src/switch/errors.ts';
import {
  changeBridgeSpec,
  changeMirrorSpec,
  changePortSpec,
  checkAddressSpec,
  checkBridgeSpec,
  checkGroupSpec,
  checkMirrorSpec,
} from '../../src/switch/spec.ts';
import type {
  AddressFilter,
  AddressSpec,
  Applied,
  BridgeChange,
  BridgeSpec,
  BridgeStatus,
  FdbEntry,
  GroupSpec,
  GroupsStatus,
  MirrorChange,
  MirrorSpec,
  MirrorStatus,
  PortChange,
  PortDetail,
  PortSpec,
  PortStatus,
  SwitchOptions,
  SwitchStatus,
} from '../../src/switch/types.ts';

const directory = mkdtempSync(join(tmpdir(), 'vireo-api-'));
after(() => rmSync(directory, { recursive: true }));
let sockets = 0;
const newPath = () => join(directory, `${++sockets}.sock`);

/** A switch as the API sees it, without packets: ports and addresses in memory. */
class Table implements SwitchControl {
  readonly name = 'table';
  readonly #ports = new Map<string, PortSpec>();
  readonly #bridges = new Map<string, BridgeSpec>([['default', { name: 'default' }]]);
  readonly #mirrors = new Map<string, MirrorSpec>();
  addresses: FdbEntry[] = [
    { mac: '52:54:00:00:00:01', bridge: 'default', vlan: 0, port: 'vm1', static: false, age: 1 },
    { mac: '52:54:00:00:00:02', bridge: 'default', vlan: 0, port: 'vm2', static: false, age: 2 },
  ];

  async addPort(spec: PortSpec): Promise<void> {
    if (this.#ports.has(spec.name)) throw new SwitchError('PORT_EXISTS', `port ${spec.name} exists`, 'name');
    if (this.#ports.size === 3) throw new SwitchError('LIMIT', 'the switch has 3 ports');
    this.#ports.set(spec.name, spec);
  }

  async removePort(name: string): Promise<void> {
    this.port(name);
    this.#ports.delete(name);
  }

  async setPort(name: string, change: PortChange): Promise<void> {
    this.port(name);
    this.#ports.set(name, changePortSpec(this.#ports.get(name)!, change));
  }

  ports(): PortStatus[] {
    return [...this.#ports.keys()].map((name) => this.port(name));
  }

  port(name: string): PortDetail {
    const spec = this.#ports.get(name);
    if (spec === undefined) throw new SwitchError('NO_SUCH_PORT', `no port ${name}`);
    return {
      role: 'server',
      ...spec,
      state: 'listening',
      rings: '',
      lastError: null,
      mtu: null,
      driverStatus: '',
      features: { offered: [], acknowledged: [], missing: [] },
      protocolFeatures: { offered: [], acknowledged: [] },
      queues: [],
      memory: [],
      drops: {},
      filtered: 0,
      addresses: { learned: 0, limit: spec.maxAddresses ?? 4096 },
      connections: 0,
      rules: spec.isolated === undefined ? {} : { isolated: spec.isolated },
      mirrors: { from: [], to: [] },
      rxPackets: 0,
      rxBytes: 0,
      rxDrops: 0,
      txPackets: 0,
      txBytes: 0,
      txDrops: 0,
    };
  }

  async addBridge(spec: BridgeSpec): Promise<void> {
    const { name } = checkBridgeSpec(spec);
    if (this.#bridges.has(name)) throw new SwitchError('BRIDGE_EXISTS', `bridge ${name} exists`, 'name');
    this.#bridges.set(name, spec);
  }

  async setBridge(name: string, change: BridgeChange): Promise<void> {
    this.bridge(name);
    this.#bridges.set(name, changeBridgeSpec(this.#bridges.get(name)!, change));
  }

  async removeBridge(name: string): Promise<void> {
    this.bridge(name);
    this.#bridges.delete(name);
  }

  bridges(): BridgeStatus[] {
    return [...this.#bridges.keys()].map((name) => this.bridge(name));
  }

  bridge(name: string): BridgeStatus {
    const spec = this.#bridges.get(name);
    if (spec === undefined) throw new SwitchError('NO_SUCH_BRIDGE', `no bridge ${name}`);
    return {
      ageing: 300,
      snooping: false,
      querier: false,
      ...spec,
      vlans: false,
      reserved: 'pass',
      ports: [],
      addresses: 0,
    };
  }

  async addMirror(spec: MirrorSpec): Promise<void> {
    const { name } = checkMirrorSpec(spec);
    if (this.#mirrors.has(name)) throw new SwitchError('MIRROR_EXISTS', `mirror ${name} exists`, 'name');
    this.#mirrors.set(name, spec);
  }

  async setMirror(name: string, change: MirrorChange): Promise<void> {
    this.mirror(name);
    this.#mirrors.set(name, changeMirrorSpec(this.#mirrors.get(name)!, change));
  }

  async removeMirror(name: string): Promise<void> {
    this.mirror(name);
    this.#mirrors.delete(name);
  }

  mirrors(): MirrorStatus[] {
    return [...this.#mirrors.keys()].map((name) => this.mirror(name));
  }

  mirror(name: string): MirrorStatus {
    const spec = this.#mirrors.get(name);
    if (spec === undefined) throw new SwitchError('NO_SUCH_MIRROR', `no mirror ${name}`);
    return { from: 'any', direction: 'both', ...spec, ports: [], copied: 0, lost: 0, error: null };
  }

  config(): SwitchOptions {
    return { name: this.name, ports: [...this.#ports.values()] };
  }

  async apply({ ports = [] }: SwitchOptions): Promise<Applied> {
    if (ports.length > 3) throw new SwitchError('BAD_SPEC', 'ports: too many', 'ports');
    this.#ports.clear();
    for (const spec of ports) this.#ports.set(spec.name, spec);
    const added = [...this.#ports.keys()];
    const none = { added: [], removed: [], changed: [] };
    return {
      added,
      removed: [],
      changed: [],
      unchanged: [],
      bridges: none,
      fdb: none,
      groups: none,
      mirrors: { added: [], removed: [], changed: [], failed: [] },
      settings: [],
      failed: [],
    };
  }

  async capture(): Promise<never> {
    throw new SwitchError('LIMIT', 'a table has no frames');
  }

  stopCapture(id: number): void {
    throw new SwitchError('NO_SUCH_CAPTURE', `no capture ${id}`);
  }

  fdb(): FdbEntry[] {
    return this.addresses;
  }

  async flushFdb({ port }: AddressFilter = {}): Promise<number> {
    if (port !== undefined) this.port(port);
    const kept = this.addresses.filter((entry) => port !== undefined && entry.port !== port);
    const flushed = this.addresses.length - kept.length;
    this.addresses = kept;
    return flushed;
  }

  async addAddress(spec: AddressSpec): Promise<void> {
    const { mac, port, vlan = 0 } = checkAddressSpec(spec);
    this.port(port);
    this.addresses.push({ mac, bridge: 'default', vlan, port, static: true, age: 0 });
  }

  readonly entered: GroupSpec[] = [];

  groups(): GroupsStatus {
    const groups = this.entered.map(({ group, port, vlan = 0 }) => ({
      bridge: 'default',
      vlan,
      group,
      ports: [{ port, static: true, expires: null }],
    }));
    return { groups, routers: [] };
  }

  async addGroup(spec: GroupSpec): Promise<GroupSpec> {
    const checked = checkGroupSpec(spec);
    this.port(checked.port);
    this.entered.push(checked);
    return checked;
  }

  async removeGroup(group: string, { vlan }: AddressFilter = {}): Promise<void> {
    const at = this.entered.findIndex((spec) => spec.group === group && (vlan ?? 0) === (spec.vlan ?? 0));
    if (at < 0) throw new SwitchError('NO_SUCH_GROUP', `no group ${group}`, 'group');
    this.entered.splice(at, 1);
  }

  async removeAddress(mac: string): Promise<void> {
    const kept = this.addresses.filter((entry) => !entry.static || entry.mac !== mac);
    if (kept.length === this.addresses.length) throw new SwitchError('NO_SUCH_ADDRESS', `no ${mac}`);
    this.addresses = kept;
  }

  status(): SwitchStatus {
    if (this.#ports.has('broken')) throw new Error('the status is broken');
    return {
      name: this.name,
      version: '0.0.0',
      pid: process.pid,
      uptime: 1,
      node: process.version,
      poll: 'adaptive',
      ports: this.#ports.size,
      workers: [],
      fdb: { entries: this.addresses.length, limit: 65_536, ageing: 300, maxAddressesPerPort: 4096 },
      residentBytes: 1,
    };
  }
}

async function withServer(
  use: (path: string, table: Table, server: ControlServer) => Promise<void>,
  limits?: ControlLimits,
): Promise<void> {
  const table = new Table();
  const server = await serveControl(table, newPath(), limits);
  try {
    await use(server.path, table, server);
  } finally {
    await server.close();
  }
}

interface Answer {
  status: number;
  headers: NodeJS.Dict<string | string[]>;
  // biome-ignore lint/suspicious/noExplicitAny: the tests look into JSON of all shapes.
  body: any;
}

/** One request as any HTTP client makes it. */
function ask(
  socketPath: string,
  method: string,
  path: string,
  body?: string,
  headers: Record<string, string> = body === undefined ? {} : { 'content-type': 'application/json' },
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const call = request({ socketPath, method, path, headers, agent: false }, async (response) => {
      let text = '';
      for await (const chunk of response.setEncoding('utf8')) text += chunk;
      const body = text === '' ? undefined : JSON.parse(text);
      resolve({ status: response.statusCode ?? 0, headers: response.headers, body });
    });
    call.on('error', reject);
    call.end(body);
  });
}

/** Sends bytes as they are, and with `end` nothing after them; all that comes back until the other side closes. */
async function raw(path: string, bytes: string | Buffer, end = true): Promise<string> {
  const socket = connect(path);
  const answer = drain(socket);
  if (end) socket.end(bytes);
  else socket.write(bytes);
  return answer;
}

async function drain(socket: Socket): Promise<string> {
  let text = '';
  socket.on('data', (chunk) => {
    text += chunk;
  });
  // The server resets a connection whose bytes it won't read.
  socket.on('error', () => {});
  await new Promise((resolve) => socket.on('close', resolve));
  return text;
}

async function refusedWith(code: string, call: Promise<unknown>): Promise<ControlError> {
  try {
    await call;
  } catch (error) {
    assert.ok(error instanceof ControlError, String(error));
    assert.equal(error.code, code);
    return error;
  }
  return assert.fail(`expected ${code}`);
}

const vm1: PortSpec = {
  name: 'vm1',
  type: 'vhost-user',
  target: '/tmp/a.sock',
  role: 'client',
  maxAddresses: 7,
};

test('the client does through the socket what the switch does', () =>
  withServer(async (path, table) => {
    const client = await findSwitch({ control: path });
    assert.deepEqual(await client.status(), table.status());
    assert.deepEqual(await client.ports(), []);
    assert.deepEqual(await client.addPort(vm1), table.port('vm1'));
    assert.equal((await client.port('vm1')).addresses.limit, 7);
    assert.deepEqual(await client.ports(), table.ports());
    assert.deepEqual(await client.fdb(), table.addresses);
    assert.deepEqual(await client.flushFdb({ port: 'vm1' }), { flushed: 1 });
    assert.deepEqual(await client.fdb(), [
      { mac: '52:54:00:00:00:02', bridge: 'default', vlan: 0, port: 'vm2', static: false, age: 2 },
    ]);
    assert.deepEqual(await client.flushFdb(), { flushed: 1 });
    assert.equal(await client.removePort('vm1'), undefined);
    assert.deepEqual(await client.ports(), []);
  }));

test('ports are entered into groups, listed and taken out', () =>
  withServer(async (path, table) => {
    const client = await findSwitch({ control: path });
    await client.addPort(vm1);
    const spec = { group: 'FF3E:0::1', port: 'vm1', vlan: 7 };
    assert.deepEqual(await client.addGroup(spec), { ...spec, group: 'ff3e::1' });
    await client.addGroup({ group: '239.1.1.1', port: 'vm1' });
    assert.deepEqual(await client.groups(), table.groups());
    assert.deepEqual(
      (await client.groups({ vlan: 7, port: 'vm1', bridge: 'default' })).groups.map(({ group }) => group),
      ['ff3e::1'],
    );
    assert.deepEqual((await client.groups({ vlan: 8 })).groups, []);
    await refusedWith('NO_SUCH_PORT', client.groups({ port: 'vm9' }));
    await refusedWith('NO_SUCH_BRIDGE', client.groups({ bridge: 'x' }));
    await refusedWith('NO_SUCH_GROUP', client.removeGroup('239.1.1.2'));
    const error = await refusedWith('BAD_SPEC', client.addGroup({ group: '224.0.0.5', port: 'vm1' }));
    assert.match(
      error.message,
      /^group: expected the address of a group that is joined, .*, found "224.0.0.5"$/,
    );
    await client.removeGroup('ff3e::1', { vlan: 7 });
    assert.deepEqual(table.entered, [{ group: '239.1.1.1', port: 'vm1' }]);
  }));

test('a configuration is read and applied', () =>
  withServer(async (path) => {
    const client = await findSwitch({ control: path });
    const wanted = { ports: [vm1] };
    assert.deepEqual((await client.apply(wanted)).added, ['vm1']);
    assert.deepEqual(await client.config(), { name: 'table', ...wanted });
    await refusedWith('BAD_SPEC', client.apply({ ports: [vm1, vm1, vm1, vm1] }));
  }));

test('what the switch refuses keeps its code and field', () =>
  withServer(async (path) => {
    const client = await findSwitch({ control: path });
    await client.addPort(vm1);
    assert.equal((await refusedWith('PORT_EXISTS', client.addPort(vm1))).field, 'name');
    await refusedWith('NO_SUCH_PORT', client.port('vm9'));
    await refusedWith('NO_SUCH_PORT', client.removePort('a/../b?c=%'));
    await refusedWith('NO_SUCH_PORT', client.flushFdb({ port: 'vm9' }));
    const bad = { ...vm1, role: 'sever' } as unknown as PortSpec;
    const error = await refusedWith('BAD_SPEC', client.addPort(bad));
    assert.equal(error.field, 'role');
    assert.match(error.message, /^role: expected "server" or "client", found "sever"$/);
  }));

test('answers carry the status that HTTP has for them', () =>
  withServer(async (path, table) => {
    const json = (value: unknown) => JSON.stringify(value);
    const cases: [status: number, code: string | undefined, method: string, path: string, body?: string][] = [
      [200, undefined, 'GET', '/v1/status'],
      [200, undefined, 'GET', '/v1/status?'],
      [201, undefined, 'POST', '/v1/ports', json(vm1)],
      [201, undefined, 'POST', '/v1/ports', json({ spec: 'vm2=vhost-user:/tmp/b.sock,role=client' })],
      [409, 'PORT_EXISTS', 'POST', '/v1/ports', json(vm1)],
      [201, undefined, 'POST', '/v1/ports', json({ ...vm1, name: 'vm3' })],
      [409, 'LIMIT', 'POST', '/v1/ports', json({ ...vm1, name: 'vm4' })],
      [200, undefined, 'GET', '/v1/ports/vm1'],
      [200, undefined, 'GET', '/v1/ports/%76m1'],
      [200, undefined, 'GET', '/v1/config'],
      [400, 'BAD_SPEC', 'PUT', '/v1/config', '{"ports":[1,2,3,4]}'],
      [400, 'BAD_REQUEST', 'PUT', '/v1/config', '{'],
      [405, 'METHOD_NOT_ALLOWED', 'POST', '/v1/config', '{}'],
      [200, undefined, 'GET', '/v1/bridges'],
      [201, undefined, 'POST', '/v1/bridges', json({ name: 'lab', ageing: 60 })],
      [409, 'BRIDGE_EXISTS', 'POST', '/v1/bridges', json({ name: 'lab' })],
      [400, 'BAD_SPEC', 'POST', '/v1/bridges', json({ name: '' })],
      [400, 'BAD_SPEC', 'POST', '/v1/bridges', json([])],
      [400, 'BAD_SPEC', 'POST', '/v1/bridges', json(null)],
      [200, undefined, 'GET', '/v1/bridges/lab'],
      [404, 'NO_SUCH_BRIDGE', 'GET', '/v1/bridges/lob'],
      [200, undefined, 'PATCH', '/v1/bridges/lab', json({ ageing: null })],
      [400, 'BAD_SPEC', 'PATCH', '/v1/bridges/lab', json({ ageing: 0 })],
      [400, 'BAD_SPEC', 'PATCH', '/v1/bridges/lab', json({ name: 'x' })],
      [400, 'BAD_SPEC', 'PATCH', '/v1/bridges/lab', '{"__proto__":{"ageing":1}}'],
      [404, 'NO_SUCH_BRIDGE', 'PATCH', '/v1/bridges/lob', json({})],
      [405, 'METHOD_NOT_ALLOWED', 'PUT', '/v1/bridges/lab', json({})],
      [204, undefined, 'DELETE', '/v1/bridges/lab'],
      [404, 'NO_SUCH_BRIDGE', 'DELETE', '/v1/bridges/lab'],
      [201, undefined, 'POST', '/v1/mirrors', json({ name: 'm', to: 'vm2' })],
      [409, 'MIRROR_EXISTS', 'POST', '/v1/mirrors', json({ name: 'm', to: 'vm2' })],
      [400, 'BAD_SPEC', 'POST', '/v1/mirrors', json({ name: 'n' })],
      [400, 'BAD_SPEC', 'POST', '/v1/mirrors', json(null)],
      [400, 'BAD_SPEC', 'POST', '/v1/mirrors', json([])],
      [200, undefined, 'GET', '/v1/mirrors'],
      [200, undefined, 'GET', '/v1/mirrors/m'],
      [200, undefined, 'PATCH', '/v1/mirrors/m', json({ direction: 'in' })],
      [400, 'BAD_SPEC', 'PATCH', '/v1/mirrors/m', json({ to: null })],
      [400, 'BAD_SPEC', 'PATCH', '/v1/mirrors/m', json({ name: 'n' })],
      [404, 'NO_SUCH_MIRROR', 'PATCH', '/v1/mirrors/n', json({ direction: 'in' })],
      [405, 'METHOD_NOT_ALLOWED', 'PUT', '/v1/mirrors/m', json({})],
      [204, undefined, 'DELETE', '/v1/mirrors/m'],
      [404, 'NO_SUCH_MIRROR', 'GET', '/v1/mirrors/m'],
      [404, 'NO_SUCH_MIRROR', 'DELETE', '/v1/mirrors/m'],
      [200, undefined, 'GET', '/v1/fdb?port=vm1'],
      [404, 'NO_SUCH_PORT', 'GET', '/v1/fdb?port=vm9'],
      [404, 'NO_SUCH_PORT', 'GET', '/v1/ports/vm9'],
      [404, 'NO_SUCH_PORT', 'DELETE', '/v1/ports/__proto__'],
      [400, 'BAD_REQUEST', 'GET', '/v1/ports/%zz'],
      [404, 'NO_SUCH_PORT', 'DELETE', '/v1/fdb?port=vm1?x'],
      [404, 'NO_SUCH_PORT', 'DELETE', '/v1/fdb?port='],
      [400, 'BAD_REQUEST', 'DELETE', '/v1/fdb?prot=vm1'],
      [400, 'BAD_REQUEST', 'DELETE', '/v1/fdb?port=vm1&port=vm2'],
      [400, 'BAD_REQUEST', 'GET', '/v1/status?verbose'],
      [404, 'NOT_FOUND', 'GET', '/'],
      [404, 'NOT_FOUND', 'GET', '/v1/ports/'],
      [404, 'NOT_FOUND', 'GET', '//v1/status'],
      [404, 'NOT_FOUND', 'GET', '/v1/ports/vm1/queues'],
      [405, 'METHOD_NOT_ALLOWED', 'PUT', '/v1/ports', '{}'],
      [405, 'METHOD_NOT_ALLOWED', 'PUT', '/v1/fdb', '{}'],
      [400, 'BAD_SPEC', 'POST', '/v1/fdb', '{}'],
      [400, 'BAD_SPEC', 'POST', '/v1/fdb', json({ mac: 'ff:ff:ff:ff:ff:ff', port: 'vm1' })],
      [404, 'NO_SUCH_PORT', 'POST', '/v1/fdb', json({ mac: '52:54:00:00:00:09', port: 'vm9' })],
      [201, undefined, 'POST', '/v1/fdb', json({ mac: '52:54:00:00:00:09', port: 'vm1', vlan: 3 })],
      [204, undefined, 'DELETE', '/v1/fdb/52:54:00:00:00:09?vlan=3'],
      [404, 'NO_SUCH_ADDRESS', 'DELETE', '/v1/fdb/52%3A54:00:00:00:09'],
      [400, 'BAD_REQUEST', 'DELETE', '/v1/fdb/52:54:00:00:00:09?static=true'],
      [405, 'METHOD_NOT_ALLOWED', 'GET', '/v1/fdb/52:54:00:00:00:09'],
      [400, 'BAD_REQUEST', 'GET', '/v1/fdb?vlan=4095'],
      [400, 'BAD_REQUEST', 'DELETE', '/v1/fdb?vlan=ten'],
      [400, 'BAD_REQUEST', 'DELETE', '/v1/fdb?static=no'],
      [404, 'NO_SUCH_BRIDGE', 'GET', '/v1/fdb?bridge=lob'],
      [200, undefined, 'GET', '/v1/fdb?bridge=default&vlan=3'],
      [405, 'METHOD_NOT_ALLOWED', 'PUT', '/v1/ports/vm1', '{}'],
      [415, 'UNSUPPORTED_MEDIA_TYPE', 'PATCH', '/v1/ports/vm1'],
      [200, undefined, 'PATCH', '/v1/ports/vm1', '{"isolated":true}'],
      [200, undefined, 'PATCH', '/v1/ports/vm1', '{"isolated":null}'],
      [400, 'BAD_SPEC', 'PATCH', '/v1/ports/vm1', '{"isolated":"so"}'],
      [400, 'BAD_SPEC', 'PATCH', '/v1/ports/vm1', '{"name":"x"}'],
      [400, 'BAD_SPEC', 'PATCH', '/v1/ports/vm1', '{"__proto__":{"isolated":true}}'],
      [400, 'BAD_SPEC', 'PATCH', '/v1/ports/vm1', '[]'],
      [404, 'NO_SUCH_PORT', 'PATCH', '/v1/ports/vm9', '{}'],
      [400, 'BAD_REQUEST', 'POST', '/v1/ports', '{"name":'],
      [400, 'BAD_REQUEST', 'POST', '/v1/ports', ''],
      [400, 'BAD_REQUEST', 'POST', '/v1/ports', '"vm1=vhost-user:/a"'],
      [400, 'BAD_REQUEST', 'POST', '/v1/ports', json({ spec: 'a=vhost-user:/a', role: 'client' })],
      [400, 'BAD_REQUEST', 'POST', '/v1/ports', json({ spec: { name: 'a' } })],
      [400, 'BAD_SPEC', 'POST', '/v1/ports', json({ spec: 'vm9' })],
      [400, 'BAD_SPEC', 'POST', '/v1/ports', json([])],
      [400, 'BAD_SPEC', 'POST', '/v1/ports', json(null)],
      [400, 'BAD_SPEC', 'POST', '/v1/ports', json({ name: 7, type: {}, target: [], role: null })],
      [
        400,
        'BAD_SPEC',
        'POST',
        '/v1/ports',
        '{"__proto__":{"name":"x"},"name":"x","type":"vhost-user","target":"/x"}',
      ],
      [400, 'BAD_REQUEST', 'POST', '/v1/ports', '['.repeat(500_000)],
      [400, 'BAD_SPEC', 'POST', '/v1/ports', `${'['.repeat(300_000)}${']'.repeat(300_000)}`],
      [413, 'TOO_LARGE', 'POST', '/v1/ports', ' '.repeat(1024 * 1024 + 1)],
      [204, undefined, 'DELETE', '/v1/ports/vm1'],
      [404, 'NO_SUCH_PORT', 'DELETE', '/v1/ports/vm1'],
      [200, undefined, 'DELETE', '/v1/fdb'],
    ];
    for (const [status, code, method, route, body] of cases) {
      const answer = await ask(path, method, route, body);
      const what = `${method} ${route} ${body?.slice(0, 80) ?? ''}`;
      assert.equal(answer.status, status, what);
      assert.equal(answer.body?.error?.code, code, what);
      if (status !== 204) assert.equal(answer.headers['content-type'], 'application/json', what);
      if (code !== undefined) assert.ok(answer.body.error.message.length < 2_000, what);
    }
    assert.deepEqual((await ask(path, 'PUT', '/v1/ports', '{}')).headers.allow, 'GET, POST');
    assert.equal((await ask(path, 'HEAD', '/v1/status')).status, 405);
    assert.equal(table.ports().length, 2);
  }));

test('only JSON is taken for JSON', () =>
  withServer(async (path, table) => {
    const body = JSON.stringify(vm1);
    for (const type of ['application/x-www-form-urlencoded', 'text/plain', 'application/jsonp', '']) {
      const answer = await ask(path, 'POST', '/v1/ports', body, { 'content-type': type });
      assert.equal(answer.status, 415, type);
      assert.equal(answer.body.error.code, 'UNSUPPORTED_MEDIA_TYPE');
    }
    assert.equal(table.ports().length, 0);
    const utf8 = { 'content-type': 'Application/JSON; charset=utf-8' };
    assert.equal((await ask(path, 'POST', '/v1/ports', body, utf8)).status, 201);
  }));

test('a failure inside is an answer too', () =>
  withServer(async (path) => {
    await ask(path, 'POST', '/v1/ports', JSON.stringify({ ...vm1, name: 'broken' }));
    const answer = await ask(path, 'GET', '/v1/status');
    assert.equal(answer.status, 500);
    assert.deepEqual(answer.body, { error: { code: 'INTERNAL', message: 'the status is broken' } });
    assert.equal((await ask(path, 'GET', '/v1/ports')).status, 200);
  }));

test('one connection serves request after request', () =>
  withServer(async (path) => {
    const get = 'GET /v1/ports HTTP/1.1\r\nhost: x\r\n\r\n';
    const last = 'GET /v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n';
    const text = await raw(path, get + get + last);
    assert.equal(text.match(/HTTP\/1\.1 200 OK/g)?.length, 3);
  }));

test('bytes that are no request are refused and the switch goes on', () =>
  withServer(async (path) => {
    const head = 'POST /v1/ports HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n';
    const cases: [bytes: string | Buffer, answer: RegExp][] = [
      ['\0\xff\xfe garbage\r\n\r\n', /^HTTP\/1\.1 400 /],
      [Buffer.alloc(100_000, 0xaa), /^HTTP\/1\.1 400 /],
      ['GET /v1/status HTTP/9.9\r\n\r\n', /^HTTP\/1\.1 400 /],
      ['GET /v1/status HTTP/1.1\r\n\r\n', /^HTTP\/1\.1 400 /],
      [`${head}content-length: x\r\n\r\n`, /^HTTP\/1\.1 400 /],
      [`${head}content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n`, /^HTTP\/1\.1 400 /],
      [`${head}content-length: 9999999999\r\n\r\n`, /^HTTP\/1\.1 413 /],
      [`${head}transfer-encoding: chunked\r\n\r\nzz\r\n`, /^HTTP\/1\.1 400 /],
      [`GET /${'x'.repeat(20_000)} HTTP/1.1\r\n\r\n`, /^HTTP\/1\.1 431 /],
      [`GET / HTTP/1.1\r\nx: ${'y'.repeat(20_000)}\r\n\r\n`, /^HTTP\/1\.1 431 /],
      ['CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n', /^$/],
    ];
    for (const [bytes, answer] of cases) {
      assert.match(await raw(path, bytes), answer, String(bytes).slice(0, 60));
      assert.equal((await ask(path, 'GET', '/v1/status')).status, 200);
    }
  }));

test('a body that grows beyond its bound is cut off', () =>
  withServer(async (path) => {
    const socket = connect(path);
    const answered = drain(socket);
    socket.write('POST /v1/ports HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n');
    socket.write('transfer-encoding: chunked\r\n\r\n');
    const chunk = `10000\r\n${' '.repeat(0x10000)}\r\n`;
    for (let i = 0; i < 64; i++) socket.write(chunk);
    socket.end('0\r\n\r\n');
    assert.match(await answered, /^HTTP\/1\.1 413 /);
    assert.equal((await ask(path, 'GET', '/v1/status')).status, 200);
  }));

test('a client that dawdles is ended while others are served', () =>
  withServer(
    async (path) => {
      const slow = [
        '',
        'GET /v1/sta',
        'GET /v1/status HTTP/1.1\r\nhost: x\r\n',
        'POST /v1/ports HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{',
      ].map((bytes) => raw(path, bytes, false));
      assert.equal((await ask(path, 'GET', '/v1/status')).status, 200);
      const answers = await Promise.all(slow);
      for (const answer of answers.slice(1)) assert.match(answer, /^HTTP\/1\.1 408 /);
      assert.equal((await ask(path, 'GET', '/v1/status')).status, 200);
    },
    { headersTimeout: 200, requestTimeout: 400, idleTimeout: 2_000 },
  ));

test('more connections than allowed are turned away until others leave', () =>
  withServer(
    async (path) => {
      const held = Array.from({ length: 4 }, () => connect(path));
      await Promise.all(held.map((socket) => once(socket, 'connect')));
      await assert.rejects(ask(path, 'GET', '/v1/status'));
      for (const socket of held) socket.destroy();
      const served = async () => (await ask(path, 'GET', '/v1/status').catch(() => undefined))?.status;
      while ((await served()) !== 200) await new Promise((resolve) => setTimeout(resolve, 10));
    },
    { connections: 4 },
  ));

test('clients that leave at any moment leave nothing behind', () =>
  withServer(async (path) => {
    const descriptors = () => readdirSync('/proc/self/fd').length;
    const before = descriptors();
    const bytes = `POST /v1/ports HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 80\r\n\r\n{`;
    for (let length = 0; length <= bytes.length; length++) {
      const socket = connect(path);
      await once(socket, 'connect');
      socket.end(bytes.slice(0, length));
      socket.destroy();
      await once(socket, 'close');
    }
    assert.equal((await ask(path, 'GET', '/v1/status')).status, 200);
    while (descriptors() > before) await new Promise((resolve) => setTimeout(resolve, 10));
  }));

test('the socket is for its owner alone and goes when the server goes', async () => {
  const path = join(directory, 'new', 'deep', 'a.sock');
  const umask = process.umask(0);
  const server = await serveControl(new Table(), path).finally(() => process.umask(umask));
  assert.equal(statSync(path).mode & 0o777, 0o600);
  assert.equal(statSync(join(directory, 'new', 'deep')).mode & 0o777, 0o700);
  assert.equal(statSync(join(directory, 'new')).mode & 0o777, 0o700);
  const open = connect(path);
  await once(open, 'connect');
  const closed = once(open, 'close');
  await server.close();
  await closed;
  assert.equal(existsSync(path), false);
});

test('a path in use is refused, a stale one is replaced', async () => {
  const path = newPath();
  const refused = async (call: Promise<unknown>, message: RegExp) => {
    const error = await call.then(
      () => assert.fail('was not refused'),
      (error) => error,
    );
    assert.ok(error instanceof SwitchError, String(error));
    assert.equal(error.code, 'SOCKET');
    assert.match(error.message, message);
  };

  const first = await serveControl(new Table(), path);
  await refused(
    serveControl(new Table(), path),
    /a switch runs there; name this one other than 'table' with --name/,
  );
  assert.equal((await ask(path, 'GET', '/v1/status')).status, 200);
  await first.close();

  // A process that is killed leaves its socket behind.
  const script = `require('node:net').createServer().listen(${JSON.stringify(path)}, () => console.log('listens'))`;
  const child = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(child.stdout, 'data');
  child.kill('SIGKILL');
  await once(child, 'close');
  assert.equal(await probe(path), 'stale');
  const second = await serveControl(new Table(), path);
  assert.equal((await ask(path, 'GET', '/v1/status')).status, 200);
  await second.close();
  assert.equal(await probe(path), 'absent');

  const file = newPath();
  writeFileSync(file, 'precious');
  await refused(serveControl(new Table(), file), /it is no socket/);
  assert.equal(statSync(file).size, 8);
  await refused(serveControl(new Table(), join(file, 'x.sock')), /can't be used: /);
  await refused(serveControl(new Table(), `/tmp/${'x'.repeat(110)}`), /more than 107 bytes/);
});

test('the client finds the only switch, and asks for a name among several', async () => {
  const own = join(directory, 'switches');
  mkdirSync(own);
  const none = await findSwitch({}, own);
  assert.equal(
    (await refusedWith('NO_SWITCH', none.status())).message,
    'no switch runs here: start one with `vireo up`, or name its control socket with --control',
  );
  const named = await refusedWith('NO_SWITCH', (await findSwitch({ name: 'lab' }, own)).status());
  assert.match(named.message, /^no switch named 'lab' runs here: start one with `vireo up`/);
  await refusedWith('NO_SWITCH', findSwitch({ name: '../lab' }, own));

  const one = await serveControl(new Table(), controlPath('one', own));
  writeFileSync(join(own, 'file.sock'), '');
  assert.deepEqual(await runningSwitches(own), ['one']);
  assert.equal((await (await findSwitch({}, own)).status()).name, 'table');
  const two = await serveControl(new Table(), controlPath('two', own));
  const several = await refusedWith('NO_SWITCH', findSwitch({}, own));
  assert.equal(several.message, 'several switches run here: choose one with --name one or --name two');
  assert.equal((await (await findSwitch({ name: 'two' }, own)).status()).name, 'table');
  await two.close();
  await one.close();
});

test('the client names what answers but is no switch', async () => {
  const answers: [bytes: string, code: string][] = [
    ['HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi', 'NO_ANSWER'],
    ['HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\n{}', 'NO_ANSWER'],
    ['HTTP/1.1 404 No\r\ncontent-length: 4\r\n\r\nnull', 'NO_ANSWER'],
    ['HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}', 'NO_ANSWER'],
    ['SSH-2.0-OpenSSH\r\n', 'NO_ANSWER'],
    ['', 'NO_ANSWER'],
  ];
  const { createServer } = await import('node:net');
  for (const [bytes, code] of answers) {
    const path = newPath();
    const server = createServer((socket) => {
      socket.on('error', () => {});
      socket.once('data', () => socket.end(bytes));
    }).listen(path);
    await once(server, 'listening');
    await refusedWith(code, (await findSwitch({ control: path })).status());
    server.close();
    await once(server, 'close');
  }
});

test('control sockets lie where the system keeps such things for the user', () => {
  assert.equal(controlPath('vireo', controlDirectory({}, 0)), '/run/vireo/vireo.sock');
  assert.equal(controlDirectory({ XDG_RUNTIME_DIR: '/run/user/0' }, 0), '/run/vireo');
  assert.equal(controlDirectory({ XDG_RUNTIME_DIR: '/run/user/1000' }, 1000), '/run/user/1000/vireo');
  assert.equal(controlDirectory({}, 1000), join(tmpdir(), 'vireo-1000'));
});
