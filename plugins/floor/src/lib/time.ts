/** Times as people read them. All input is ISO 8601 in UTC; what is shown is in the user's zone. */

/** The zone that the user chose in Airflow's UI, or else the browser's. */
export function userTimeZone(): string {
  const browser = Intl.DateTimeFormat().resolvedOptions().timeZone;
  try {
    const chosen: unknown = JSON.parse(localStorage.getItem("timezone") ?? "null");
    if (typeof chosen !== "string") return browser;
    new Intl.DateTimeFormat("en", { timeZone: chosen });
    return chosen;
  } catch {
    return browser;
  }
}

/** "2026-11-21 06:00" in a zone, as Airflow writes it. */
export function formatTime(iso: string, timeZone: string = userTimeZone()): string {
  return new Intl.DateTimeFormat("sv-SE", { dateStyle: "short", timeStyle: "short", timeZone }).format(new Date(iso));
}

/** "2026-11-21" -> "Nov 21" */
export function shortDay(day: string): string {
  return new Intl.DateTimeFormat("en-US", { day: "numeric", month: "short", timeZone: "UTC" }).format(new Date(day.slice(0, 10)));
}

/** "2026-11-21 06:00:00 UTC" */
export function formatUtc(iso: string): string {
  return `${new Date(iso).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

const UNITS: ReadonlyArray<readonly [string, number]> = [
  ["d", 86_400],
  ["h", 3_600],
  ["min", 60],
  ["s", 1],
];

/** Seconds as at most two units: "2 d 4 h", "3 min 20 s", "0.4 s". */
export function formatDuration(seconds: number): string {
  if (seconds < 0) return `−${formatDuration(-seconds)}`;
  if (seconds < 10) return `${Number(seconds.toFixed(1))} s`;
  const whole = Math.round(seconds);
  const first = UNITS.findIndex(([, size]) => whole >= size);
  const [name, size] = UNITS[first] ?? ["s", 1];
  const rest = whole % size;
  const [nextName, nextSize] = UNITS[first + 1] ?? ["s", 1];
  const next = Math.floor(rest / nextSize);
  return `${Math.floor(whole / size)} ${name}${next > 0 && size > 1 ? ` ${next} ${nextName}` : ""}`;
}

/** Seconds in one unit, for the axis of a chart: "2 d", "1.5 h", "40 min". */
export function formatRough(seconds: number): string {
  const [name, size] = UNITS.find(([, unit]) => seconds >= unit) ?? ["s", 1];
  return `${Number((seconds / size).toFixed(1))} ${name}`;
}

/** How long ago, in words that stay true for a while: "just now", "4 min ago", "in 2 h". */
export function formatAgo(iso: string, now: number): string {
  const seconds = Math.round((now - new Date(iso).getTime()) / 1000);
  if (Math.abs(seconds) < 10) return "just now";
  const size = UNITS.find(([, unit]) => Math.abs(seconds) >= unit) ?? ["s", 1];
  const amount = `${Math.floor(Math.abs(seconds) / size[1])} ${size[0]}`;
  return seconds < 0 ? `in ${amount}` : `${amount} ago`;
}
