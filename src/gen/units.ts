/** Amounts in the units that people read. */

/** `4.21 M`, to be followed by a unit. */
export function packets(value: number): string {
  if (value >= 0.9995e9) return `${(value / 1e9).toFixed(2)} G`;
  if (value >= 0.9995e6) return `${(value / 1e6).toFixed(2)} M`;
  return value >= 999.5 ? `${(value / 1e3).toFixed(2)} k` : `${value.toFixed(0)} `;
}

/** `12.3 µs` */
export function nanoseconds(value: number): string {
  if (value >= 0.9995e9) return `${(value / 1e9).toFixed(2)} s`;
  if (value >= 0.9995e6) return `${(value / 1e6).toFixed(2)} ms`;
  return value >= 999.5 ? `${(value / 1e3).toFixed(2)} µs` : `${value.toFixed(0)} ns`;
}
