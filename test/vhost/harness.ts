/** What the tests of the vhost-user protocol share: a device that records, raw ends of a connection, a guest. */
import { after } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { closeFd, eventfd, memfd, Poller, receive, send, socketPair } from '../../src/sys/index.ts';
import { BackendSession } from '../../src/vhost/backend.ts';
import type {
  LogSetup,
  MemoryRegion,
  VhostUserDevice,
  VringChange,
  VringSetup,
} from '../../src/vhost/device.ts';
import type { DeviceState } from '../../src/vhost/device-state.ts';
import {
  decodeHeader,
  encodeMessage,
  HEADER_SIZE,
  type Header,
  type InflightLayout,
} from '../../src/vhost/messages.ts';
import { Postcopy, type PostcopyOptions } from '../../src/vhost/postcopy.ts';
import { features, vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { decodeNetConfig, encodeNetConfig } from '../../src/virtio/net-config.ts';

export const OFFERED =
  features.VHOST_USER_F_PROTOCOL_FEATURES |
  features.VIRTIO_F_VERSION_1 |
  features.VIRTIO_F_IN_ORDER |
  features.VIRTIO_NET_F_MRG_RXBUF |
  features.VHOST_F_LOG_ALL;
export const OFFERED_PROTOCOL =
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_MQ |
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_REPLY_ACK |
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS |
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_RARP |
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD |
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_LOG_SHMFD |
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_MTU |
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_CONFIG |
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_RESET_DEVICE |
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_DEVICE_STATE |
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_STATUS;

/** A device without a data plane: it keeps descriptors as a real one would and records what it was told. */
export class RecordingDevice implements VhostUserDevice {
  features: bigint = OFFERED;
  protocolFeatures: bigint = OFFERED_PROTOCOL;
  queuePairs = 1;
  readonly calls: string[] = [];
  /** Message with which the next call of this name rejects. */
  readonly failures = new Map<string, string>();
  /** While set, calls wait for it. */
  gate: Promise<void> | undefined;
  memory: MemoryRegion[] = [];
  readonly rings = new Map<number, VringSetup>();

  setFeatures(bits: bigint): void {
    this.calls.push(`setFeatures ${bits.toString(16)}`);
  }

  setInflight(layout: (InflightLayout & { fd: number }) | null): void {
    this.calls.push(layout ? `setInflight ${layout.queues} of ${layout.queueSize}` : 'setInflight');
    if (layout) closeFd(layout.fd);
  }

  async announce(mac: bigint): Promise<void> {
    await this.#called('announce', mac.toString(16), () => []);
  }

  async setLog(log: LogSetup): Promise<void> {
    await this.#called('setLog', `size ${log.size} offset ${log.offset}`, () => [log.fd]);
    closeFd(log.fd);
  }

  setLogFd(fd: number): void {
    this.calls.push('setLogFd');
    closeFd(fd);
  }

  async setMemoryTable(regions: MemoryRegion[]): Promise<void> {
    await this.#called('setMemoryTable', String(regions.length), () => regions.map(({ fd }) => fd));
    for (const { fd } of this.memory) closeFd(fd);
    this.memory = regions;
  }

  mtu: number | null = null;
  /** Refused above this. */
  mtuLimit = 65535;
  bytes = encodeNetConfig({ mac: '52:54:00:00:00:01', speed: 10_000, pairs: 1 });

  setMtu(mtu: number): void {
    if (mtu > this.mtuLimit) throw new Error(`an MTU of ${mtu} is too much`);
    this.mtu = mtu;
  }

  saveState(): DeviceState {
    return { mtu: this.mtu, mac: decodeNetConfig(this.bytes).mac! };
  }

  loadState({ mtu, mac }: DeviceState): void {
    if (mtu !== null) this.setMtu(mtu);
    this.bytes = encodeNetConfig({ mac, speed: 10_000, pairs: 1 });
  }

  config(): Uint8Array {
    return this.bytes;
  }

  setMac(mac: Uint8Array): void {
    this.bytes.set(mac);
  }

  async addRegion(region: MemoryRegion): Promise<void> {
    await this.#called('addRegion', region.guestAddress.toString(16), () => [region.fd]);
    this.memory.push(region);
  }

  async removeRegion({ guestAddress }: { guestAddress: bigint }): Promise<void> {
    await this.#called('removeRegion', guestAddress.toString(16), () => []);
    const index = this.memory.findIndex((region) => region.guestAddress === guestAddress);
    for (const { fd } of this.memory.splice(index, 1)) closeFd(fd);
  }

  async startVring(index: number, setup: VringSetup): Promise<void> {
    const words = `${index} size ${setup.size} base ${setup.base}${setup.enabled ? ' enabled' : ''}`;
    await this.#called('startVring', words, () => descriptorsOf(setup));
    this.rings.set(index, setup);
  }

  async updateVring(index: number, change: VringChange): Promise<void> {
    await this.#called('updateVring', `${index} ${Object.keys(change).join()}`, () => descriptorsOf(change));
    const ring = this.rings.get(index)!;
    for (const which of ['kickFd', 'callFd', 'errFd'] as const)
      if (change[which] !== undefined && ring[which] !== -1) closeFd(ring[which]);
    this.rings.set(index, { ...ring, ...change });
  }

  async stopVring(index: number): Promise<number> {
    await this.#called('stopVring', String(index), () => []);
    const ring = this.rings.get(index)!;
    for (const fd of descriptorsOf(ring)) closeFd(fd);
    this.rings.delete(index);
    return (ring.base + 7) & 0xffff;
  }

  openPostcopy(events: Pick<PostcopyOptions, 'patience' | 'onGiveUp'>): Postcopy {
    return new Postcopy({ ...events, quiesce: async () => {}, onKnown: () => {} });
  }

  async reset(): Promise<void> {
    this.calls.push('reset');
    for (const ring of this.rings.values()) for (const fd of descriptorsOf(ring)) closeFd(fd);
    for (const { fd } of this.memory) closeFd(fd);
    this.rings.clear();
    this.memory = [];
  }

  async #called(name: string, words: string, owned: () => number[]): Promise<void> {
    this.calls.push(`${name} ${words}`);
    await this.gate;
    const failure = this.failures.get(name);
    if (failure === undefined) return;
    for (const fd of owned()) closeFd(fd);
    throw new Error(failure);
  }
}

