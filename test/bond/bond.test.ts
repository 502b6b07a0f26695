/** Bonds of ports with guests: who gets what, what a member's loss costs, and that a flow stays with one member. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { type Lacpdu, type LinkEnd, readLacpdu, writeLacpdu } from '../../src/bond/lacpdu.ts';
import { createSwitch, type PortSpec } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { type Lab, lab } from '../rules/lab.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { flowFrame } from '../support/flows.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

/** A lab whose ports p, q, … are members of a bond. */
async function bonded(
  t: TestContext,
  bond: Partial<PortSpec>,
  ports: Record<string, Partial<PortSpec>> = { a: {}, p: {}, q: {} },
  workers = 1,
): Promise<Lab> {
  const made = await lab(t, ports, { workers });
  await made.vswitch.addPort({ name: 'bond', type: 'bond', target: 'p+q', ...bond });
  return made;
}

const members = ({ vswitch }: Lab) =>
  vswitch
    .port('bond')
    .members!.map(({ port, link, sends, receives }) => `${port} ${link} ${sends} ${receives}`);

/** What a guest has got by now. */
function taken(guest: VirtioUser): Buffer[] {
  const all: Buffer[] = [];
  for (let came = guest.receive(); came; came = guest.receive()) all.push(Buffer.from(came));
  return all;
}

/** A frame of one of some flows, with its number in the flow. */
const ofFlow = (flow: number, number: number) =>
  flowFrame({
    to: mac(9),
    from: mac(1),
    source: '10.0.0.1',
    destination: '10.0.0.2',
    protocol: 17,
    sourcePort: 1000 + flow,
    destinationPort: 53,
    length: 80,
    salt: number,
  });

test('with active-backup one member has all, both ways, and the other nothing', async (t) => {
  const made = await bonded(t, {});
  const { vswitch, exchange } = made;
  assert.deepEqual(members(made), ['p up true true', 'q up false false']);
  const hello = frame(BROADCAST, mac(1));
  assert.deepEqual(await exchange('a', hello), { p: [hello], q: [] });
  // What a neighbour that knows of no bond floods comes twice, and counts once.
  const answer = frame(BROADCAST, mac(9));
  assert.deepEqual(await exchange('p', answer), { a: [answer], q: [] });
  assert.deepEqual(await exchange('q', answer), { a: [], p: [] });
  assert.equal(vswitch.port('q').drops.bondClosed, 1);
  assert.deepEqual(
    vswitch.fdb().map(({ mac, port }) => `${mac} ${port}`),
    ['02:00:00:00:00:01 a', '02:00:00:00:00:09 bond'],
  );
  const direct = frame(mac(9), mac(1));
  assert.deepEqual(await exchange('a', direct), { p: [direct], q: [] });
  const { state, rings, rxPackets, txPackets } = vswitch.port('bond');
  assert.deepEqual({ state, rings, rxPackets, txPackets }, {
    state: 'up', rings: 'active-backup, p', rxPackets: 2, txPackets: 2,
  }); // biome-ignore format: a record
  assert.deepEqual([vswitch.port('p').bond, vswitch.port('a').bond], ['bond', undefined]);
  assert.deepEqual(vswitch.bridge('default').ports, ['a', 'bond']);
});

