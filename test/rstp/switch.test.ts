/** RSTP in a switch: two bridges with two cables between them don't make a loop, and go on by the other when one goes. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BridgeSpec, PortSpec, Switch } from '../../src/index.ts';
import { lab } from '../rules/lab.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { until } from '../support/until.ts';

const hello = frame(BROADCAST, mac(1));

/** Patch ports from one bridge to the other. */
async function join(vswitch: Switch, name: string, fields: Partial<PortSpec> = {}): Promise<void> {
  const end = (side: string, other: string, bridge: string) =>
    ({ name: `${name}${side}`, type: 'patch', target: `${name}${other}`, bridge, ...fields }) as PortSpec;
  await vswitch.addPort(end('1', '2', 'one'));
  await vswitch.addPort(end('2', '1', 'two'));
}

const bridges: BridgeSpec[] = [
  { name: 'one', rstp: true, priority: 4096, mac: '02:00:00:00:01:00' },
  { name: 'two', rstp: true, mac: '02:00:00:00:02:00' },
];

const stateOf = (vswitch: Switch, port: string) => {
  const { role, state } = vswitch.port(port).spanningTree!;
  return `${role} ${state}`;
};

test('two bridges with two cables: one is blocked, and takes over', async (t) => {
  const { vswitch, guests, exchange } = await lab(
    t,
    { a: { bridge: 'one', edge: true }, b: { bridge: 'two', edge: true } },
    { bridges },
  );
  await join(vswitch, 'x');
  await join(vswitch, 'y', { pathCost: 10_000 });
  await until(() => stateOf(vswitch, 'x2') === 'root forwarding', 'the root port forwards');
  await until(() => stateOf(vswitch, 'y2') === 'alternate discarding', 'the other one is the alternate');
  await until(() => stateOf(vswitch, 'x1') === 'designated forwarding', 'the neighbour has agreed');
  const status = vswitch.bridge('two').spanningTree!;
  assert.equal(status.root, '1000.020000000100');
  assert.equal(status.id, '8000.020000000200');
  assert.equal(status.rootPort, 'x2');
  assert.equal(status.rootCost, 2000);
  assert.equal(vswitch.bridge('one').spanningTree!.rootPort, null);

  const got = async () => {
    for (;;) {
      const { b } = await exchange('a', hello);
      if (b!.length > 0) return b;
    }
  };
  await got();
  // A loop would bring them again and again.
  const many = Array.from({ length: 100 }, (_, i) => frame(BROADCAST, mac(1), 100, i));
  const came: Buffer[] = [];
  for (const one of many) came.push(...(await exchange('a', one)).b!);
  const counted = () => came.filter(({ length }) => length === 100);
  await until(() => {
    for (let next = guests.b!.receive(); next; next = guests.b!.receive()) came.push(Buffer.from(next));
    return counted().length >= 100;
  }, 'all have come');
  assert.deepEqual(counted(), many);
  await vswitch.removePort('x1');
  await until(() => stateOf(vswitch, 'y2') === 'root forwarding', 'the alternate port is the root port');
  await got();
});
