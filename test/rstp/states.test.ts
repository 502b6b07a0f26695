/** What the data plane does with a port that discards, learns or forwards, and without a sign of life of the control plane. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { clock } from '../../src/arena/index.ts';
import type { PortState } from '../../src/rstp/port.ts';
import { PortRules } from '../../src/rules/index.ts';
import { setPortState } from '../../src/rules/rstp.ts';
import type { PortSpec } from '../../src/switch/types.ts';
import { Driver } from '../support/driver.ts';
import { BROADCAST, frame, mac, macKey } from '../support/ethernet.ts';
import { Plane } from '../support/plane.ts';

const UNKNOWN = 0xffff_ffff;
const NAMES = ['a', 'b', 'c'];

/** Three ports, the second of which is in a tree. */
function stage(fields: Partial<PortSpec> = {}) {
  const plane = new Plane();
  const drivers = NAMES.map(() => new Driver(plane, { size: 64, tableEntries: 1 }));
  const rules = new PortRules({
    arena: plane.arena,
    structures: plane.structures,
    slot: 1,
    quiesce: async () => {},
  });
  rules.write({ name: 'b', type: 'null', target: '', spanned: true, ...fields });
  return {
    plane,
    rules,
    set: (state: PortState, leased = false) => rules.change((table) => setPortState(table, state, leased)),
    lookup: (address: Buffer) => plane.functions.lookup(macKey(address), 0) >>> 0,
    /** Sends a frame; the ports that get it. */
    send(from: number, to: Buffer, source: Buffer): string {
      assert.equal(drivers[from]!.send(frame(to, source)), 1);
      drivers[from]!.publish();
      plane.poll();
      return NAMES.filter((_, i) => {
        let got = 0;
        while (drivers[i]!.receive() !== undefined) got++;
        return got > 0;
      }).join('');
    },
  };
}

test('a port that comes into a tree discards, learns nothing, and is learned of by nobody', () => {
  const { rules, send, lookup, plane } = stage();
  assert.equal(send(1, BROADCAST, mac(2)), '');
  assert.equal(lookup(mac(2)), UNKNOWN);
  assert.equal(send(0, BROADCAST, mac(1)), 'c');
  assert.deepEqual(rules.drops(), { discardingIn: 1 });
  // To a station that is known there nothing goes either.
  plane.functions.learn(macKey(mac(2)), 0, 1);
  assert.equal(send(0, mac(2), mac(1)), '');
  assert.deepEqual(rules.drops('tx'), { discardingOut: 1 });
});

test('one that learns still passes nothing', () => {
  const { rules, set, send, lookup } = stage();
  set('learning');
  assert.equal(send(1, mac(1), mac(2)), '');
  assert.equal(lookup(mac(2)), 1);
  // A group is nobody's address.
  send(1, mac(1), BROADCAST);
  assert.equal(lookup(BROADCAST), UNKNOWN);
  assert.equal(send(0, mac(2), mac(1)), '');
  assert.deepEqual(rules.drops(), { discardingIn: 2, discardingOut: 1 });
  set('forwarding');
  assert.equal(send(0, mac(2), mac(1)), 'b');
  assert.equal(send(1, BROADCAST, mac(2)), 'ac');
  set('discarding');
  assert.equal(send(1, BROADCAST, mac(2)), '');
});

test('one that learns, where nothing is to be learned', () => {
  const { set, send, lookup } = stage({ learning: false });
  set('learning');
  send(1, mac(1), mac(2));
  assert.equal(lookup(mac(2)), UNKNOWN);
});

test('in the VLAN that a frame is in', () => {
  const { set, send, plane } = stage({ vlan: 10, vlanAware: true } as Partial<PortSpec>);
  set('learning');
  send(1, mac(1), mac(2));
  assert.equal(plane.functions.lookup(macKey(mac(2)), 10), 1);
});

test('without a sign of life of the control plane a port forwards for so long as it was told, and goes on with the next', () => {
  const { plane, rules, set, send, lookup } = stage();
  const { header } = plane.structures;
  const renew = (seconds: number) => header.set64('lease', BigInt(Math.round(clock() + seconds * 1e9)));
  set('forwarding', true);
  renew(-1);
  assert.equal(send(1, BROADCAST, mac(2)), '');
  assert.equal(lookup(mac(2)), UNKNOWN);
  assert.equal(send(0, BROADCAST, mac(1)), 'c');
  assert.deepEqual(rules.drops(), { discardingIn: 1 });
  renew(1000);
  assert.equal(send(1, BROADCAST, mac(2)), 'ac');
  assert.equal(send(0, BROADCAST, mac(1)), 'bc');
  // A port that leads to no bridge closes no loop.
  renew(-1);
  set('forwarding', false);
  assert.equal(send(1, BROADCAST, mac(2)), 'ac');
});

test('BPDUs are taken in every state, and go nowhere', () => {
  const { plane, set, send } = stage();
  const group = Buffer.from('0180c2000000', 'hex');
  for (const [i, state] of (['discarding', 'learning', 'forwarding'] as const).entries()) {
    set(state);
    assert.equal(send(1, group, mac(2)), '');
    assert.equal(plane.worker.get('cameWritten'), i + 1);
  }
});
