/**
 * A Linux guest in QEMU whose network card is a vhost-user port: the kernel's own virtio_net driver as the peer.
 * guest-recipe.ts says what runs inside and how its shell is spoken to.
 */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { accessSync, constants, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { cache, type GuestImage, guestImage, qemuProgram } from './available.ts';
import { Child, scratch, until } from './process.ts';

export interface GuestOptions {
  /** The vhost-user socket; undefined: the guest has no card. */
  path?: string;
  /** What it boots; default: the image of this machine's own release. */
  image?: GuestImage;
  /** QEMU, and what stands before its options; default: that of this machine. */
  program?: string[];
  /** QEMU's side of it: `client` (default) dials and dials again each second, `server` listens. */
  role?: 'client' | 'server';
  mac?: string;
  /** More cards like that, behind it. */
  more?: { path: string; mac?: string }[];
  /** Queue pairs. */
  queues?: number;
  /** More properties of the device, e.g. `mrg_rxbuf=off,rx_queue_size=1024`, `packed=on`, `host_mtu=9000`. */
  device?: string;
  /** MiB. Several numbers: as many NUMA nodes, each with a memory backend (a file) of its own. */
  memory?: number | number[];
  /** More properties of each memory backend, e.g. `hugetlb=on,hugetlbsize=2M`. */
  backend?: string;
  /** More properties of the machine, e.g. `kernel-irqchip=split`. */
  machine?: string;
  /** More words for the kernel's command line, e.g. `intel_iommu=on`. */
  kernel?: string;
  /** More options of QEMU; they come before the network card, as `-device intel-iommu` must. */
  options?: string[];
  /** Virtual CPUs, and the model that is emulated; default `qemu64`. */
  cpus?: number;
  cpu?: string;
  accelerator?: 'kvm' | 'tcg';
  /** More options of QEMU, after all others. */
  arguments?: string[];
}

/** Milliseconds: under TCG, on a busy machine, a boot takes many times the usual four seconds. */
const BOOT = 300_000;

/** Bytes of a guest that have come before it goes by postcopy: some of it here, some of it not. */
const POSTCOPY_FROM = 8 << 20;

const KERNEL = 'console=ttyS0 quiet panic=-1 reboot=t mitigations=off random.trust_cpu=on no_timer_check';

/** A list of QEMU's options, of what there is. */
const list = (...parts: (string | undefined)[]) => parts.filter((part) => part !== undefined).join(',');

/** Stands before the number and the exit status in the shell's answer. */
const END_OF_OUTPUT = '\x1e';

export class LinuxGuest {
  #options: GuestOptions;
  readonly #directory = scratch('guest');
  readonly #server: Server;
  /** The vhost-user socket, another one after a migration. */
  #path: string | undefined;
  /** How many QEMUs it had: each has a monitor of its own. */
  #generation = 0;
  #qemu: Child | undefined;
  #shell: Socket | undefined;
  /** What the shell has said since the last answer. */
  #answer = '';
  #requests = 0;
  #last: Promise<unknown> = Promise.resolve();

  private constructor(options: GuestOptions) {
    this.#options = options;
    this.#path = options.path;
    this.#server = createServer((socket) => {
      this.#shell = socket;
      socket.setEncoding('latin1');
      socket.on('error', () => {});
      socket.on('data', (text: string) => {
        this.#answer += text;
        this.#look();
      });
    });
  }

  /** Resolves when the guest's shell answers: the network card is there, without an address. */
  static async start(options: GuestOptions): Promise<LinuxGuest> {
    const guest = new LinuxGuest(options);
    await new Promise<void>((resolve) => guest.#server.listen(join(guest.#directory.path, 'shell'), resolve));
    try {
      await guest.powerOn();
    } catch (error) {
      await guest.close();
      throw error;
    }
    return guest;
  }

  /** The kernel's console and QEMU's own messages. */
  get console(): string {
    return this.#qemu?.output ?? '';
  }

  get pid(): number {
    return this.#qemu?.pid ?? 0;
  }

  /** Starts QEMU, after `kill` once more, with the same options but for `changes`, and waits for the shell. */
  async powerOn(changes: Partial<GuestOptions> = {}): Promise<void> {
    this.#options = { ...this.#options, ...changes };
    this.#answer = '';
    const [program, ...before] = this.#options.program ?? [qemuProgram];
    this.#qemu = new Child(program!, [...before, ...this.#arguments()]);
    await this.#reply(0, BOOT, 'the shell');
  }

  /** Runs a command line of busybox's shell: both outputs together, and the exit status. */
  run(command: string, timeout = 60_000): Promise<{ output: string; status: number }> {
    const answer = this.#last.then(() =>
      this.#reply(this.#send(command), timeout, `the end of "${command}"`),
    );
    this.#last = answer.catch(() => {});
    return answer;
  }

  /** As `run`, for a command that is to succeed: its output. Rejects with it otherwise. */
  async ok(command: string, timeout?: number): Promise<string> {
    const { output, status } = await this.run(command, timeout);
    if (status !== 0) throw new Error(`"${command}" ended with ${status} in the guest: ${output.trim()}`);
    return output;
  }

  /** The guest as the far end of connections to `address`, with so many megabytes to send (support/tcp.ts). */
  endTo(address: string, megabytes: number) {
    return {
      sendTo: async (port: number): Promise<string> => {
        await this.ok(`dd if=/dev/urandom of=/tmp/data bs=1M count=${megabytes}`);
        const sum = await this.ok('md5sum < /tmp/data');
        await this.ok(`nc ${address} ${port} < /tmp/data`, 300_000);
        return sum.slice(0, 32);
      },
      // Input that never ends keeps nc from closing its own way first: it ends when its input does, and the passt of
      // 2023 then cuts what is still to come.
      hashFrom: async (port: number): Promise<string> => {
        await this.ok('[ -p /tmp/open ] || mkfifo /tmp/open');
        const sum = await this.ok(`nc ${address} ${port} 0<>/tmp/open | md5sum`, 300_000);
        return sum.slice(0, 32);
      },
    };
  }

  /** Gives the card an address, `10.0.0.1/24`, and brings it up. */
  async configure(address: string): Promise<void> {
    await this.ok(`ip addr add ${address} dev eth0 && ip link set eth0 up`);
  }

  /** What `ethtool -k` says that is switched on, with or without a say of the guest's in it. */
  async offloads(): Promise<Set<string>> {
    const text = await this.ok('ethtool -k eth0');
    return new Set([...text.matchAll(/^\s*([\w-]+): on/gm)].map((match) => match[1] as string));
  }

  /** Interrupts that the card has raised, of all its vectors, since the guest's kernel started. */
  async interrupts(): Promise<number> {
    const lines = (await this.ok('grep virtio /proc/interrupts || true')).trim().split('\n');
    // "  21:   1200   300  IO-APIC  21-fasteoi   virtio0": a column for each CPU.
    const counts = lines.flatMap((line) => /:((?:\s+\d+)+)\s/.exec(line)?.[1]?.trim().split(/\s+/) ?? []);
    return counts.reduce((sum, count) => sum + Number(count), 0);
  }

  /** Restarts the guest's kernel within the same QEMU. */
  async reboot(): Promise<void> {
    await this.#last;
    this.#send('reboot -f');
    await this.#reply(0, BOOT, 'the shell after the reboot');
  }

  get #monitor(): string {
    return join(this.#directory.path, `monitor${this.#generation}`);
  }

  /**
   * Migrates the running guest to another QEMU, whose card is behind another vhost-user socket; resolves when it
   * runs there, and the first QEMU is stopped but still there: `leave` ends that one. `rate` bounds the copying in
   * bytes a second. With `postcopy` the guest goes before its memory has, of which so many pages were asked for. Commands
   * of the guest's shell wait for the other place.
   */
  async migrate(
    path: string,
    rate: number,
    { postcopy = false } = {},
  ): Promise<{ leave: () => Promise<void>; asked: number }> {
    await this.#last;
    const from = this.#qemu!;
    const source = await Monitor.open(this.#monitor);
    const incoming = `unix:${join(this.#directory.path, 'incoming')}`;
    this.#path = path;
    this.#generation += 1;
    this.#qemu = new Child(qemuProgram, [...this.#arguments(), '-incoming', incoming]);
    try {
      const target = await Monitor.open(this.#monitor);
      const capabilities = [{ capability: 'postcopy-ram', state: postcopy }];
      for (const qemu of [source, target]) await qemu.run('migrate-set-capabilities', { capabilities });
      const rates = { 'max-bandwidth': rate, 'max-postcopy-bandwidth': rate };
      await source.run('migrate-set-parameters', rates);
      // Under TCG, QEMU 7.2 now and then loses what a processor wrote: guests crashed after it, with a card of QEMU's
      // own too, where no other process writes to their memory. One that stands still while QEMU begins to look for
      // what is written has no entries in its TLB that write unseen.
      const tcg = (this.#options.accelerator ?? accelerator()) === 'tcg';
      if (tcg) await source.run('stop');
      await source.run('migrate', { uri: incoming });
      if (tcg) {
        await until('the migration has begun', 60_000, async () => {
          return ((await source.run('query-migrate')) as Progress).status === 'active' || undefined;
        });
        await source.run('cont');
      }
      if (postcopy) {
        await until('memory is on its way', 60_000, async () => {
          const { ram } = (await source.run('query-migrate')) as { ram?: { transferred: number } };
          return (ram?.transferred ?? 0) > POSTCOPY_FROM || undefined;
        });
        await source.run('migrate-start-postcopy');
      }
      const end = await until('the end of the migration', 120_000, async () => {
        const progress = (await source.run('query-migrate')) as Progress;
        return progress.status === 'completed' || progress.status === 'failed' ? progress : undefined;
      });
      if (end.status !== 'completed')
        throw new Error(`migration failed: ${end['error-desc']}\n${from.tail()}`);
      await until('the guest runs again', 60_000, async () => {
        return ((await target.run('query-status')) as { status: string }).status === 'running' || undefined;
      });
      target.close();
      return {
        leave: () => from.end('SIGKILL'),
        asked: end.ram?.['postcopy-requests'] ?? 0,
      };
    } catch (error) {
      await from.end('SIGKILL');
      throw error;
    } finally {
      source.close();
    }
  }

  /** Stops the guest's processors, or lets them go on; QEMU stops and starts the queues of its cards with them. */
  async halt(execute: 'stop' | 'cont'): Promise<void> {
    await this.#last;
    await this.command(execute);
  }

  /** A command of QEMU's monitor. */
  async command(execute: string, parameters: object = {}): Promise<void> {
    const qemu = await Monitor.open(this.#monitor);
    await qemu.run(execute, parameters).finally(() => qemu.close());
  }

  /** SIGKILL: the guest and its front-end are gone at once. `powerOn` starts it again. */
  async kill(): Promise<void> {
    await this.#qemu?.end('SIGKILL');
  }

  async close(): Promise<void> {
    await this.kill();
    this.#shell?.destroy();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#directory.remove();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #look: () => void = () => {};

  /** Returns the request's number. */
  #send(command: string): number {
    this.#requests += 1;
    this.#shell?.write(`${this.#requests} ${Buffer.from(command).toString('base64')}\n`);
    return this.#requests;
  }

  /** The answer to request `number`; late answers to earlier ones, which ran into their time limit, are dropped. */
  async #reply(number: number, timeout: number, what: string): Promise<{ output: string; status: number }> {
    const qemu = this.#qemu;
    if (qemu === undefined) throw new Error('the guest is not running');
    return new Promise((resolve, reject) => {
      const settle = () => {
        clearTimeout(timer);
        this.#look = () => {};
      };
      const fail = (reason: string) => {
        settle();
        reject(
          new Error(
            `the guest: ${reason} (waited for ${what})\n${qemu.tail()}\n${this.#answer.slice(-1000)}`,
          ),
        );
      };
      const timer = setTimeout(() => {
        // Ends what runs in the foreground, so that the next command finds a shell.
        this.#shell?.write('\x03');
        fail(`nothing after ${timeout} ms`);
      }, timeout);
      void qemu.exited.then((code) => fail(`QEMU ended with ${code}`));
      this.#look = () => {
        for (;;) {
          const mark = this.#answer.indexOf(END_OF_OUTPUT);
          const end = mark < 0 ? -1 : this.#answer.indexOf('\n', mark);
          if (end < 0) return;
          const output = Buffer.from(this.#answer.slice(0, mark), 'latin1').toString('utf8');
          const [of, status] = this.#answer
            .slice(mark + 1, end)
            .split(' ')
            .map(Number);
          this.#answer = this.#answer.slice(end + 1);
          if (of !== number || status === undefined) continue;
          settle();
          resolve({ output, status });
          return;
        }
      };
      this.#look();
    });
  }

  #arguments(): string[] {
    const path = this.#path;
    const { role, mac, queues, device, more = [], cpus = 1 } = this.#options;
    const { backend, machine, kernel, options = [], image = guestImage } = this.#options;
    const memory = [this.#options.memory ?? 256].flat();
    const accel = this.#options.accelerator ?? accelerator();
    const version = qemuVersion(this.#options.program);
    // QEMU 9.2 renamed the option.
    const redial = version >= 10 ? 'reconnect-ms=1000' : 'reconnect=1';
    const socket = role === 'server' ? 'server=on,wait=off' : redial;
    // QEMU 7.2.22 crashes without KVM as soon as the guest unmasks a vector of MSI-X, with any machine, any thread
    // model and without ioeventfd: for vhost-user it looks into a table that only KVM's interrupts have. Without
    // vectors the guest uses the line interrupt, one for all queues.
    const msix = accel === 'kvm' || version >= 8;
    const vectors = msix ? 2 * (queues ?? 1) + 2 : 0;
    const cards = path === undefined ? [] : [{ path, mac }, ...more];
    return [
      ...['-nodefaults', '-no-user-config', '-display', 'none', '-monitor', 'none'],
      ...['-machine', list('q35', memory.length > 1 ? undefined : 'memory-backend=ram', machine)],
      ...[
        '-accel',
        accel,
        '-smp',
        String(cpus),
        '-cpu',
        accel === 'kvm' ? 'host' : (this.#options.cpu ?? 'qemu64'),
      ],
      ...['-m', `${memory.reduce((sum, size) => sum + size)}M`],
      ...memory.flatMap((size, node) => [
        '-object',
        list(`memory-backend-memfd,id=ram${node || ''},size=${size}M,share=on`, backend),
      ]),
      ...(memory.length > 1 ? memory : []).flatMap((_, node) => ['-numa', `node,memdev=ram${node || ''}`]),
      ...['-qmp', `unix:${this.#monitor},server=on,wait=off`],
      ...['-kernel', image.kernel, '-initrd', image.initramfs],
      ...['-append', `${KERNEL} ${kernel ?? ''}`],
      ...['-chardev', 'stdio,id=console,signal=off', '-serial', 'chardev:console'],
      ...[
        '-chardev',
        `socket,id=shell,path=${join(this.#directory.path, 'shell')}`,
        '-serial',
        'chardev:shell',
      ],
      ...options,
      ...cards.flatMap((card, i) => [
        ...['-chardev', `socket,id=port${i || ''},path=${card.path},${socket}`],
        ...['-netdev', `vhost-user,id=net${i || ''},chardev=port${i || ''},queues=${queues ?? 1}`],
        '-device',
        list(
          `virtio-net-pci,netdev=net${i || ''},romfile=,vectors=${vectors}`,
          card.mac === undefined ? undefined : `mac=${card.mac}`,
          queues === undefined ? undefined : 'mq=on',
          device,
        ),
      ]),
      ...(this.#options.arguments ?? []),
    ];
  }
}

/** What QEMU says of a migration, as far as it is looked at. */
interface Progress {
  status: string;
  'error-desc'?: string;
  ram?: { 'postcopy-requests': number };
}

/** QEMU's monitor: JSON a line (QEMU's docs/interop/qmp-spec). Commands one after the other. */
class Monitor {
  readonly #socket: Socket;
  #text = '';
  #answered: (answer: { return?: unknown; error?: { desc: string } }) => void = () => {};

  #left: () => void = () => {};

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding('utf8');
    socket.on('error', () => {});
    socket.on('close', () => this.#left());
    socket.on('data', (text: string) => {
      this.#text += text;
      for (let end = this.#text.indexOf('\n'); end >= 0; end = this.#text.indexOf('\n')) {
        const answer = JSON.parse(this.#text.slice(0, end));
        this.#text = this.#text.slice(end + 1);
        // What is neither is the greeting or an event.
        if ('return' in answer || 'error' in answer) this.#answered(answer);
      }
    });
  }

  /** Resolves when the QEMU that is to listen there takes commands. */
  static async open(path: string): Promise<Monitor> {
    const socket = await until("QEMU's monitor", 60_000, async () => {
      const dialled = createConnection(path);
      dialled.on('error', () => {});
      return once(dialled, 'connect').then(
        () => dialled,
        () => undefined,
      );
    });
    const monitor = new Monitor(socket);
    await monitor.run('qmp_capabilities');
    return monitor;
  }

  async run(execute: string, parameters: object = {}): Promise<unknown> {
    const answer = new Promise<{ return?: unknown; error?: { desc: string } }>((resolve, reject) => {
      this.#answered = resolve;
      this.#left = () => reject(new Error(`QEMU left before it answered ${execute}`));
    });
    this.#socket.write(`${JSON.stringify({ execute, arguments: parameters })}\n`);
    const { error, ...rest } = await answer;
    if (error) throw new Error(`${execute}: ${error.desc}`);
    return rest.return;
  }

  close(): void {
    this.#socket.destroy();
  }
}

/**
 * Sends `megabytes` of random data over TCP from one guest to the other and resolves with the checksum at each end
 * and the seconds between the first and the last byte.
 */
export async function tcpTransfer(
  from: LinuxGuest,
  to: { guest: LinuxGuest; address: string },
  megabytes: number,
): Promise<{ sent: string; received: string; seconds: number }> {
  await from.ok(`dd if=/dev/urandom of=/tmp/data bs=1M count=${megabytes}`);
  const sent = await from.ok('md5sum < /tmp/data');
  // nc ends when its input does: the listener gets one that doesn't.
  await to.guest.ok(
    'rm -f /tmp/sum; (tail -f /dev/null | nc -l -p 5000 | md5sum > /tmp/sum) > /dev/null 2>&1 &',
  );
  await to.guest.ok('until netstat -tln | grep -q :5000; do sleep 0.1; done');
  const start = performance.now();
  await from.ok(`nc ${to.address} 5000 < /tmp/data`, 300_000);
  const seconds = (performance.now() - start) / 1000;
  const received = await to.guest.ok(
    'until [ -s /tmp/sum ]; do sleep 0.1; done; cat /tmp/sum; rm -f /tmp/sum',
  );
  await from.ok('rm /tmp/data');
  return { sent: sent.slice(0, 32), received: received.slice(0, 32), seconds };
}

/** The first number of a QEMU's version. */
function qemuVersion([program, ...before]: string[] = [qemuProgram]): number {
  const text = execFileSync(program!, [...before, '--version']).toString();
  return Number(/version (\d+)\./.exec(text)?.[1]);
}

let chosen: 'kvm' | 'tcg' | undefined;

/**
 * `kvm` where a guest really boots with it: a virtual machine's /dev/kvm can be there and yet not run a stock
 * kernel. Tried once a boot of the machine; the answer is kept in the cache folder.
 */
export function accelerator(): 'kvm' | 'tcg' {
  chosen ??= remembered() ?? tryKvm();
  return chosen;
}

const bootId = () => readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
const memory = join(cache, 'accelerator');

function remembered(): 'kvm' | 'tcg' | undefined {
  if (!existsSync(memory)) return undefined;
  const [boot, answer] = readFileSync(memory, 'utf8').split(' ');
  return boot === bootId() && (answer === 'kvm' || answer === 'tcg') ? answer : undefined;
}

function tryKvm(): 'kvm' | 'tcg' {
  const answer = kvmBoots() ? 'kvm' : 'tcg';
  mkdirSync(cache, { recursive: true });
  writeFileSync(memory, `${bootId()} ${answer}`);
  return answer;
}

/** Boots the guest's kernel with an init that ends it at once; success is an end within five seconds. */
function kvmBoots(): boolean {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
    execFileSync(
      qemuProgram,
      [
        ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot', '-machine', 'q35'],
        ...['-accel', 'kvm', '-cpu', 'host', '-m', '128', '-kernel', guestImage.kernel],
        ...['-append', 'quiet panic=-1 reboot=t'],
      ],
      { stdio: 'ignore', timeout: 8000, killSignal: 'SIGKILL' },
    );
    return true;
  } catch {
    return false;
  }
}
