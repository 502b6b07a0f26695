/** `npm run bench -- NAME`: runs a benchmark, prints its table (or JSON) and writes its part of docs/performance.md. */
import { parseArgs } from 'node:util';
import { bridge, documentBridge, renderBridge } from './bridge.ts';
import { chain, documentChain, renderChain } from './chain.ts';
import { costs, documentCosts, renderCosts } from './costs.ts';
import { documentField, field, renderField } from './field.ts';
import { documentGen, gen, renderGen } from './gen.ts';
import { documentHost, host, renderHost } from './host.ts';
import { documentIdle, idle, renderIdle } from './idle.ts';
import { documentInterfaces, interfaces, renderInterfaces } from './interfaces.ts';
import { documentLatency, latency, renderLatency } from './latency.ts';
import { BURSTS } from './load.ts';
import { documentPaths, paths, renderPaths } from './paths.ts';
import { documentPorts, ports, renderPorts } from './ports.ts';
import { documentRules, renderRules, rules } from './rules.ts';
import { documentStartup, renderStartup, startup } from './startup.ts';
import { subjectNames } from './subjects.ts';
import { documentTcp, renderTcp, tcp } from './tcp.ts';
import * as guests from './v2v.ts';

const USAGE = `usage: npm run bench -- NAME [options]

  v2v      packets a second between two guests, beside DPDK's vhost and Open vSwitch with DPDK
  paths    packets a second by format and features of the rings, beside DPDK's vhost
  chain    packets a second through a chain of 1 to 5 guests, beside the same
  field    highest rate without loss and latency by size, by our own generator, beside the same
  tcp      TCP between Linux guests with and without TSO, beside Open vSwitch with DPDK
  bridge   packets a second between two guests, beside the Linux bridge with vhost-net, within a guest
  ports    cost a packet on a switch of 256 ports beside one of two
  host     packets a second between a guest and the host's own network, beside Open vSwitch with DPDK
  interfaces  packets a second and TCP between interfaces of the kernel, beside its bridge and Open vSwitch
  costs    what each rule costs a packet
  rules    how exact shaping and delays are, with Linux guests too
  startup  from the start of the process to its ready line, from a guest's connect to its first packet
  latency  round trips between two guests that poll and two that sleep
  gen      packets a second of the generator, beside testpmd's txonly
  idle     CPU and memory with two connected guests that are quiet

  --turns N        repetitions (v2v, paths, chain, bridge, host, ports, costs and gen 5, field, tcp and interfaces 3, startup 10)
  --seconds N      measured seconds (v2v 6, paths and ports 3, chain 0.8, field 1, tcp 5, bridge 2, host and interfaces 1, gen 0.5, idle 10)
  --bursts N       v2v, paths: bursts of 32 packets that circulate in each direction (${BURSTS})
  --only A,B       v2v: of ${subjectNames.join(', ')}
  --no-write       leave docs/performance.md as it is
  --json           print one JSON object instead of a table`;

const say = (line: string) => process.stderr.write(`${line}\n`);

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    allowNegative: true,
    options: {
      turns: { type: 'string' },
      seconds: { type: 'string' },
      bursts: { type: 'string' },
      only: { type: 'string' },
      write: { type: 'boolean', default: true },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  const number = (name: 'turns' | 'seconds' | 'bursts', otherwise: number) => {
    const value = Number(values[name] ?? otherwise);
    if (!(value > 0)) throw new Error(`--${name} wants a number above 0, not "${values[name]}"`);
    return value;
  };
  const report = <T>(result: T, render: (result: T) => string, write: (result: T) => void) => {
    console.log(values.json ? JSON.stringify(result) : render(result));
    if (values.write) write(result);
  };

  switch (values.help ? 'help' : positionals[0]) {
    case 'v2v': {
      const only = values.only?.split(',') ?? subjectNames;
      const subjects = subjectNames.filter((name) => only.includes(name));
      if (subjects.length !== only.length) throw new Error(`--only takes ${subjectNames.join(', ')}`);
      const options = {
        turns: number('turns', 5),
        seconds: number('seconds', 6),
        bursts: number('bursts', BURSTS),
      };
      report(await guests.v2v({ ...options, subjects }, say), guests.render, guests.document);
      break;
    }
    case 'paths': {
      const options = {
        turns: number('turns', 5),
        seconds: number('seconds', 3),
        bursts: number('bursts', BURSTS),
      };
      report(await paths(options, say), renderPaths, documentPaths);
      break;
    }
    case 'chain':
      report(await chain(number('turns', 5), number('seconds', 0.8), say), renderChain, documentChain);
      break;
    case 'field':
      report(await field(number('turns', 3), number('seconds', 1), say), renderField, documentField);
      break;
    case 'tcp':
      report(await tcp(number('turns', 3), number('seconds', 5), say), renderTcp, documentTcp);
      break;
    case 'bridge':
      report(await bridge(number('turns', 5), number('seconds', 2), say), renderBridge, documentBridge);
      break;
    case 'ports':
      report(await ports(number('turns', 5), number('seconds', 3), say), renderPorts, documentPorts);
      break;
    case 'interfaces':
      report(
        await interfaces(number('turns', 3), number('seconds', 1), say),
        renderInterfaces,
        documentInterfaces,
      );
      break;
    case 'host':
      report(await host(number('turns', 5), number('seconds', 1), say), renderHost, documentHost);
      break;
    case 'costs':
      report(await costs(number('turns', 5), say), renderCosts, documentCosts);
      break;
    case 'rules':
      report(await rules(say), renderRules, documentRules);
      break;
    case 'startup':
      report(await startup(number('turns', 10)), renderStartup, documentStartup);
      break;
    case 'latency':
      report(await latency(say), renderLatency, documentLatency);
      break;
    case 'gen': {
      const options = { turns: number('turns', 5), seconds: number('seconds', 0.5) };
      report(await gen(options, say), renderGen, documentGen);
      break;
    }
    case 'idle':
      report(await idle(number('seconds', 10)), renderIdle, documentIdle);
      break;
    case 'help':
      console.log(USAGE);
      break;
    default:
      throw new Error(USAGE);
  }
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
