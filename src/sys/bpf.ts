/**
 * An XDP program of our own, loaded through bpf(2): it hands each frame to the AF_XDP socket of the queue that the
 * frame came by, and leaves those of a queue without one to the kernel.
 */
import { check, isSystemError, SystemError } from './errors.ts';
import { bpf, pinned } from './libc.ts';
import { addressOf } from './memory.ts';

const BPF_MAP_CREATE = 0;
const BPF_MAP_UPDATE_ELEM = 2;
const BPF_PROG_LOAD = 5;
const BPF_LINK_CREATE = 28;
const BPF_MAP_TYPE_XSKMAP = 17;
const BPF_PROG_TYPE_XDP = 6;
const BPF_XDP = 37;
const XDP_FLAGS_SKB_MODE = 2;
const XDP_FLAGS_DRV_MODE = 4;

function call(command: number, attributes: Buffer, what: string): number {
  if (!bpf) throw new SystemError('bpf', 'ENOSYS', process.arch);
  return check(bpf(command, attributes), 'bpf', what);
}

/** A map of AF_XDP sockets by the number of their queue. Throws a SystemError (EPERM without CAP_BPF). */
export function socketMap(entries: number): number {
  const attributes = pinned(72);
  for (const [i, value] of [BPF_MAP_TYPE_XSKMAP, 4, 4, entries].entries())
    attributes.writeUInt32LE(value, 4 * i);
  return call(BPF_MAP_CREATE, attributes, 'BPF_MAP_TYPE_XSKMAP');
}

export function putSocket(map: number, queue: number, fd: number): void {
  const [key, value, attributes] = [pinned(4), pinned(4), pinned(32)];
  key.writeUInt32LE(queue);
  value.writeUInt32LE(fd);
  attributes.writeUInt32LE(map, 0);
  attributes.writeBigUInt64LE(addressOf(key), 8);
  attributes.writeBigUInt64LE(addressOf(value), 16);
  call(BPF_MAP_UPDATE_ELEM, attributes, `socket of queue ${queue}`);
}

/** One instruction (RFC 9669, 3.1): the opcode, the registers (source, destination), offset, immediate. */
const instruction = (opcode: number, registers: number, offset: number, immediate: number): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeUInt8(opcode, 0);
  bytes.writeUInt8(registers, 1);
  bytes.writeInt16LE(offset, 2);
  bytes.writeInt32LE(immediate, 4);
  return bytes;
};

/** return bpf_redirect_map(map, context->rx_queue_index, XDP_PASS) */
const program = (map: number): Buffer =>
  Buffer.concat([
    // r2 = *(u32 *)(r1 + 16): rx_queue_index of struct xdp_md.
    instruction(0x61, 0x12, 16, 0),
    // r1 = map, in 64 bits; a source register of 1 says that it is a map's descriptor.
    instruction(0x18, 0x11, 0, map),
    instruction(0, 0, 0, 0),
    // r3 = XDP_PASS, for a queue without a socket (from Linux 5.3 on).
    instruction(0xb7, 0x03, 0, 2),
    // r0 = bpf_redirect_map(r1, r2, r3)
    instruction(0x85, 0, 0, 51),
    instruction(0x95, 0, 0, 0),
  ]);

/** Loads the program for a map. Throws a SystemError (EPERM without CAP_BPF and CAP_NET_ADMIN). */
export function loadProgram(map: number): number {
  const instructions = pinned(6 * 8);
  instructions.set(program(map));
  const licence = pinned(16);
  licence.write('Apache-2.0');
  const attributes = pinned(72);
  attributes.writeUInt32LE(BPF_PROG_TYPE_XDP, 0);
  attributes.writeUInt32LE(6, 4);
  attributes.writeBigUInt64LE(addressOf(instructions), 8);
  attributes.writeBigUInt64LE(addressOf(licence), 16);
  attributes.write('vireo', 48);
  attributes.writeUInt32LE(BPF_XDP, 68);
  return call(BPF_PROG_LOAD, attributes, 'an XDP program');
}

/**
 * Attaches a program to an interface by a link that ends with its descriptor, so that nothing stays behind; by the
 * driver where that can, else by the generic way, before the kernel's stack. Throws a SystemError (EBUSY, EEXIST: the
 * interface has a program already).
 */
export function attachProgram(program: number, index: number): { fd: number; mode: 'native' | 'generic' } {
  const attach = (flags: number): number => {
    const attributes = pinned(64);
    for (const [i, value] of [program, index, BPF_XDP, flags].entries())
      attributes.writeUInt32LE(value, 4 * i);
    return call(BPF_LINK_CREATE, attributes, `interface ${index}`);
  };
  try {
    return { fd: attach(XDP_FLAGS_DRV_MODE), mode: 'native' };
  } catch (error) {
    if (isSystemError(error, 'EBUSY', 'EEXIST', 'EPERM', 'ENODEV', 'EMFILE', 'ENFILE')) throw error;
  }
  return { fd: attach(XDP_FLAGS_SKB_MODE), mode: 'generic' };
}
