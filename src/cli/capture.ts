/** `vireo capture`: the frames of a port, a line each, or as pcapng for Wireshark. */
import { createWriteStream } from 'node:fs';
import type { Writable } from 'node:stream';
import type { Command } from 'commander';
import type { Captured } from '../capture/pcapng.ts';
import type { CaptureOptions } from '../switch/types.ts';
import {
  type ClientOptions,
  connect,
  optionsOf,
  speaksToSwitch,
  UsageError,
  wholeNumber,
  withExamples,
} from './command.ts';
import { firstSignal } from './signal.ts';
import { count } from './table.ts';

interface Options extends ClientOptions {
  filter?: string;
  write?: string;
  count?: number;
  seconds?: number;
  snaplen?: number;
}

const FILTER_FORM = `
EXPRESSION is in the language of pcap-filter(7), as tcpdump has it:
  host 10.0.0.1   src net 10.0.0.0/8   tcp port 80 or 443   portrange 6000-6008   vlan 10 and arp
  ether host 52:54:00:12:34:56   ip6 and not multicast   less 128   tcp[tcpflags] & tcp-syn != 0`;

export function declareCapture(program: Command): void {
  const command = speaksToSwitch(
    program
      .command('capture')
      .description('show the frames of a port as they come and go, or write them for Wireshark')
      .argument('<port>', "the port's name, or any: all ports")
      .argument('[expression...]', 'only these frames, see below')
      .option('--filter <expression>', 'the same as one word')
      .option('-w, --write <file>', 'write pcapng to a file, or to standard output: -')
      .option('-c, --count <n>', 'end behind so many frames', wholeNumber(1, Number.MAX_SAFE_INTEGER))
      .option('--seconds <n>', 'end after so many seconds', wholeNumber(1, 31_536_000))
      .option('--snaplen <n>', 'keep so many bytes of a frame (default: all)', wholeNumber(1, 262_144)),
  );
  command.addHelpText('after', FILTER_FORM);
  withExamples(
    command,
    'vireo capture vm1',
    'vireo capture any tcp port 80 --count 10',
    "vireo capture any --filter 'tcp[tcpflags] & tcp-syn != 0'",
    'vireo capture any -w - | wireshark -k -i -',
    'vireo capture vm1 -w vm1.pcapng --seconds 60',
  );
  command.action((port: string, words: string[]) => {
    const options = optionsOf<Options>(command);
    if (words.length === 0) return capture(port, options);
    if (options.filter !== undefined)
      throw new UsageError('give the filter behind the port or with --filter, not both');
    return capture(port, { ...options, filter: words.join(' ') });
  });
}

async function capture(port: string, options: Options): Promise<void> {
  const stopped = firstSignal();
  const [{ BlockReader }, { summary }] = await Promise.all([
    import('../capture/pcapng.ts'),
    import('../capture/summary.ts'),
  ]);
  const { filter, snaplen, seconds, write } = options;
  const wanted: CaptureOptions = Object.fromEntries(
    Object.entries({ port, filter, snaplen, count: options.count, seconds }).filter(
      ([, value]) => value !== undefined,
    ),
  ) as unknown as CaptureOptions;
  const client = await connect(options);
  // A file that can't be written is told before anything is captured.
  const file = write === undefined || write === '-' ? undefined : await openFile(write);
  const { stream, stop } = await client.capture(wanted);
  const out: Writable = file ?? process.stdout;
  const stopOnce = () => void stop().catch(() => {});
  void stopped.then(stopOnce);
  // Whoever read it has gone.
  let gone: Error | undefined;
  out.on('error', (error) => {
    gone = error;
    stopOnce();
  });

  const reader = new BlockReader();
  const names: string[] = [];
  let frames = 0;
  let lost = 0n;
  for await (const chunk of stream) {
    const lines: string[] = [];
    for (const said of reader.read(chunk)) {
      if (said.kind === 'interface') names.push(said.name);
      else if (said.kind === 'statistics') lost += said.lost;
      else {
        frames++;
        if (write === undefined)
          lines.push(line(said.packet, names[said.packet.interface] ?? '?', options.json === true, summary));
      }
    }
    if (gone !== undefined) continue;
    await put(out, write === undefined ? lines.join('') : chunk);
  }
  if (file !== undefined) await new Promise<void>((resolve) => file.end(resolve));
  if (gone !== undefined && (gone as NodeJS.ErrnoException).code !== 'EPIPE')
    throw new Error(`${write ?? 'the output'}: ${gone.message}`);
  process.stderr.write(`${count(frames)} frames captured, ${count(Number(lost))} lost by the capture\n`);
}

function openFile(path: string): Promise<Writable> {
  return new Promise((resolve, reject) => {
    const file = createWriteStream(path);
    file.once('open', () => resolve(file));
    file.once('error', reject);
  });
}

/** Writes, and waits where whoever reads is slower. */
function put(out: Writable, bytes: Uint8Array | string): Promise<void> {
  if (bytes.length === 0 || out.write(bytes)) return Promise.resolve();
  return new Promise((resolve) => {
    const done = () => {
      out.off('drain', done);
      out.off('error', done);
      resolve();
    };
    out.on('drain', done);
    out.on('error', done);
  });
}

function line(
  { time, way, length, bytes, comment }: Captured,
  port: string,
  json: boolean,
  summary: (bytes: Uint8Array, length: number) => string,
): string {
  const at = new Date(Number(time / 1_000_000n));
  const fraction = (time % 1_000_000_000n).toString().padStart(9, '0');
  const said = summary(bytes, length);
  if (json) {
    const value = {
      time: at.toISOString().replace(/\.\d+Z$/, `.${fraction}Z`),
      port,
      direction: way,
      length,
      captured: bytes.length,
      summary: said,
      ...(comment === undefined ? {} : { comment }),
    };
    return `${JSON.stringify(value)}\n`;
  }
  const clock = [at.getHours(), at.getMinutes(), at.getSeconds()].map((part) =>
    String(part).padStart(2, '0'),
  );
  const note = comment === undefined ? '' : ` [${comment}]`;
  return `${clock.join(':')}.${fraction} ${port} ${way === 'in' ? 'In ' : 'Out'} ${said}${note}\n`;
}
