/**
 * Hostile back-ends against virtio-user: they answer as they should up to some request, and then lie, or say nothing,
 * or leave; or they start and then lie in the rings. Each ends with an error that names it, and leaves nothing.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Generator } from '../../src/gen/index.ts';
import {
  acceptUnix,
  closeFd,
  listenUnix,
  memfd,
  type PollerLease,
  sharedPoller,
} from '../../src/sys/index.ts';
import * as m from '../../src/vhost/messages.ts';
import { features, vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { VirtioUserError } from '../../src/virtio-user/errors.ts';
import { DRIVER_FEATURES, type VirtioUserOptions } from '../../src/virtio-user/options.ts';
import { until } from '../support/until.ts';
import { RawEnd } from '../vhost/harness.ts';
import { count } from './stage.ts';

const R = m.requests;
const directory = mkdtempSync(join(tmpdir(), 'vireo-back-end-'));
const path = join(directory, 'device.sock');
const FEATURES =
  features.VHOST_USER_F_PROTOCOL_FEATURES |
  features.VIRTIO_F_VERSION_1 |
  features.VIRTIO_NET_F_MRG_RXBUF |
  features.VIRTIO_F_RING_PACKED;
const PROTOCOL =
  vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_MQ | vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_REPLY_ACK;

type Request = NonNullable<Awaited<ReturnType<RawEnd['next']>>>;
/** What a back-end does with a request; false: it answers as it should. */
type Lie = (end: RawEnd, request: Request) => boolean;

let lease: PollerLease;
let junk: number;
before(() => {
  lease = sharedPoller();
  junk = memfd('junk', 4096);
});
after(async () => {
  closeFd(junk);
  await lease.release();
  rmSync(directory, { recursive: true });
});

/** The status that the driver has set last, as eight bytes. */
let status: Uint8Array = m.encodeU64(0n);

function honest(end: RawEnd, { request, flags, payload }: Request): void {
  if (request === R.SET_STATUS) status = payload;
  const answers: Record<number, () => Uint8Array> = {
    [R.GET_FEATURES]: () => m.encodeU64(FEATURES),
    [R.GET_PROTOCOL_FEATURES]: () => m.encodeU64(PROTOCOL),
    [R.GET_QUEUE_NUM]: () => m.encodeU64(1n),
    [R.GET_STATUS]: () => status,
    [R.GET_CONFIG]: () => payload,
    [R.GET_VRING_BASE]: () => m.encodeVringState({ index: m.decodeVringState(payload).index, num: 0 }),
  };
  const answer = answers[request]?.() ?? (flags & m.FLAG_NEED_REPLY ? m.encodeU64(0n) : undefined);
  if (answer) end.message(request, answer, { flags: m.FLAG_REPLY });
}

/**
 * Serves one front-end until it leaves, or none once `stopped`. The first region's descriptor is given to `memory`, to
 * close.
 */
async function serve(
  listenFd: number,
  lie: Lie,
  memory: (fd: number) => void,
  stopped = () => false,
): Promise<void> {
  let fd = acceptUnix(listenFd);
  for (; fd === undefined && !stopped(); fd = acceptUnix(listenFd)) await sleep(1);
  if (fd === undefined) return;
  const end = new RawEnd(fd);
  try {
    for (let request = await end.next(); request; request = await end.next()) {
      for (const passed of request.fds.splice(0)) {
        if (request.request === R.SET_MEM_TABLE) memory(passed);
        else closeFd(passed);
      }
      if (lie(end, request)) continue;
      honest(end, request);
    }
  } catch (error) {
    // It has closed the connection itself, or the front-end has.
    assert.match((error as Error).message, /EBADF|EPIPE|ECONNRESET/);
  } finally {
    end.close();
  }
}

/** Milliseconds for honest answers on a busy machine, and for one that doesn't come. */
const PATIENCE = 30_000;
const IN_VAIN = 300;

/** Opens a device on a back-end that lies, and hands it to `use`; counts what is left afterwards. */
function against(
  lie: Lie,
  options: Partial<VirtioUserOptions>,
  use: (open: Promise<VirtioUser>, memory: () => number) => Promise<void>,
): Promise<void> {
  return beside(lie, (memory) => use(VirtioUser.open({ path, timeout: PATIENCE, ...options }), memory));
}

