/** What a front-end says of its memory, checked before any of it is mapped. */
import { fileInfo } from '../sys/index.ts';
import { ProtocolError, type RegionLayout } from './messages.ts';

const END_OF_ADDRESSES = 1n << 64n;

const UNMAPPABLE = {
  directory: 'a directory',
  socket: 'a socket',
  pipe: 'a pipe',
  device: 'a device',
  anonymous: 'an eventfd or the like',
} as const;

/** Sizes, ends and overlaps of a memory table, in guest and in user addresses. Throws a ProtocolError. */
export function checkRegions(regions: readonly RegionLayout[]): void {
  for (const [i, region] of regions.entries()) checkRegion(i, region, regions.slice(0, i));
}

/** A region that comes as number `i` after `others`: size, ends, overlaps. Throws a ProtocolError. */
export function checkRegion(i: number, region: RegionLayout, others: readonly RegionLayout[]): void {
  if (region.size === 0n) throw new ProtocolError(`region ${i} is empty`);
  for (const [start, space] of [
    [region.guestAddress, 'guest address'],
    [region.userAddress, 'user address'],
    [region.mmapOffset, 'file offset'],
  ] as const) {
    if (start + region.size > END_OF_ADDRESSES)
      throw new ProtocolError(`region ${i}: ${space} ${hex(start)} + size ${hex(region.size)} wraps`);
  }
  for (const [j, other] of others.entries()) {
    if (overlap(region.guestAddress, region.size, other.guestAddress, other.size))
      throw new ProtocolError(`regions ${j} and ${i} overlap in guest addresses`);
    if (overlap(region.userAddress, region.size, other.userAddress, other.size))
      throw new ProtocolError(`regions ${j} and ${i} overlap in user addresses`);
  }
}

/** The same addresses and size; the file isn't looked at. */
export function sameRegion(a: RegionLayout, b: RegionLayout): boolean {
  return a.guestAddress === b.guestAddress && a.userAddress === b.userAddress && a.size === b.size;
}

/** Do they have a byte in common, in guest addresses or in user addresses? */
export function regionsOverlap(a: RegionLayout, b: RegionLayout): boolean {
  return (
    overlap(a.guestAddress, a.size, b.guestAddress, b.size) ||
    overlap(a.userAddress, a.size, b.userAddress, b.size)
  );
}

function overlap(a: bigint, aSize: bigint, b: bigint, bSize: bigint): boolean {
  return a < b + bSize && b < a + aSize;
}

/** Can the descriptor be mapped, and does it reach to the end of the region? Throws a ProtocolError. */
export function checkFile(i: number, { mmapOffset, size }: RegionLayout, fd: number): void {
  const file = fileInfo(fd);
  if (file.kind !== 'file')
    throw new ProtocolError(
      `region ${i}: ${UNMAPPABLE[file.kind]} can't be mapped, a memory file is expected`,
    );
  const end = mmapOffset + size;
  if (file.size < end) {
    const words = `${hex(file.size)} bytes where offset + size is ${hex(end)}`;
    throw new ProtocolError(`region ${i}: region file shorter than declared, ${words}`);
  }
}

/** Is there a dirty log in the file where it is said to be? Throws a ProtocolError. */
export function checkLog(size: bigint, offset: bigint, fd: number): void {
  if (size === 0n) throw new ProtocolError('the log is empty');
  if (offset + size > END_OF_ADDRESSES)
    throw new ProtocolError(`offset ${hex(offset)} + size ${hex(size)} wraps`);
  const file = fileInfo(fd);
  if (file.kind !== 'file')
    throw new ProtocolError(`${UNMAPPABLE[file.kind]} can't be mapped, a memory file is expected`);
  if (file.size < offset + size) {
    const words = `${hex(file.size)} bytes where offset + size is ${hex(offset + size)}`;
    throw new ProtocolError(`log file shorter than declared, ${words}`);
  }
}

function hex(value: bigint): string {
  return `0x${value.toString(16)}`;
}
