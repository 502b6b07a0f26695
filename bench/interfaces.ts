/**
 * Interfaces of the kernel: what a switch carries from one veth pair to another, whose far ends are in namespaces of
 * their own, as containers have them. Frames of DPDK's testpmd, which sends as fast as it can, and TCP between the
 * kernels of both namespaces. Beside the bridge of the Linux kernel and Open vSwitch with DPDK; the tunnel ends in the
 * kernel's own VXLAN.
 */
import { ovsVswitchd, skipWithout } from '../test/peers/available.ts';
import { Testpmd } from '../test/peers/dpdk.ts';
import { Ovs } from '../test/peers/ovs.ts';
import { sleep, until } from '../test/peers/process.ts';
import { Vireo } from '../test/peers/vireo.ts';
import { completeChecksums, ip, Namespace, ownNetwork, received } from '../test/support/network.ts';
import { GUEST_CPU, SWITCH_CPU } from './load.ts';
import { machine, type Spread, showSpread, spread, table, version, writeSection } from './report.ts';

const SIZES = [64, 1518];
const ADDRESSES = ['10.0.0.1', '10.0.0.2'] as const;
const MACS = ['52:54:00:00:00:01', '52:54:00:00:00:02'] as const;
/** Of the wire below the tunnel, from here and from there. */
const OUTER = ['10.9.0.1', '10.9.0.2'] as const;
const VNI = 42;
/** Bytes of a packet in the tunnel. */
const INNER_MTU = 1450;
/** Seconds before what is measured. */
const WARM_UP = 0.5;

interface Running {
  close: () => Promise<void>;
}

interface Subject {
  title: string;
  /** The second way is a tunnel to the other namespace. */
  tunnel?: boolean;
  /** Takes and gives no partial checksums, and so no large segments. */
  plain?: boolean;
  /** Connects the interfaces `veth0` and `veth2`, or `veth0` and the tunnel over `veth2`. */
  start: () => Promise<Running>;
}

const vireo = (...more: string[]) => Vireo.start({ ports: [], poll: 'busy', cpu: SWITCH_CPU, more });

/** A bridge of the kernel between `veth0` and this interface. */
async function linuxBridge(other: string): Promise<Running> {
  ip('link add bridge0 type bridge');
  for (const name of ['veth0', other]) ip(`link set ${name} master bridge0`);
  ip('link set bridge0 up');
  return { close: async () => void ip('link del bridge0') };
}

const subjects: Record<string, Subject> = {
  'af-packet': { title: 'Vireo, af-packet', start: () => vireo('a=af-packet:veth0', 'b=af-packet:veth2') },
  'af-xdp': { title: 'Vireo, af-xdp', plain: true, start: () => vireo('a=af-xdp:veth0', 'b=af-xdp:veth2') },
  bridge: { title: 'Linux bridge', start: () => linuxBridge('veth2') },
  ovs: {
    title: 'Open vSwitch with DPDK, af_packet',
    plain: true,
    start: () =>
      Ovs.start({
        ports: [],
        cpu: SWITCH_CPU,
        devices: [0, 2].map((n) => `net_af_packet${n},iface=veth${n}`),
      }),
  },
  vxlan: {
    title: 'Vireo, af-packet to vxlan',
    tunnel: true,
    start: () => vireo('a=af-packet:veth0', `b=vxlan:${OUTER[1]},vni=${VNI},local=${OUTER[0]}`),
  },
  'bridge-vxlan': {
    title: 'Linux bridge to its VXLAN',
    tunnel: true,
    start: async () => {
      ip(`link add vxlan0 type vxlan id ${VNI} local ${OUTER[0]} remote ${OUTER[1]} dstport 4789 dev veth2`);
      ip('link set vxlan0 up');
      const bridge = await linuxBridge('vxlan0');
      return {
        close: async () => {
          await bridge.close();
          ip('link del vxlan0');
        },
      };
    },
  },
};

