/**
 * The generator's options as people write them: ports, sizes, ranges, rates, durations. What can't be read throws a
 * RangeError that says what was expected and what was found.
 */
import { ipNumber } from '../ports/addresses.ts';
import { isInterfaceName } from '../sys/index.ts';
import { MOST_FRAMES } from './frames.ts';
import { type GenPort, MODES, type Mode, type Range, type Rate } from './types.ts';

/** A port, and the mode that was given for it alone. */
export interface NamedPort extends GenPort {
  mode?: Mode;
}

const PORT_EXAMPLE = '/tmp/a.sock,role=server,queues=2';
const MAX_SOCKET_PATH = 107;
const MAX_QUEUES = 128;
const MAX_RING = 32_768;
const MAX_FRAME = 65_549;
const MIN_FRAME = 42;
/** Frames of 64, 594 and 1518 bytes, 7 to 4 to 1, mixed. */
export const IMIX = [64, 594, 64, 64, 594, 64, 64, 594, 64, 594, 64, 1518];

function refuse(what: string, found: string): never {
  throw new RangeError(`expected ${what}, found ${JSON.stringify(found.slice(0, 60))}`);
}

function whole(text: string, least: number, most: number, what = 'a whole number'): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < least || value > most) refuse(`${what} from ${least} to ${most}`, text);
  return value;
}

const PORT_KEYS: Record<string, (port: NamedPort, value: string) => void> = {
  role: (port, value) => {
    if (value !== 'server' && value !== 'client') refuse('"server" or "client"', value);
    port.role = value as 'server' | 'client';
  },
  queues: (port, value) => {
    port.queues = whole(value, 1, MAX_QUEUES);
  },
  packed: (port, value) => {
    if (!['', 'on', 'off'].includes(value)) refuse('"packed", "packed=on" or "packed=off"', value);
    port.packed = value !== 'off';
  },
  size: (port, value) => {
    port.queueSize = whole(value, 2, MAX_RING);
  },
  mode: (port, value) => {
    port.mode = parseMode(value);
  },
  mac: (port, value) => {
    macNumber(value);
    port.mac = value;
  },
  capture: (port, value) => {
    if (value === '') refuse('the name of a file', value);
    port.capture = value;
  },
  interface: (port, value) => {
    if (!isInterfaceName(value)) refuse('the name of a TAP, such as tap0', value);
    port.interface = value;
  },
};

/** `SOCKET[,key=value…]`; a comma in the path is written twice. */
export function parsePort(text: string): NamedPort {
  const parts = text.replaceAll(',,', '\0').split(',');
  const [path = '', ...options] = parts.map((part) => part.replaceAll('\0', ','));
  if (path === '' || Buffer.byteLength(path) > MAX_SOCKET_PATH)
    refuse(`the path of a unix socket, 1 to ${MAX_SOCKET_PATH} bytes, such as "${PORT_EXAMPLE}"`, path);
  const port: NamedPort = { path };
  for (const option of options) {
    const [, key = '', value = ''] = /^([^=]*)(?:=(.*))?$/s.exec(option) ?? [];
    const set = Object.hasOwn(PORT_KEYS, key) ? PORT_KEYS[key] : undefined;
    if (set === undefined) return refuse(`one of ${Object.keys(PORT_KEYS).join(', ')} after a comma`, option);
    try {
      set(port, value);
    } catch (error) {
      throw new RangeError(`${key}: ${(error as Error).message}`);
    }
  }
  return port;
}

export function parseMode(text: string): Mode {
  return MODES.find((mode) => mode === text) ?? refuse(`one of ${MODES.join(', ')}`, text);
}

/** `64`, `64,128,1518`, `64-128`, `imix`, or several of these. */
export function parseSizes(text: string): number[] {
  const sizes = text.split(',').flatMap((part) => {
    if (part === 'imix') return IMIX;
    const [, first, last = first] = /^(\d+)(?:-(\d+))?$/.exec(part) ?? [];
    if (first === undefined || last === undefined)
      return refuse('frame sizes such as 64, 64-128, 64,512,1518 or imix', part);
    const from = whole(first, MIN_FRAME, MAX_FRAME, 'a number of bytes');
    const to = whole(last, from, MAX_FRAME, 'a number of bytes');
    return Array.from({ length: to - from + 1 }, (_, index) => from + index);
  });
  if (sizes.length > MOST_FRAMES) refuse(`at most ${MOST_FRAMES} sizes`, text);
  return sizes;
}

