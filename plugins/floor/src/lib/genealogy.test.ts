import { expect, it } from "vitest";

import type { UnitNode } from "../api/models";
import { bothWays, countBothWays, essential, shortLabel } from "./genealogy";

const node = (id: string): UnitNode => ({
  id,
  kind: "model",
  unit: id,
  label: id,
  at: null,
  good: true,
  facts: {},
  href: null,
  report_href: null,
  external_href: null,
});

it("tells what went into a unit from what it went into, and siblings from both", () => {
  const links = [
    { source: "file", target: "batch" },
    { source: "batch", target: "dataset" },
    { source: "dataset", target: "model" },
    { source: "dataset", target: "sibling" },
    { source: "model", target: "predictions" },
  ];
  const { origins, effects } = bothWays({ unit: node("model"), links });
  expect([...origins].sort()).toEqual(["batch", "dataset", "file"]);
  expect([...effects]).toEqual(["predictions"]);
});

it("ends where units refer to each other", () => {
  const links = [
    { source: "a", target: "b" },
    { source: "b", target: "a" },
  ];
  expect([...bothWays({ unit: node("a"), links }).effects]).toEqual(["b"]);
});

it("counts those that are too many to be shown on their side", () => {
  const genealogy = {
    unit: node("model"),
    nodes: [],
    links: [{ source: "dataset", target: "model" }],
    max_nodes: 1,
    left_out: { batch: 3, predictions: 4 },
    events: [],
  };
  expect(countBothWays(genealogy)).toEqual({ numOrigins: 4, numEffects: 4 });
});

it("does not repeat the kind, and names a file by its end", () => {
  expect(shortLabel({ kind: "batch", label: "batch 2026-11-20" })).toBe("2026-11-20");
  expect(shortLabel({ kind: "landing", label: "landing flight_delay/flights/2026-11-20.parquet" })).toBe(
    "flights/2026-11-20",
  );
});

it("leaves out a link that two others say", () => {
  const links = [
    { source: "model", target: "predictions" },
    { source: "predictions", target: "window" },
    { source: "model", target: "window" },
    { source: "model", target: "other window" },
  ];
  expect(essential(links)).toEqual([links[0], links[1], links[3]]);
});
