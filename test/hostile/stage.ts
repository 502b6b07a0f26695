/**
 * Where hostile guests appear: a running switch with workers, a port for them, and beside it a healthy pair of
 * guests that exchange traffic all the time and would notice a single lost frame.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createSwitch, type PortDetail, type PortSpec, type Switch } from '../../src/index.ts';
import { closeFd, memfd, openFds, type PollerLease, sharedPoller } from '../../src/sys/index.ts';
import { Traffic } from '../support/traffic.ts';
import { until } from '../support/until.ts';

/** What must be as it was once a hostile guest has left. */
export interface Counts {
  descriptors: number;
  /** Mappings of memory files. */
  mappings: number;
}

export class Stage {
  readonly vswitch: Switch;
  readonly healthy: Traffic;
  readonly lease: PollerLease = sharedPoller();
  /** A memory file of 1 MiB. */
  readonly ram = memfd('ram', 1 << 20);
  readonly counts: Counts;
  /** What the switch has said since forget(): `bad SET_VRING_NUM: ...`, and `bad 1 head index ...`. */
  readonly errors: string[] = [];
  readonly broken: string[] = [];
  readonly #directory: string;

  private constructor(directory: string, vswitch: Switch, healthy: Traffic) {
    this.#directory = directory;
    this.vswitch = vswitch;
    this.healthy = healthy;
    vswitch.on('portError', ({ port, error }) => this.errors.push(`${port} ${error}`));
    vswitch.on('queueBroken', ({ port, queue, reason }) => this.broken.push(`${port} ${queue} ${reason}`));
    this.counts = count();
  }

  /** With more of the hostile guest's port. */
  static async start(bad: Partial<PortSpec> = {}): Promise<Stage> {
    const directory = mkdtempSync(join(tmpdir(), 'vireo-hostile-'));
    const path = (name: string) => join(directory, `${name}.sock`);
    const ports = ['bad', 'x', 'y'].map((name) => ({
      name,
      type: 'vhost-user' as const,
      target: path(name),
      ...(name === 'bad' && bad),
    }));
    const vswitch = await createSwitch({ workers: 2, ports });
    return new Stage(directory, vswitch, await Traffic.start({ path: path('x') }, { path: path('y') }));
  }

  path(name = 'bad'): string {
    return join(this.#directory, `${name}.sock`);
  }

  /** The hostile guest's port, as `vireo port show` has it. */
  get port(): PortDetail {
    return this.vswitch.port('bad');
  }

  forget(): void {
    this.errors.length = 0;
    this.broken.length = 0;
  }

  /** Resolves when the hostile guest's connection has ended and the port is free for the next one. */
  async listening(): Promise<void> {
    await until(() => this.port.state === 'listening', 'the port listens again');
  }

  /** Nothing of the hostile guest is left, nobody else was named, and the healthy pair goes on. */
  async unharmed(): Promise<void> {
    await this.listening();
    for (const event of [...this.errors, ...this.broken]) assert.match(event, /^bad /);
    assert.deepEqual(this.port.memory, []);
    await this.healthy.flows(20);
    assert.deepEqual(count(), this.counts);
  }

  /** Rejects when the healthy pair has lost a frame. */
  async close(): Promise<void> {
    try {
      await this.healthy.stop();
    } finally {
      await this.vswitch.close();
      await this.lease.release();
      closeFd(this.ram);
      rmSync(this.#directory, { recursive: true });
    }
  }
}

export function count(): Counts {
  const maps = readFileSync('/proc/self/maps', 'utf8');
  return { descriptors: openFds(), mappings: maps.split('/memfd:').length - 1 };
}
