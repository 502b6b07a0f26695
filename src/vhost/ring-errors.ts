/** Why the data plane stopped a ring, in words. */
import type { VringStruct } from '../arena/index.ts';

/** Vring.error: a translation that forbids what a ring does. */
export const NO_ACCESS = 18;

/** A sentence for each code of src/dataplane/errors.ts; `%` is the value that was wrong. */
const RING_ERRORS: Record<number, string> = {
  1: 'avail.idx jumped by %, more than the ring holds',
  2: 'head index % is not below the size of the ring',
  3: 'next index % is not below the size of the descriptor table',
  4: 'a descriptor chain is longer than its table of % entries (a loop?)',
  5: 'guest address 0x% is in no region of the memory table',
  6: 'descriptor % in a chain to transmit is device-writable',
  7: 'descriptor % in a chain to receive into is not device-writable',
  8: 'an indirect table of % bytes is empty, no multiple of 16 bytes, or longer than the ring',
  9: 'descriptor % of an indirect table points to an indirect table',
  10: 'descriptor % has both INDIRECT and NEXT',
  11: 'descriptor % is indirect, which was not negotiated',
  12: 'a receive buffer of % bytes has no room for the header',
  18: 'I/O address 0x% is not mapped for what the queue does there',
  19: 'descriptor % in a command is to be read, behind one to be written to',
  20: 'a command of % bytes has no room for its answer',
  21: 'a command is longer than % bytes',
  17: 'a receive buffer is scattered over more than % pieces of memory that no window leads to',
};

/** The sentence for a ring's error, which is not 0. */
export function ringError(vring: VringStruct): string {
  const code = vring.get('error');
  const value = vring.get64('errorValue');
  return (RING_ERRORS[code] ?? `error ${code}`).replace(
    '%',
    code === 5 || code === NO_ACCESS ? value.toString(16) : String(value),
  );
}
