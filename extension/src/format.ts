/** Numbers for people: three digits and a unit; a dash for what nobody knows. */

const NONE = '–';

function known(value: unknown): value is number {
  return typeof value === 'number' && Number.isFinite(value);
}

function digits(value: number): string {
  const size = Math.abs(value);
  return value.toFixed(size >= 100 || size === 0 ? 0 : size >= 10 ? 1 : 2);
}

export function seconds(value: unknown): string {
  if (!known(value)) {
    return NONE;
  }
  const size = Math.abs(value);
  if (size >= 120) {
    return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  }
  if (size >= 1 || size === 0) {
    return `${digits(value)} s`;
  }
  return size >= 1e-3 ? `${digits(value * 1e3)} ms` : `${digits(value * 1e6)} µs`;
}

const PREFIXES = ['', 'k', 'M', 'G', 'T', 'P', 'E'];

export function amount(value: unknown, unit: string): string {
  if (!known(value)) {
    return NONE;
  }
  const size = Math.abs(value);
  const step = size < 1000 ? 0 : Math.min(PREFIXES.length - 1, Math.floor(Math.log10(size) / 3));
  return `${digits(value / 1000 ** step)} ${PREFIXES[step]}${unit}`;
}

export function share(value: unknown): string {
  return known(value) ? `${value >= 0.095 ? Math.round(value * 100) : (value * 100).toFixed(1)}%` : NONE;
}

export function count(value: unknown): string {
  return known(value) ? Math.round(value).toLocaleString('en') : NONE;
}

/** A name that fits: what is too long ends in an ellipsis. */
export function clip(text: string, most: number): string {
  const letters = Array.from(text);
  return letters.length <= most ? text : `${letters.slice(0, most - 1).join('')}…`;
}
