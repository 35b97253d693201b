import { describe, expect, it } from "vitest";

import { formatAgo, formatDuration, formatTime, formatUtc } from "./time";

describe("formatDuration", () => {
  it.each([
    [0, "0 s"],
    [0.44, "0.4 s"],
    [59.6, "1 min"],
    [200, "3 min 20 s"],
    [3600, "1 h"],
    [86_400 * 2 + 3600 * 4 + 59, "2 d 4 h"],
    [-90, "−1 min 30 s"],
  ])("%d s is %s", (seconds, text) => expect(formatDuration(seconds)).toBe(text));
});

describe("formatTime", () => {
  it("shows the same instant in the zone that is asked for", () => {
    expect(formatTime("2026-11-21T23:30:00Z", "Asia/Tokyo")).toBe("2026-11-22 08:30");
    expect(formatUtc("2026-11-21T23:30:00Z")).toBe("2026-11-21 23:30:00 UTC");
  });
});

describe("formatAgo", () => {
  const now = Date.parse("2026-11-21T12:00:00Z");
  it.each([
    ["2026-11-21T11:59:55Z", "just now"],
    ["2026-11-21T11:56:00Z", "4 min ago"],
    ["2026-11-19T11:00:00Z", "2 d ago"],
    ["2026-11-21T14:00:00Z", "in 2 h"],
  ])("%s is %s", (iso, text) => expect(formatAgo(iso, now)).toBe(text));
});
