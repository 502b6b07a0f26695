/**
 * How soon it works: from the start of `vireo up`, Node's own start included, to its ready line with both sockets
 * listening; and from a front-end's connect to the arrival of its first frame at the other port's guest.
 */
import { join } from 'node:path';
import { VirtioUser } from '../src/virtio-user/device.ts';
import { Vireo } from '../test/peers/vireo.ts';
import { machine, type Spread, showSpread, spread, writeSection } from './report.ts';

export interface Result {
  machine: string;
  turns: number;
  /** Milliseconds from the start of the process to its ready line. */
  ready: Spread;
  /** Milliseconds from a front-end's connect to its first frame switched. */
  firstPacket: Spread;
}

/** Milliseconds that a first frame may take. */
const LIMIT = 5000;

export async function startup(turns: number): Promise<Result> {
  const ready: number[] = [];
  const firstPacket: number[] = [];
  for (let turn = 0; turn < turns; turn++) {
    await using vireo = await Vireo.start({ ports: ['a', 'b'], poll: 'adaptive' });
    ready.push(vireo.startup);
    await using other = await VirtioUser.open({ path: join(vireo.directory, 'b') });
    const start = performance.now();
    await using guest = await VirtioUser.open({ path: join(vireo.directory, 'a') });
    guest.send(broadcast());
    while (other.receive() === undefined) {
      if (performance.now() - start > LIMIT)
        throw new Error(`the first frame didn't arrive within ${LIMIT} ms`);
    }
    firstPacket.push(performance.now() - start);
  }
  return { machine: machine(), turns, ready: spread(ready), firstPacket: spread(firstPacket) };
}

/** A frame of 60 bytes to everybody, of the type for experiments (IEEE 802, 0x88b5). */
function broadcast(): Uint8Array {
  const frame = new Uint8Array(60);
  frame.fill(0xff, 0, 6);
  frame.set([0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5], 6);
  return frame;
}

export function renderStartup({ ready, firstPacket, turns }: Result): string {
  return [
    `Median (least to most) of ${turns} starts, in milliseconds:`,
    [
      `- from \`vireo up\` with two ports to the ready line: ${showSpread(ready, 0)}`,
      `- from a front-end's connect to its first frame at the other guest: ${showSpread(firstPacket, 1)}`,
    ].join('\n'),
  ].join('\n\n');
}

export function documentStartup(result: Result): void {
  writeSection('startup', ['## Start', `Machine: ${result.machine}.`, renderStartup(result)].join('\n\n'));
}
