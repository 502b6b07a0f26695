/**
 * A program that may not call userfaultfd(2), by a filter such as those of containers: it tries to make a port that
 * offers postcopy, and says what comes of it.
 */
import koffi from 'koffi';
import { createSwitch } from '../../src/index.ts';
import { addressOf } from '../../src/sys/index.ts';

const PR_SET_SECCOMP = 22;
const PR_SET_NO_NEW_PRIVS = 38;
const SECCOMP_MODE_FILTER = 2;
const EPERM = 1;
const NUMBER = process.arch === 'arm64' ? 282 : 323;

// A BPF program: load the number of the system call; the one gets EPERM, all others pass.
const program = Buffer.from(new ArrayBuffer(32));
for (const [i, [code, yes, no, k]] of [
  [0x20, 0, 0, 0],
  [0x15, 0, 1, NUMBER],
  [0x06, 0, 0, 0x0005_0000 | EPERM],
  [0x06, 0, 0, 0x7fff_0000],
].entries()) {
  program.writeUInt16LE(code!, 8 * i);
  program[8 * i + 2] = yes!;
  program[8 * i + 3] = no!;
  program.writeUInt32LE(k!, 8 * i + 4);
}
const filter = Buffer.from(new ArrayBuffer(16));
filter.writeUInt16LE(4);
filter.writeBigUInt64LE(addressOf(program), 8);
const prctl = koffi.load(null).func('prctl', 'int', ['int', 'uint64', 'uint64', 'uint64', 'uint64']);
prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, addressOf(filter), 0, 0) !== 0) throw new Error('no filter');

const target = `/tmp/vireo-no-userfaultfd-${process.pid}.sock`;
try {
  await createSwitch({ ports: [{ name: 'a', type: 'vhost-user', target, features: '+postcopy' }] });
} catch (error) {
  console.log((error as Error).message);
}
const vswitch = await createSwitch({ ports: [{ name: 'a', type: 'vhost-user', target }] });
await vswitch.close();
console.log('and a port without it');
