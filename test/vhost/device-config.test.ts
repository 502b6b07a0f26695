/** What a front-end says of the device, and reads of it: NET_SET_MTU, configuration space, status, reset. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { openFds, sharedPoller, socketPair } from '../../src/sys/index.ts';
import { FrontendSession } from '../../src/vhost/frontend.ts';
import * as m from '../../src/vhost/messages.ts';
import { features, vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { decodeNetConfig, encodeNetConfig } from '../../src/virtio/net-config.ts';
import { deviceStatus, nextStatus, statusNames } from '../../src/virtio/status.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { RawGuest } from '../support/raw-guest.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';
import { forThisFile, OFFERED, OFFERED_PROTOCOL, RawEnd, RecordingDevice, serve } from './harness.ts';

const R = m.requests;
const ACK = m.FLAG_NEED_REPLY;
const { ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, FAILED, DEVICE_NEEDS_RESET } = deviceStatus;

const { poller, g } = forThisFile();

function negotiated({ device = new RecordingDevice(), bits = OFFERED, settle = true } = {}) {
  const served = serve(poller, device);
  served.end.message(R.SET_PROTOCOL_FEATURES, m.encodeU64(OFFERED_PROTOCOL));
  if (settle) served.end.message(R.SET_FEATURES, m.encodeU64(bits));
  return served;
}

async function ask(end: RawEnd, request: number, payload: Uint8Array): Promise<bigint> {
  end.message(request, payload, { flags: ACK });
  const answer = await end.next();
  assert.equal(answer?.request, request);
  return m.decodeU64(answer.payload);
}

/** Starts ring 0 of 8 entries. */
function start(end: RawEnd): void {
  const at = g.region.userAddress;
  end.message(R.SET_MEM_TABLE, m.encodeMemoryTable([g.region]), { fds: [g.ram] });
  end.message(R.SET_VRING_NUM, m.encodeVringState({ index: 0, num: 8 }));
  const ring = { index: 0, flags: 0, descUser: at, availUser: at + 0x1000n, usedUser: at + 0x2000n };
  end.message(R.SET_VRING_ADDR, m.encodeVringAddress({ ...ring, logGuest: 0n }));
  end.message(R.SET_VRING_ERR, m.encodeVringIndex(0, true), { fds: [g.err] });
  end.message(R.SET_VRING_KICK, m.encodeVringIndex(0, true), { fds: [g.kick] });
  end.message(R.SET_VRING_ENABLE, m.encodeVringState({ index: 0, num: 1 }));
}

describe('NET_SET_MTU', () => {
  test('takes 68 to 65535 and what the device takes', async () => {
    const { end, session, device, errors } = negotiated();
    for (const mtu of [68n, 1500n, 9000n, 65535n]) {
      assert.equal(await ask(end, R.NET_SET_MTU, m.encodeU64(mtu)), 0n);
      assert.equal(device.mtu, Number(mtu));
    }
    device.mtuLimit = 9000;
    for (const [mtu, words] of [
      [0n, 'NET_SET_MTU: an MTU of 0, 68 to 65535 expected'],
      [67n, 'NET_SET_MTU: an MTU of 67, 68 to 65535 expected'],
      [65536n, 'NET_SET_MTU: an MTU of 65536, 68 to 65535 expected'],
      [(1n << 64n) - 1n, 'NET_SET_MTU: an MTU of 18446744073709551615, 68 to 65535 expected'],
      [9001n, 'NET_SET_MTU: an MTU of 9001 is too much'],
    ] as const) {
      assert.equal(await ask(end, R.NET_SET_MTU, m.encodeU64(mtu)), 1n);
      assert.equal(errors.pop(), words);
      assert.equal(device.mtu, 65535);
    }
    end.close();
    await session.closed;
  });
});

/** A configuration space message; `announced` is the size that its header tells. */
const piece = (offset: number, bytes: Uint8Array, flags = 0, announced = bytes.length) =>
  m.encodeConfig({ offset, size: announced, flags, bytes });

