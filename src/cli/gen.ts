/**
 * `vireo gen`: sends and receives on virtio-user ports, counts and measures, until a number, a time or SIGINT; and
 * `vireo gen rfc2544`, the search for the highest rate without loss. Exit code 1 where a back-end failed or an
 * expectation isn't met.
 */
import { type Command, InvalidArgumentError, Option } from 'commander';
import type { Expectations } from '../gen/expect.ts';
import * as expect from '../gen/expect.ts';
import * as parse from '../gen/parse.ts';
import {
  CHECKS,
  type Check,
  MODES,
  type Mode,
  type Range,
  type Rate,
  type Traffic,
  type Trial,
} from '../gen/types.ts';
import { PlainError, readCpus, UsageError, wholeNumber, withExamples } from './command.ts';
import { renderRun, renderSearch, sayTrial } from './gen-output.ts';
import { firstSignal } from './signal.ts';

interface TrafficOptions {
  srcMac?: Range;
  dstMac?: Range;
  srcIp?: { version: 4 | 6; range: Range };
  dstIp?: { version: 4 | 6; range: Range };
  ipv6?: boolean;
  srcPort?: Range;
  dstPort?: Range;
  vlan?: Range;
}

interface CommonOptions extends TrafficOptions {
  port: parse.NamedPort[];
  check: Check;
  cpus?: number[];
  json?: boolean;
}

interface RunOptions extends CommonOptions {
  mode: Mode;
  size?: number[];
  rate?: Rate;
  seconds?: number;
  count?: number;
  burst?: number;
  replay?: string;
  capture?: string;
  interval: number;
  expectLoss?: Expectations['loss'];
  expectRate?: Expectations['rate'];
  expectLatency?: Expectations['latency'];
}

interface SearchOptions extends CommonOptions {
  sizes?: number[];
  loss?: Expectations['loss'];
  trial: number;
  precision: number;
  both?: boolean;
}

/** Most seconds of a run: sequence numbers and times have room for that. */
const LONGEST = 86_400;
const MOST_FRAMES = Number.MAX_SAFE_INTEGER;
const MOST_TRAIN = 1024;

const PORT_HELP = `
A port is the socket of a vhost-user back-end, and what is to be different from the default:
  SOCKET[,role=client|server][,queues=N][,packed][,size=DESCRIPTORS][,mode=MODE][,mac=MAC][,capture=FILE]
  /dev/vhost-net,interface=TAP sends into a TAP of the host instead.

Ports are paired, the first with the second and so on: a port sends to its peer's address, and what is forwarded
leaves by the peer.`;

/** Makes what a parser of src/gen throws an error of the command line. */
function told<T>(read: (text: string) => T): (text: string) => T {
  return (text) => {
    try {
      return read(text);
    } catch (error) {
      const message = (error as Error).message;
      throw new InvalidArgumentError(`${message[0]!.toUpperCase()}${message.slice(1)}.`);
    }
  };
}

/** A reader of an option that may be repeated. */
function listed<T>(read: (text: string) => T): (text: string, before?: T[]) => T[] {
  const one = told(read);
  return (text, before = []) => [...before, one(text)];
}

function decimal(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d+(\.\d+)?$/.test(text) && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`Expected a number from ${least} to ${most}.`);
  };
}

/** A number of seconds, or a duration with its unit. */
function seconds(text: string): number {
  const value = /^\d+(\.\d+)?$/.test(text) ? Number(text) : told(parse.parseDuration)(text) / 1e9;
  if (value > 0 && value <= LONGEST) return value;
  throw new InvalidArgumentError(`Expected a time up to ${LONGEST} seconds, such as 10, 500ms or 2s.`);
}

function withCommon(command: Command): Command {
  return command
    .addOption(
      new Option('--port <spec>', 'a port, see below; repeated for more').argParser(listed(parse.parsePort)),
    )
    .option(
      '--cpus <list>',
      'CPUs to pin a thread each to, such as 0,2-3 (default: one thread, not pinned)',
      readCpus,
    )
    .option('--src-mac <range>', "source addresses (default: the port's own)", told(parse.parseMacs))
    .option('--dst-mac <range>', "destination addresses (default: its peer's)", told(parse.parseMacs))
    .option(
      '--src-ip <range>',
      'IPv4 or IPv6 addresses (default: 198.18.0.1 and so on)',
      told(parse.parseAddresses),
    )
    .option(
      '--dst-ip <range>',
      'IPv4 or IPv6 addresses (default: 198.19.0.1 and so on)',
      told(parse.parseAddresses),
    )
    .option('--ipv6', 'IPv6 where no address is given')
    .option('--src-port <range>', 'UDP ports (default: 1024)', told(parse.parseUdpPorts))
    .option('--dst-port <range>', 'UDP ports (default: 9)', told(parse.parseUdpPorts))
    .option('--vlan <range>', 'VLAN tags', told(parse.parseVlans))
    .addOption(
      new Option('--check <what>', 'what is looked at of frames that come')
        .choices([...CHECKS])
        .default('payload'),
    )
    .option('--json', 'print nothing but the result, as JSON');
}

