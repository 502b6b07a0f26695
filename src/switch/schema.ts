/** Pieces of schemas whose errors say what was expected, and what was found. */
import { z } from 'zod';

/** A value as an error shows it: short, on one line. */
export function show(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'object' && value !== null) return 'a map';
  if (typeof value !== 'string') return String(value).slice(0, 60);
  const shown = JSON.stringify(value.slice(0, 60));
  return value.length > 60 ? `${shown} and more` : shown;
}

export const expected = (what: string) => ({
  error: (issue: { input?: unknown }) => `expected ${what}, found ${show(issue.input)}`,
});

export const wholeNumber = (min: number, max: number, unit = '') => {
  const told = expected(`a whole number${unit} from ${min} to ${max}`);
  return z.int(told).min(min, told).max(max, told);
};

/** `52:54:00:12:34:56`, in small letters or capitals. */
export const stationAddress = (() => {
  const told = expected('a MAC address of one station, such as "52:54:00:12:34:56"');
  // IEEE 802: the lowest bit of the first octet marks a group of stations.
  const ofOne = (mac: string) => (Number.parseInt(mac.slice(0, 2), 16) & 1) === 0 && !/^[0:]*$/.test(mac);
  return z
    .string(told)
    .regex(/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i, told)
    .refine(ofOne, told);
})();
