/**
 * Bytes between a descriptor and memory that is given by its address in this process, without an allocation: for
 * threads that move frames all the time. Every call returns what the kernel did, or the negative errno.
 */
import { errnoByName, lastErrno, libc } from './libc.ts';

const MSG_DONTWAIT = 0x40;

const orErrno = (result: number): number => (result === -1 ? -lastErrno() : result);

export const readAt = (fd: number, to: number, length: number): number =>
  orErrno(libc.readAt(fd, to, length));

export const writeAt = (fd: number, from: number, length: number): number =>
  orErrno(libc.writeAt(fd, from, length));

/** readv(2) into `count` struct iovec. */
export const readVectors = (fd: number, vectors: number, count: number): number =>
  orErrno(libc.readv(fd, vectors, count));

/** writev(2) from `count` struct iovec. */
export const writeVectors = (fd: number, vectors: number, count: number): number =>
  orErrno(libc.writev(fd, vectors, count));

/** recvmmsg(2) into `count` struct mmsghdr, without waiting; returns the messages. */
export const receiveMessages = (fd: number, messages: number, count: number): number =>
  orErrno(libc.recvmmsg(fd, messages, count, MSG_DONTWAIT, null));

/** sendmmsg(2) from `count` struct mmsghdr, without waiting; returns the messages. */
export const sendMessages = (fd: number, messages: number, count: number): number =>
  orErrno(libc.sendmmsg(fd, messages, count, MSG_DONTWAIT));

/** Has the kernel look at the TX ring of a socket that is mapped; what it sent. */
export const kickSend = (fd: number): number => orErrno(libc.send(fd, null, 0, MSG_DONTWAIT));

/** Has the kernel look at the fill ring of an AF_XDP socket; 0. */
export const kickReceive = (fd: number): number => orErrno(libc.recv(fd, null, 0, MSG_DONTWAIT));

const AGAIN = -(errnoByName.EAGAIN ?? 0);
const INTERRUPTED = -(errnoByName.EINTR ?? 0);

/** The result of a call above that has to be made again once the descriptor is ready. */
export const isNotReady = (result: number): boolean => result === AGAIN;
export const isInterrupted = (result: number): boolean => result === INTERRUPTED;
