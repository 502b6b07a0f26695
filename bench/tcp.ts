/**
 * TCP between two Linux guests in QEMU, with segmentation left to the card and without, beside Open vSwitch with
 * DPDK, and beside QEMU's own socket from guest to guest, which takes no offloads. With TSO a segment of up to 64 KiB
 * crosses the switch whole, and each guest's kernel sees it once.
 *
 * Where the kernel can't give QEMU a processor's own virtual machines (no KVM) the guests are emulated, and they are
 * what limits the rate: what is compared then is how much work a switch leaves to them.
 */
import { join } from 'node:path';
import { ovsVswitchd, skipWithout } from '../test/peers/available.ts';
import { Ovs } from '../test/peers/ovs.ts';
import { scratch } from '../test/peers/process.ts';
import { LinuxGuest } from '../test/peers/qemu.ts';
import { Vireo } from '../test/peers/vireo.ts';
import { SWITCH_CPU } from './load.ts';
import { machine, type Spread, showSpread, spread, table, version, writeSection } from './report.ts';

const ADDRESSES = ['10.0.0.1', '10.0.0.2'] as const;

/** The card without any large segments, in either direction. */
const PLAIN = [
  'host_tso4',
  'host_tso6',
  'host_ufo',
  'host_ecn',
  'guest_tso4',
  'guest_tso6',
  'guest_ufo',
  'guest_ecn',
]
  .map((property) => `${property}=off`)
  .join(',');

interface Running {
  /** Of the vhost-user sockets `a` and `b`. */
  directory?: string;
  /** QEMU's side of the sockets. */
  role?: 'client' | 'server';
  /** Without vhost-user: QEMU's option for each guest. */
  netdev?: (guest: number) => string;
  close: () => Promise<void>;
}

const subjects: Record<string, (tso: boolean) => Promise<Running>> = {
  vireo: async () => {
    const vireo = await Vireo.start({ ports: ['a', 'b'], poll: 'busy', cpu: SWITCH_CPU });
    return { directory: vireo.directory, role: 'client', close: () => vireo.close() };
  },
  ovs: async (tso) => {
    const ovs = await Ovs.start({ ports: ['a', 'b'], cpu: SWITCH_CPU, tso });
    return { directory: ovs.directory, role: tso ? 'server' : 'client', close: () => ovs.close() };
  },
  qemu: async () => {
    const { path, remove } = scratch('wire');
    const wire = `stream,addr.type=unix,addr.path=${join(path, 'wire')}`;
    return {
      netdev: (guest) => `${wire},server=${guest === 0 ? 'on' : 'off'}`,
      close: async () => remove(),
    };
  },
};

const TITLES: Record<string, string> = {
  vireo: 'Vireo',
  ovs: 'Open vSwitch with DPDK',
  qemu: 'QEMU’s own socket, no switch',
};

/** What a guest is told of its card, and the other one of its own. */
const CASES = [
  { name: 'both guests with TSO', devices: [undefined, undefined], tso: true },
  { name: 'from one with TSO to one without', devices: [undefined, PLAIN], tso: true },
  { name: 'from one without TSO to one with', devices: [PLAIN, undefined], tso: true },
  { name: 'both without TSO', devices: [PLAIN, PLAIN], tso: false },
] as const;

export interface Result {
  machine: string;
  ovs: string;
  turns: number;
  seconds: number;
  /** Gbit/s by case and switch. */
  rates: Record<string, Record<string, Spread>>;
  /** Bytes of a frame that the receiving guest's kernel got, the mean: more than its MTU, and it came whole. */
  frames: Record<string, Record<string, Spread>>;
}

interface Run {
  rate: number;
  frame: number;
}

