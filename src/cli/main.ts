#!/usr/bin/env node
/**
 * The command `vireo`. Each command is declared in a file of its own, which imports what it needs when it runs.
 * Exit codes: 0 done, 1 failed, 2 the command line is wrong.
 */
import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { declareApply } from './apply.ts';
import { declareBridge } from './bridge.ts';
import { declareCapture } from './capture.ts';
import { PlainError, UsageError, withExamples } from './command.ts';
import { declareConfig } from './config.ts';
import { declareFdb } from './fdb.ts';
import { declareGen } from './gen.ts';
import { declareGroups } from './groups.ts';
import { declareMirror } from './mirror.ts';
import { declarePort } from './port.ts';
import { declarePorts } from './ports.ts';
import { declareQemu } from './qemu.ts';
import { declareStatus } from './status.ts';
import { declareUp } from './up.ts';
import { declareVhostUserNet } from './vhost-user-net.ts';

function version(): string {
  const file = new URL('../../../package.json', import.meta.url);
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
}

/** Lets errors name the help of the command that was called. */
function withHints(command: Command, words: string): void {
  command.showHelpAfterError(`(${words} --help tells more)`);
  for (const sub of command.commands) withHints(sub, `${words} ${sub.name()}`);
}

const program = new Command('vireo')
  .description('A switch for virtual machines: they plug in through vhost-user sockets.')
  .version(version())
  // An option behind a subcommand's name is the subcommand's.
  .enablePositionalOptions()
  .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'vireo: ')) })
  .exitOverride();
for (const declare of [
  declareUp,
  declareStatus,
  declarePorts,
  declarePort,
  declareBridge,
  declareFdb,
  declareGroups,
  declareMirror,
  declareCapture,
  declareConfig,
  declareApply,
  declareQemu,
  declareVhostUserNet,
  declareGen,
])
  declare(program);
withHints(program, 'vireo');
withExamples(
  program,
  'vireo up --port vm1=vhost-user:/tmp/a.sock --port vm2=vhost-user:/tmp/b.sock,role=client',
  'vireo ports',
  'vireo qemu vm1',
  'vireo apply lab.yaml',
  'vireo gen --port /tmp/a.sock --port /tmp/b.sock --rate 1Mpps --seconds 10 --expect-loss 0',
);

// A switch outlives the reader of its lines and a full disk. A pipe whose reader has seen enough is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE' || error.code === 'ERR_STREAM_DESTROYED') return;
  process.stderr.write(`vireo: the output can't be written: ${error.message}\n`);
  process.exitCode = 1;
});
process.stderr.on('error', () => {});

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) {
    // Commander has printed it; help and version asked for are no errors.
    process.exitCode = error.exitCode === 0 ? 0 : 2;
  } else {
    const prefix = error instanceof PlainError ? '' : 'vireo: ';
    process.stderr.write(`${prefix}${error instanceof Error ? error.message : String(error)}\n`);
    const wrong = error instanceof UsageError || (error as { code?: unknown }).code === 'BAD_SPEC';
    process.exitCode = wrong ? 2 : 1;
  }
}
