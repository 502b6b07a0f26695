/** What each rule costs a packet when it is on: windows with it and without it in turn, on one running switch. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { PortChange } from '../src/switch/types.ts';
import { setAffinity } from '../src/sys/index.ts';
import { skipWithout } from '../test/peers/available.ts';
import type { Testpmd } from '../test/peers/dpdk.ts';
import { until } from '../test/peers/process.ts';
import type { Vireo } from '../test/peers/vireo.ts';
import { BURSTS, GUEST_CPU, SWITCH_CPU } from './load.ts';
import { machine, type Spread, showSpread, spread, table, writeSection } from './report.ts';
import { circulate } from './rules.ts';

/** Bytes of the frames. */
const SIZE = 64;
/** Seconds of a window. */
const WINDOW = 0.4;

type Control = Vireo['control'];

/** Sets fields of both ports, and takes them away again. */
const ports = (change: PortChange): Rule => {
  const none = Object.fromEntries(Object.keys(change).map((field) => [field, null]));
  const both = async (control: Control, fields: PortChange) => {
    for (const port of ['a', 'b']) await control.setPort(port, fields);
  };
  return { on: (control) => both(control, change), off: (control) => both(control, none) };
};

/** What lets everything through that goes here. */
interface Rule {
  on(control: Control): Promise<unknown>;
  off(control: Control): Promise<unknown>;
}

const MACS = '52:54:00:00:00:01+52:54:00:00:00:02';
const RULES: Record<string, Rule> = {
  'isolated, of one port': {
    on: (control) => control.setPort('a', { isolated: true }),
    off: (control) => control.setPort('a', { isolated: null }),
  },
  'vlan (access ports)': ports({ vlan: 10 }),
  'allow-mac': ports({ allowMac: MACS }),
  'allow-ip': ports({ allowIp: '0.0.0.0/0' }),
  'ra-guard and dhcp-guard': ports({ raGuard: true, dhcpGuard: true }),
  'storm-broadcast': ports({ stormBroadcast: '1000Gbit' }),
  'rate-in': ports({ rateIn: '1000Gbit' }),
  'rate-out, below the rate': ports({ rateOut: '1000Gbit' }),
  'delay-out of 1 ns': ports({ delayOut: '1ns', limitOut: 8192 }),
  'snooping, of the bridge': {
    on: (control) => control.setBridge('default', { snooping: true }),
    off: (control) => control.setBridge('default', { snooping: null }),
  },
  'mirror of both ports to a null port': {
    on: (control) => control.addMirror({ name: 'copy', from: 'a+b', to: 'sink' }),
    off: (control) => control.removeMirror('copy'),
  },
  'rstp, edges': tree(true),
  'rstp, between bridges': tree(false),
};

/** A tree whose ports forward: at once, or when nobody has answered. */
function tree(edge: boolean): Rule {
  return {
    on: async (control) => {
      for (const port of ['a', 'b']) await control.setPort(port, { edge });
      await control.setBridge('default', { rstp: true, maxAge: 6, forwardDelay: 4 });
      await until('the ports forward', 60_000, async () => {
        const { spanningTree } = await control.bridge('default');
        const members = spanningTree!.ports.filter(({ name }) => name !== 'sink');
        return members.every(({ state }) => state === 'forwarding') || undefined;
      });
    },
    off: (control) => control.setBridge('default', { rstp: null, maxAge: null, forwardDelay: null }),
  };
}

export interface Result {
  machine: string;
  dpdk: string;
  turns: number;
  /** Nanoseconds a packet without a rule. */
  without: Spread;
  /** By rule: nanoseconds a packet more than in the window before it. */
  more: Record<string, Spread>;
}

export async function costs(turns: number, say: (line: string) => void): Promise<Result> {
  const missing = skipWithout('dpdk');
  if (missing !== false) throw new Error(missing);
  setAffinity([GUEST_CPU]);
  const without: number[] = [];
  const more: Record<string, number[]> = {};
  const dpdk = await circulate(SIZE, async ({ control }, guests) => {
    await control.addPort({ name: 'sink', type: 'null', target: '' });
    for (let turn = 0; turn < turns; turn++) {
      for (const [name, { on, off }] of Object.entries(RULES)) {
        const before = await cost(guests);
        await on(control);
        // What was under way may be lost while a rule comes.
        await again(guests);
        const found = (await cost(guests)) - before;
        await off(control);
        await again(guests);
        without.push(before);
        more[name] = [...(more[name] ?? []), found];
        say(`turn ${turn + 1} of ${turns}: ${name}: ${before.toFixed(1)} ns, ${found.toFixed(1)} more`);
      }
    }
  });
  const spreads = Object.entries(more).map(([name, values]) => [name, spread(values)] as const);
  return { machine: machine(), dpdk, turns, without: spread(without), more: Object.fromEntries(spreads) };
}

/** Nanoseconds a packet, both directions summed. */
async function cost(guests: Testpmd): Promise<number> {
  const rates = await guests.rates(WINDOW);
  return 1e9 / rates.reduce((sum, rate) => sum + rate, 0);
}

async function again(guests: Testpmd): Promise<void> {
  await guests.command('stop');
  await guests.command(`start tx_first ${BURSTS}`);
  await sleep(100);
}

export function renderCosts({ turns, without, more }: Result): string {
  return [
    `Nanoseconds a packet of ${SIZE} B, both directions summed: ${showSpread(without, 1)} without rules. More than that, with a rule on both ports that lets everything through, each beside the window just before it: median (least to most) of ${turns} turns. The two CPUs are moved near and far in between by the host, which is most of the spread.`,
    table(
      ['', 'ns more'],
      Object.entries(more).map(([name, found]) => [name, showSpread(found, 1)]),
    ),
  ].join('\n\n');
}

export function documentCosts(result: Result): void {
  const peers = `Machine: ${result.machine}. Peer: DPDK ${result.dpdk}.`;
  const method = `Method: one testpmd is both guests, ${BURSTS * 32} packets circulate in each direction; the switch has CPU ${SWITCH_CPU}, the guests CPU ${GUEST_CPU}. Rules are set and taken away on the running switch. \`npm run bench -- costs\` repeats it.`;
  writeSection('costs', ['## What rules cost', peers, method, renderCosts(result)].join('\n\n'));
}
