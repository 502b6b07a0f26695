/** Guards: what a port forges is turned away by its reason, behind tags, LLC, extension headers and fragments. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { arp, ethernet, fragment, ipv4, ipv6, type Layer, nd, options, udp } from '../support/forge.ts';
import { Random } from '../support/random.ts';
import { lab } from './lab.ts';

const OWN = '52:54:00:00:00:01';
const OTHER = '52:54:00:00:00:02';
const LINK_LOCAL = 'fe80::5054:ff:fe00:1';
const GUARDS = {
  allowMac: OWN,
  allowIp: '10.0.0.5+192.168.7.0/24+2001:db8::/64',
  raGuard: true,
  dhcpGuard: true,
};
const ARP = 0x0806;
const IPV4 = 0x0800;
const IPV6 = 0x86dd;
const LAYERS: Layer[][] = [
  [],
  ['tag'],
  ['s-tag', 'tag'],
  ['snap'],
  ['tag', 'snap'],
  ['tag', 'tag', 'snap', 'tag'],
];

type Made = [type: number, payload: Buffer];
const icmp6 = (source: string, message: Buffer, ...extensions: ReturnType<typeof options>[]): Made => [
  IPV6,
  ipv6(source, 58, message, extensions),
];
const dhcp6 = udp(547, 546);

/** What is forged, by the reason for which it is turned away. */
const FORGED: Record<string, Made[]> = {
  spoofedArp: [
    [ARP, arp(OTHER, '10.0.0.5', '10.0.0.1')],
    [ARP, arp(OWN, '10.0.0.6', '10.0.0.1')],
    [ARP, arp(OWN, '10.0.0.1', '10.0.0.1', 2)],
    [ARP, arp(OWN, '0.0.0.0', '10.0.0.1')],
    [0x8035, arp(OTHER, '0.0.0.0', '0.0.0.0', 3)],
  ],
  spoofedIp: [
    [IPV4, ipv4('10.0.0.6', 1, Buffer.alloc(20))],
    [IPV4, ipv4('192.168.8.1', 17, udp(5, 6))],
    [IPV4, ipv4('0.0.0.0', 17, udp(68, 69))],
    [IPV4, ipv4('10.0.0.6', 17, Buffer.alloc(24), { offset: 64 })],
    [IPV6, ipv6('2001:db8:0:1::5', 17, udp(5, 6))],
    [IPV6, ipv6('fe80::5054:ff:fe00:2', 17, udp(5, 6))],
    [IPV6, ipv6('::', 17, udp(5, 6))],
    [IPV6, ipv6('2001:db9::1', 6, Buffer.alloc(20), [options(60)])],
    icmp6('::', Buffer.from([128, 0, 0, 0, 0, 0, 0, 0])),
  ],
  spoofedNd: [
    icmp6(LINK_LOCAL, nd(136, '2001:db8:0:1::1', [2, OWN])),
    icmp6(LINK_LOCAL, nd(136, '2001:db8:0:1::1'), options(0)),
    icmp6('::', nd(135, 'fe80::1')),
  ],
  routerAdvertisement: [
    icmp6(LINK_LOCAL, nd(134, undefined, [1, OWN])),
    icmp6(LINK_LOCAL, nd(134), options(60)),
    icmp6(LINK_LOCAL, nd(134), options(0), options(43), options(60)),
    icmp6(LINK_LOCAL, nd(134), fragment(0)),
    icmp6(LINK_LOCAL, nd(134), fragment(0, false), options(60)),
    icmp6(LINK_LOCAL, nd(137, 'fe80::7')),
  ],
  dhcpServer: [
    [IPV4, ipv4('10.0.0.5', 17, udp(67, 68))],
    [IPV4, ipv4('10.0.0.5', 17, udp(1000, 68), { options: 40 })],
    [IPV6, ipv6(LINK_LOCAL, 17, dhcp6)],
    [IPV6, ipv6(LINK_LOCAL, 17, udp(1000, 546), [fragment(0), options(60)])],
  ],
  hiddenHeaders: [
    icmp6(LINK_LOCAL, nd(134), options(60, 12)),
    icmp6(LINK_LOCAL, nd(134), fragment(0), options(60, 9), options(60, 9)),
    icmp6(LINK_LOCAL, nd(134), ...Array.from({ length: 9 }, () => options(60))),
    [IPV6, ipv6(LINK_LOCAL, 253, Buffer.alloc(40))],
    [IPV4, Buffer.from([0x44, ...ipv4('10.0.0.5', 17, udp(67, 68)).subarray(1)])],
  ],
};
/** Forged by an option at the end: cut off before it, nothing is. */
const FORGED_AT_END: Record<string, Made[]> = {
  spoofedNd: [
    icmp6(LINK_LOCAL, nd(136, LINK_LOCAL, [2, OTHER])),
    icmp6(LINK_LOCAL, nd(135, 'fe80::1', [14, OTHER], [1, OTHER])),
    icmp6(LINK_LOCAL, nd(133, undefined, [1, OTHER])),
  ],
  // An option without a length.
  hiddenHeaders: [icmp6(LINK_LOCAL, Buffer.concat([nd(133), Buffer.alloc(8)]))],
};