describe('GET_CONFIG', () => {
  test('reads any piece, zeros behind the end, and says "no" with nothing', async () => {
    const { end, session, device, errors } = negotiated();
    const read = async (offset: number, size: number, announced = size) => {
      end.message(R.GET_CONFIG, piece(offset, new Uint8Array(size).fill(0xaa), 0, announced));
      const answer = await end.next();
      assert.equal(answer?.request, R.GET_CONFIG);
      return answer.payload;
    };
    const whole = Buffer.concat([device.config(), new Uint8Array(256)]);
    for (const [offset, size] of [
      [0, 28],
      [0, 6],
      [10, 2],
      [20, 60],
      [28, 4],
      [0, 256],
      [256, 0],
      [255, 1],
    ] as const) {
      const answer = m.decodeConfig(await read(offset, size));
      assert.deepEqual([answer.offset, answer.size, answer.flags], [offset, size, 0]);
      assert.deepEqual(Buffer.from(answer.bytes), whole.subarray(offset, offset + size));
    }
    for (const [offset, size, announced, words] of [
      [256, 1, 1, 'GET_CONFIG: bytes 256 to 257 of the configuration space, which has 256'],
      [
        0xffff_ffff,
        1,
        1,
        'GET_CONFIG: bytes 4294967295 to 4294967296 of the configuration space, which has 256',
      ],
      [0, 4, 5, 'GET_CONFIG: 4 bytes of configuration space, 5 announced'],
      [0, 0, 0xffff_ffff, 'GET_CONFIG: 0 bytes of configuration space, 4294967295 announced'],
    ] as const) {
      assert.equal((await read(offset, size, announced)).length, 0);
      assert.equal(errors.pop(), words);
    }
    end.close();
    await session.closed;
  });

  test('ends with more than a configuration space', async () => {
    const { end, ended } = negotiated();
    end.message(R.GET_CONFIG, new Uint8Array(12 + 257));
    assert.match((await ended())!, /GET_CONFIG: payload of 269 bytes, at most 268 expected/);
    end.close();
  });
});

