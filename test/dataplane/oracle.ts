/**
 * A port whose rings are written by hand, beside a well-behaved peer, and the model as the judge: whatever the
 * guest's ring says, the data plane must do what the model does, and not touch a byte more.
 */
import assert from 'node:assert/strict';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import {
  BROKEN,
  NEXT,
  PACKED,
  type Plane,
  type PlanePort,
  type PortOptions,
  RUNNING,
} from '../support/plane.ts';
import { FAULTS, type Fault, ModelRing } from './model.ts';
import { PackedModelRing } from './packed-model.ts';

const PEER_SIZE = 256;
const PEER_BUFFER = 2048;
/** Fills the peer's memory behind what it sends. */
export const SECRET = 0x5e;

/** A port that receives whatever comes, in buffers of 2048 bytes, and sends what it is told to. */
export class Peer {
  readonly port: PlanePort;
  readonly #bufferLength: number;
  #came = 0;
  #sent = 0;
  #descriptor = 0;

  constructor(plane: Plane, bufferLength = PEER_BUFFER) {
    this.#bufferLength = bufferLength;
    const size = PEER_SIZE;
    const room = 32768 + 2 * size * bufferLength;
    this.port = plane.port({ size, regions: [{ base: 0x7000_0000n, size: room }], addressLimit: 0 });
    const { rx, free } = this.port;
    for (let i = 0; i < size; i++) {
      const buffer = (n: number) => free + BigInt(n * bufferLength);
      rx.ring.describe(i, { address: buffer(i), length: bufferLength, flags: 2 });
      rx.ring.entry(i, i);
    }
    rx.ring.availIdx = size;
  }

  /** Frames received since the last call; their buffers are given back. */
  received(): Buffer[] {
    const { ring } = this.port.rx;
    const frames = ring.usedSince(this.#came).map(({ id, length }) => {
      const address = ring.memory.view.getBigUint64(ring.memory.at(ring.desc) + 16 * id, true);
      return ring.memory.read(address, length).subarray(12);
    });
    this.#came = ring.usedIdx;
    ring.availIdx = this.#came + PEER_SIZE;
    return frames;
  }

  /** Offers frames for the next round, each in so many descriptors, behind them in memory what nobody may see. */
  send(frames: readonly Buffer[], parts = 1): void {
    const { ring } = this.port.tx;
    for (const bytes of frames) {
      const whole = Buffer.concat([Buffer.alloc(12, 0xee), bytes]);
      const step = Math.ceil(whole.length / parts);
      const first = this.#descriptor;
      for (let i = 0; i < parts; i++) {
        const part = whole.subarray(i * step, (i + 1) * step);
        const index = this.#descriptor++ % PEER_SIZE;
        const address = this.port.free + BigInt((PEER_SIZE + index) * this.#bufferLength);
        ring.memory.write(
          address,
          Buffer.concat([part, Buffer.alloc(256, SECRET)]).subarray(0, this.#bufferLength),
        );
        const more = i < parts - 1;
        ring.describe(index, {
          address,
          length: part.length,
          flags: more ? NEXT : 0,
          next: more ? this.#descriptor % PEER_SIZE : 0,
        });
      }
      ring.entry(this.#sent++, first % PEER_SIZE);
    }
    ring.availIdx = this.#sent;
  }
}

/** What happened: the fault if one was found, the counted drops, the frames that arrived. */
export interface Verdict {
  fault: Fault | undefined;
  drops: Record<string, number>;
  frames: Buffer[];
}

/** The guest under test. Its addresses aren't learned, so that all it sends is flooded to the peer. */
export class Judge {
  readonly plane: Plane;
  readonly guest: PlanePort;
  readonly peer: Peer;
  readonly #clean: Buffer;

  /** `prepare` writes what is the same in all cases. */
  constructor(
    plane: Plane,
    options: PortOptions & { peerBuffer?: number },
    prepare: (guest: PlanePort) => void = () => {},
  ) {
    this.plane = plane;
    this.guest = plane.port({ addressLimit: 0, ...options });
    this.peer = new Peer(plane, options.peerBuffer);
    prepare(this.guest);
    this.#clean = this.guest.memory.image();
  }

  get #packed(): boolean {
    return (this.guest.tx.vring.get('flags') & PACKED) !== 0;
  }

  /** Where a ring begins: a packed one with a wrap counter of 1 (2.8.1). */
  get #start(): number {
    return this.#packed ? 0x8000 : 0;
  }

  /** A case from the ring that the guest transmits on: `write` is the guest. */
  transmit(write: (guest: PlanePort) => void, base = this.#start): Verdict {
    return this.#case('tx', write, base, (model) => {
      const expected = model.take();
      return () => {
        const frames = this.peer.received();
        assert.equal(frames.length, expected.length, 'frames that arrived');
        for (const [i, bytes] of frames.entries())
          assert.ok(bytes.equals(expected[i]!), `frame ${i}, as it was`);
        return frames;
      };
    });
  }

  /** A case from the ring that the guest receives on: these frames come for it, each from so many descriptors. */
  receive(frames: Buffer[], write: (guest: PlanePort) => void, base = this.#start, parts = 1): Verdict {
    return this.#case('rx', write, base, (model) => {
      model.give(frames);
      this.peer.send(frames, parts);
      return () => frames;
    });
  }

  #case(
    which: 'rx' | 'tx',
    write: (guest: PlanePort) => void,
    base: number,
    act: (model: ModelRing | PackedModelRing) => () => Buffer[],
  ): Verdict {
    const { plane, guest } = this;
    const { vring } = guest[which];
    const live = guest.memory.live();
    this.#clean.copy(live);
    // The image has empty rings, so the other one begins afresh as well; a broken one stays broken.
    const other = which === 'rx' ? 'tx' : 'rx';
    if (guest[other].vring.get('state') === RUNNING) guest.restart(other, this.#start);
    guest.restart(which, base);
    plane.clearDrops(vring);
    write(guest);
    const image = Buffer.from(live);
    const model = new (this.#packed ? PackedModelRing : ModelRing)(guest, which, image);
    const arrived = act(model);
    const round = plane.poll();
    const frames = arrived();
    const { fault } = model;
    if (model.tangled) return { fault, drops: model.drops, frames };
    assert.equal(vring.get('state'), fault ? BROKEN : RUNNING, `state (${fault?.fault})`);
    assert.equal(vring.get('error'), fault ? FAULTS[fault.fault] : 0, `error (${fault?.fault})`);
    if (fault) assert.equal(vring.get64('errorValue'), fault.value, 'the value that was wrong');
    assert.equal(round.broken, fault ? 1 : 0);
    assertCounts(plane.drops(vring), model.drops);
    assert.equal(vring.get('lastAvail'), model.lastAvail, 'next avail entry');
    assert.equal(vring.get('usedIdx'), model.usedIdx, 'next used entry');
    model.forgiveUnseen(live, base);
    if (!image.equals(live)) {
      const at = image.findIndex((byte, i) => byte !== live[i]);
      assert.fail(`guest memory differs from the model's at byte ${at} of the image`);
    }
    return { fault, drops: model.drops, frames };
  }
}

/** Frames for the guest: unlike each other, to everybody. */
export function framesFor(...lengths: number[]): Buffer[] {
  return lengths.map((length, i) => frame(BROADCAST, mac(99), length, i));
}

function assertCounts(actual: Record<string, number>, expected: Record<string, number>): void {
  // Most cases drop nothing, and there are many cases.
  const names = Object.keys(actual).length + Object.keys(expected).length;
  if (names > 0) assert.deepEqual(actual, expected, 'drops');
}
