/** UDP sockets for threads that move frames, non-blocking. */
import { isIPv6 } from 'node:net';
import { check } from './errors.ts';
import { closeFd } from './fd.ts';
import { libc, pinned } from './libc.ts';

const AF_INET = 2;
const AF_INET6 = 10;
const SOCK_DGRAM = 2;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_REUSEADDR = 2;
const SO_SNDBUF = 7;
const SO_RCVBUF = 8;
/** Bytes that may wait each way; the kernel has bounds of its own (net.core.rmem_max). */
const BUFFER = 4 << 20;

/** Where a UDP socket is; the address a number, of either version. */
export interface UdpAddress {
  address: string;
  port: number;
}

/** struct sockaddr_in, or sockaddr_in6. */
function internetAddress({ address, port }: UdpAddress): Buffer {
  if (!isIPv6(address)) {
    const bytes = pinned(16);
    bytes.writeUInt16LE(AF_INET, 0);
    bytes.writeUInt16BE(port, 2);
    bytes.set(address.split('.').map(Number), 4);
    return bytes;
  }
  const bytes = pinned(28);
  bytes.writeUInt16LE(AF_INET6, 0);
  bytes.writeUInt16BE(port, 2);
  const [head = '', tail] = address.split('::').map((half) => half.split(':').filter((word) => word !== ''));
  const words = [...head, ...Array(8 - head.length - (tail?.length ?? 0)).fill('0'), ...(tail ?? [])];
  for (const [i, word] of words.entries()) bytes.writeUInt16BE(Number.parseInt(word, 16), 8 + 2 * i);
  return bytes;
}

function open(domain: number): number {
  return check(
    libc.socket(domain, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0),
    'socket',
    `family ${domain}`,
  );
}

function enlarge(fd: number): void {
  const bytes = pinned(4);
  bytes.writeInt32LE(BUFFER);
  for (const name of [SO_SNDBUF, SO_RCVBUF])
    check(libc.setsockopt(fd, SOL_SOCKET, name, bytes, 4), 'setsockopt', fd);
}

/**
 * A UDP socket that receives at `local` from `remote` alone, and sends there. A port of 0 in `remote` takes what comes
 * from any port, and sends nothing. Throws a SystemError that names the address.
 */
export function udpSocket(local: UdpAddress, remote: UdpAddress): number {
  const fd = open(isIPv6(remote.address) ? AF_INET6 : AF_INET);
  try {
    enlarge(fd);
    const on = pinned(4);
    on.writeInt32LE(1);
    check(libc.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, on, 4), 'setsockopt', fd);
    for (const [call, to] of [
      ['bind', local],
      ['connect', remote],
    ] as const) {
      const bytes = internetAddress(to);
      check(libc[call](fd, bytes, bytes.length), call, `${to.address}, port ${to.port}`);
    }
    return fd;
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}