export interface Result {
  machine: string;
  dpdk: string;
  ovs: string;
  turns: number;
  seconds: number;
  rows: {
    title: string /** Packets a second that arrived, by size. */;
    rates: Spread[] /** Bits a second. */;
    tcp: Spread;
  }[];
}

interface Measured {
  rates: number[];
  tcp: number;
}

export async function interfaces(
  turns: number,
  seconds: number,
  say: (line: string) => void,
): Promise<Result> {
  const missing = ownNetwork() || skipWithout('dpdk', 'ovs');
  if (missing) throw new Error(missing);
  const runs: Record<string, Measured[]> = {};
  let dpdk = 'unknown';
  for (let turn = 0; turn < turns; turn++) {
    for (const [name, subject] of Object.entries(subjects)) {
      const { sender, ...measured } = await measure(subject, seconds);
      dpdk = sender;
      runs[name] = [...(runs[name] ?? []), measured];
      const rates = SIZES.map((size, i) => `${size} B ${((measured.rates[i] ?? 0) / 1e6).toFixed(3)} Mpps`);
      say(
        `turn ${turn + 1} of ${turns}: ${subject.title}: ${rates.join(', ')}, TCP ${(measured.tcp / 1e9).toFixed(2)} Gbit/s`,
      );
    }
  }
  const rows = Object.entries(subjects).map(([name, { title }]) => ({
    title,
    rates: SIZES.map((_, index) => spread(runs[name]!.map(({ rates }) => rates[index]!))),
    tcp: spread(runs[name]!.map(({ tcp }) => tcp)),
  }));
  return { machine: machine(), dpdk, ovs: version(ovsVswitchd), turns, seconds, rows };
}

async function measure(subject: Subject, seconds: number): Promise<Measured & { sender: string }> {
  await using from = await Namespace.open();
  await using to = await Namespace.open();
  const last = wire(from, to, subject);
  const running = await subject.start();
  try {
    // First, so that the switch has learned both addresses.
    const bits = await tcp(from, to, seconds);
    const rates: number[] = [];
    let sender = 'unknown';
    for (const size of SIZES) {
      await using testpmd = await Testpmd.start({
        cpu: GUEST_CPU,
        memory: 128,
        within: from.enter,
        vdevs: ['net_af_packet0,iface=veth1'],
        args: [
          ...['--forward-mode=txonly', '--auto-start', `--eth-peer=0,${MACS[1]}`],
          `--txpkts=${subject.tunnel ? Math.min(size, INNER_MTU + 14) : size - 4}`,
          '--total-num-mbufs=8192',
        ],
      });
      sender = testpmd.version;
      await sleep(WARM_UP * 1000);
      const begin = { packets: received(last, to), time: performance.now() };
      await sleep(seconds * 1000);
      rates.push((received(last, to) - begin.packets) / ((performance.now() - begin.time) / 1000));
    }
    return { rates, tcp: bits, sender };
  } finally {
    await running.close();
    for (const name of ['veth0', 'veth2']) ip(`link del ${name}`);
  }
}

/** veth0 here to veth1 in `from`, veth2 here to veth3 in `to`; returns the interface by which `to` gets its frames. */
function wire(from: Namespace, to: Namespace, { tunnel, plain }: Subject): string {
  for (const [here, there, namespace] of [
    ['veth0', 'veth1', from],
    ['veth2', 'veth3', to],
  ] as const) {
    ip(`link add ${here} type veth peer name ${there}`);
    // Nobody would tell the tunnel's other end of a partial checksum within a packet.
    if (plain || (tunnel && there === 'veth3')) completeChecksums(there);
    ip(`link set ${there} netns ${namespace.id}`);
    ip(`link set ${here} up`);
  }
  const last = tunnel ? 'vxlan0' : 'veth3';
  from.ip(`link set veth1 address ${MACS[0]}${tunnel ? ` mtu ${INNER_MTU}` : ''}`);
  from.ip('link set veth1 up');
  from.ip(`addr add ${ADDRESSES[0]}/24 dev veth1`);
  to.ip('link set veth3 up');
  if (tunnel) {
    ip(`addr add ${OUTER[0]}/24 dev veth2`);
    to.ip(`addr add ${OUTER[1]}/24 dev veth3`);
    to.ip(`link add vxlan0 type vxlan id ${VNI} local ${OUTER[1]} remote ${OUTER[0]} dstport 4789 dev veth3`);
  }
  to.ip(`link set ${last} address ${MACS[1]}`);
  to.ip(`link set ${last} up`);
  to.ip(`addr add ${ADDRESSES[1]}/24 dev ${last}`);
  return last;
}