export function declareGen(program: Command): void {
  const command = withCommon(
    program
      .command('gen')
      .description('generate traffic on vhost-user sockets, and measure what comes back')
      .enablePositionalOptions()
      .addOption(new Option('--mode <mode>', 'what the ports do').choices([...MODES]).default('latency')),
  )
    .option('--size <sizes>', 'bytes of the frames: 64, 64-128, 64,512,1518 or imix', told(parse.parseSizes))
    .option(
      '--rate <rate>',
      'of each sending port: 1Mpps, 2Gbit or max (default: max, or as recorded)',
      told(parse.parseRate),
    )
    .option('--seconds <n>', 'end after so long (default: at SIGINT)', seconds)
    .option('--count <n>', 'end after so many frames of each port', wholeNumber(1, MOST_FRAMES))
    .option('--burst <n>', 'frames that leave together', wholeNumber(1, MOST_TRAIN))
    .option('--replay <file>', 'send the frames of a pcap or pcapng file, at their times or at --rate')
    .option('--capture <file>', 'write what the one receiving port gets to a pcap file')
    .option('--interval <s>', 'seconds between two lines of progress', decimal(0.1, 3600), 1)
    .option(
      '--expect-loss <n>',
      'exit with 1 if more frames are lost than 0, 100 or 0.1%',
      told(parse.parseLoss),
    )
    .option(
      '--expect-rate <rate>',
      'exit with 1 below this rate, received or else sent',
      told(expect.parseExpectedRate),
    )
    .addOption(
      new Option(
        '--expect-latency <limit>',
        'exit with 1 above a latency such as p99=50us; may be repeated',
      ).argParser(listed(expect.parseLatency)),
    )
    .addHelpText(
      'after',
      `${PORT_HELP}\n\nA range is FIRST, FIRST-LAST or FIRST+NUMBER; frames take its values in turn.`,
    );
  withExamples(
    command,
    'vireo gen --port /tmp/a.sock --port /tmp/b.sock --rate 1Mpps --seconds 10 --expect-loss 0',
    'vireo gen --port /tmp/a.sock,mode=txonly --port /tmp/b.sock,mode=rxonly --size imix --json --seconds 5',
    'vireo gen --port /tmp/a.sock --mode icmpecho',
    'vireo gen --port /tmp/a.sock --mode txonly --replay mail.pcap --rate 100kpps',
    'vireo gen rfc2544 --port /tmp/a.sock --port /tmp/b.sock --sizes 64,1518',
  );
  command.action((options: RunOptions) => generate(options));
  declareSearch(command);
}

function declareSearch(gen: Command): void {
  const command = withCommon(
    gen
      .command('rfc2544')
      .description('find the highest rate without loss, from the first port to the second (RFC 2544, 26.1)'),
  )
    .option(
      '--sizes <sizes>',
      'bytes of the frames (default: 64,128,256,512,1024,1280,1518)',
      told(parse.parseSizes),
    )
    .option('--loss <n%>', 'share of the frames that may be lost', told(parse.parseLoss))
    .option('--trial <time>', 'of one trial', seconds, 2)
    .option('--precision <n>', 'share to which the rate is found', decimal(0.001, 0.5), 0.01)
    .option('--both', 'both ports send')
    .addHelpText('after', PORT_HELP);
  withExamples(
    command,
    'vireo gen rfc2544 --port /tmp/a.sock --port /tmp/b.sock',
    'vireo gen rfc2544 --port /tmp/a.sock --port /tmp/b.sock --both --sizes 64,1518 --loss 0.1% --trial 10s --json',
  );
  command.action((options: SearchOptions) => search(options));
}

function trafficOf(options: TrafficOptions, sizes: number[] | undefined): Traffic {
  const { srcIp, dstIp, ipv6 } = options;
  if (srcIp && dstIp && srcIp.version !== dstIp.version)
    throw new UsageError('--src-ip and --dst-ip: expected addresses of one version of IP');
  const version = srcIp?.version ?? dstIp?.version ?? (ipv6 ? 6 : 4);
  if (ipv6 && version === 4) throw new UsageError('--ipv6: expected IPv6 addresses, found IPv4');
  const given: Traffic = {
    version,
    ...(sizes && { sizes }),
    ...(options.srcMac && { sourceMac: options.srcMac }),
    ...(options.dstMac && { destinationMac: options.dstMac }),
    ...(srcIp && { sourceIp: srcIp.range }),
    ...(dstIp && { destinationIp: dstIp.range }),
    ...(options.srcPort && { sourcePort: options.srcPort }),
    ...(options.dstPort && { destinationPort: options.dstPort }),
    ...(options.vlan && { vlan: options.vlan }),
  };
  return given;
}

