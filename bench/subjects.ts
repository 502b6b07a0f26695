/** The switches that are compared, and how several are measured in turn while the others are frozen. */
import { join } from 'node:path';
import { Testpmd, vhost } from '../test/peers/dpdk.ts';
import { Ovs } from '../test/peers/ovs.ts';
import { scratch } from '../test/peers/process.ts';
import { Vireo } from '../test/peers/vireo.ts';
import { type Load, type LoadOptions, measure, RunningLoad, type Subject, SWITCH_CPU } from './load.ts';

/** A switch with two vhost-user ports on the sockets `a` and `b` in its directory. */
interface Running extends Subject {
  directory: string;
  close: () => Promise<void>;
}

const subjects = {
  vireo: async (): Promise<Running> => {
    const vireo = await Vireo.start({ ports: ['a', 'b'], poll: 'busy', cpu: SWITCH_CPU });
    return { name: 'vireo', directory: vireo.directory, pid: vireo.child.pid, close: () => vireo.close() };
  },
  testpmd: async (memory?: LoadOptions['memory']): Promise<Running> => {
    const { path, remove } = scratch('vhost');
    const pmd = await Testpmd.start({
      cpu: SWITCH_CPU,
      vdevs: ['a', 'b'].map((name, index) => vhost(index, { iface: join(path, name) })),
      ...(memory ? { memory: memory.size } : {}),
      args: ['--forward-mode=io', '--auto-start', ...(memory ? [`--total-num-mbufs=${memory.packets}`] : [])],
    });
    return {
      name: 'testpmd',
      directory: path,
      pid: pmd.child.pid,
      cyclesPerPacket: (seconds) => pmd.cyclesPerPacket(seconds),
      close: async () => {
        await pmd.close();
        remove();
      },
    };
  },
  ovs: async (): Promise<Running> => {
    const ovs = await Ovs.start({ ports: ['a', 'b'], cpu: SWITCH_CPU });
    return {
      name: 'ovs',
      directory: ovs.directory,
      pid: ovs.pid,
      cyclesPerPacket: async (seconds) => (await ovs.performance(seconds)).cyclesPerPacket,
      close: () => ovs.close(),
    };
  },
};

export type SubjectName = keyof typeof subjects;
export const subjectNames = Object.keys(subjects) as SubjectName[];

export const TITLES: Record<SubjectName, string> = {
  vireo: 'Vireo, learning',
  testpmd: 'DPDK testpmd, vhost io (no switching)',
  ovs: 'Open vSwitch with DPDK, learning',
};

/** A switch and the guests that it is to be measured with. */
export interface Pairing extends LoadOptions {
  subject: SubjectName;
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
    for (const { subject: name, ...options } of pairings) {
      const subject: (typeof running)[number] = { switch: await subjects[name](options.memory) };
      running.push(subject);
      const sockets = [join(subject.switch.directory, 'a'), join(subject.switch.directory, 'b')] as const;
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