/** A back-end that lies, for whoever connects to it; counts what is left afterwards. */
async function beside(lie: Lie, use: (memory: () => number) => Promise<void>): Promise<void> {
  const before = count();
  const listenFd = listenUnix(path);
  let memory = -1;
  const serving = serve(listenFd, lie, (fd) => {
    memory = fd;
  });
  try {
    await use(() => memory);
  } finally {
    await serving;
    closeFd(listenFd);
    if (memory >= 0) closeFd(memory);
    rmSync(path, { force: true });
  }
  assert.deepEqual(count(), before, 'descriptors and mappings are as many as before');
}

const ASKED = ['GET_FEATURES', 'GET_PROTOCOL_FEATURES', 'GET_QUEUE_NUM', 'SET_FEATURES', 'SET_MEM_TABLE', 'SET_VRING_NUM', 'SET_VRING_BASE', 'SET_VRING_ADDR', 'SET_VRING_CALL', 'SET_VRING_KICK', 'SET_VRING_ENABLE'] as const; // biome-ignore format: a list
const eight = m.encodeU64(0n);
const LIES: [name: string, says: string, act: (end: RawEnd, request: number) => void][] = [
  ['closes', 'the back-end closed the connection', (end) => end.close()],
  ['says nothing', 'no answer from the back-end within 0.3 s', () => {}],
  ['says the half of it', 'no answer from the back-end within 0.3 s', (end, r) => end.bytes(m.encodeMessage(r, m.FLAG_REPLY, eight).subarray(0, 15))],
  ['says the half of it and closes', 'the connection closed in the middle of it', (end, r) => { end.bytes(m.encodeMessage(r, m.FLAG_REPLY, eight).subarray(0, 15)); end.close(); }],
  ['answers another request', 'the back-end answered SET_OWNER', (end) => end.message(R.SET_OWNER, eight, { flags: m.FLAG_REPLY })],
  ['answers without the reply flag', 'an answer with flags 0x1', (end, r) => end.message(r, eight)],
  ['answers in version 3', 'an answer with flags 0x7', (end, r) => end.message(r, eight, { flags: m.FLAG_REPLY, version: 3 })],
  ['answers with 4 bytes', 'an answer of 4 bytes', (end, r) => end.message(r, eight.subarray(4), { flags: m.FLAG_REPLY })],
  ['answers with 4 GiB', 'an answer of 4294967295 bytes', (end, r) => end.message(r, eight, { flags: m.FLAG_REPLY, size: 0xffff_ffff })],
  ['answers with descriptors', 'an answer with 8 descriptors', (end, r) => end.message(r, eight, { flags: m.FLAG_REPLY, fds: Array(8).fill(junk) })],
  ['answers with 200 descriptors', 'more than 8 descriptors', (end, r) => end.message(r, eight, { flags: m.FLAG_REPLY, fds: Array(200).fill(junk) })],
]; // biome-ignore format: a table

/** How long to wait for a lie. */
const waiting = (says: string) => ({ timeout: says.startsWith('no answer') ? IN_VAIN : PATIENCE });

for (const [name, says, act] of LIES) {
  test(`a back-end that ${name}, at each request`, async () => {
    for (const asked of ASKED) {
      const lie: Lie = (end, { request }) => {
        if (request !== R[asked]) return false;
        act(end, request);
        return true;
      };
      await against(lie, waiting(says), async (open) => {
        await assert.rejects(open, (error: Error) => {
          assert.ok(error.message.includes(says), `${asked}: ${error.message}`);
          return true;
        });
      });
    }
  });
}

test('a back-end that says no, at each request', async () => {
  for (const asked of ASKED.slice(3)) {
    const lie: Lie = (end, { request }) => {
      if (request !== R[asked]) return false;
      end.message(request, m.encodeU64(1n), { flags: m.FLAG_REPLY });
      return true;
    };
    await against(lie, {}, (open) => assert.rejects(open, new RegExp(`${asked}: the back-end refused it`)));
  }
});

test('a back-end that offers every feature there is, and some that are not', async () => {
  const lie: Lie = (end, { request }) => {
    if (request !== R.GET_FEATURES && request !== R.GET_PROTOCOL_FEATURES) return false;
    end.message(request, m.encodeU64(2n ** 64n - 1n), { flags: m.FLAG_REPLY });
    return true;
  };
  await against(lie, {}, async (open) => {
    const device = await open;
    assert.ok(!device.features.includes('VIRTIO_F_ADMIN_VQ'));
    await device.close();
  });
});

test('a back-end that leaves a device that works', async () => {
  let end: RawEnd | undefined;
  const lie: Lie = (each, { request }) => {
    end = each;
    return request === 0;
  };
  await against(lie, {}, async (open) => {
    const device = await open;
    end!.close();
    assert.match(await device.closed, /closed the connection/);
    assert.equal(device.receive(), undefined);
    await device.close();
  });
});

