/**
 * Random messages with random descriptors to a back-end: a session as front-ends have it, with messages left out,
 * doubled, put elsewhere, their bytes changed and their descriptors exchanged. Whatever comes, the port listens again
 * and nothing is left behind.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createSwitch } from '../../src/index.ts';
import { closeFd, connectUnix, eventfd, memfd, send, socketPair } from '../../src/sys/index.ts';
import * as m from '../../src/vhost/messages.ts';
import { address, R, RING, state, table } from '../hostile/attacker.ts';
import { count } from '../hostile/stage.ts';
import type { Random } from '../support/random.ts';
import { until } from '../support/until.ts';

interface Message {
  request: number;
  payload: Uint8Array;
  fds: number[];
  flags: number;
}

export async function messages() {
  const directory = mkdtempSync(join(tmpdir(), 'vireo-fuzz-'));
  const path = join(directory, 'port.sock');
  const vswitch = await createSwitch({ ports: [{ name: 'port', type: 'vhost-user', target: path }] });
  const ram = memfd('ram', 1 << 20);
  const kick = eventfd();
  const pair = socketPair();
  const zoo = [ram, kick, ...pair];
  const before = count();
  let connections = 0;

  const session = (random: Random): Message[] => {
    const message = (request: number, payload: Uint8Array = new Uint8Array(0), fds: number[] = []) => ({ request, payload, fds, flags: 0 }); // biome-ignore format: one line
    const features = random.below(2) ? 0x1_4000_0000n : 0x5_4000_0000n;
    return [
      message(R.SET_OWNER),
      message(R.GET_PROTOCOL_FEATURES),
      message(
        R.SET_PROTOCOL_FEATURES,
        m.encodeU64(random.pick([0n, 8n, 9n, 0xffn, BigInt(random.u32() & 0xfffff)])),
      ),
      message(R.SET_FEATURES, m.encodeU64(features)),
      message(R.SET_MEM_TABLE, table({}), [ram]),
      ...[0, 1].flatMap((index) => [
        message(R.SET_VRING_NUM, state(index, random.pick([1, 64, 256]))),
        message(R.SET_VRING_BASE, state(index, features & (1n << 34n) ? 0x8000 : random.below(65536))),
        message(R.SET_VRING_ADDR, address(index, RING)),
        message(R.SET_VRING_CALL, m.encodeVringIndex(index, true), [kick]),
        message(R.SET_VRING_ERR, m.encodeVringIndex(index, true), [kick]),
        message(R.SET_VRING_KICK, m.encodeVringIndex(index, true), [kick]),
        message(R.SET_VRING_ENABLE, state(index, 1)),
      ]),
      message(R.GET_VRING_BASE, state(random.below(2), 0)),
    ];
  };

  /** Any message of the protocol, its payload of a right size and full of anything. */
  const anything = (random: Random): Message => {
    const request = 1 + random.below(44);
    const { size } = m.requestRule(request)!;
    const [least, most] = typeof size === 'number' ? [size, size] : size;
    const payload = random.bytes(random.below(2) ? least : most);
    if (random.below(2)) payload.fill(0, Math.min(4, payload.length));
    return {
      request,
      payload,
      fds: Array.from({ length: random.below(3) }, () => random.pick(zoo)),
      flags: 0,
    };
  };

  const one = async (random: Random): Promise<void> => {
    const list = session(random);
    for (let changes = random.below(5); changes > 0; changes--) {
      const i = random.below(list.length);
      const chosen = list[i]!;
      const kind = random.below(8);
      if (kind === 0) list.splice(i, 1);
      else if (kind === 1) list.splice(i, 0, chosen);
      else if (kind === 2) list.splice(random.below(list.length), 0, ...list.splice(i, 1));
      else if (kind === 3) chosen.fds = Array.from({ length: random.below(4) }, () => random.pick(zoo));
      else if (kind === 4) chosen.flags = random.pick([8, random.u32() & 0xff]);
      else if (kind === 5 && chosen.payload.length > 0)
        chosen.payload[random.below(chosen.payload.length)] = random.u32();
      else list.splice(i, 0, anything(random));
    }
    const fd = connectUnix(path);
    connections++;
    try {
      for (const { request, payload, fds, flags } of list) {
        const bytes = m.encodeMessage(request, flags, payload);
        const length = random.below(60) === 0 ? 1 + random.below(bytes.length) : bytes.length;
        if (send(fd, bytes.subarray(0, length), fds) === 'again') break;
      }
    } catch (error) {
      // The switch may have ended the connection by now.
      assert.match((error as Error).message, /EPIPE|ECONNRESET/);
    } finally {
      closeFd(fd);
    }
    const port = () => vswitch.port('port');
    await until(
      () => port().connections >= connections && port().state === 'listening',
      'the port listens again',
    );
    if (connections % 50 === 0) {
      const now = count();
      assert.equal(now.descriptors, before.descriptors);
      // Fewer where memory that another target left behind was collected meanwhile.
      assert.ok(now.mappings <= before.mappings, `${now.mappings} mappings, ${before.mappings} before`);
    }
  };
  const close = async () => {
    await vswitch.close();
    for (const fd of zoo) closeFd(fd);
    rmSync(directory, { recursive: true });
  };
  return { one, close };
}