const HONEST: Made[] = [
  [ARP, arp(OWN, '10.0.0.5', '10.0.0.1')],
  [ARP, arp(OWN, '0.0.0.0', '192.168.7.9')],
  [0x8035, arp(OWN, '0.0.0.0', '0.0.0.0', 3)],
  [IPV4, ipv4('0.0.0.0', 17, udp(68, 67))],
  [IPV4, ipv4('10.0.0.5', 17, udp(68, 67))],
  [IPV4, ipv4('192.168.7.255', 6, Buffer.alloc(20))],
  [IPV4, ipv4('10.0.0.5', 17, Buffer.alloc(24), { offset: 64 })],
  [IPV4, ipv4('0.0.0.0', 2, Buffer.alloc(16), { options: 4 })],
  [IPV6, ipv6('2001:db8::77', 6, Buffer.alloc(20), [options(60)])],
  [IPV6, ipv6('2001:db8::77', 17, Buffer.alloc(24), [fragment(64)])],
  [IPV6, ipv6(LINK_LOCAL, 17, udp(546, 547))],
  icmp6('::', nd(135, LINK_LOCAL)),
  icmp6('::', nd(133)),
  icmp6('::', Buffer.from([143, 0, 0, 0, 0, 0, 0, 0]), options(0)),
  icmp6(LINK_LOCAL, nd(133, undefined, [1, OWN])),
  icmp6(LINK_LOCAL, nd(135, 'fe80::1', [1, OWN])),
  icmp6(LINK_LOCAL, nd(136, '2001:db8::5', [2, OWN])),
  [0x88cc, Buffer.alloc(46)],
];

const total = (drops: Record<string, number>) => Object.values(drops).reduce((sum, count) => sum + count, 0);

test('what is forged is turned away, each by its reason, and what is honest passes', async (t) => {
  const { vswitch, exchange } = await lab(t, { a: GUARDS, b: {} });
  const drops = () => vswitch.port('a').drops;
  for (const layers of LAYERS) {
    for (const [reason, all] of [...Object.entries(FORGED), ...Object.entries(FORGED_AT_END)]) {
      for (const [i, [type, payload]] of all.entries()) {
        const told = `${reason} ${i} behind ${layers.join(' and ') || 'nothing'}`;
        const before = drops();
        assert.deepEqual(await exchange('a', ethernet(OWN, type, payload, layers)), { b: [] }, told);
        // Deeper headers move what is at the end beyond what is seen.
        const deep = layers.length > 1 ? [...new Set([reason, 'hiddenHeaders'])] : [reason];
        const counted = deep.filter((name) => (drops()[name] ?? 0) === (before[name] ?? 0) + 1);
        assert.equal(counted.length, 1, told);
        assert.equal(total(drops()), total(before) + 1, told);
      }
    }
    for (const [i, [type, payload]] of HONEST.entries()) {
      const sent = ethernet(OWN, type, payload, layers);
      assert.deepEqual(
        (await exchange('a', sent)).b,
        [sent],
        `honest ${i} behind ${layers}: ${JSON.stringify(drops())}`,
      );
    }
  }
  const [type, payload] = HONEST[0]!;
  assert.deepEqual((await exchange('a', ethernet(OTHER, type, payload))).b, []);
  assert.equal(drops().spoofedMac, 1);
  // Nobody has learned the other's address here.
  assert.deepEqual(
    vswitch.fdb().map(({ mac }) => mac),
    [OWN],
  );
  // IP in LLC without SNAP, tags without end, and a length that none has.
  const before = drops().hiddenHeaders!;
  const bare = Buffer.from([0x06, 0x06, 0x03, ...payload]);
  await exchange('a', ethernet(OWN, 0x0030, bare), ethernet(OWN, 0x05ff, bare));
  await exchange('a', ethernet(OWN, type, payload, ['tag', 'tag', 'tag', 'tag', 'tag']));
  assert.equal(drops().hiddenHeaders, before + 3);
});