test('when the active member goes the other one carries the traffic, and tells who is behind the switch', async (t) => {
  const made = await bonded(t, { primary: 'p' });
  const { vswitch, guests } = made;
  const [a, p, q] = [guests.a!, guests.p!, guests.q!];
  p.send(frame(BROADCAST, mac(9)));
  await until(() => a.receive(), 'the bond has an address');
  let sent = 0;
  const got: number[] = [];
  let announced: Buffer | undefined;
  /** Takes what has come; returns how many frames have come in all. */
  const look = (guest: VirtioUser): number => {
    for (const bytes of taken(guest))
      if (bytes.readUInt16BE(12) === 0x0800) got.push(bytes[79]!);
      else if (bytes.readUInt16BE(12) === 0x8035) announced = bytes;
    return got.length;
  };
  const send = () => {
    if (a.send(ofFlow(0, sent % 251))) sent++;
  };
  for (let i = 0; i < 200; i++) {
    await until(() => a.pending() < 32, 'the switch takes frames');
    send();
    look(p);
  }
  await until(() => look(p) === 200, 'all came by the active member');
  const during = p.close();
  while (members(made)[1] !== 'q up true true') {
    await until(() => a.pending() < 32, 'the switch takes frames');
    send();
    look(q);
    await new Promise((resolve) => setImmediate(resolve));
  }
  await during;
  const before = sent;
  for (let i = 0; i < 200; i++) {
    await until(() => a.pending() < 32, 'the switch takes frames');
    send();
    look(q);
  }
  await until(() => look(q) >= 400 && got.at(-1) === (sent - 1) % 251, 'the last came');
  await until(() => look(q) && announced !== undefined, 'who is behind the switch is announced');
  assert.deepEqual(announced!.subarray(6, 12), mac(1));
  // Nothing of what was sent afterwards is lost, and nothing came twice or out of order.
  assert.deepEqual(
    got.slice(-200),
    Array.from({ length: 200 }, (_, i) => (before + i) % 251),
  );
  const { txPackets } = vswitch.port('p');
  t.diagnostic(
    `${sent - got.length} of ${sent} frames were lost, ${txPackets} were for the member that went`,
  );

  // The primary one takes over when it is back.
  const path = vswitch.config().ports!.find(({ name }) => name === 'p')!.target;
  const back = await VirtioUser.open({ path, queueSize: 256 });
  t.after(() => back.close());
  await until(() => members(made)[0] === 'p up true true', 'the primary is active again');
  assert.equal(members(made)[1], 'q up false false');
  await back.close();
  await q.close();
  await until(() => vswitch.port('bond').state === 'down', 'the bond has no member');
  a.send(frame(mac(9), mac(1)));
  await until(() => vswitch.port('bond').drops.noGuest === 1, 'what is for it is dropped there');
});

for (const workers of [1, 2])
  test(`balance keeps each flow with one member and in order; ${workers} workers`, async (t) => {
    const made = await bonded(t, { mode: 'balance' }, { a: { queues: 2 }, p: {}, q: {} }, workers);
    const { exchange, guests } = made;
    assert.deepEqual(members(made), ['p up true true', 'q up true true']);
    const hello = frame(BROADCAST, mac(9));
    assert.deepEqual(await exchange('p', hello), { a: [hello], q: [] });
    assert.deepEqual(await exchange('q', hello), { a: [hello], p: [] });
    const flows = 64;
    const places = new Map<number, string>();
    const next = new Map<number, number>();
    const look = (): number => {
      for (const name of ['p', 'q'])
        for (const bytes of taken(guests[name]!)) {
          const [flow, number] = [bytes.readUInt16BE(34) - 1000, bytes[79]!];
          assert.equal(places.get(flow) ?? name, name, `flow ${flow} stays`);
          assert.equal(number, next.get(flow) ?? 0, `flow ${flow} keeps its order`);
          places.set(flow, name);
          next.set(flow, number + 1);
        }
      return [...next.values()].filter((number) => number === 40).length;
    };
    for (let number = 0; number < 40; number++)
      for (let flow = 0; flow < flows; flow++) {
        look();
        await until(() => guests.a!.pending() < 32, 'the switch takes frames');
        guests.a!.send(ofFlow(flow, number));
      }
    await until(() => look() === flows, 'all came');
    assert.equal(places.size, flows);
    const share = [...places.values()].filter((name) => name === 'p').length;
    assert.ok(share > flows / 8 && share < (flows * 7) / 8, `p has ${share} of ${flows}`);
    // Those of a member that goes come by the other one; those of the other stay there.
    await guests.q!.close();
    await until(() => members(made)[1] === 'q down false false', 'q is down');
    for (let flow = 0; flow < flows; flow++) {
      await until(() => guests.a!.pending() < 32, 'the switch takes frames');
      guests.a!.send(ofFlow(flow, 40));
    }
    const rest: number[] = [];
    await until(() => {
      rest.push(...taken(guests.p!).map((bytes) => bytes.readUInt16BE(34) - 1000));
      return rest.length === flows;
    }, 'all come by the member that is left');
    assert.equal(new Set(rest).size, flows);
  });