/** Payload that one connection carries, in bits a second. */
async function tcp(from: Namespace, to: Namespace, seconds: number): Promise<number> {
  const pinned = ['-c', String(GUEST_CPU), process.execPath, '-e'];
  const server = to.start(
    'taskset',
    ...pinned,
    `let n = 0; require('node:net').createServer((s) => s.on('data', (d) => { n += d.length; }).on('error', () => {}))
      .listen(5000, '${ADDRESSES[1]}', () => console.log('ready'));
    process.stdin.on('data', () => console.log('bytes ' + n));`,
  );
  const client = from.start(
    'taskset',
    ...pinned,
    `const bytes = Buffer.alloc(1 << 18);
    (function dial() {
      const s = require('node:net').connect(5000, '${ADDRESSES[1]}', () => { const go = () => s.write(bytes, go); go(); go(); });
      s.on('error', () => setTimeout(dial, 200));
    })();`,
  );
  try {
    await server.waitFor('its port', 20_000, () => server.output.includes('ready') || undefined);
    const count = async () => {
      const answers = server.output.split('bytes ').length;
      server.process.stdin?.write('\n');
      return server.waitFor('its count', 20_000, () => {
        const found = server.output.split('bytes ');
        return found.length > answers && found.at(-1)!.endsWith('\n') ? Number(found.at(-1)) : undefined;
      });
    };
    await until('bytes come', 60_000, async () => (await count()) > 0 || undefined);
    await sleep(WARM_UP * 1000);
    const begin = { bytes: await count(), time: performance.now() };
    await sleep(seconds * 1000);
    return (((await count()) - begin.bytes) * 8) / ((performance.now() - begin.time) / 1000);
  } finally {
    await client.end('SIGKILL');
    await server.end('SIGKILL');
  }
}

/** The tables as Markdown. */
export function renderInterfaces({ rows, turns }: Result): string {
  return [
    `Thousands of packets a second that arrived, and Gbit/s of TCP payload by one connection: median (least to most) of ${turns} turns.`,
    table(
      ['', ...SIZES.map((size) => `${size} B`), 'TCP'],
      rows.map(({ title, rates, tcp }) => [
        title,
        ...rates.map((rate) => showSpread(scaled(rate, 1e3), 0)),
        showSpread(scaled(tcp, 1e9)),
      ]),
    ),
  ].join('\n\n');
}

const scaled = ({ median, min, max }: Spread, by: number): Spread => ({
  median: median / by,
  min: min / by,
  max: max / by,
});

/** Writes the section of docs/performance.md. */
export function documentInterfaces(result: Result): void {
  writeSection(
    'interfaces',
    [
      '## Interfaces of the kernel',
      `Machine: ${result.machine}. Peers: Open vSwitch ${result.ovs} with DPDK ${result.dpdk}.`,
      `Method: two veth pairs, each from the switch to a namespace. On CPU ${GUEST_CPU} testpmd sends with net_af_packet, as fast as it can, to the other namespace, which counts what arrives in ${result.seconds} s; then one TCP connection. Userspace switches have CPU ${SWITCH_CPU}; the Linux bridge works within the sender’s system calls. In the tunnel frames have at most ${INNER_MTU + 14} bytes. af-xdp and Open vSwitch take no partial checksums, so that TCP has no large segments there. \`npm run bench -- interfaces\` repeats it.`,
      renderInterfaces(result),
    ].join('\n\n'),
  );
}
