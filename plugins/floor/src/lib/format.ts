/** Numbers as people read them; null is a value that nobody knows and shows as a dash. */

export const UNKNOWN = "–";

/** 0.7921 -> "79.2 %"; what is more than nothing never shows as nothing. */
export function formatRatio(value: number | null | undefined, digits = 1): string {
  if (value === null || value === undefined) return UNKNOWN;
  const least = 10 ** -digits;
  return value > 0 && value * 100 < least / 2 ? `< ${least} %` : `${(value * 100).toFixed(digits)} %`;
}

/** 1234567 -> "1.23 M", 1234 -> "1,234", 0.12345 -> "0.123" */
export function formatNumber(value: number | null | undefined): string {
  if (value === null || value === undefined) return UNKNOWN;
  const size = Math.abs(value);
  if (size >= 1e6) return new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 2 }).format(value);
  const digits = Number.isInteger(value) ? 0 : size >= 100 ? 0 : size >= 1 ? 2 : 4;
  return new Intl.NumberFormat("en-US", { maximumFractionDigits: digits }).format(value);
}

/** A reason code or an event as words: "GAIN_NOT_PROVEN" -> "Gain not proven". */
export function words(code: string): string {
  const text = code.replaceAll("_", " ").toLowerCase();
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** 1, "row" -> "1 row"; 3, "row" -> "3 rows". */
export function plural(count: number, noun: string, nouns: string = `${noun}s`): string {
  return `${formatNumber(count)} ${count === 1 ? noun : nouns}`;
}

/** A kind of unit, for more than one of it: "batch" -> "batches". */
export function pluralKind(kind: string): string {
  return kind === "batch" ? "batches" : kind === "predictions" ? kind : `${kind}s`;
}

/** 12.3, "EUR" -> "€12.30" */
export function formatMoney(value: number | null | undefined, currency: string): string {
  if (value === null || value === undefined) return UNKNOWN;
  const digits = value !== 0 && Math.abs(value) < 0.1 ? 4 : 2;
  return new Intl.NumberFormat("en-US", { style: "currency", currency, maximumFractionDigits: digits }).format(value);
}
