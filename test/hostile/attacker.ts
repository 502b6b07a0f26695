/** A front-end that sends whatever it is told to, and the payloads that most attacks are made of. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { constants, ftruncateSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { closeFd, connectUnix, memfd, receive, send, socketPair } from '../../src/sys/index.ts';
import * as m from '../../src/vhost/messages.ts';
import { features, vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { GUEST, USER } from '../support/raw-guest.ts';

export const R = m.requests;
export const NOTHING = new Uint8Array(0);
export const GIB = 1n << 30n;
export const TIB = 1n << 40n;
const SPLIT = features.VHOST_USER_F_PROTOCOL_FEATURES | features.VIRTIO_F_VERSION_1;
const PACKED = SPLIT | features.VIRTIO_F_RING_PACKED;

export const table = (...regions: Partial<m.RegionLayout>[]): Uint8Array =>
  m.encodeMemoryTable(
    regions.map((r) => ({ guestAddress: GUEST, userAddress: USER, size: 1n << 20n, mmapOffset: 0n, ...r })),
  );
export const state = (index: number, num: number): Uint8Array => m.encodeVringState({ index, num });
export const address = (index: number, [desc, avail, used]: readonly [bigint, bigint, bigint], flags = 0) =>
  m.encodeVringAddress({ index, flags, descUser: desc, availUser: avail, usedUser: used, logGuest: 0n });
/** Places for the three parts of a ring of up to 256 entries. */
export const RING = [USER, USER + 0x1000n, USER + 0x2000n] as const;

export class Attacker {
  readonly fd: number;
  /** A memory file of 1 MiB to share. */
  readonly ram: number;
  /** Two ends of a socket. */
  readonly pair: readonly [number, number];
  /** Opened for this attack alone. */
  readonly #own: number[] = [];
  #open = true;

  constructor(path: string, ram: number) {
    this.fd = connectUnix(path);
    this.ram = ram;
    this.pair = socketPair();
    this.own(...this.pair);
  }

  /** Notes descriptors that are to be closed when the attack is over. */
  own(...fds: number[]): number[] {
    this.#own.push(...fds);
    return fds;
  }

  /** The end of a pipe that is read from; the other one is closed. */
  pipe(): number {
    const path = join(tmpdir(), `vireo-pipe-${process.pid}`);
    execFileSync('mkfifo', [path]);
    const reading = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    rmSync(path);
    this.own(reading);
    return reading;
  }

  /** A memory file of that size, none of it touched. */
  sparse(size: bigint): number {
    const fd = memfd('sparse', 0);
    ftruncateSync(fd, Number(size));
    this.own(fd);
    return fd;
  }

  bytes(bytes: Uint8Array, passed: number[] = []): void {
    assert.equal(send(this.fd, bytes, passed), bytes.length);
  }

  message(request: number, payload: Uint8Array = NOTHING, passed: number[] = [], flags = 0): void {
    this.bytes(m.encodeMessage(request, flags, payload), passed);
  }

  /** As message(), and waits until there is room in the socket. */
  async patiently(request: number, payload: Uint8Array, passed: number[] = []): Promise<void> {
    const bytes = m.encodeMessage(request, 0, payload);
    for (;;) {
      const sent = send(this.fd, bytes, passed);
      if (sent !== 'again') return assert.equal(sent, bytes.length);
      await sleep(1);
    }
  }

  /** A message whose header's words are overwritten. */
  forged(words: { request?: number; flags?: number; size?: number }, payload: Uint8Array = NOTHING): void {
    const bytes = m.encodeMessage(words.request ?? R.GET_FEATURES, 0, payload);
    const view = new DataView(bytes.buffer);
    if (words.flags !== undefined) view.setUint32(4, words.flags, true);
    if (words.size !== undefined) view.setUint32(8, words.size, true);
    this.bytes(bytes);
  }

  /** As far as a front-end gets before it shares memory. */
  negotiate({ acknowledge = false, packed = false } = {}): void {
    this.message(R.SET_OWNER);
    if (acknowledge) {
      const replyAck = vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_REPLY_ACK;
      this.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(replyAck));
    }
    this.message(R.SET_FEATURES, m.encodeU64(packed ? PACKED : SPLIT));
  }

  /** Negotiates, and shares 1 MiB. */
  share(options: { acknowledge?: boolean; packed?: boolean } = {}): void {
    this.negotiate(options);
    this.message(R.SET_MEM_TABLE, table({}), [this.ram]);
  }

  /** Describes a ring and starts it. */
  ring(index: number, at: readonly [bigint, bigint, bigint] = RING, size = 64, base?: number): void {
    this.message(R.SET_VRING_NUM, state(index, size));
    if (base !== undefined) this.message(R.SET_VRING_BASE, state(index, base));
    this.message(R.SET_VRING_ADDR, address(index, at));
    this.message(R.SET_VRING_KICK, m.encodeVringIndex(index, false));
  }

  /** Bytes of an answer; empty when the other end has closed. */
  async answer(): Promise<Uint8Array> {
    const bytes = new Uint8Array(4096);
    for (;;) {
      const received = receive(this.fd, bytes);
      if (received === 'closed') return NOTHING;
      if (received !== 'again') {
        for (const fd of received.fds) closeFd(fd);
        return bytes.subarray(0, received.bytes);
      }
      await sleep(1);
    }
  }

  /** Waits for so many answers, one after the other; rejects when the other end closes before. */
  async answers(count: number): Promise<void> {
    let bytes = Buffer.alloc(0);
    while (count > 0) {
      const came = await this.answer();
      assert.ok(came.length > 0, `closed before ${count} more answers`);
      bytes = Buffer.concat([bytes, came]);
      for (; bytes.length >= m.HEADER_SIZE; count--) {
        const length = m.HEADER_SIZE + bytes.readUInt32LE(8);
        if (bytes.length < length) break;
        bytes = bytes.subarray(length);
      }
    }
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    closeFd(this.fd);
    for (const fd of this.#own.splice(0)) closeFd(fd);
  }
}