function descriptorsOf({ kickFd = -1, callFd = -1, errFd = -1 }: VringChange): number[] {
  return [kickFd, callFd, errFd].filter((fd) => fd !== -1);
}

/** One end of a connection that says whatever it is told to. */
export class RawEnd {
  readonly fd: number;
  #open = true;

  constructor(fd: number) {
    this.fd = fd;
  }

  /** Sends a message; `size` overrides the header's, `version` the flags' lowest bits. */
  message(
    request: number,
    payload: Uint8Array = new Uint8Array(0),
    options: { flags?: number; fds?: number[]; size?: number; version?: number } = {},
  ): void {
    const bytes = encodeMessage(request, options.flags ?? 0, payload);
    const view = new DataView(bytes.buffer);
    if (options.size !== undefined) view.setUint32(8, options.size, true);
    if (options.version !== undefined) view.setUint32(4, (options.flags ?? 0) | options.version, true);
    this.bytes(bytes, options.fds);
  }

  bytes(bytes: Uint8Array, fds: number[] = []): void {
    const sent = send(this.fd, bytes, fds);
    if (sent !== bytes.length) throw new Error(`only ${sent} of ${bytes.length} bytes were sent`);
  }

  /** The next message; undefined when the other end has closed. */
  async next(): Promise<(Header & { payload: Uint8Array; fds: number[] }) | undefined> {
    const fds: number[] = [];
    const head = await this.#exactly(HEADER_SIZE, fds);
    if (!head) return undefined;
    const header = decodeHeader(head);
    const payload = await this.#exactly(header.size, fds);
    return payload && { ...header, payload, fds };
  }

  async #exactly(size: number, fds: number[]): Promise<Uint8Array | undefined> {
    const bytes = new Uint8Array(size);
    for (let at = 0; at < size; ) {
      const received = receive(this.fd, bytes.subarray(at));
      if (received === 'closed') return undefined;
      if (received === 'again') await sleep(1);
      else {
        at += received.bytes;
        fds.push(...received.fds);
      }
    }
    return bytes;
  }

  close(): void {
    if (this.#open) closeFd(this.fd);
    this.#open = false;
  }
}

/** A back-end session on one end of a socket pair, and the other end for the test to misuse. */
export function serve(poller: Poller, device = new RecordingDevice(), messageTimeout?: number) {
  const [near, far] = socketPair();
  const errors: string[] = [];
  let reason: string | undefined;
  const session = new BackendSession({
    fd: near,
    poller,
    device,
    messageTimeout,
    peer: 'test',
    onError: (message) => void errors.push(message),
    onClose: (why) => {
      reason = why;
    },
  });
  return {
    session,
    device,
    errors,
    end: new RawEnd(far),
    /** Why the session ended, once it has. */
    ended: async () => {
      await session.closed;
      return reason;
    },
  };
}

/** Memory and eventfds as a front-end has them, closed with `close`. */
export function guest(megabytes = 1) {
  const size = megabytes << 20;
  const fds = [memfd('guest', size), eventfd(), eventfd(), eventfd()] as const;
  const [ram, kick, call, err] = fds;
  const region = { guestAddress: 0n, size: BigInt(size), userAddress: 0x7f00_0000_0000n, mmapOffset: 0n };
  return {
    region,
    ram,
    kick,
    call,
    err,
    close: () => {
      for (const fd of fds) closeFd(fd);
    },
  };
}

/** A poller and a guest that the tests of a file share, and that go after the last of them. */
export function forThisFile() {
  const poller = new Poller();
  const g = guest();
  after(async () => {
    g.close();
    await poller.close();
  });
  return { poller, g };
}
