/** A user without rights on interfaces of the host: which one is missing, how to have it, and that it is enough. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { root } from '../peers/available.ts';
import { Child } from '../peers/process.ts';
import { ip, ownNetwork } from '../support/network.ts';

const program = join(root, 'dist/src/cli/main.js');

describe('a switch of a user without rights', { skip: ownNetwork() }, () => {
  const up = (port: string, ...capabilities: string[]) => {
    const list = capabilities.map((name) => `+${name}`).join();
    const given = list ? [`--inh-caps=${list}`, `--ambient-caps=${list}`] : [];
    const user = ['--reuid', '65534', '--regid', '65534', '--clear-groups', ...given, '--'];
    const control = `/tmp/vireo-rights-${process.pid}.sock`;
    return new Child('setpriv', [
      ...user,
      process.execPath,
      program,
      'up',
      '--control',
      control,
      '--port',
      port,
    ]);
  };

  test('is told the capability of each kind of port', async () => {
    ip('link add veth0 type veth peer name veth1');
    for (const [kind, told] of [
      [
        'af-packet',
        /port lan: interface veth0: a packet socket takes the capability CAP_NET_RAW: run the switch by `systemd-run -p AmbientCapabilities=CAP_NET_RAW/,
      ],
      [
        'af-xdp',
        /port lan: interface veth0: AF_XDP takes the capabilities CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF .*AmbientCapabilities="CAP_NET_RAW CAP_NET_ADMIN CAP_BPF"/,
      ],
    ] as const) {
      const refused = up(`lan=${kind}:veth0`);
      assert.equal(await refused.exited, 1);
      assert.match(refused.output, told);
    }
    ip('link del veth0');
  });

  test('needs no more than that for a packet socket', async () => {
    ip('link add veth0 type veth peer name veth1');
    for (const name of ['veth0', 'veth1']) ip(`link set ${name} up`);
    const accepted = up('lan=af-packet:veth0', 'net_raw');
    await accepted.waitFor('its port', 60_000, () => accepted.output.includes('lan: guest up') || undefined);
    assert.match(ip('-d link show veth0'), /promiscuity [1-9]/);
    await accepted.end();
    ip('link del veth0');
  });
});