/** Checks what only the options together show. */
function trialOf(options: RunOptions): Trial {
  const { port: ports, replay, rate, capture } = options;
  if (!ports) throw new UsageError('--port: at least one port expected');
  const modes = ports.map(({ mode }) => mode ?? options.mode);
  if (capture !== undefined) {
    const receiving = ports.filter((_, index) => modes[index] !== 'txonly');
    if (receiving.length !== 1)
      throw new UsageError(
        `--capture: ${receiving.length} ports receive; give --port …,capture=FILE for each`,
      );
    receiving[0]!.capture ??= capture;
  }
  const mute = ports.findIndex((port, index) => port.capture !== undefined && modes[index] === 'txonly');
  if (mute >= 0)
    throw new UsageError(`--port ${ports[mute]!.path}: capture: a port that is txonly receives nothing`);
  if (rate === 'recorded' && replay === undefined)
    throw new UsageError('--rate recorded: only with --replay');
  return {
    mode: modes,
    traffic: trafficOf(options, options.size),
    ...(replay === undefined ? {} : { replay }),
    ...(rate === undefined ? {} : { rate }),
    ...(options.count === undefined ? {} : { count: options.count }),
    ...(options.seconds === undefined ? {} : { seconds: options.seconds }),
    ...(options.burst === undefined ? {} : { train: options.burst }),
    check: options.check,
  };
}

/** The generator on these ports, while `use` runs; it is told of the first signal. */
async function withGenerator<T>(
  options: CommonOptions,
  use: (generator: import('../gen/generator.ts').Generator, signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const abort = new AbortController();
  firstSignal().then(() => abort.abort());
  const { Generator } = await import('../gen/generator.ts');
  const ports = options.port.map(({ mode: _, ...port }) => port);
  await using generator = await Generator.open({ ports, ...(options.cpus ? { cpus: options.cpus } : {}) });
  return await use(generator, abort.signal);
}

async function generate(options: RunOptions): Promise<void> {
  const trial = trialOf(options);
  const { Display } = await import('../gen/display.ts');
  const display = new Display(process.stdout);
  const result = await withGenerator(options, (generator, signal) =>
    generator.run(trial, {
      signal,
      interval: options.interval * 1000,
      ...(options.json ? {} : { onProgress: display.show }),
    }),
  );
  display.clear();
  process.stdout.write(options.json ? `${JSON.stringify(result, null, 2)}\n` : renderRun(result));
  const { expectLoss, expectRate, expectLatency } = options;
  const failures = expect.unmet(
    {
      ...(expectLoss && { loss: expectLoss }),
      ...(expectRate && { rate: expectRate }),
      ...(expectLatency && { latency: expectLatency }),
    },
    result,
  );
  if (result.fault !== undefined) failures.unshift(result.fault);
  if (failures.length > 0) throw new PlainError(failures.map((line) => `vireo: ${line}`).join('\n'));
}

async function search(options: SearchOptions): Promise<void> {
  if (options.port?.length !== 2)
    throw new UsageError(`--port: two ports expected, found ${options.port?.length ?? 0}`);
  const odd = options.port.find(({ mode, capture }) => mode !== undefined || capture !== undefined);
  if (odd) throw new UsageError(`--port ${odd.path}: neither mode nor capture can be chosen for a search`);
  const { loss } = options;
  if (loss && 'frames' in loss && loss.frames > 0)
    throw new UsageError('--loss: expected a percentage, or 0');
  const { rfc2544, RFC2544_SIZES } = await import('../gen/rfc2544.ts');
  const result = await withGenerator(options, (generator, signal) =>
    rfc2544(
      generator,
      {
        sizes: options.sizes ?? RFC2544_SIZES,
        traffic: trafficOf(options, undefined),
        both: options.both ?? false,
        loss: loss && 'share' in loss ? loss.share : 0,
        seconds: options.trial,
        precision: options.precision,
        check: options.check,
      },
      { signal, ...(options.json ? {} : { onTrial: sayTrial }) },
    ),
  );
  process.stdout.write(options.json ? `${JSON.stringify(result, null, 2)}\n` : renderSearch(result));
  if (result.fault !== undefined) throw new PlainError(`vireo: ${result.fault}`);
}