test('each guard alone turns away its own, and nothing when it is off', async (t) => {
  const { vswitch, exchange } = await lab(t, { a: {}, b: {} });
  const passes = async ([type, payload]: Made, from = OWN) =>
    (await exchange('a', ethernet(from, type, payload))).b!.length === 1;
  const set = (change: object) =>
    vswitch.setPort('a', { allowMac: null, allowIp: null, raGuard: null, dhcpGuard: null, ...change });
  for (const made of Object.values(FORGED).flat()) assert.ok(await passes(made));
  const advert = FORGED.routerAdvertisement![0]!;
  const offer = FORGED.dhcpServer![0]!;
  const falseIp = FORGED.spoofedIp![0]!;
  await set({ raGuard: true });
  assert.deepEqual([await passes(advert), await passes(offer), await passes(falseIp)], [false, true, true]);
  await set({ dhcpGuard: true });
  assert.deepEqual([await passes(advert), await passes(offer), await passes(falseIp)], [true, false, true]);
  await set({ allowIp: '10.0.0.5+fe80::/10' });
  assert.deepEqual([await passes(advert), await passes(offer), await passes(falseIp)], [true, true, false]);
  // Without a list of MACs a port speaks for the one that it sends from.
  assert.ok(!(await passes([ARP, arp(OTHER, '10.0.0.5', '10.0.0.1')])));
  assert.ok(await passes([ARP, arp(OTHER, '10.0.0.5', '10.0.0.1')], OTHER));
  await set({ allowMac: `${OTHER}+${OWN.toUpperCase()}` });
  assert.deepEqual([await passes(falseIp), await passes(falseIp, OTHER)], [true, true]);
  assert.ok(!(await passes(falseIp, '52:54:00:00:00:03')));
  await set({});
  for (const made of Object.values(FORGED).flat()) assert.ok(await passes(made));
});

test('lists that are wrong are refused by name', async (t) => {
  const { vswitch } = await lab(t, { a: {} });
  const refused = (change: object, words: RegExp) => assert.rejects(vswitch.setPort('a', change), words);
  await refused({ allowMac: '01:00:5e:00:00:01' }, /allowMac: expected MACs, at most 64, .* found "01:00:5e/);
  for (const list of [
    '',
    '10.0.0.5+',
    '10.0.0.0/33',
    '2001:db8::/129',
    '10.0.0',
    'fe80::1%eth0',
    '10.0.0.1,10.0.0.2',
  ])
    await refused({ allowIp: list }, /allowIp: expected addresses and prefixes, at most 64, .* found/);
  await refused({ allowIp: Array(65).fill('10.0.0.1').join('+') }, /at most 64/);
  await refused({ raGuard: 'yes' }, /raGuard: expected true or false, found "yes"/);
  await vswitch.setPort('a', { allowIp: Array(64).fill('2001:db8::1').join('+') });
});

test('cut off anywhere, what is forged passes nowhere; of what is random all is accounted for', async (t) => {
  const { vswitch, exchange } = await lab(t, { a: GUARDS, b: {} });
  for (const layers of [[], ['tag', 'snap']] satisfies Layer[][]) {
    for (const [type, payload] of Object.values(FORGED).flat()) {
      const whole = ethernet(OWN, type, payload, layers);
      const cut = Array.from({ length: whole.length - 14 }, (_, i) => whole.subarray(0, 14 + i));
      // A port for which nothing is needed but the type is fine.
      assert.deepEqual(await exchange('a', ...cut), { b: [] }, `${whole.toString('hex')}`);
    }
  }
  const seed = Number(process.env.VIREO_SEED ?? 20261126);
  t.diagnostic(`seed ${seed}`);
  const random = new Random(seed);
  const made = [...Object.values(FORGED).flat(), ...HONEST];
  let sent = 0;
  let passed = 0;
  const before = total(vswitch.port('a').drops);
  for (let burst = 0; burst < 200; burst++) {
    const frames = Array.from({ length: 20 }, () => {
      const [type, payload] = random.pick(made);
      const bytes = Buffer.from(ethernet(OWN, type, payload, random.pick(LAYERS)));
      for (let flips = random.below(4); flips > 0; flips--)
        bytes[12 + random.below(bytes.length - 12)] = random.below(256);
      return bytes.subarray(0, random.below(3) === 0 ? 14 + random.below(bytes.length - 13) : bytes.length);
    });
    sent += frames.length;
    passed += (await exchange('a', ...frames)).b!.length;
  }
  assert.equal(passed + total(vswitch.port('a').drops) - before, sent);
  assert.ok(passed > 0 && passed < sent);
});
