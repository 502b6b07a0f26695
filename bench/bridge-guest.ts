/**
 * What bench/bridge.ts runs inside its guest, `bridge-guest.js TURNS SECONDS RATE SIZE,…`: two ports of the generator
 * that are joined by a bridge of the kernel, two others that are joined by a switch of Vireo, and runs on each pair in
 * turn, at full speed and at RATE packets a second. A run is a line of JSON (Measured).
 */
import { Generator, type GenPort, type Trial } from '../src/gen/index.ts';
import { createSwitch } from '../src/index.ts';
import { bringUp, sh } from '../test/guest/shell.ts';
import type { Measured, Subject } from './bridge.ts';

/** The generator's threads, which poll, have one CPU, the switch's worker the other. The kernel's run where they like. */
const GENERATOR_CPU = 1;
const SWITCH_CPU = 0;
const BRIDGE = 'br0';
const TAPS = ['tap0', 'tap1'];
const SOCKETS = ['/tmp/bench-a', '/tmp/bench-b'];
/** Seconds at full speed before anything counts: meanwhile the engine compiles what is hot. */
const WARM_UP = 3;
/** Frames that are to cross in both directions, and how often that is tried: a new bridge port may not forward yet. */
const LEARNING: Trial = { mode: 'latency', count: 10, rate: { packets: 100 } };
const ATTEMPTS = 30;

const [turns, seconds, rate] = process.argv.slice(2, 5).map(Number) as [number, number, number];
const sizes = process.argv[5]!.split(',').map(Number);

await using vswitch = await createSwitch({
  poll: 'adaptive',
  cpus: [SWITCH_CPU],
  ports: SOCKETS.map((target, index) => ({ name: `port${index}`, type: 'vhost-user', target })),
});
await using ofSwitch = await open(SOCKETS.map((path) => ({ path })));
await using ofBridge = await open(TAPS.map((tap) => ({ path: '/dev/vhost-net', interface: tap })));
sh(`ip link add ${BRIDGE} type bridge`);
for (const name of [BRIDGE, ...TAPS]) {
  if (name !== BRIDGE) sh(`ip link set ${name} master ${BRIDGE}`);
  bringUp(name);
}

const generators: Record<Subject, Generator> = { bridge: ofBridge, vireo: ofSwitch };
const subjects = Object.keys(generators) as Subject[];
for (const subject of subjects) await warmUp(subject);
for (let turn = 0; turn < turns; turn++) {
  // Whoever comes first in one turn comes second in the next.
  const order = turn % 2 === 0 ? subjects : subjects.toReversed();
  for (const size of sizes)
    for (const paced of [false, true])
      for (const subject of order) console.log(JSON.stringify(await measure(turn, subject, size, paced)));
}
const counters = vswitch.ports().map(({ name, rxPackets, txPackets }) => ({ name, rxPackets, txPackets }));
if (counters.some(({ rxPackets, txPackets }) => rxPackets === 0 || txPackets === 0))
  throw new Error(`the switch saw nothing of it: ${JSON.stringify(counters)}`);

function open(ports: GenPort[]): Promise<Generator> {
  return Generator.open({ ports, cpus: [GENERATOR_CPU] });
}

async function warmUp(subject: Subject): Promise<void> {
  for (let attempt = 0; ; attempt++) {
    const { lost, sent } = await run(subject, LEARNING);
    if (sent > 0 && lost === 0) break;
    if (attempt === ATTEMPTS) throw new Error(`${subject}: ${lost} of ${sent} frames still don't cross`);
  }
  await run(subject, { mode: ['txonly', 'rxonly'], traffic: { sizes }, rate: 'max', seconds: WARM_UP });
}

/** One way, from the first port to the second. */
async function measure(turn: number, subject: Subject, size: number, paced: boolean): Promise<Measured> {
  const { sent, lost, received, ports } = await run(subject, {
    mode: ['txonly', 'rxonly'],
    traffic: { sizes: [size] },
    rate: paced ? { packets: rate } : 'max',
    seconds,
  });
  if (received === 0 || lost === undefined) throw new Error(`${subject}: no frame of ${size} bytes arrived`);
  return { turn, subject, size, paced, rate: ports[1]!.receiveRate, sent, lost };
}

/** A run that a back-end ended, or in which frames were damaged, is no measurement. */
async function run(subject: Subject, trial: Trial) {
  const result = await generators[subject].run(trial);
  if (result.ended === 'fault') throw new Error(`${subject}: ${result.fault}`);
  if (result.corrupt > 0) throw new Error(`${subject}: ${result.corrupt} frames arrived damaged`);
  return result;
}