const SIZE = 256;
const frame = new Uint8Array(60);
// The ring to receive on lies at the start of the device's memory (src/virtio-user/rings.ts).
describe('a back-end that starts, and then lies in the rings', () => {
  const split: [string, RegExp, (write: (at: number, ...words: number[]) => void) => void][] = [
    ['moves used.idx by more than it has', /moved used.idx by 300, more than it was given/, (write) => write(2, 300)],
    ['moves used.idx back', /moved used.idx by 65535/, (write) => write(2, 65535)],
    ['returns a descriptor that does not exist', /returned descriptor 256, which it did not have/, (write) => { write(4, 256, 0, 72, 0); write(2, 1); }],
    ['returns more bytes than the buffer has', /it wrote 2049 bytes/, (write) => { write(4, 0, 0, 2049, 0); write(2, 1); }],
    ['returns 4 GiB', /it wrote 4294967295 bytes/, (write) => { write(4, 0, 0, 0xffff, 0xffff); write(2, 1); }],
    ['returns less than a header', /it wrote 11 bytes/, (write) => { write(4, 0, 0, 11, 0); write(2, 1); }],
    ['says that a frame has no buffer', /a frame is said to lie in 0 buffers/, (write) => { write(4, 0, 0, 72, 0); write(2, 1); }],
  ]; // biome-ignore format: a table
  for (const [name, says, lie] of split) {
    test(`split: ${name}`, async () => {
      await against(
        () => false,
        {},
        async (open, memory) => {
          const device = await open;
          const used = Math.ceil((16 * SIZE + 6 + 2 * SIZE) / 64) * 64;
          lie((at, ...words) => {
            const bytes = Buffer.alloc(2 * words.length);
            for (const [i, word] of words.entries()) bytes.writeUInt16LE(word, 2 * i);
            writeSync(memory(), bytes, 0, bytes.length, used + at);
          });
          assert.throws(() => device.receive(), says);
          assert.throws(() => device.receive(), says, 'there is no way back');
          assert.equal(device.send(frame), true, 'the other ring goes on');
          await device.close();
        },
      );
    });
  }

  test('split: frames too short for Ethernet are passed over and counted, those behind them come', async () => {
    const options = { features: DRIVER_FEATURES & ~features.VIRTIO_NET_F_MRG_RXBUF };
    await against(
      () => false,
      options,
      async (open, memory) => {
        const device = await open;
        const used = Math.ceil((16 * SIZE + 6 + 2 * SIZE) / 64) * 64;
        // Used entries of 12 bytes of header and 1, 13, 0 and 60 bytes of frame.
        const words = [1, 13, 0, 60].flatMap((length, id) => [id, 0, 12 + length, 0]);
        const bytes = Buffer.alloc(2 + 2 * words.length);
        for (const [i, word] of [words.length / 4, ...words].entries()) bytes.writeUInt16LE(word, 2 * i);
        writeSync(memory(), bytes, 0, bytes.length, used + 2);
        const came: Uint8Array[] = [];
        await until(() => {
          came.push(...device.receiveBurst());
          return came.length > 0;
        }, 'the frame behind them');
        assert.deepEqual(
          came.map(({ length }) => length),
          [60],
        );
        const { rxPackets, rxErrors, rxBytes } = device.counters();
        assert.deepEqual({ rxPackets, rxErrors, rxBytes }, { rxPackets: 1, rxErrors: 3, rxBytes: 60 });
        assert.equal(device.xstats().rx_q0_errors, 3);
        await device.close();
      },
    );
  });

  const packed: [string, RegExp, { id: number; length: number }][] = [
    ['returns a buffer that does not exist', /returned descriptor 300, which it did not have/, { id: 300, length: 72 }],
    ['returns more bytes than the buffer has', /it wrote 2049 bytes/, { id: 0, length: 2049 }],
    ['returns less than a header', /it wrote 3 bytes/, { id: 0, length: 3 }],
    ['says that a frame has no buffer', /a frame is said to lie in 0 buffers/, { id: 0, length: 72 }],
  ]; // biome-ignore format: a table
  for (const [name, says, { id, length }] of packed) {
    test(`packed: ${name}`, async () => {
      await against(
        () => false,
        { packed: true },
        async (open, memory) => {
          const device = await open;
          const bytes = Buffer.alloc(8);
          readSync(memory(), bytes, 0, 8, 8);
          assert.equal(bytes.readUInt16LE(6) & 0x8080, 0x80, 'the first buffer is available');
          bytes.writeUInt32LE(length, 0);
          bytes.writeUInt16LE(id, 4);
          bytes.writeUInt16LE(0x8082, 6);
          writeSync(memory(), bytes, 0, 8, 8);
          assert.throws(() => device.receive(), says);
          assert.equal(device.send(frame), true, 'the other ring goes on');
          await device.close();
        },
      );
    });
  }
});

