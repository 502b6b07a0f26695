/** What a capture has taken: read to its end, for tests and benchmarks that look at frames as they pass. */
import { BlockReader, type Captured } from '../../src/capture/pcapng.ts';
import type { CaptureOptions, Switch } from '../../src/index.ts';

export interface Taken {
  /** Names of the ports. */
  names: string[];
  packets: (Captured & { port: string })[];
  /** Frames that found no room in the capture. */
  lost: bigint;
}

/** Reads a capture's stream to its end. */
export async function take(stream: AsyncIterable<Buffer>): Promise<Taken> {
  const reader = new BlockReader();
  const taken: Taken = { names: [], packets: [], lost: 0n };
  for await (const chunk of stream)
    for (const said of reader.read(chunk)) {
      if (said.kind === 'interface') taken.names.push(said.name);
      else if (said.kind === 'statistics') taken.lost += said.lost;
      else
        taken.packets.push({
          ...said.packet,
          bytes: Buffer.from(said.packet.bytes),
          port: taken.names[said.packet.interface]!,
        });
    }
  return taken;
}

/** What is captured while `act` goes on. */
export async function during(
  vswitch: Switch,
  options: CaptureOptions,
  act: () => Promise<unknown>,
): Promise<Taken> {
  const capture = await vswitch.capture(options);
  const taken = take(capture.stream());
  try {
    await act();
  } finally {
    capture.stop();
  }
  return taken;
}
