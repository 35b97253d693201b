import { Box, chakra, Flex, Text } from "@chakra-ui/react";
import type { ReactNode } from "react";
import { ResponsiveContainer } from "recharts";

import { type Column, DataTable } from "./DataTable";

/** The colour and dash of each series, told apart without colour too. */
export const SERIES = [
  { color: "var(--chakra-colors-brand-line)", dash: undefined },
  { color: "var(--chakra-colors-cyan-chart)", dash: "6 3" },
  { color: "var(--chakra-colors-amber-chart)", dash: "2 3" },
  { color: "var(--chakra-colors-purple-chart)", dash: "10 3 2 3" },
  { color: "var(--chakra-colors-stone-chart)", dash: "4 2" },
] as const;

export const series = (index: number) => SERIES[index % SERIES.length] ?? SERIES[0];

export const GRID = "var(--chakra-colors-border-muted)";
export const AXIS = {
  stroke: "var(--chakra-colors-border)",
  tick: { fill: "var(--chakra-colors-fg-muted)" },
  tickLine: false,
} as const;

/** What the pointer or the arrow keys point at. */
export const TOOLTIP = {
  isAnimationActive: false,
  contentStyle: {
    background: "var(--chakra-colors-bg-panel)",
    border: "1px solid var(--chakra-colors-border)",
    borderRadius: 6,
    fontSize: 12,
    padding: "6px 10px",
    boxShadow: "var(--chakra-shadows-md)",
  },
  itemStyle: { color: "var(--chakra-colors-fg)", padding: 0 },
  labelStyle: { color: "var(--chakra-colors-fg-muted)" },
  cursor: { stroke: "var(--chakra-colors-border-emphasized)", fill: "var(--chakra-colors-bg-muted)" },
} as const;

export const MARGIN = { top: 6, right: 12, bottom: 0, left: 0 };

const CHART_CSS = {
  "& .recharts-cartesian-axis-tick-value, & .recharts-label": { fontSize: "11px" },
  "& svg:focus": { outline: "none" },
  "& svg:focus-visible": { outline: "2px solid var(--chakra-colors-brand-focus-ring)" },
};

/** A chart, and the same numbers as a table for those who do not see it or want the figures. */
export function Chart<T>({
  label,
  legend,
  swatch = "bar",
  height = 200,
  rows,
  columns,
  rowKey,
  children,
}: {
  label: string;
  legend?: ReadonlyArray<string>;
  /** How the legend shows a series: as its line, or as a block of its colour. */
  swatch?: "line" | "bar";
  height?: number;
  rows: ReadonlyArray<T>;
  columns: ReadonlyArray<Column<T>>;
  rowKey: (row: T) => string;
  children: ReactNode;
}) {
  return (
    <Box as="figure" aria-label={label} minWidth={0}>
      {legend && <Legend names={legend} swatch={swatch} />}
      <Box height={`${height}px`} css={CHART_CSS}>
        <ResponsiveContainer width="100%" height="100%" minWidth={0}>
          {children}
        </ResponsiveContainer>
      </Box>
      <chakra.details mt={1} fontSize="xs">
        <chakra.summary color="fg.muted" cursor="pointer" width="fit-content">
          As a table
        </chakra.summary>
        <Box mt={2} maxHeight="320px" overflowY="auto" borderWidth="1px" borderRadius="sm">
          <DataTable label={`${label}, as a table`} columns={columns} rows={rows} rowKey={rowKey} />
        </Box>
      </chakra.details>
    </Box>
  );
}

export function Legend({ names, swatch }: { names: ReadonlyArray<string>; swatch: "line" | "bar" }) {
  return (
    <Flex gap={4} wrap="wrap" mb={1} aria-hidden>
      {names.map((name, index) => {
        const { color, dash } = series(index);
        return (
          <Flex key={name} align="center" gap={1.5} fontSize="xs" color="fg.muted">
            {swatch === "line" ? (
              <svg width="22" height="8">
                <line x1="0" x2="22" y1="4" y2="4" stroke={color} strokeWidth="2.5" strokeDasharray={dash} />
              </svg>
            ) : (
              <svg width="10" height="10">
                <rect width="10" height="10" rx="1.5" fill={color} />
              </svg>
            )}
            <Text as="span">{name}</Text>
          </Flex>
        );
      })}
    </Flex>
  );
}
