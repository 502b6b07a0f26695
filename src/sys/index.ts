/** Linux for the rest of Vireo: one small typed interface over the C library. */

export * from './bpf.ts';
export * from './datagram-socket.ts';
export * from './device-file.ts';
export * from './epoll.ts';
export * from './errors.ts';
export * from './eventfd.ts';
export * from './fd.ts';
export * from './guard.ts';
export * from './interface.ts';
export * from './ioctl.ts';
export * from './memory.ts';
export * from './notify.ts';
export * from './packet-socket.ts';
export * from './poller.ts';
export * from './runtime-directory.ts';
export * from './tap.ts';
export * from './thread.ts';
export * from './transfer.ts';
export * from './unix-socket.ts';
export * from './userfault.ts';
export * from './xdp-socket.ts';