export async function tcp(turns: number, seconds: number, say: (line: string) => void): Promise<Result> {
  const missing = skipWithout('ovs', 'qemu', 'guestKernel');
  if (missing !== false) throw new Error(missing);
  const found: Record<string, Record<string, Run[]>> = {};
  for (let turn = 0; turn < turns; turn++) {
    for (const { name, devices, tso } of CASES) {
      const byName = found[name] ?? {};
      found[name] = byName;
      // Whoever comes first in one turn comes second in the next.
      const order = Object.keys(subjects).filter((subject) => !(tso && subject === 'qemu'));
      if (turn % 2 === 1) order.reverse();
      for (const subject of order) {
        const run = await measure(await subjects[subject]!(tso), devices, seconds);
        byName[subject] = [...(byName[subject] ?? []), run];
        say(
          `turn ${turn + 1} of ${turns}: ${name}, ${subject}: ${run.rate.toFixed(3)} Gbit/s in frames of ${run.frame.toFixed(0)} B`,
        );
      }
    }
  }
  const spreads = (value: (run: Run) => number) =>
    Object.fromEntries(
      Object.entries(found).map(([name, bySubject]) => [
        name,
        Object.fromEntries(
          Object.entries(bySubject).map(([subject, runs]) => [subject, spread(runs.map(value))]),
        ),
      ]),
    );
  return {
    ...{ machine: machine(), ovs: version(ovsVswitchd), turns, seconds },
    rates: spreads(({ rate }) => rate),
    frames: spreads(({ frame }) => frame),
  };
}

/** Payload from the first guest to the second. Ends the switch. */
async function measure(
  vswitch: Running,
  devices: readonly [string | undefined, string | undefined],
  seconds: number,
): Promise<Run> {
  const guests: LinuxGuest[] = [];
  try {
    for (const [index, name] of ['a', 'b'].entries()) {
      const device = devices[index];
      const mac = `52:54:00:00:00:0${index + 1}`;
      const guest = await LinuxGuest.start({
        ...(vswitch.netdev
          ? {
              options: [
                ...['-netdev', `${vswitch.netdev(index)},id=net`],
                ...['-device', ['virtio-net-pci,netdev=net,romfile=,vectors=0', `mac=${mac}`, device].join()],
              ],
            }
          : {
              path: join(vswitch.directory!, name),
              role: vswitch.role!,
              mac,
              ...(device ? { device } : {}),
            }),
      });
      guests.push(guest);
      await guest.configure(`${ADDRESSES[index as 0 | 1]}/24`);
    }
    const [sender, receiver] = guests;
    await receiver!.ok('nuttcp -S');
    await sender!.ok(`ping -c 1 -w 20 ${ADDRESSES[1]}`);
    const received = async () => {
      const words = await receiver!.ok('cd /sys/class/net/eth0/statistics && cat rx_packets rx_bytes');
      const [packets = 0, bytes = 0] = words.trim().split('\n').map(Number);
      return { packets, bytes };
    };
    const before = await received();
    const text = await sender!.ok(`nuttcp -T${seconds} -fparse ${ADDRESSES[1]}`, 120_000);
    const rate = /rate_Mbps=([\d.]+)/.exec(text)?.[1];
    if (rate === undefined) throw new Error(`nuttcp says no rate: ${text.trim()}`);
    const after = await received();
    return {
      rate: Number(rate) / 1000,
      frame: (after.bytes - before.bytes) / (after.packets - before.packets),
    };
  } finally {
    for (const guest of guests) await guest.close();
    await vswitch.close();
  }
}

/** The table as Markdown. */
export function renderTcp({ rates, frames, turns }: Result): string {
  const names = Object.keys(subjects);
  const rows = (figures: Result['rates'], digits: number) =>
    CASES.map(({ name }) => [
      name,
      ...names.map((subject) => {
        const found = figures[name]?.[subject];
        return found === undefined ? '' : showSpread(found, digits);
      }),
    ]);
  const header = ['', ...names.map((subject) => TITLES[subject]!)];
  return [
    `Gbit/s of payload, one connection: median (least to most) of ${turns} turns.`,
    table(header, rows(rates, 3)),
    'Bytes of a frame as the receiving guest’s kernel got them, the mean of a turn:',
    table(header, rows(frames, 0)),
  ].join('\n\n');
}

/** Writes the section of docs/performance.md. */
export function documentTcp(result: Result): void {
  writeSection(
    'tcp',
    [
      '## TCP between Linux guests',
      `Machine: ${result.machine}. Peer: Open vSwitch ${result.ovs}, with userspace-tso-enable where a guest has TSO.`,
      `Method: two guests in QEMU with their kernel's virtio_net; nuttcp sends for ${result.seconds} s. Without KVM the guests are emulated and limit the rate. \`npm run bench -- tcp\` repeats it.`,
      renderTcp(result),
    ].join('\n\n'),
  );
}
