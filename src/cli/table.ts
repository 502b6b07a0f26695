/** Text that lines up: tables without borders, and values in units that people read. */

/** A column's title and, for numbers, its alignment to the right. */
export interface Column {
  title: string;
  right?: boolean;
}

/** A value on one line: what would move the cursor is shown as its code. */
function printable(text: string): string {
  return text.replace(
    // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for.
    /[\0-\x1f\x7f-\x9f]/g,
    (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`,
  );
}

/** Rows under their titles, two blanks between columns, each line indented; ends with a newline. */
export function table(columns: Column[], rows: string[][], indent = ''): string {
  const lines = [columns.map(({ title }) => title), ...rows.map((row) => row.map(printable))];
  const widths = columns.map((_, index) => Math.max(...lines.map((line) => line[index]?.length ?? 0)));
  const render = (line: string[]) => {
    const cells = columns.map(({ right }, index) => {
      const cell = line[index] ?? '';
      const width = widths[index] ?? 0;
      return right ? cell.padStart(width) : cell.padEnd(width);
    });
    return `${indent}${cells.join('  ')}`.trimEnd();
  };
  return `${lines.map(render).join('\n')}\n`;
}

/** Names and their values below each other; ends with a newline. */
export function pairs(entries: [name: string, value: string][], indent = ''): string {
  const width = Math.max(...entries.map(([name]) => name.length));
  const lines = entries.map(([name, value]) =>
    `${indent}${name.padEnd(width)}  ${printable(value)}`.trimEnd(),
  );
  return `${lines.join('\n')}\n`;
}

/** A number with its digits in groups of three: `1,234,567`. */
export function count(value: number): string {
  return value.toLocaleString('en-US');
}

/** An amount of bytes with three digits at most before its unit: `512 B`, `1.5 KiB`, `37.2 GiB`. */
export function bytes(value: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let unit = 0;
  let amount = value;
  while (amount >= 1023.95 && unit < units.length - 1) {
    amount /= 1024;
    unit++;
  }
  return `${unit === 0 || Number.isInteger(amount) ? amount : amount.toFixed(1)} ${units[unit]}`;
}

/** A time in its two largest units: `42 s`, `3 min 5 s`, `2 h 0 min`, `9 d 4 h`. */
export function duration(seconds: number): string {
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}