test('hash=l2 keeps what is between two stations together, and spreads stations', async (t) => {
  const { exchange } = await bonded(t, { mode: 'balance', hash: 'l2' });
  await exchange('p', frame(BROADCAST, mac(9)));
  const { p, q } = await exchange('a', ...Array.from({ length: 30 }, (_, flow) => ofFlow(flow, 0)));
  assert.deepEqual([p!.length, q!.length].sort(), [0, 30]);
  const stations = Array.from({ length: 60 }, (_, i) => frame(BROADCAST, mac(100 + i)));
  const got = await exchange('a', ...stations);
  assert.equal(got.p!.length + got.q!.length, 60);
  assert.ok(got.p!.length > 6 && got.q!.length > 6);
});

test('rules of the bond hold for its members, and theirs are those of their cables', async (t) => {
  const made = await bonded(
    t,
    { vlan: 10, isolated: true },
    { a: { trunk: 'all' }, b: { vlan: 20 }, p: { lossOut: '100%' }, q: {} },
  );
  const { vswitch, exchange, guests } = made;
  const tagged = Buffer.concat([BROADCAST, mac(9), Buffer.from([0x81, 0, 0, 10]), Buffer.alloc(46, 7)]);
  const plain = Buffer.concat([BROADCAST, mac(9), Buffer.alloc(46, 7)]);
  assert.deepEqual(await exchange('p', plain), { a: [tagged], b: [], q: [] });
  assert.equal((await exchange('p', tagged)).a!.length, 0);
  assert.equal(vswitch.port('bond').drops.vlanNotAdmitted, 1);
  const back = Buffer.concat([mac(9), mac(1), Buffer.from([0x81, 0, 0, 10]), Buffer.alloc(46, 7)]);
  assert.deepEqual(await exchange('a', back), { b: [], p: [], q: [] });
  assert.equal(vswitch.port('p').drops.lossOut, 1);
  await guests.p!.close();
  delete guests.p;
  await until(() => members(made)[1] === 'q up true true', 'q is active');
  await until(
    () => taken(guests.q!).some((bytes) => bytes.readUInt16BE(12) === 0x8035),
    'who is behind the switch is announced',
  );
  const { q } = await exchange('a', back);
  assert.deepEqual(q, [Buffer.concat([mac(9), mac(1), Buffer.alloc(46, 7)])]);
});

test('what is wrong with a bond is told by the field', async (t) => {
  const { vswitch } = await lab(t, { p: {}, q: {}, v: { vlan: 5 }, w: {} });
  const refused = (spec: Partial<PortSpec>, words: RegExp) =>
    assert.rejects(vswitch.addPort({ name: 'bond', type: 'bond', target: 'p+q', ...spec }), words);
  await refused(
    { target: 'p+x' },
    /^SwitchError: target: expected ports that are there \(p, q, v, w\), found "x"/,
  );
  await refused({ target: 'p+p' }, /target: expected the names of 1 to 16 ports, each once/);
  await refused({ target: 'bond+p' }, /target: expected names of other ports/);
  await refused(
    { target: 'p+v' },
    /target: expected members without vlan, which a bond has for them, found "v"/,
  );
  await refused({ mode: 'read' }, /mode: expected one of "active-backup", "balance".*, found "read"/);
  await refused({ primary: 'v' }, /primary: expected one of the members p, q, found "v"/);
  await refused({ hash: 'l2' }, /hash: expected none with mode=active-backup/);
  await refused({ mode: 'balance', primary: 'p' }, /primary: expected none with mode=balance/);
  assert.equal(vswitch.ports().length, 4);
  await vswitch.addPort({ name: 'bond', type: 'bond', target: 'p+q' });
  await refused(
    { name: 'other', target: 'q+w' },
    /target: expected ports of no other bond, found "q", which bond has/,
  );
  await refused(
    { name: 'other', target: 'bond+w' },
    /target: expected ports that are no bonds, found "bond"/,
  );
  await assert.rejects(
    vswitch.setPort('p', { vlan: 5 }),
    /vlan: expected none for a member of bond, found 5: set it for bond/,
  );
  await assert.rejects(vswitch.removePort('p'), /port p: it is a member of bond: remove that first/);
  await assert.rejects(
    vswitch.addAddress({ mac: '02:00:00:00:00:01', port: 'p' }),
    /port: expected none that is a member of bond, found p: name bond/,
  );
  await vswitch.setPort('p', { rateOut: '1Gbit' });
  await vswitch.setPort('bond', { vlan: 5 });
  await vswitch.removePort('bond');
  await vswitch.removePort('p');
  await assert.rejects(
    createSwitch({
      ports: [
        { name: 'n', type: 'null', target: '' },
        { name: 'one', type: 'bond', target: 'n' },
        { name: 'two', type: 'bond', target: 'n+m' },
      ],
    }),
    /ports\[1\].target: expected ports of no other bond, found "n", which two has; ports\[2\].target: /,
  );
});

