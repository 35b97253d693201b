import { Box, Button, chakra, Flex, Heading, Text } from "@chakra-ui/react";
import { CircleCheck, CircleDashed, CircleX } from "lucide-react";
import { useCallback, useLayoutEffect, useRef, useState } from "react";

import { routeOf } from "../api/client";
import type { Genealogy, UnitNode } from "../api/models";
import { bothWays, essential, KINDS, shortLabel } from "../lib/genealogy";
import { words } from "../lib/format";
import { FloorLink } from "./Links";

const FEW = 6;

interface Curve {
  key: string;
  path: string;
  direct: boolean;
}

/** The family of a unit: a column a kind, what it came from at its left and what it touched at its right. */
export function GenealogyDiagram({ genealogy }: { genealogy: Genealogy }) {
  const { unit, nodes, links, left_out } = genealogy;
  const { origins } = bothWays(genealogy);
  const [opened, setOpened] = useState<ReadonlySet<string>>(new Set());
  const area = useRef<HTMLDivElement>(null);
  const [curves, setCurves] = useState<Curve[]>([]);

  const columns = KINDS.map((kind) => {
    const all = nodes.filter((node) => node.kind === kind);
    const few = all.filter((node, index) => node.id === unit.id || index >= all.length - FEW);
    return { kind, all, shown: opened.has(kind) ? all : few };
  }).filter(({ all }) => all.length > 0);

  const draw = useCallback(() => {
    const root = area.current;
    if (!root) return;
    const frame = root.getBoundingClientRect();
    const boxOf = (id: string) => root.querySelector(`[data-node="${CSS.escape(id)}"]`)?.getBoundingClientRect();
    const found: Curve[] = [];
    for (const { source, target } of essential(links)) {
      const from = boxOf(source);
      const to = boxOf(target);
      if (!from || !to || to.left <= from.left) continue; // stacked on a narrow screen: the order says it
      const x1 = from.right - frame.left + root.scrollLeft;
      const y1 = from.top + from.height / 2 - frame.top;
      const x2 = to.left - frame.left + root.scrollLeft;
      const y2 = to.top + to.height / 2 - frame.top;
      const bend = Math.max(12, (x2 - x1) / 2);
      found.push({
        key: `${source}>${target}`,
        path: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`,
        direct: source === unit.id || target === unit.id,
      });
    }
    setCurves(found);
  }, [links, unit.id]);

  useLayoutEffect(() => {
    draw();
    const watcher = new ResizeObserver(draw);
    if (area.current) watcher.observe(area.current);
    return () => watcher.disconnect();
  }, [draw, opened, nodes]);

  return (
    <Box overflowX={{ base: "visible", lg: "auto" }} tabIndex={0} role="region" aria-label="Genealogy">
      <Flex ref={area} position="relative" direction={{ base: "column", lg: "row" }} gap={{ base: 4, lg: 8 }} align={{ lg: "center" }} minWidth={{ lg: "max-content" }} py={1}>
        <chakra.svg position="absolute" inset="0" width="100%" height="100%" pointerEvents="none" aria-hidden overflow="visible" display={{ base: "none", lg: "block" }}>
          {curves.map(({ key, path, direct }) => (
            <chakra.path key={key} d={path} fill="none" strokeWidth={direct ? 1.8 : 1} css={{ stroke: direct ? "var(--chakra-colors-brand-line)" : "var(--chakra-colors-border-emphasized)" }} />
          ))}
        </chakra.svg>
        {columns.map(({ kind, all, shown }) => (
          <Box key={kind} width={{ base: "100%", lg: "146px" }} flexShrink={0} position="relative">
            <Heading as="h3" fontSize="xs" fontWeight="medium" color="fg.muted" mb={2}>
              {words(kind)}
              {all.length > 1 && ` · ${all.length + (left_out[kind] ?? 0)}`}
            </Heading>
            <Flex as="ul" direction="column" gap={2} listStyleType="none">
              {shown.map((node) => (
                <Node key={node.id} node={node} self={node.id === unit.id} origin={origins.has(node.id)} />
              ))}
            </Flex>
            {all.length > shown.length && (
              <Button mt={2} size="2xs" variant="ghost" onClick={() => setOpened(new Set([...opened, kind]))}>
                {all.length - shown.length} earlier
              </Button>
            )}
            {(left_out[kind] ?? 0) > 0 && all.length === shown.length && (
              <Text mt={2} fontSize="xs" color="fg.muted">
                and {left_out[kind]} older
              </Text>
            )}
          </Box>
        ))}
      </Flex>
    </Box>
  );
}

function Node({ node, self, origin }: { node: UnitNode; self: boolean; origin: boolean }) {
  const [Icon, palette, said] =
    node.good === null ? ([CircleDashed, "gray", "not decided"] as const) : node.good ? ([CircleCheck, "green", "good"] as const) : ([CircleX, "red", "bad"] as const);
  const route = node.href === null ? null : routeOf(node.href);
  return (
    <Flex
      as="li"
      data-node={node.id}
      gap={2}
      align="center"
      borderWidth="1px"
      borderColor={self ? "brand.line" : "border"}
      bg={self ? "brand.subtle" : "bg.panel"}
      borderRadius="md"
      px={2.5}
      py={1.5}
      fontSize="xs"
      aria-current={self ? "true" : undefined}
      title={`${node.unit}${self ? "" : origin ? " (went into it)" : " (it went into this)"}`}
    >
      <Box as="span" color={`${palette}.line`} flexShrink={0}>
        <Icon size={13} role="img" aria-label={said} />
      </Box>
      <Box minWidth={0} flex="1" truncate fontWeight={self ? "semibold" : undefined}>
        {route && !self ? <FloorLink to={route}>{shortLabel(node)}</FloorLink> : shortLabel(node)}
      </Box>
    </Flex>
  );
}
