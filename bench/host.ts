/**
 * Between a guest and the host's own network: DPDK's testpmd is the guest, a TAP the way into the host's kernel, where
 * another testpmd sends by a packet socket and the interface counts what arrives. Beside Open vSwitch with DPDK, whose
 * way into the host's kernel is the bridge's own interface, a TAP as well.
 */
import { join } from 'node:path';
import { ovsVswitchd, skipWithout } from '../test/peers/available.ts';
import { Testpmd, virtioUser } from '../test/peers/dpdk.ts';
import { Ovs } from '../test/peers/ovs.ts';
import { sleep, until } from '../test/peers/process.ts';
import { Vireo } from '../test/peers/vireo.ts';
import { ip, ownNetwork, received } from '../test/support/network.ts';
import { GUEST_CPU, SWITCH_CPU } from './load.ts';
import { machine, type Spread, showSpread, spread, table, version, writeSection } from './report.ts';

const SIZES = [64, 1518];
const WAYS = ['from the guest', 'to the guest'] as const;
const GUEST = '52:54:00:00:00:01';
const HOST = '52:54:00:00:00:02';
/** Seconds before what is measured. */
const WARM_UP = 0.5;

const subjects = {
  vireo: () => Vireo.start({ ports: ['guest'], poll: 'busy', cpu: SWITCH_CPU, more: ['host=tap:tap0'] }),
  ovs: () => Ovs.start({ ports: ['guest'], cpu: SWITCH_CPU }),
};
/** The interface by which the host's kernel has each of them. */
const INTERFACES = { vireo: 'tap0', ovs: 'br0' };
type Name = keyof typeof subjects;
const names = Object.keys(subjects) as Name[];

export interface Result {
  machine: string;
  dpdk: string;
  ovs: string;
  turns: number;
  seconds: number;
  rows: { way: string; size: number /** Packets a second. */; rates: Record<Name, Spread>; ratio: Spread }[];
}

/** Packets a second, by way and size in their order. */
type Rates = number[];

export async function host(turns: number, seconds: number, say: (line: string) => void): Promise<Result> {
  const missing = ownNetwork() || skipWithout('dpdk', 'ovs');
  if (missing) throw new Error(missing);
  const runs: Record<Name, Rates[]> = { vireo: [], ovs: [] };
  let dpdk = 'unknown';
  for (let turn = 0; turn < turns; turn++) {
    for (const name of turn % 2 === 0 ? names : names.toReversed()) {
      const { rates, version } = await measure(name, seconds);
      dpdk = version;
      runs[name].push(rates);
      say(
        `turn ${turn + 1} of ${turns}: ${name}: ${rates.map((rate) => (rate / 1e6).toFixed(3)).join(', ')} Mpps`,
      );
    }
  }
  const rows = WAYS.flatMap((way, w) =>
    SIZES.map((size, s) => {
      const of = (name: Name) => runs[name].map((rates) => rates[w * SIZES.length + s]!);
      const [ours, theirs] = [of('vireo'), of('ovs')];
      return {
        way,
        size,
        rates: { vireo: spread(ours), ovs: spread(theirs) },
        ratio: spread(ours.map((rate, turn) => rate / theirs[turn]!)),
      };
    }),
  );
  return { machine: machine(), dpdk, ovs: version(ovsVswitchd), turns, seconds, rows };
}

async function measure(name: Name, seconds: number): Promise<{ rates: Rates; version: string }> {
  const rates: Rates = [];
  const inside = INTERFACES[name];
  await using running = await subjects[name]();
  await until('the way to the host', 20_000, () => ip('-o link').includes(` ${inside}:`) || undefined);
  ip(`link set ${inside} address ${HOST}`);
  ip(`link set ${inside} up`);
  const start = (args: string[], vdev: string) =>
    Testpmd.start({ cpu: GUEST_CPU, memory: 128, vdevs: [vdev], args: [...args, '--total-num-mbufs=8192'] });
  const guest = (size: number) =>
    start(
      ['--forward-mode=txonly', `--eth-peer=0,${HOST}`, `--txpkts=${size - 4}`],
      virtioUser(0, { path: join(running.directory, 'guest'), mac: GUEST, queueSize: 1024 }),
    );
  let version = 'unknown';
  for (const size of SIZES) {
    await using sender = await guest(size);
    version = sender.version;
    await sender.waitForLinks();
    await sender.command('start');
    await sleep(WARM_UP * 1000);
    rates.push(await rate(seconds, async () => received(inside)));
  }
  // The switch has learned the guest's address by what it sent.
  await using receiver = await guest(64);
  await receiver.waitForLinks();
  await receiver.command('start');
  await receiver.command('stop');
  await receiver.command('set fwd rxonly');
  await receiver.command('start');
  for (const size of SIZES) {
    await using _sender = await start(
      ['--forward-mode=txonly', '--auto-start', `--eth-peer=0,${GUEST}`, `--txpkts=${size - 4}`],
      `net_af_packet0,iface=${inside}`,
    );
    await sleep(WARM_UP * 1000);
    rates.push(await rate(seconds, async () => (await receiver.stats())[0]!.rxPackets));
  }
  return { rates, version };
}

/** By how much a counter grows in a second. */
async function rate(seconds: number, count: () => Promise<number>): Promise<number> {
  const begin = { count: await count(), time: performance.now() };
  await sleep(seconds * 1000);
  return ((await count()) - begin.count) / ((performance.now() - begin.time) / 1000);
}

/** The table as Markdown. */
export function renderHost({ rows, turns }: Result): string {
  const thousands = ({ median, min, max }: Spread) =>
    showSpread({ median: median / 1e3, min: min / 1e3, max: max / 1e3 }, 0);
  return [
    `Thousands of packets a second that arrived: median (least to most) of ${turns} turns, then the ratio within a turn.`,
    table(
      ['', 'Vireo, tap', 'Open vSwitch with DPDK, br0', 'Vireo / Open vSwitch'],
      rows.map(({ way, size, rates, ratio }) => [
        `${way}, ${size} B`,
        ...[thousands(rates.vireo), thousands(rates.ovs), showSpread(ratio)],
      ]),
    ),
  ].join('\n\n');
}

/** Writes the section of docs/performance.md. */
export function documentHost(result: Result): void {
  writeSection(
    'host',
    [
      '## Between a guest and the host',
      `Machine: ${result.machine}. Peer: Open vSwitch ${result.ovs} with DPDK ${result.dpdk}.`,
      `Method: a testpmd on a virtio-user port is the guest; a TAP (with Open vSwitch the bridge’s own interface) leads into the host’s kernel, where a testpmd with net_af_packet sends, and the interface counts what arrives in ${result.seconds} s. Both are on CPU ${GUEST_CPU} and send as fast as they can; the switch has CPU ${SWITCH_CPU}. \`npm run bench -- host\` repeats it.`,
      renderHost(result),
    ].join('\n\n'),
  );
}
