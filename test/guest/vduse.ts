/**
 * VDUSE ports that can't begin: descriptors that the kernel watches for a user are bounded here, so that the last step
 * fails. What is left then is what was there before.
 */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { createSwitch, type PortSpec, type Switch } from '../../src/index.ts';
import { openFds } from '../../src/sys/index.ts';
import { until } from '../support/until.ts';
import { start } from './shell.ts';

const LIMIT = '/proc/sys/fs/epoll/max_user_watches';
const NAME = 'vdpa7';
const spec: PortSpec = { name: 'k', type: 'vduse', target: NAME };

/** Adding the port fails, and leaves descriptors as many as before. */
async function fails(vswitch: Switch): Promise<void> {
  const before = openFds();
  const usual = readFileSync(LIMIT, 'utf8');
  writeFileSync(LIMIT, '1');
  try {
    await assert.rejects(vswitch.addPort(spec), /port k: epoll_ctl.*ENOSPC/);
  } finally {
    writeFileSync(LIMIT, usual);
  }
  await until(() => openFds() === before, `${before} descriptors`);
}

const isThere = () => existsSync(`/dev/vduse/${NAME}`);

test('a port that cannot begin leaves no device, or the one that was there, and no descriptor', async () => {
  await using vswitch = await createSwitch();
  await using next = await createSwitch();
  // The first time the program opens what it keeps.
  await vswitch.addPort(spec);
  await vswitch.removePort('k');
  await fails(vswitch);
  assert.equal(isThere(), false);

  await vswitch.addPort(spec);
  const { output, status } = await start(`vdpa dev add name ${NAME} mgmtdev vduse`);
  assert.equal(status, 0, output);
  // As by a switch that ends.
  await vswitch.close();
  assert.equal(isThere(), true);
  await fails(next);
  assert.equal(isThere(), true);
  await next.addPort(spec);
  assert.equal((await start(`vdpa dev del ${NAME}`)).status, 0);
  await next.removePort('k');
  assert.equal(isThere(), false);
});