test('members are ports of their own again when the bond goes', async (t) => {
  const { vswitch, exchange, guests } = await bonded(t, {});
  await exchange('p', frame(BROADCAST, mac(9)));
  await vswitch.removePort('bond');
  assert.deepEqual(vswitch.fdb(), []);
  const hello = frame(BROADCAST, mac(1));
  assert.deepEqual(await exchange('a', hello), { p: [hello], q: [hello] });
  assert.deepEqual(await exchange('q', frame(mac(1), mac(8))), { a: [frame(mac(1), mac(8))], p: [] });
  await vswitch.addPort({ name: 'bond', type: 'bond', target: 'q+p', primary: 'q' });
  // Who is behind the switch is announced where the bond leads.
  await until(
    () => taken(guests.q!).some((bytes) => bytes.readUInt16BE(12) === 0x8035),
    'an announcement comes',
  );
  assert.deepEqual(await exchange('a', hello), { p: [], q: [hello] });
});

test('apply brings bonds and members to a configuration, whatever their order', async (t) => {
  const path = sockets(t);
  const port = (name: string, fields = {}): PortSpec => ({
    name, type: 'vhost-user', target: path(name), ...fields,
  }); // biome-ignore format: a record
  const bond = (fields = {}): PortSpec => ({ name: 'bond', type: 'bond', target: 'p+q', ...fields });
  const vswitch = await createSwitch({ ports: [bond(), port('p'), port('q'), port('a')] });
  t.after(() => vswitch.close());
  const apply = async (...ports: PortSpec[]) => {
    const { added, removed, changed, unchanged, failed } = await vswitch.apply({ ports });
    assert.deepEqual(failed, []);
    const sorted = (names: string[]) => [...names].sort().join(' ');
    return [added, removed, changed, unchanged].map(sorted).join(' | ');
  };
  assert.equal(await apply(bond(), port('p'), port('q'), port('a')), ' |  |  | a bond p q');
  // A rule of the bond is set; the bond stays.
  assert.equal(await apply(bond({ vlan: 4 }), port('p'), port('q'), port('a')), ' |  | bond | a p q');
  // A member that is another one takes its bond along.
  const other = port('p', { features: '-packed' });
  assert.equal(await apply(bond({ vlan: 4 }), other, port('q'), port('a')), ' |  | bond p | a q');
  // One that is a port of its own now, with a rule; and one that is none any more.
  const alone = port('p', { features: '-packed', vlan: 4 });
  assert.equal(await apply(alone, bond({ target: 'q+a' }), port('q'), port('a')), ' |  | bond p | a q');
  assert.equal(await apply(alone, port('a')), ' | bond q |  | a p');
  assert.equal(await apply(bond({ target: 'p+b' }), port('p'), port('b')), 'b bond | a | p | ');
  assert.deepEqual(
    vswitch.config().ports!.map(({ name }) => name).sort(),
    ['b', 'bond', 'p'],
  ); // biome-ignore format: one line
});

/** The frames of LACP that a system would send to the switch by a member. */
function neighbour(system: string, state = 0x3d) {
  const actor = { systemPriority: 1, system, key: 5, portPriority: 1, port: 1, state };
  return (partner: LinkEnd) => writeLacpdu({ actor, partner });
}