/** `A`, `A-B` (both included) or `A+N` (N values from A on). */
function range(text: string, value: (text: string) => bigint): Range {
  const [, first, last, more] = /^([^-+]+)(?:-([^-+]+)|\+(\d+))?$/.exec(text) ?? [];
  if (first === undefined) return refuse('a value, FIRST-LAST or FIRST+NUMBER', text);
  const from = value(first);
  let count = 1n;
  if (last !== undefined) count = value(last) - from + 1n;
  else if (more !== undefined) count = BigInt(more);
  if (count < 1n || count > MOST_FRAMES) refuse(`1 to ${MOST_FRAMES} values, ascending`, text);
  return { first: from, count: Number(count) };
}

function macNumber(text: string): bigint {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text)) refuse('a MAC address such as 02:00:00:00:00:01', text);
  return BigInt(`0x${text.replaceAll(':', '')}`);
}

export const parseMacs = (text: string): Range => range(text, macNumber);

/** Addresses, and which version of IP they are of. */
export function parseAddresses(text: string): { version: 4 | 6; range: Range } {
  const version = text.includes(':') ? 6 : 4;
  return { version, range: range(text, version === 4 ? ipv4Number : ipv6Number) };
}

function ipv4Number(text: string): bigint {
  const address = ipNumber(text);
  return address?.bits === 32
    ? address.value
    : refuse('an IPv4 address such as 198.18.0.1, or an IPv6 address', text);
}

function ipv6Number(text: string): bigint {
  const address = ipNumber(text);
  return address?.bits === 128 ? address.value : refuse('an IPv6 address such as 2001:2::1', text);
}

export const parseUdpPorts = (text: string): Range =>
  range(text, (one) => BigInt(whole(one, 0, 65_535, 'a UDP port')));
export const parseVlans = (text: string): Range =>
  range(text, (one) => BigInt(whole(one, 1, 4094, 'a VLAN')));

const PREFIX: Record<string, number> = { '': 1, k: 1e3, m: 1e6, g: 1e9 };

/** `1Mpps`, `500kpps`, `2Gbit` (a second, also as `2Gbps`), `max`, or `recorded`. */
export function parseRate(text: string): Rate {
  if (text === 'max' || text === 'recorded') return text;
  const [, amount, prefix = '', unit] = /^(\d+(?:\.\d+)?)([kmg]?)(pps|bps|bit)$/i.exec(text) ?? [];
  const value = Number(amount) * PREFIX[prefix.toLowerCase()]!;
  if (unit === undefined || !(value >= 1 && value <= 1e12))
    return refuse('a rate such as 1Mpps, 500kpps, 2Gbit or max', text);
  return unit.toLowerCase() === 'pps' ? { packets: value } : { bits: value };
}

const UNITS: Record<string, number> = { ns: 1, us: 1e3, µs: 1e3, ms: 1e6, s: 1e9 };

/** Nanoseconds of `800ns`, `50us`, `1.5ms`, `2s`. */
export function parseDuration(text: string): number {
  const [, amount, unit = ''] = /^(\d+(?:\.\d+)?)(ns|us|µs|ms|s)$/.exec(text) ?? [];
  return amount === undefined
    ? refuse('a duration such as 50us, 1.5ms or 2s', text)
    : Number(amount) * UNITS[unit]!;
}

/** A number of frames, or a share of them: `0`, `100`, `0.1%`. */
export function parseLoss(text: string): { frames: number } | { share: number } {
  const [, amount, percent] = /^(\d+|\d+(?:\.\d+)?(?=%))(%?)$/.exec(text) ?? [];
  if (amount === undefined || (percent === '%' && Number(amount) > 100))
    return refuse('a number of frames or a percentage, such as 0 or 0.1%', text);
  return percent === '%' ? { share: Number(amount) / 100 } : { frames: Number(amount) };
}