describe('a back-end that takes commands', () => {
  const lies: [string, RegExp, (used: (index: number) => void, answer: (byte: number) => void) => void][] = [
    ['says nothing', /command 2\.0: no answer within \d+ ms/, () => {}],
    ['counts on', /command 2\.0: no answer within \d+ ms/, (used) => used(7)],
    ['says that it is done, and writes nothing', /command 2\.0: the back-end says no \(238\)/, (used) => used(1)],
    ['answers what there is not', /command 2\.0: the back-end says no \(119\)/, (used, answer) => { answer(119); used(1); }],
  ]; // biome-ignore format: a table
  for (const [name, says, act] of lies) {
    test(`${name}: the command fails, the frames go on`, async () => {
      let base = 0n;
      let ring = { desc: 0, used: 0 };
      const lie: Lie = (end, { request, payload }) => {
        const words = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
        // A region's guest address is the third field of the table; a ring's addresses follow its index and flags.
        if (request === R.SET_MEM_TABLE) base = words.getBigUint64(8, true);
        if (request === R.SET_VRING_ADDR && words.getUint32(0, true) === 2) {
          const at = (offset: number) => Number(words.getBigUint64(offset, true) - base);
          ring = { desc: at(8), used: at(16) };
        }
        if (request !== R.GET_FEATURES) return false;
        const offered = (FEATURES & ~features.VIRTIO_F_RING_PACKED) | features.VIRTIO_NET_F_CTRL_VQ;
        end.message(request, m.encodeU64(offered), { flags: m.FLAG_REPLY });
        return true;
      };
      const silent = says.source.includes('no answer');
      // Opening it has to go well in the same time: on a busy machine once more, with more of it.
      let timeout = silent ? 500 : PATIENCE;
      let served = false;
      const attempt = () =>
        against(lie, { control: true, timeout }, async (open, memory) => {
          const device = await open.catch((error: Error) => {
            if (silent && timeout < PATIENCE && error.message.includes('no answer from')) return undefined;
            throw error;
          });
          if (!device) return;
          served = true;
          const used = (index: number) => {
            const bytes = Buffer.from([index & 255, index >> 8]);
            writeSync(memory(), bytes, 0, 2, ring.used + 2);
          };
          const answer = (byte: number) => {
            const bytes = Buffer.alloc(8);
            readSync(memory(), bytes, 0, 8, ring.desc + 16);
            writeSync(memory(), Buffer.of(byte), 0, 1, Number(bytes.readBigUInt64LE() - base));
          };
          const command = device.control!.setVlan(7, true);
          // A turn later it lies in the ring.
          await sleep(1);
          act(used, answer);
          await assert.rejects(command, says);
          if (silent)
            await assert.rejects(device.control!.setVlan(8, true), /an earlier command was never answered/);
          assert.equal(device.send(frame), true);
          const control = device.control!;
          const waiting = assert.rejects(control.setVlan(9, true), VirtioUserError);
          await device.close();
          await waiting;
          await assert.rejects(control.setVlan(9, true), { code: 'CLOSED' });
        });
      for (; !served; timeout *= 2) await attempt();
    });
  }
});