test('LACP goes to the switch itself, which believes nothing that is none and bears a flood', async (t) => {
  const made = await bonded(t, { mode: 'lacp', lacpRate: 'fast', mac: '02:00:00:00:00:77' });
  const { vswitch, guests } = made;
  const [a, p] = [guests.a!, guests.p!];
  assert.deepEqual(members(made), ['p up false false', 'q up false false']);
  const say = neighbour('02:00:00:00:00:99');
  let heard: Lacpdu | undefined;
  const lacp = () => vswitch.port('bond').members![0]!.lacp!;
  // Each answer is one to what was heard last: so a neighbour speaks until both are in step.
  await until(() => {
    for (const bytes of taken(p)) heard = readLacpdu(bytes) ?? heard;
    if (heard && p.pending() === 0) p.send(say(heard.actor));
    return lacp().mux === 'distributing';
  }, 'the member is used');
  assert.equal(heard!.actor.system, '02:00:00:00:00:77');
  assert.equal(lacp().partner.system, '02:00:00:00:00:99');
  a.send(frame(BROADCAST, mac(1)));
  await until(() => taken(p).some((bytes) => bytes.readUInt16BE(12) === 0x88b5), 'it carries frames');
  // Broken ones, and ours: each is counted, and changes nothing.
  const broken = [
    say(heard!.actor).subarray(0, 40),
    writeLacpdu({ actor: heard!.actor, partner: heard!.partner }),
  ];
  for (const bytes of broken) p.send(bytes);
  await until(() => {
    const { badLacpdu = 0, protocolOverflow = 0 } = vswitch.port('p').drops;
    if (badLacpdu + protocolOverflow < 2) return false;
    // In a second that had too many already they come to nothing: again, then.
    for (const bytes of badLacpdu < 2 ? broken : []) p.send(bytes);
    return badLacpdu >= 2;
  }, 'both are counted');
  assert.equal(lacp().receive, 'current');
  for (let i = 0; i < 300; i++) {
    await until(() => p.pending() < 32, 'the switch takes frames');
    p.send(broken[0]!);
  }
  await until(() => (vswitch.port('p').drops.protocolOverflow ?? 0) > 0, 'what is too much is dropped');
  // Nothing of it has gone any further.
  assert.deepEqual(taken(a), []);
});

test('ports and bonds come and go under traffic, and nothing is left', async (t) => {
  const { vswitch, guests } = await bonded(t, { mode: 'balance' });
  let going = true;
  const traffic = (async () => {
    for (let n = 0; going; n++) {
      guests.a!.send(n % 2 === 0 ? ofFlow(n % 64, 0) : frame(BROADCAST, mac(1)));
      guests.p!.send(frame(BROADCAST, mac(9)));
      for (const guest of Object.values(guests)) while (guest.receive());
      if (n % 8 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
  })();
  const { target } = vswitch.config().ports!.find(({ name }) => name === 'q')!;
  for (let i = 0; i < 20; i++) {
    // At once: the member is let go by when it may.
    const gone = vswitch.removePort('bond');
    await vswitch.removePort('q').catch((error: Error) => assert.match(error.message, /member of/));
    await gone;
    if (vswitch.ports().some(({ name }) => name === 'q')) await vswitch.removePort('q');
    await vswitch.addPort({ name: 'q', type: 'vhost-user', target });
    await vswitch.addPort({
      name: 'bond',
      type: 'bond',
      target: 'p+q',
      mode: i % 2 === 0 ? 'balance' : 'lacp',
    });
  }
  going = false;
  await traffic;
  assert.equal(
    vswitch.port('p').queues.every(({ error }) => error === null),
    true,
  );
});

test('frames wait on the cable of a member and on that of the bond, and captures see both', async (t) => {
  const slow = { delayIn: '2ms', delayOut: '2ms', rateOut: '1Gbit' };
  const made = await bonded(t, { mode: 'balance', ...slow }, { a: {}, p: slow, q: slow });
  const { vswitch, guests } = made;
  const capture = await vswitch.capture({ port: 'any' });
  const seen: Buffer[] = [];
  const reading = (async () => {
    for await (const piece of capture.stream()) seen.push(piece);
  })();
  guests.p!.send(frame(BROADCAST, mac(9), 90, 1));
  await until(
    () => taken(guests.a!).some((bytes) => bytes.equals(frame(BROADCAST, mac(9), 90, 1))),
    'it came',
  );
  for (let flow = 0; flow < 32; flow++) guests.a!.send(ofFlow(flow, 3));
  let came = 0;
  await until(() => {
    came += taken(guests.p!).length + taken(guests.q!).length;
    return came === 32;
  }, 'all came');
  capture.stop();
  await reading;
  const all = Buffer.concat(seen);
  let times = 0;
  for (let at = all.indexOf(ofFlow(7, 3)); at >= 0; at = all.indexOf(ofFlow(7, 3), at + 1)) times++;
  // From a, to the bond, to a member.
  assert.equal(times, 3);
});
