import { Box, chakra, Flex, Grid, Stack, Text } from "@chakra-ui/react";
import { TriangleAlert } from "lucide-react";
import { useParams } from "react-router";
import { Bar, BarChart, CartesianGrid, Cell, ReferenceLine, Tooltip, XAxis, YAxis } from "recharts";

import { path, useApi, usePages } from "../api/client";
import type { FeatureDrift, Window, WindowFeatures, Windows } from "../api/models";
import { AXIS, Chart, GRID, MARGIN, series, TOOLTIP } from "../components/Chart";
import { type Column, DataTable } from "../components/DataTable";
import { Figure, Figures } from "../components/Figures";
import { ApiLink, FloorLink } from "../components/Links";
import { LoadMore } from "../components/LoadMore";
import { Panel } from "../components/Panel";
import { Empty, Loaded } from "../components/States";
import { TimeChart } from "../components/TimeChart";
import { formatNumber, formatRatio, plural } from "../lib/format";

const NUM_FEATURES = 20;

/** How the champion does on outcomes, and how far the world has moved from what it learned. */
export function Drift() {
  const { line = "", day } = useParams();
  const windows = usePages<Windows>(path("lines", line, "windows"), { limit: 60 });
  const first = windows.data?.pages[0];
  const newestFirst = windows.data?.pages.flatMap((page) => page.items) ?? [];
  const chosen = day ?? newestFirst[0]?.day;
  return (
    <Loaded query={{ ...windows, data: first }}>
      {({ metric, limits }) =>
        newestFirst.length === 0 ? (
          <Empty title="No window has been judged yet">
            Outcomes must have arrived for the predictions of a whole window before it can be judged.
          </Empty>
        ) : (
          <Stack gap={4}>
            <Grid templateColumns={{ base: "minmax(0, 1fr)", xl: "repeat(2, minmax(0, 1fr))" }} gap={4}>
              <MetricChart metric={metric} windows={newestFirst} />
              <CalibrationChart windows={newestFirst} limit={limits.max_calibration_error} />
            </Grid>
            {chosen && <Features line={line} day={chosen} />}
            <Panel title="Windows" hint="Newest first; choose one to see its features above" flush>
              <WindowTable line={line} metric={metric} windows={newestFirst} chosen={chosen} />
              <LoadMore query={windows} />
            </Panel>
          </Stack>
        )
      }
    </Loaded>
  );
}

function MetricChart({ metric, windows }: { metric: string; windows: Window[] }) {
  return (
    <Panel title={`Live ${metric}`} hint="Of each window, on outcomes that have arrived">
      <TimeChart
        label={`Live ${metric} of each window`}
        rows={[...windows].reverse()}
        day={(window) => window.day}
        of={[{ name: metric, value: (window) => window.metrics[metric] ?? null }]}
        format={formatNumber}
      />
    </Panel>
  );
}

function CalibrationChart({ windows, limit }: { windows: Window[]; limit: number | undefined }) {
  return (
    <Panel title="Calibration error" hint="How far the predicted probabilities lie from the outcomes">
      <TimeChart
        label="Calibration error of each window"
        rows={[...windows].reverse()}
        day={(window) => window.day}
        of={[{ name: "calibration error", value: (window) => window.metrics.calibration_error ?? null }]}
        format={formatNumber}
        limit={limit === undefined ? undefined : { value: limit, name: "limit" }}
      />
    </Panel>
  );
}

function WindowTable({ line, metric, windows, chosen }: { line: string; metric: string; windows: Window[]; chosen: string | undefined }) {
  const columns: ReadonlyArray<Column<Window>> = [
    {
      name: "Window to",
      cell: (window) => (
        <FloorLink to={path("lines", line, "windows", window.day)} whiteSpace="nowrap">
          {window.day}
        </FloorLink>
      ),
    },
    { name: "Model", cell: (window) => (window.model_version ? `v${window.model_version}` : "–") },
    { name: metric, numeric: true, cell: (window) => formatNumber(window.metrics[metric]) },
    { name: "Calibration", numeric: true, cell: (window) => formatNumber(window.metrics.calibration_error) },
    { name: "Scored", numeric: true, cell: (window) => formatNumber(window.num_scored) },
    { name: "Outcomes", numeric: true, cell: (window) => formatNumber(window.num_outcomes) },
    { name: "Over a limit", cell: (window) => <Violations violations={window.violations} /> },
    { name: "Report", cell: (window) => window.href && <ApiLink href={window.href}>Report</ApiLink> },
  ];
  return <DataTable label="Windows" columns={columns} rows={windows} rowKey={(window) => window.day} onRow={(window) => window.day === chosen} />;
}

