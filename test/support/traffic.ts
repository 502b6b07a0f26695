/**
 * A healthy pair on a switch: two virtio-user devices that send each other numbered frames all the time and notice
 * every one that is lost, doubled, out of order or changed. What others send to them is passed over.
 */
import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import type { VirtioUserOptions } from '../../src/virtio-user/options.ts';
import { BROADCAST, frame, mac } from './ethernet.ts';
import { until } from './until.ts';

/** Frames on their way in each direction at most: fewer than the rings hold, so that the switch has no reason to drop. */
const WINDOW = 32;
const LONGEST = 1460;
/** Milliseconds without a frame after which it gives up: a test that has failed may not have stopped it. */
const STILL = 60_000;

export class Traffic {
  readonly a: VirtioUser;
  readonly b: VirtioUser;
  readonly #ways;
  #running = true;
  #done: Promise<void> = Promise.resolve();

  private constructor(a: VirtioUser, b: VirtioUser, id: number) {
    this.a = a;
    this.b = b;
    const [macA, macB] = [mac(0xaa0000 + id), mac(0xbb0000 + id)];
    this.#ways = [
      { from: a, to: b, source: macA, bytes: frame(macB, macA, LONGEST), sent: 0, came: 0 },
      { from: b, to: a, source: macB, bytes: frame(macA, macB, LONGEST), sent: 0, came: 0 },
    ];
  }

  /** Opens both devices; resolves when the switch knows them and frames flow. */
  static async start(a: VirtioUserOptions, b: VirtioUserOptions, id = 1): Promise<Traffic> {
    const traffic = new Traffic(await VirtioUser.open(a), await VirtioUser.open(b), id);
    for (const { from, to, source } of traffic.#ways) {
      from.send(frame(BROADCAST, source));
      // Another port's kernel may send frames of its own to all.
      const arrives = () => {
        const came = to.receive();
        return came && source.compare(came, 6, 12) === 0;
      };
      await until(arrives, 'a first frame comes through the switch');
    }
    traffic.#done = traffic.#run().catch(async (error) => {
      await traffic.#close();
      throw error;
    });
    // Whoever waits for it hears of a failure; nobody may be waiting yet.
    traffic.#done.catch(() => {});
    return traffic;
  }

  async #run(): Promise<void> {
    let deadline = Number.POSITIVE_INFINITY;
    let moved = Date.now();
    while (this.#running || this.#ways.some((way) => way.came < way.sent)) {
      if (!this.#running) deadline = Math.min(deadline, Date.now() + 20_000);
      if (Date.now() > Math.min(deadline, moved + STILL)) {
        const counts = this.#ways.map((way) => `${way.came} of ${way.sent} came`);
        throw new Error(`frames of the healthy pair were lost: ${counts.join(', ')}`);
      }
      for (const way of this.#ways) {
        const { from, to, source, bytes } = way;
        while (this.#running && way.sent - way.came < WINDOW) {
          if (!from.send(nth(bytes, way.sent))) break;
          way.sent++;
        }
        for (let came = to.receive(); came; came = to.receive()) {
          if (source.compare(came, 6, 12) !== 0) continue;
          assert.ok(nth(bytes, way.came).equals(came), `frame ${way.came} came next, and as it was sent`);
          way.came++;
          moved = Date.now();
        }
      }
      await turn();
    }
  }

  /** Frames that came through so far. */
  get count(): number {
    return this.#ways[0]!.came + this.#ways[1]!.came;
  }

  /** Resolves when so many more have come through: it still flows. */
  async flows(more = 200): Promise<void> {
    const goal = this.count + more;
    await Promise.race([until(() => this.count >= goal, 'the healthy pair goes on'), this.#failed()]);
  }

  async #failed(): Promise<void> {
    await this.#done;
    throw new Error('the healthy pair has stopped');
  }

  /** Stops sending, waits for what is on its way, and closes both. Rejects when a frame was lost or changed. */
  async stop(): Promise<void> {
    this.#running = false;
    try {
      await this.#done;
    } finally {
      await this.#close();
    }
  }

  async #close(): Promise<void> {
    await this.a.close();
    await this.b.close();
  }
}

/** The frame with this number: of its own length, the number at byte 14. */
function nth(bytes: Buffer, number: number): Buffer {
  bytes.writeUInt32LE(number, 14);
  return bytes.subarray(0, 60 + (number % (LONGEST - 60)));
}