test('a device that connects again by itself, and a row of back-ends that lie: each is named, the honest one is taken', async () => {
  const before = count();
  const listenFd = listenUnix(path);
  const memories: number[] = [];
  let stopped = false;
  const told: string[] = [];
  /** What the next ones do, until the device has told of it; undefined: they are honest. */
  let next: { says: string; asked: number; act: (end: RawEnd, request: number) => void } | undefined;
  const serving = (async () => {
    while (!stopped) {
      const lying = told.some((words) => next && words.includes(next.says)) ? undefined : next;
      const lie: Lie = (end, { request }) => {
        if (request !== lying?.asked) return false;
        lying.act(end, request);
        return true;
      };
      await serve(
        listenFd,
        lie,
        (fd) => memories.push(fd),
        () => stopped,
      );
    }
  })();
  const reconnect = { initialDelay: 1, maxDelay: 20 };
  // The first one has to answer in that time, too: on a busy machine the next one may.
  const open = (): Promise<VirtioUser> =>
    VirtioUser.open({ path, timeout: IN_VAIN, reconnect }).catch((error: Error) => {
      if (error.message.includes('no answer from the back-end')) return open();
      throw error;
    });
  const device = await open();
  device.on('linkDown', ({ reason }) => told.push(`down: ${reason}`));
  device.on('error', ({ code, message }) => told.push(`${code}: ${message}`));
  const used = Math.ceil((16 * SIZE + 6 + 2 * SIZE) / 64) * 64;
  // They are honest at first, and lie in the rings once those run; each second time the next one lies at a request.
  for (let round = 0; round < 2 * LIES.length; round++) {
    const [, says, act] = LIES[round % LIES.length]!;
    next = { says, asked: R[ASKED[round % ASKED.length]!], act };
    writeSync(memories.at(-1)!, Buffer.from([44, 1]), 0, 2, used + 2);
    assert.deepEqual(device.receiveBurst(), []);
    assert.equal(device.linkUp, false);
    await until(() => device.linkUp, 'an honest back-end is taken');
    next = undefined;
    assert.deepEqual(told.splice(0, 1), ['down: the back-end moved used.idx by 300, more than it was given']);
    const errors = told.splice(0);
    assert.ok(
      errors.some((words) => words.startsWith('BACKEND: ') && words.includes(says)),
      `${says}: ${errors.join()}`,
    );
    // On a busy machine others may have been too slow.
    for (const words of errors)
      assert.ok(words.includes(says) || /no answer from the back-end/.test(words), words);
    assert.equal(device.send(frame), true, 'the rings began anew');
  }
  await device.close();
  stopped = true;
  await serving;
  closeFd(listenFd);
  for (const fd of memories) closeFd(fd);
  rmSync(path, { force: true });
  assert.deepEqual(count(), before, 'descriptors and mappings are as many as before');
});

test('whatever a back-end does, the memory of its device is there for the next: more in turn than fits at once', async () => {
  // A gibibyte of buffers; the address space of all devices has four.
  const large = { queueSize: 512, bufferLength: 1 << 20 };
  for (let round = 0; round < 12; round++) {
    const [, says, act] = LIES[round % LIES.length]!;
    const lie: Lie = (end, { request }) => {
      if (round % 3 === 0 || request !== R.SET_VRING_ENABLE) return false;
      act(end, request);
      return true;
    };
    const timeout = round % 3 === 0 ? PATIENCE : waiting(says).timeout;
    await against(lie, { ...large, timeout }, async (open) => {
      if (round % 3 === 0) return (await open).close();
      await assert.rejects(open, (error: Error) => error.message.includes(says));
    });
  }
});

describe('a back-end of the generator', () => {
  const lies: [string, RegExp, (end: RawEnd, memory: number) => void][] = [
    ['leaves during a run', /the back-end is gone: the back-end closed the connection/, (end) => end.close()],
    ['lies during a run', /device\.sock: the back-end moved used\.idx by 2000, more than it was given/, (_, memory) => {
      // The ring to receive on is the first; the generator's have 1024 descriptors.
      const used = Math.ceil((16 * 1024 + 6 + 2 * 1024) / 64) * 64;
      writeSync(memory, Buffer.from([0xd0, 0x07]), 0, 2, used + 2);
    }],
  ]; // biome-ignore format: a table
  for (const [name, fault, act] of lies) {
    test(`${name}: the run ends with the reason and what was sent so far`, async () => {
      let end: RawEnd | undefined;
      const lie: Lie = (each, { request }) => {
        end = each;
        return request === 0;
      };
      // The arena and this program's module are there for good.
      await beside(lie, async (memory) => {
        await using generator = await Generator.open({ ports: [{ path, timeout: PATIENCE }] });
        const result = await generator.run(
          { mode: 'latency' },
          // Nobody takes from the ring, so that it gets full.
          { interval: 10, onProgress: ({ sent }) => void (sent === 1024 && act(end!, memory())) },
        );
        assert.equal(result.ended, 'fault');
        assert.match(result.fault!, fault);
        assert.equal(result.sent, 1024);
      });
    });
  }

  test('says nothing when asked: the port is named', async () => {
    await beside(
      (_, { request }) => request === R.GET_FEATURES,
      async () => {
        await assert.rejects(
          Generator.open({ ports: [{ path, timeout: 300 }] }),
          /device\.sock: .*no answer from the back-end within 0\.3 s/,
        );
      },
    );
  });
});