function Violations({ violations }: { violations: string[] }) {
  if (violations.length === 0) return <Text color="fg.muted">none</Text>;
  return (
    <Stack gap={0.5} minWidth="220px">
      {violations.map((violation) => (
        <Flex key={violation} gap={1.5} align="flex-start">
          <Box as="span" color="amber.line" pt="3px" flexShrink={0}>
            <TriangleAlert size={13} aria-hidden />
          </Box>
          <span>{violation}</span>
        </Flex>
      ))}
    </Stack>
  );
}

const FEATURE_COLUMNS: ReadonlyArray<Column<FeatureDrift>> = [
  { name: "Feature", cell: (row) => row.feature },
  { name: "PSI", numeric: true, cell: (row) => formatNumber(row.psi) },
  { name: "p-value", numeric: true, cell: (row) => formatNumber(row.p_value) },
  { name: "Over the limit", cell: (row) => (row.drifted ? "yes" : "no") },
];

function Features({ line, day }: { line: string; day: string }) {
  const features = useApi<WindowFeatures>(path("lines", line, "windows", day));
  return (
    <Panel title={`Drift of the features, window to ${day}`} hint="Population stability index: how far each has moved from what the model learned">
      <Loaded query={features}>
        {(found) => {
          const limit = found.limits.max_feature_psi;
          const shown = found.features.filter((row) => row.psi !== null).slice(0, NUM_FEATURES);
          return (
            <Stack gap={3}>
              <Figures>
                <Figure name="Model" value={`v${found.model_version}`} />
                <Figure name="Score PSI" value={formatNumber(found.score_psi)} note={limitNote(found.limits.max_score_psi)} />
                <Figure name="Features over the limit" value={formatRatio(found.drifted_share, 0)} note={limitNote(found.limits.max_drifted_share)} />
              </Figures>
              {shown.length === 0 ? (
                <Empty title="No feature could be compared">The window has too few rows for a distribution.</Empty>
              ) : (
                <Chart
                  label={`Drift of the ${plural(shown.length, "feature")} that moved most`}
                  height={shown.length * 20 + 40}
                  rows={found.features}
                  columns={FEATURE_COLUMNS}
                  rowKey={(row) => row.feature}
                >
                  <BarChart data={shown} layout="vertical" margin={MARGIN} title="Drift of the features">
                    <CartesianGrid stroke={GRID} horizontal={false} />
                    <XAxis type="number" {...AXIS} domain={[0, "auto"]} tickFormatter={formatNumber} />
                    <YAxis type="category" dataKey="feature" {...AXIS} axisLine={false} width={170} interval={0} />
                    <Tooltip {...TOOLTIP} formatter={(value) => formatNumber(Number(value))} />
                    {limit !== undefined && (
                      <ReferenceLine x={limit} stroke="var(--chakra-colors-red-line)" strokeDasharray="4 4" ifOverflow="extendDomain" />
                    )}
                    <Bar dataKey="psi" name="PSI" isAnimationActive={false} maxBarSize={12} radius={[0, 2, 2, 0]}>
                      {shown.map((row) => (
                        <Cell key={row.feature} fill={row.drifted ? "var(--chakra-colors-amber-line)" : series(0).color} />
                      ))}
                    </Bar>
                  </BarChart>
                </Chart>
              )}
              {limit !== undefined && (
                <Text fontSize="xs" color="fg.muted">
                  <chakra.span color="red.fg">┆</chakra.span> the line's limit, {limit}
                </Text>
              )}
            </Stack>
          );
        }}
      </Loaded>
    </Panel>
  );
}

function limitNote(limit: number | undefined): string | undefined {
  return limit === undefined ? undefined : `limit ${formatNumber(limit)}`;
}