describe('SET_CONFIG', () => {
  test("takes a MAC address from a migration and a legacy driver, and nothing that isn't theirs", async () => {
    const six = Uint8Array.of(2, 0, 0, 0, 0, 9);
    const cases: [name: string, bits: bigint, payload: Uint8Array, error: RegExp | null][] = [
      ['a legacy driver', features.VHOST_USER_F_PROTOCOL_FEATURES, piece(0, six), null],
      ['a modern driver', OFFERED, piece(0, six), /SET_CONFIG: mac can't be written/],
      ['a modern driver, some of it', OFFERED, piece(5, Uint8Array.of(9)), /mac can't be written/],
      ['a migration', OFFERED, piece(0, six, 1), null],
      ['a migration to fewer queues', OFFERED, piece(8, Uint8Array.of(2, 0), 1), /max_virtqueue_pairs can't/],
      ['what is there already', OFFERED, piece(8, Uint8Array.of(1, 0)), null],
      ['the whole, with another MTU', OFFERED, piece(10, Uint8Array.of(0, 1)), /SET_CONFIG: mtu can't/],
      ['flags that nobody has', OFFERED, piece(0, six, 2), /SET_CONFIG: flags 2, 0 or 1 expected/],
      ['past the end', OFFERED, piece(27, six.subarray(0, 2), 1), /configuration space has 28 bytes/],
      ['nothing', OFFERED, piece(0, new Uint8Array(0)), null],
    ];
    for (const [name, bits, payload, error] of cases) {
      const { end, session, device, errors } = negotiated({ bits });
      const before = device.config().slice();
      assert.equal(await ask(end, R.SET_CONFIG, payload), error ? 1n : 0n, name);
      if (error) assert.match(errors[0]!, error);
      const changed = error || payload.length !== 18 ? before : Buffer.concat([six, before.subarray(6)]);
      assert.deepEqual(Buffer.from(device.config()), Buffer.from(changed), name);
      end.close();
      await session.closed;
    }
  });
});

describe('SET_STATUS and GET_STATUS', () => {
  const get = async (end: RawEnd) => {
    end.message(R.GET_STATUS);
    return Number(m.decodeU64((await end.next())!.payload));
  };
  const set = (end: RawEnd, bits: number | bigint) => ask(end, R.SET_STATUS, m.encodeU64(BigInt(bits)));

  test('a driver comes up as the specification has it', async () => {
    const { end, session } = negotiated({ settle: false });
    assert.equal(await get(end), 0);
    let status = 0;
    for (const bit of [ACKNOWLEDGE, DRIVER]) {
      status |= bit;
      assert.equal(await set(end, status), 0n);
      assert.equal(await get(end), status);
    }
    // Before the features are settled the device doesn't agree to them.
    await set(end, status | FEATURES_OK | DRIVER_OK);
    assert.equal(await get(end), status);
    end.message(R.SET_FEATURES, m.encodeU64(OFFERED));
    await set(end, status | DRIVER_OK);
    assert.equal(await get(end), status, 'a modern driver without FEATURES_OK');
    status |= FEATURES_OK | DRIVER_OK;
    await set(end, status);
    assert.equal(await get(end), status);
    assert.equal(session.driverStatus, 'ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK');
    end.close();
    await session.closed;
  });

  test('no bit goes while a ring runs, and 0 resets the device', async () => {
    const { end, session, device, errors } = negotiated();
    start(end);
    const all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    await set(end, all);
    await set(end, ACKNOWLEDGE);
    assert.equal(await get(end), all);
    assert.equal(device.rings.size, 1);
    await set(end, 0);
    assert.equal(await get(end), 0);
    assert.equal(device.rings.size, 0, 'its rings are stopped');
    // DPDK starts again without having said 0.
    await set(end, all);
    await set(end, ACKNOWLEDGE | DRIVER);
    assert.equal(await get(end), ACKNOWLEDGE | DRIVER);
    assert.deepEqual(errors, []);
    // And the ring again, with what the connection still has.
    end.message(R.SET_VRING_KICK, m.encodeVringIndex(0, true), { fds: [g.kick] });
    assert.equal(await get(end), ACKNOWLEDGE | DRIVER);
    assert.equal(device.rings.get(0)!.base, 7);
    end.close();
    await session.closed;
  });

  test('bits that nobody has are refused, and a driver that gives up is reported', async () => {
    const { end, session, errors } = negotiated();
    for (const bits of [16n, 0x20n, 0x100n, (1n << 64n) - 1n]) {
      assert.equal(await set(end, bits), 1n);
      assert.equal(
        errors.pop(),
        `SET_STATUS: 0x${bits.toString(16)} has bits that the device status doesn't have`,
      );
    }
    assert.equal(await set(end, ACKNOWLEDGE | DEVICE_NEEDS_RESET), 0n);
    assert.equal(await get(end), ACKNOWLEDGE, "DEVICE_NEEDS_RESET isn't a driver's");
    assert.equal(await set(end, ACKNOWLEDGE | FAILED), 0n);
    assert.match(errors.pop()!, /driver gave up/);
    assert.equal(await get(end), ACKNOWLEDGE | FAILED);
    end.close();
    await session.closed;
  });

  test('every status after every other keeps to the rules', () => {
    for (let before = 0; before < 256; before++)
      for (let asked = 1; asked < 256; asked++)
        for (const settled of [false, true])
          for (const legacy of [false, true])
            for (const running of [false, true]) {
              const next = nextStatus(before, asked, { settled, legacy, running });
              assert.equal(next & ~(before | asked), 0, 'no bit out of nothing');
              assert.ok(settled || !(next & FEATURES_OK));
              assert.ok(legacy || next & FEATURES_OK || !(next & DRIVER_OK));
              if (!running) assert.equal(next & ~asked, 0);
              else assert.equal(before & ~next & ~(FEATURES_OK | DRIVER_OK), 0);
            }
    assert.equal(statusNames(0), '');
    assert.equal(statusNames(0x31), 'ACKNOWLEDGE 0x30');
  });
});

describe('RESET_DEVICE', () => {
  test('stops and forgets all but what the front-end will not say again', async () => {
    const { end, session, device, errors } = negotiated();
    start(end);
    await ask(end, R.SET_STATUS, m.encodeU64(BigInt(ACKNOWLEDGE | DRIVER)));
    for (let i = 0; i < 2; i++) {
      assert.equal(await ask(end, R.RESET_DEVICE, new Uint8Array(0)), 0n);
      assert.equal(device.rings.size, 0);
      assert.deepEqual(session.queues[0]!.size, 0);
      assert.equal(session.queues[0]!.enabled, false);
      assert.equal(session.features, 0n);
      assert.equal(session.driverStatus, '');
      assert.equal(session.protocolFeatures, OFFERED_PROTOCOL);
      assert.equal(session.memory.length, 1);
    }
    const kick = () =>
      end.message(R.SET_VRING_KICK, m.encodeVringIndex(0, true), { fds: [g.kick], flags: ACK });
    kick();
    assert.equal(m.decodeU64((await end.next())!.payload), 1n);
    assert.match(errors.pop()!, /queue 0 can't start before SET_FEATURES/);
    end.message(R.SET_FEATURES, m.encodeU64(OFFERED));
    kick();
    assert.equal(m.decodeU64((await end.next())!.payload), 1n);
    assert.match(errors.pop()!, /queue 0 can't start before SET_VRING_NUM/);
    end.message(R.RESET_OWNER);
    start(end);
    assert.equal(await ask(end, R.SET_STATUS, m.encodeU64(1n)), 0n);
    assert.equal(device.rings.size, 1);
    end.close();
    await session.closed;
  });
});

describe('a real port', () => {
  test('says of its device what it was told, and holds the front-end to its MTU', async (t) => {
    const path = sockets(t);
    const target = path('a');
    const own = { mac: '52:54:00:aa:bb:cc', mtu: 9000, speed: 25_000 };
    await using vswitch = await createSwitch({
      ports: [{ name: 'a', type: 'vhost-user', target, queues: 4, ...own }],
    });
    const device = await VirtioUser.open({ path: target });
    assert.deepEqual(
      { ...device.config, rss: undefined },
      { ...own, linkUp: true, announce: false, pairs: 4, rss: undefined },
    );
    for (const name of ['MAC', 'MTU', 'STATUS', 'SPEED_DUPLEX'])
      assert.ok(device.features.includes(`VIRTIO_NET_F_${name}`), name);
    assert.equal(vswitch.port('a').driverStatus, 'ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK');
    await device.close();
    await until(() => vswitch.port('a').state === 'listening', 'the port is free');

    const lease = sharedPoller();
    const raw = new RawGuest(target, lease.poller);
    t.after(() => lease.release());
    await raw.start();
    assert.equal(await raw.session.setMtu(1400), true);
    assert.equal(vswitch.port('a').mtu, 1400);
    await assert.rejects(raw.session.setMtu(9001), /NET_SET_MTU: the back-end refused it/);
    assert.equal(
      vswitch.port('a').lastError,
      "NET_SET_MTU: an MTU of 9001, but this port's limit is mtu=9000",
    );
    assert.equal(vswitch.port('a').mtu, 1400);
    await raw.close();
    await until(() => vswitch.port('a').mtu === 9000, 'the next guest is told anew');
  });

  test('a guest whose device is reset under traffic comes up again, and others notice nothing', async (t) => {
    const path = sockets(t);
    const port = (name: string) => ({ name, type: 'vhost-user' as const, target: path(name) });
    await using vswitch = await createSwitch({ ports: [port('a'), port('b')] });
    const lease = sharedPoller();
    const a = new RawGuest(path('a'), lease.poller);
    const b = await VirtioUser.open({ path: path('b') });
    t.after(async () => {
      await b.close();
      await a.close();
      await lease.release();
    });
    assert.equal(
      vswitch.port('b').protocolFeatures.acknowledged.includes('VHOST_USER_PROTOCOL_F_CONFIG'),
      false,
    );
    assert.equal(b.config, undefined);
    await a.start();
    const fds = openFds();
    for (let turn = 0; turn < 5; turn++) {
      a.send(frame(BROADCAST, mac(1)));
      await until(() => b.receive(), 'b hears of a');
      if (turn % 2) assert.equal(await a.session.setStatus(0), true);
      else assert.equal(await a.session.resetDevice(), true);
      assert.equal(vswitch.port('a').state, 'connected');
      await assert.rejects(a.session.enable(0x8000, true), /refused/);
      // As QEMU does: features again, rings again, memory not.
      for (const index of [0, 1]) a.clear(index);
      await a.session.setFeatures(features.VIRTIO_F_VERSION_1 | features.VHOST_USER_F_PROTOCOL_FEATURES);
      for (const index of [0, 1]) await a.startRing(index);
      await until(() => vswitch.port('a').state === 'up', 'a is up again');
    }
    assert.equal(openFds(), fds);
  });
});

test('a back-end that lies about its device is left', async () => {
  const config = encodeNetConfig({ pairs: 1 });
  const cases: [name: string, request: number, answer: Uint8Array, error: RegExp, stays?: boolean][] = [
    ['no configuration', R.GET_CONFIG, new Uint8Array(0), /GET_CONFIG: the back-end refused it/, true],
    ['another piece', R.GET_CONFIG, piece(4, config), /GET_CONFIG: an answer for offset 4, 0 expected/],
    [
      'less than it says',
      R.GET_CONFIG,
      piece(0, config, 0, 100),
      /28 bytes of configuration space, 100 announ/,
    ],
    ['less', R.GET_CONFIG, piece(0, config.subarray(1)), /GET_CONFIG: an answer of 39 bytes, 40 expected/],
    ['no status', R.GET_STATUS, m.encodeU64(256n), /GET_STATUS: status 0x100, a byte expected/],
    ['nothing', R.GET_STATUS, new Uint8Array(0), /GET_STATUS: an answer of 0 bytes, 8 expected/],
  ];
  for (const [name, request, answer, error, stays] of cases) {
    const [near, far] = socketPair();
    const session = new FrontendSession({ fd: near, poller });
    const end = new RawEnd(far);
    const answers = new Map([
      [R.GET_FEATURES as number, m.encodeU64(features.VHOST_USER_F_PROTOCOL_FEATURES)],
      [
        R.GET_PROTOCOL_FEATURES,
        m.encodeU64(
          vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_CONFIG |
            vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_STATUS,
        ),
      ],
      [request, answer],
    ]);
    const served = (async () => {
      for (let message = await end.next(); message; message = await end.next()) {
        const payload = answers.get(message.request);
        if (payload) end.message(message.request, payload, { flags: m.FLAG_REPLY });
      }
    })();
    await session.negotiate(0n);
    await assert.rejects(request === R.GET_CONFIG ? session.config() : session.status(), error, name);
    if (stays) await session.close();
    await session.closed;
    await served;
    end.close();
  }
});

test('the configuration space reads back as it was written', () => {
  for (const own of [{}, { mac: '52:54:00:12:34:56', mtu: 68, speed: 0x7fff_ffff }]) {
    const decoded = decodeNetConfig(encodeNetConfig({ ...own, pairs: 128 }));
    assert.equal(decoded.pairs, 128);
    assert.equal(decoded.linkUp, true);
    assert.equal(decoded.mac, own.mac);
    assert.equal(decoded.speed, own.speed);
    assert.equal(decoded.mtu, own.mtu ?? 65535);
  }
});
