/** The switches that are compared, and how several are measured in turn while the others are frozen. */
import { join } from 'node:path';
import { Testpmd, vhost } from '../test/peers/dpdk.ts';
import { Ovs } from '../test/peers/ovs.ts';
import { scratch } from '../test/peers/process.ts';
import { Vireo } from '../test/peers/vireo.ts';
import {
  type Load,
  type LoadOptions,
  measure,
  nextPort,
  RunningLoad,
  type Subject,
  SWITCH_CPU,
} from './load.ts';

/** A switch with vhost-user ports, each on a socket of its name in its directory. */
export interface Running extends Subject {
  directory: string;
  /** Where it tells it only once it runs. */
  version?: string;
  close: () => Promise<void>;
}

/** Of `ports` there is an even number; see nextPort() for which are wired where nothing is learned. */
type Start = (ports: string[], memory?: LoadOptions['memory']) => Promise<Running>;

const subjects = {
  vireo: async (ports) => {
    const vireo = await Vireo.start({ ports, poll: 'busy', cpu: SWITCH_CPU });
    return { name: 'vireo', directory: vireo.directory, pid: vireo.child.pid, close: () => vireo.close() };
  },
  testpmd: async (ports, memory) => {
    const { path, remove } = scratch('vhost');
    // It wires its ports by pairs: 0 with 1, 2 with 3.
    const wired = ports.flatMap((name, port) =>
      port % 2 === 1 ? [name, ports[nextPort(port, ports.length)]!] : [],
    );
    const pmd = await Testpmd.start({
      cpu: SWITCH_CPU,
      vdevs: wired.map((name, index) => vhost(index, { iface: join(path, name) })),
      ...(memory ? { memory: memory.size } : {}),
      args: ['--forward-mode=io', '--auto-start', ...(memory ? [`--total-num-mbufs=${memory.packets}`] : [])],
    });
    return {
      name: 'testpmd',
      directory: path,
      version: pmd.version,
      pid: pmd.child.pid,
      cyclesPerPacket: (seconds) => pmd.cyclesPerPacket(seconds),
      close: async () => {
        await pmd.close();
        remove();
      },
    };
  },
  ovs: async (ports) => {
    const ovs = await Ovs.start({ ports, cpu: SWITCH_CPU });
    return {
      name: 'ovs',
      directory: ovs.directory,
      pid: ovs.pid,
      cyclesPerPacket: async (seconds) => (await ovs.performance(seconds)).cyclesPerPacket,
      close: () => ovs.close(),
    };
  },
} satisfies Record<string, Start>;

export type SubjectName = keyof typeof subjects;
export const subjectNames = Object.keys(subjects) as SubjectName[];

export const TITLES: Record<SubjectName, string> = {
  vireo: 'Vireo, learning',
  testpmd: 'DPDK testpmd, vhost io (no switching)',
  ovs: 'Open vSwitch with DPDK, learning',
};

export const start = (name: SubjectName, ...options: Parameters<Start>): Promise<Running> =>
  (subjects[name] as Start)(...options);

/** A switch and the guests that it is to be measured with. */
export interface Pairing extends LoadOptions {
  subject: SubjectName;
  /** Guests in a ring, of two ports each; default 1. */
  guests?: number;
}

/**
 * Starts every switch with its guests and measures them in turn, for `seconds` with near CPUs each; the results are
 * in the order of `pairings`.
 */
export async function together(
  pairings: Pairing[],
  seconds: number,
  say: (line: string) => void,
): Promise<Load[]> {
  const running: { switch: Running; load?: RunningLoad }[] = [];
  try {
    for (const { subject: name, guests = 1, ...options } of pairings) {
      const ports = Array.from({ length: 2 * guests }, (_, port) => `p${port}`);
      const subject: (typeof running)[number] = { switch: await start(name, ports, options.memory) };
      running.push(subject);
      const sockets = ports.map((port) => join(subject.switch.directory, port));
      subject.load = await RunningLoad.start(subject.switch, sockets, options, say);
    }
    return await measure(
      running.flatMap(({ load }) => load ?? []),
      seconds,
    );
  } finally {
    for (const subject of running) {
      await subject.load?.close();
      await subject.switch.close();
    }
  }
}
