/**
 * A VDUSE port: the switch is the implementation of a vDPA device, /dev/vduse/NAME, which the kernel makes a network
 * interface of (virtio_vdpa) or a device for a guest or program (vhost_vdpa). Somebody attaches it to the kernel's
 * vDPA bus with `vdpa dev add name NAME mgmtdev vduse`.
 *
 * A device that is on the bus stays when its switch ends, however that ends: the next switch with this port goes on
 * with it, where the notes of buffers in work say.
 */
import { join } from 'node:path';
import type { PortStruct } from '../arena/index.ts';
import type { PortSpec, PortState, PortStatus } from '../switch/types.ts';
import { isSystemError, runtimeDirectory } from '../sys/index.ts';
import { openInflight } from '../vhost/inflight.ts';
import { NetDevice } from '../vhost/net-device.ts';
import { createDevice, destroyDevice, isAttached, VduseDevice } from '../vhost/vduse.ts';
import { MAX_RING, VduseSession } from '../vhost/vduse-session.ts';
import { encodeNetConfig, sayLink } from '../virtio/net-config.ts';
import { vduseFeatures } from './features.ts';
import { deviceDetail, ringWords, totals } from './net-status.ts';
import type { DetailOfKind, Port, PortContext } from './port.ts';

/** More take a control queue, which the kernel's VDUSE doesn't give a network device. */
const PAIRS = 1;
const QUEUES = 2 * PAIRS;

export class VdusePort implements Port {
  readonly spec: PortSpec;
  readonly #context: PortContext;
  readonly #struct: PortStruct;
  readonly #config: Uint8Array;
  readonly #kernel: VduseDevice;
  readonly #device: NetDevice;
  readonly #session: VduseSession;
  #closed = false;
  #up = false;
  #starts = 0;
  #failed = false;
  #lastError: string | null = null;

  /** Makes the device, or takes the one over that a predecessor left. Throws an Error that says what is missing. */
  constructor(spec: PortSpec, context: PortContext) {
    this.spec = spec;
    this.#context = context;
    this.#struct = context.structures.port(context.slot);
    this.#struct.set('addressLimit', context.maxAddresses);
    const features = vduseFeatures(spec);
    const { mac, mtu, speed } = spec;
    this.#config = encodeNetConfig({ mac, mtu, speed, pairs: PAIRS });
    const { kernel, takeOver } = openDevice(spec.target, { features, queues: QUEUES, config: this.#config });
    this.#kernel = kernel;
    try {
      this.#device = new NetDevice({
        ...context,
        features,
        protocolFeatures: 0n,
        queuePairs: PAIRS,
        config: { mac, mtu, speed },
        events: {
          onRings: () => this.#ringsChanged('the driver stopped its rings'),
          onQueueBroken: (queue, reason) => {
            this.#lastError = `queue ${queue}: ${reason}`;
            context.events.queueBroken(queue, reason);
          },
        },
      });
    } catch (error) {
      giveBack(kernel, takeOver);
      throw error;
    }
    this.#session = new VduseSession({
      device: this.#device,
      kernel,
      poller: context.poller,
      notes: (packed, keep) =>
        openInflight(join(runtimeDirectory(), 'vduse', spec.target), QUEUES, MAX_RING, packed, keep),
      onError: (message) => this.#fail(message),
      onBroken: (reason) => {
        this.#failed = true;
        this.#fail(reason);
      },
      onReset: (reason) => this.#ringsChanged(reason),
    });
    try {
      this.#session.start(takeOver);
    } catch (error) {
      // It answers no more from here on.
      void this.#session.close().then(() => this.#device.close());
      giveBack(kernel, takeOver);
      throw error;
    }
  }

  #fail(message: string): void {
    this.#lastError = message;
    this.#context.events.portError(message);
  }

  #ringsChanged(reason: string): void {
    const up = this.#device.enabledPairs > 0;
    if (up === this.#up) return;
    this.#up = up;
    if (up) {
      this.#starts++;
      this.#context.events.guestUp();
    } else {
      const broken = this.#device.queues.find((q) => q.error !== null);
      this.#context.events.guestDown(broken ? `queue ${broken.index}: ${broken.error}` : reason);
    }
  }

  reportBroken(): void {
    this.#device.reportBroken();
  }

  get #state(): PortState {
    if (this.#failed) return 'failed';
    if (this.#device.queues.some((q) => q.error !== null)) return 'broken';
    if (this.#up) return 'up';
    return this.#session.driverStatus || isAttached(this.spec.target) ? 'connected' : 'listening';
  }

  status(): PortStatus {
    return {
      name: this.spec.name,
      type: this.spec.type,
      target: this.spec.target,
      role: 'server',
      state: this.#state,
      rings: ringWords(this.#device),
      lastError: this.#lastError,
      ...totals(this.#device, this.#context.arena),
    };
  }

  detail(): DetailOfKind {
    return {
      ...this.status(),
      ...deviceDetail(this.#device, this.#context.arena, true),
      driverStatus: this.#session.driverStatus,
      protocolFeatures: { offered: [], acknowledged: [] },
      filtered: 0,
      addresses: { learned: this.#struct.get('addresses'), limit: this.#struct.get('addressLimit') },
      connections: this.#starts,
    };
  }

  inUse(): string | undefined {
    const { target } = this.spec;
    if (!isAttached(target)) return undefined;
    return `the kernel uses its device: take it off the vDPA bus first, with \`vdpa dev del ${target}\``;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    const { target } = this.spec;
    await this.#session.close();
    // An interface that stays has no carrier until the next switch comes.
    if (isAttached(target) && !this.#failed) this.setLink(false);
    this.#kernel.close();
    await this.#device.close();
    if (destroyDevice(target)) return;
    this.#context.events.portError(
      `/dev/vduse/${target} stays, since the kernel uses it: the next switch with this port goes on with it`,
    );
  }

  setLink(up: boolean): void {
    sayLink(this.#config, up);
    try {
      this.#kernel.setConfig(this.#config);
      this.#kernel.configChanged();
    } catch (error) {
      this.#fail((error as Error).message);
    }
  }
}

/** Leaves the device as it was found: there, or not. */
function giveBack(kernel: VduseDevice, takeOver: boolean): void {
  kernel.close();
  if (!takeOver) destroyDevice(kernel.name);
}

/** Makes and opens the device; `takeOver`: it was there, on the vDPA bus. */
function openDevice(
  name: string,
  config: Parameters<typeof createDevice>[1],
): { kernel: VduseDevice; takeOver: boolean } {
  const path = `/dev/vduse/${name}`;
  const taken = () => new Error(`another program has ${path} open: choose another name, or end that program`);
  let takeOver = false;
  if (!createDevice(name, config)) {
    takeOver = isAttached(name);
    // What a predecessor left and nobody uses may have been made for something else.
    if (!takeOver && (!destroyDevice(name) || !createDevice(name, config))) throw taken();
  }
  let kernel: VduseDevice;
  try {
    kernel = new VduseDevice(name);
  } catch (error) {
    if (isSystemError(error, 'EBUSY')) throw taken();
    if (!takeOver) destroyDevice(name);
    throw error;
  }
  try {
    if (takeOver) kernel.setConfig(config.config);
    else for (let index = 0; index < config.queues; index++) kernel.setUpQueue(index, MAX_RING);
  } catch (error) {
    giveBack(kernel, takeOver);
    if (takeOver && isSystemError(error, 'EPERM'))
      throw new Error(
        `the kernel has given ${path} up, since nobody answered for too long: \`vdpa dev del ${name}\`, then add the port again`,
      );
    throw error;
  }
  return { kernel, takeOver };
}
