import type { Genealogy, UnitLink, UnitNode } from "../api/models";

/** Kinds in the order of the loop. */
export const KINDS: ReadonlyArray<UnitNode["kind"]> = ["landing", "batch", "dataset", "order", "model", "predictions", "window"];

/** Ids of all nodes that can be reached from one, over the links taken in one direction; without itself. */
function reach(start: string, next: ReadonlyMap<string, string[]>): Set<string> {
  const seen = new Set<string>();
  const open = [start];
  for (let id = open.pop(); id !== undefined; id = open.pop()) {
    for (const other of next.get(id) ?? []) {
      if (seen.has(other) || other === start) continue;
      seen.add(other);
      open.push(other);
    }
  }
  return seen;
}

function table(links: ReadonlyArray<UnitLink>, from: "source" | "target", to: "source" | "target"): Map<string, string[]> {
  const found = new Map<string, string[]>();
  for (const link of links) found.set(link[from], [...(found.get(link[from]) ?? []), link[to]]);
  return found;
}

/** The links without those that say no more than two others do: a to c, where a to b and b to c are there. */
export function essential(links: ReadonlyArray<UnitLink>): UnitLink[] {
  const targets = table(links, "source", "target");
  return links.filter(({ source, target }) => !targets.get(source)?.some((middle) => targets.get(middle)?.includes(target)));
}

/** What a node is called in the column of its kind: without the kind, and of a file its end alone. */
export function shortLabel({ kind, label }: Pick<UnitNode, "kind" | "label">): string {
  const name = label.startsWith(`${kind} `) ? label.slice(kind.length + 1) : label;
  return kind === "landing" ? name.split("/").slice(-2).join("/").replace(/\.\w+$/, "") : name;
}

/** How many units went into a unit and how many it went into, with those that are too many to be shown. */
export function countBothWays(genealogy: Genealogy): { numOrigins: number; numEffects: number } {
  const { origins, effects } = bothWays(genealogy);
  const own = KINDS.indexOf(genealogy.unit.kind);
  const leftOut = (kinds: typeof KINDS) => kinds.reduce((sum, kind) => sum + (genealogy.left_out[kind] ?? 0), 0);
  return {
    numOrigins: origins.size + leftOut(KINDS.slice(0, own)),
    numEffects: effects.size + leftOut(KINDS.slice(own + 1)),
  };
}

/** What went into a unit, and what it went into: ids of nodes. */
export function bothWays({ unit, links }: Pick<Genealogy, "unit" | "links">): { origins: Set<string>; effects: Set<string> } {
  return {
    origins: reach(unit.id, table(links, "target", "source")),
    effects: reach(unit.id, table(links, "source", "target")),
  };
}
