/**
 * VDUSE without a kernel that has it: the structures, byte for byte and against linux/vduse.h; what a port may be
 * configured to be; the notes that outlive a switch; and what is said where the kernel lacks VDUSE. With such a
 * kernel: test/peers/vduse.test.ts.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { vduseFeatures } from '../../src/ports/features.ts';
import { formatPortSpec } from '../../src/switch/one-line.ts';
import { parsePortSpec } from '../../src/switch/spec.ts';
import { closeFd, eventfd, ioctlNumber, Notifier, openFds } from '../../src/sys/index.ts';
import { openInflight } from '../../src/vhost/inflight.ts';
import {
  decodeRequest,
  decodeRing,
  encodeDeviceConfig,
  encodeResponse,
  ioctls,
} from '../../src/vhost/vduse.ts';
import { features } from '../../src/virtio/features.ts';
import { encodeNetConfig } from '../../src/virtio/net-config.ts';

const HEADER = '/usr/include/linux/vduse.h';

function directory(t: { after(done: () => void): void }): string {
  const path = mkdtempSync(join(tmpdir(), 'vireo-vduse-'));
  t.after(() => rmSync(path, { recursive: true }));
  return path;
}

test('requests have the numbers that linux/vduse.h gives them', () => {
  assert.deepEqual(ioctls, {
    SET_API_VERSION: 0x40088101,
    CREATE_DEV: 0x41508102,
    DESTROY_DEV: 0x41008103,
    IOTLB_GET_FD: 0xc0208110,
    DEV_GET_FEATURES: 0x80088111,
    DEV_SET_CONFIG: 0x40088112,
    DEV_INJECT_CONFIG_IRQ: 0x8113,
    VQ_SETUP: 0x40208114,
    VQ_GET_INFO: 0xc0308115,
    VQ_SETUP_KICKFD: 0x40088116,
  });
  assert.equal(ioctlNumber('write', 0x81, 0x17, 4), 0x40048117);
});

test('a compiler makes the same of linux/vduse.h', { skip: compilerMissing() }, (t) => {
  const path = directory(t);
  const names = Object.keys(ioctls).map((name) => `VDUSE_${name}`);
  const offsets = [
    ...['vendor_id', 'device_id', 'features', 'vq_num', 'vq_align', 'config_size', 'config'].map(
      (field) => `struct vduse_dev_config, ${field}`,
    ),
    ...['index', 'num', 'desc_addr', 'driver_addr', 'device_addr', 'packed', 'ready'].map(
      (field) => `struct vduse_vq_info, ${field}`,
    ),
    ...['offset', 'start', 'last', 'perm'].map((field) => `struct vduse_iotlb_entry, ${field}`),
    ...['type', 'request_id', 's', 'iova'].map((field) => `struct vduse_dev_request, ${field}`),
    ...['request_id', 'result', 'vq_state'].map((field) => `struct vduse_dev_response, ${field}`),
  ];
  const print = [
    ...names,
    ...offsets.map((of) => `offsetof(${of})`),
    'sizeof(struct vduse_dev_request)',
    'sizeof(struct vduse_dev_response)',
  ].map((value) => `printf("%lu\\n", (unsigned long)${value});`);
  const lines = `#include <sys/ioctl.h>\n#include <linux/vduse.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) { ${print.join('\n')} }`;
  writeFileSync(join(path, 'layout.c'), lines);
  execFileSync('cc', ['-o', join(path, 'layout'), join(path, 'layout.c')]);
  const found = execFileSync(join(path, 'layout'), { encoding: 'utf8' }).trim().split('\n').map(Number);
  assert.deepEqual(found, [
    ...Object.values(ioctls),
    ...[256, 260, 264, 272, 276, 332, 336],
    ...[0, 4, 8, 16, 24, 32, 40],
    ...[0, 8, 16, 24],
    ...[0, 4, 24, 24],
    ...[0, 4, 24],
    ...[152, 152],
  ]);
});

test('a device is described as struct vduse_dev_config', () => {
  const config = encodeNetConfig({ mac: '52:54:00:00:00:01', pairs: 1 });
  const bytes = Buffer.from(encodeDeviceConfig('vdpa0', { features: 0x1_2345_6789n, queues: 2, config }));
  assert.equal(bytes.length, 336 + config.length);
  assert.equal(bytes.toString('latin1', 0, 256), 'vdpa0'.padEnd(256, '\0'));
  assert.equal(bytes.readUInt32LE(260), 1);
  assert.equal(bytes.readBigUInt64LE(264), 0x1_2345_6789n);
  assert.deepEqual(
    [272, 276, 332].map((at) => bytes.readUInt32LE(at)),
    [2, 4096, config.length],
  );
  // The kernel wants zeros in what is reserved.
  assert.ok(bytes.subarray(280, 332).every((byte) => byte === 0));
  assert.deepEqual(bytes.subarray(336), Buffer.from(config));
});

test('requests of the kernel are read, and unknown ones are named', () => {
  const request = (type: number, write: (body: Buffer) => void) => {
    const bytes = Buffer.alloc(152);
    bytes.writeUInt32LE(type, 0);
    bytes.writeUInt32LE(77, 4);
    write(bytes.subarray(24));
    return decodeRequest(bytes);
  };
  assert.deepEqual(
    request(0, (body) => body.writeUInt32LE(1)),
    { id: 77, type: 'GET_VQ_STATE', index: 1 },
  );
  assert.deepEqual(
    request(1, (body) => body.writeUInt8(15)),
    { id: 77, type: 'SET_STATUS', status: 15 },
  );
  assert.deepEqual(request(2, (body) => body.writeBigUInt64LE(2n ** 64n - 1n, 8)), { id: 77, type: 'UPDATE_IOTLB', start: 0n, last: 2n ** 64n - 1n }); // biome-ignore format: one line each
  assert.deepEqual(
    request(3, () => {}),
    { id: 77, type: 'unknown', number: 3 },
  );
});

test('answers carry where a ring goes on', () => {
  const failed = Buffer.from(encodeResponse(77, false));
  assert.deepEqual([failed.length, failed.readUInt32LE(0), failed.readUInt32LE(4)], [152, 77, 1]);
  const split = Buffer.from(encodeResponse(77, true, { index: 1, state: { split: 0xfffe } }));
  assert.deepEqual([split.readUInt32LE(4), split.readUInt32LE(24), split.readUInt16LE(28)], [0, 1, 0xfffe]);
  // Taken up to 5 with the wrap counter set, given back up to 1023 without.
  const packed = Buffer.from(
    encodeResponse(77, true, { index: 0, state: { packed: (1023 << 16) | 0x8005 } }),
  );
  assert.deepEqual(
    [28, 30, 32, 34].map((at) => packed.readUInt16LE(at)),
    [1, 5, 0, 1023],
  );
});

test('what the driver says of a ring is read, where it begins too', () => {
  const bytes = Buffer.alloc(48);
  bytes.writeUInt32LE(256, 4);
  for (const [i, at] of [8, 16, 24].entries()) bytes.writeBigUInt64LE(0x4000_0000n + BigInt(i), at);
  for (const [i, value] of [1, 5, 0, 1023].entries()) bytes.writeUInt16LE(value, 32 + 2 * i);
  bytes[40] = 1;
  const ring = { size: 256, desc: 0x4000_0000n, driver: 0x4000_0001n, device: 0x4000_0002n, ready: true };
  assert.deepEqual(decodeRing(bytes, true), { ...ring, base: (1023 << 16) | 0x8005 });
  assert.deepEqual(decodeRing(bytes, false), { ...ring, base: 1 });
});

test('a port is written vduse:NAME, and may not want what the kernel refuses', () => {
  const text = 'k1=vduse:vdpa0,mac=52:54:00:00:00:01,mtu=1400,features=-packed';
  const spec = parsePortSpec(text);
  assert.deepEqual([spec.type, spec.target], ['vduse', 'vdpa0']);
  assert.deepEqual(parsePortSpec(formatPortSpec(spec)), spec);
  const wrong: [string, RegExp][] = [
    ['k1=vduse:', /target: expected the name of a vDPA device.*found ""/],
    ['k1=vduse:/dev/vduse/x', /target: expected the name of a vDPA device/],
    ['k1=vduse:control', /not "control"/],
    ['k1=vduse:vdpa0,queues=2', /queues: expected 1: .*no control queue, found 2/],
    ['k1=vduse:vdpa0,role=client', /role: expected none for a port of type vduse, found "client"/],
    ['k1=vduse:vdpa0,features=-version-1', /features: expected no -version-1/],
    ['k1=vduse:vdpa0,features=+ctrl-vq', /features: expected no \+ctrl-vq: .*with a control queue/],
    ['k1=vduse:vdpa0,features=-packed,-iommu', /features: expected no -iommu/],
  ];
  for (const [line, message] of wrong)
    assert.throws(() => parsePortSpec(line), { code: 'BAD_SPEC', message });
});

test('it offers what the kernel takes, and of its configuration what was said', () => {
  const plain = vduseFeatures({});
  for (const bit of [
    features.VIRTIO_F_VERSION_1,
    features.VIRTIO_F_ACCESS_PLATFORM,
    features.VIRTIO_NET_F_STATUS,
  ])
    assert.equal(plain & bit, bit);
  const never = features.VIRTIO_NET_F_CTRL_VQ | features.VIRTIO_NET_F_MQ | features.VHOST_F_LOG_ALL;
  const asked = features.VIRTIO_NET_F_MAC | features.VIRTIO_NET_F_MTU | features.VIRTIO_NET_F_SPEED_DUPLEX;
  assert.equal(plain & (never | asked), 0n);
  const all = vduseFeatures({ mac: '52:54:00:00:00:01', mtu: 1400, speed: 10_000 });
  assert.equal(all & asked, asked);
  assert.equal(vduseFeatures({ features: '-packed' }) & features.VIRTIO_F_RING_PACKED, 0n);
});

test('notes in a file are begun anew, or kept', (t) => {
  const path = join(directory(t), 'notes', 'vdpa0');
  const before = openFds();
  const open = (packed: boolean, keep: boolean) => {
    const notes = openInflight(path, 2, 64, packed, keep);
    closeFd(notes.fd);
    return readFileSync(path);
  };
  assert.ok(open(true, false).every((byte) => byte === 0));
  assert.equal(statSync(path).mode & 0o777, 0o600);
  const noted = Buffer.from(open(true, true)).fill(7);
  writeFileSync(path, noted);
  assert.deepEqual(open(true, true), noted);
  assert.ok(open(true, false).every((byte) => byte === 0));
  // Of a split ring the ring itself says where it is; of a packed one only the notes do.
  truncateSync(path, 0);
  assert.throws(() => open(true, true), /vdpa0 is gone, the notes of where the packed rings are/);
  assert.ok(open(false, true).length > 0);
  assert.equal(openFds(), before);
});

test('an interrupt through what is no VDUSE device is none', () => {
  const notifier = new Notifier();
  const fd = eventfd();
  assert.equal(notifier.interrupt(fd, 0), false);
  closeFd(fd);
  notifier.close();
});

test('without VDUSE in the kernel the error says how to get it, and nothing is left', {
  skip: existsSync('/dev/vduse/control') && 'this kernel has VDUSE',
}, async () => {
  await using vswitch = await createSwitch();
  const before = openFds();
  await assert.rejects(vswitch.addPort({ name: 'k1', type: 'vduse', target: 'vdpa0' }), {
    code: 'SOCKET',
    message: /port k1: there is no \/dev\/vduse\/control: load the kernel's module with `modprobe vduse`/,
  });
  assert.equal(openFds(), before);
  assert.deepEqual(vswitch.ports(), []);
});

function compilerMissing(): string | false {
  if (!existsSync(HEADER)) return `${HEADER} is not there: package linux-libc-dev`;
  try {
    execFileSync('cc', ['--version'], { stdio: 'ignore' });
    return false;
  } catch {
    return 'there is no C compiler';
  }
}
