/**
 * Open vSwitch with DPDK: an instance of our own, with its database, sockets and logs in a temporary directory. The
 * system's instance, if one runs, is neither asked nor touched.
 */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { ovsVswitchd } from './available.ts';
import { Child, scratch, sleep, until } from './process.ts';

const execute = promisify(execFile);
const SCHEMA = '/usr/share/openvswitch/vswitch.ovsschema';
const BRIDGE = 'br0';

export interface OvsOptions {
  /** vhost-user ports, each on a socket of this name in `directory`: servers, with `tso` clients. */
  ports: string[];
  /** The CPU of the forwarding thread. */
  cpu?: number;
  /** Offers large segments; its ports that listen never do. */
  tso?: boolean;
  /** MiB of hugepages to begin with. */
  memory?: number;
  /** DPDK's devices that are ports too, e.g. `net_af_packet0,iface=eth1`. */
  devices?: string[];
}

/** What the forwarding thread did since the counters were cleared. */
export interface PmdPerformance {
  cyclesPerPacket: number;
  packets: number;
}

export class Ovs {
  /** Where the ports' sockets are. */
  readonly directory: string;
  readonly #remove: () => void;
  readonly #children: Child[] = [];

  private constructor() {
    const { path, remove } = scratch('ovs');
    this.directory = path;
    this.#remove = remove;
  }

  /** A learning bridge of the userspace datapath; resolves when each port's socket is there. */
  static async start(options: OvsOptions): Promise<Ovs> {
    const ovs = new Ovs();
    try {
      await ovs.#start(options);
    } catch (error) {
      await ovs.close();
      throw error;
    }
    return ovs;
  }

  async #start({ ports, cpu = 0, memory = 512, tso = false, devices = [] }: OvsOptions): Promise<void> {
    const database = join(this.directory, 'conf.db');
    await execute('ovsdb-tool', ['create', database, SCHEMA]);
    await this.#daemon('ovsdb-server', 'ovsdb-server', 10_000, [database, `--remote=punix:${this.#socket}`]);
    await this.vsctl('--no-wait', 'init');
    const settings = {
      'dpdk-init': 'true',
      'dpdk-socket-mem': `"${memory}"`,
      'dpdk-extra': `"--no-pci --in-memory --file-prefix vireo-ovs-${process.pid}"`,
      'userspace-tso-enable': String(tso),
      'pmd-cpu-mask': `"0x${(1 << cpu).toString(16)}"`,
    };
    const values = Object.entries(settings).map(([key, value]) => `other_config:${key}=${value}`);
    await this.vsctl('--no-wait', 'set', 'Open_vSwitch', '.', ...values);
    await this.#startSwitch();
    await this.vsctl('add-br', BRIDGE, '--', 'set', 'bridge', BRIDGE, 'datapath_type=netdev');
    for (const port of ports) {
      const options = tso
        ? ['type=dpdkvhostuserclient', `options:vhost-server-path=${join(this.directory, port)}`]
        : ['type=dpdkvhostuser'];
      await this.vsctl('add-port', BRIDGE, port, '--', 'set', 'interface', port, ...options);
    }
    for (const [index, device] of devices.entries()) {
      const name = `dpdk${index}`;
      const options = ['type=dpdk', `options:dpdk-devargs="${device}"`];
      await this.vsctl('add-port', BRIDGE, name, '--', 'set', 'interface', name, ...options);
    }
    if (tso) return;
    await until('sockets of OVS', 10_000, () =>
      ports.every((port) => existsSync(join(this.directory, port))),
    );
  }

  #startSwitch(): Promise<void> {
    return this.#daemon('vswitchd', ovsVswitchd, 60_000, [`unix:${this.#socket}`]);
  }

  /** Kills the process that forwards and starts it again, which brings the bridge and its ports back. */
  async restart(): Promise<void> {
    await this.#children.pop()?.end('SIGKILL');
    await this.#startSwitch();
  }

  /** `ovs-vsctl` on this instance. */
  async vsctl(...args: string[]): Promise<string> {
    const { stdout } = await execute('ovs-vsctl', [`--db=unix:${this.#socket}`, '--timeout=30', ...args]);
    return stdout;
  }

  /** `ovs-appctl` to this instance's vswitchd. */
  async appctl(...args: string[]): Promise<string> {
    const { stdout } = await execute('ovs-appctl', ['-t', this.#control('vswitchd'), ...args]);
    return stdout;
  }

  /** Cycles a packet, over `seconds` of forwarding; time spent on empty polls isn't in it. */
  async performance(seconds: number): Promise<PmdPerformance> {
    await this.appctl('dpif-netdev/pmd-stats-clear');
    await sleep(seconds * 1000);
    const text = await this.appctl('dpif-netdev/pmd-stats-show');
    const number = (pattern: RegExp) => Number(pattern.exec(text)?.[1]);
    return {
      packets: number(/packets received: (\d+)/),
      cyclesPerPacket: number(/avg processing cycles per packet: ([\d.]+)/),
    };
  }

  /** Of the process that forwards. */
  get pid(): number {
    return this.#children.at(-1)?.pid ?? 0;
  }

  /** The daemons' own messages. */
  get log(): string {
    return this.#children.map((child) => child.output).join('\n');
  }

  async close(): Promise<void> {
    for (const child of this.#children.reverse()) await child.end();
    this.#remove();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  get #socket(): string {
    return join(this.directory, 'db.sock');
  }

  #control(name: string): string {
    return join(this.directory, `${name}.ctl`);
  }

  /** Starts a daemon in the foreground, resolves when it answers on its control socket. */
  async #daemon(name: string, program: string, timeout: number, args: string[]): Promise<void> {
    const control = this.#control(name);
    const common = [`--unixctl=${control}`, '-vconsole:info', '-vsyslog:off', '-vfile:off'];
    const directories = { OVS_RUNDIR: this.directory, OVS_DBDIR: this.directory, OVS_LOGDIR: this.directory };
    const child = new Child(program, [...args, ...common], { env: directories });
    this.#children.push(child);
    await until(`answer from ${name}`, timeout, async () => {
      if (!child.running) throw new Error(`${name} ended\n${child.tail()}`);
      // The socket is there a moment before somebody listens on it.
      return execute('ovs-appctl', ['-t', control, 'version']).then(
        () => true,
        () => false,
      );
    });
  }
}
