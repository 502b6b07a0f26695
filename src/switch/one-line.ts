/**
 * A port in one line, `NAME=TYPE:TARGET[,key=value…]`: its words, not yet what they mean. Keys are kebab-case there
 * (`max-addresses`), those of objects camelCase (`maxAddresses`). A comma that belongs to the target is written twice,
 * as in QEMU's options.
 */
import { camel, kebab } from './keys.ts';
import { show } from './schema.ts';
import type { PortSpec } from './types.ts';

export const EXAMPLE = 'vm1=vhost-user:/tmp/vm1.sock,role=client';

/** The fields of a port's one-line form, as yet unchecked. Throws an Error that says what is wrong with the form. */
export function splitPort(text: string): Record<string, unknown> {
  if (text.length > 1024 || text.includes('\0')) {
    throw new Error(`expected at most 1024 characters, none of them zero, such as "${EXAMPLE}"`);
  }
  // A doubled comma belongs to the value: it is put aside as the character that no value holds.
  const parts = text.replaceAll(',,', '\0').split(',');
  const [head = '', ...options] = parts.map((part) => part.replaceAll('\0', ','));
  const match = /^([^=]*)=([^:]*):(.*)$/s.exec(head);
  if (match === null) throw new Error(`expected NAME=TYPE:TARGET, such as "${EXAMPLE}", found ${show(head)}`);

  const fields: Record<string, unknown> = { name: match[1], type: match[2], target: match[3] };
  let last = '';
  for (const option of options) {
    // A list goes on with words that have a sign, which no key has: features=-packed,-in-order.
    if (last === 'features' && /^[+-]/.test(option)) {
      fields.features = `${fields.features},${option}`;
      continue;
    }
    const [, key, value] = /^([^=]+)=(.*)$/s.exec(option) ?? [];
    if (key === undefined || value === undefined) {
      throw new Error(`expected key=value after a comma, such as "${EXAMPLE}", found ${show(option)}`);
    }
    const field = camel(key);
    if (Object.hasOwn(fields, field))
      throw new Error(`expected ${key} once, found it again as ${show(option)}`);
    Object.defineProperty(fields, field, { value: typed(value), enumerable: true, writable: true });
    last = field;
  }
  return fields;
}

/** A value in text: what looks like a number or a truth value is one. */
export function typed(value: string): unknown {
  if (/^-?\d+$/.test(value)) return Number(value);
  return value === 'true' || value === 'false' ? value === 'true' : value;
}

/** The one-line form of a port; `parsePortSpec` reads it back. */
export function formatPortSpec(spec: PortSpec): string {
  const { name, type, target, ...options } = spec;
  const written = Object.entries(options)
    .filter(([, value]) => value !== undefined)
    .map(([key, value]) => {
      const text = String(value);
      return `,${kebab(key)}=${key === 'features' ? text : text.replaceAll(',', ',,')}`;
    });
  return `${name}=${type}:${target.replaceAll(',', ',,')}${written.join('')}`;
}
