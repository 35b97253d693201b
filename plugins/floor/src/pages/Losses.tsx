import { Box, Grid, Stack, Text } from "@chakra-ui/react";
import { useParams } from "react-router";
import { Bar, CartesianGrid, Cell, ComposedChart, Line, Tooltip, XAxis, YAxis } from "recharts";

import { path, useApi } from "../api/client";
import type { Pareto, ParetoItem } from "../api/models";
import { AXIS, Chart, GRID, MARGIN, series, TOOLTIP } from "../components/Chart";
import { Choice, DAYS } from "../components/Choice";
import { type Column, DataTable } from "../components/DataTable";
import { Panel } from "../components/Panel";
import { Empty, Loaded } from "../components/States";
import { formatNumber, formatRatio, plural, words } from "../lib/format";
import { useParam } from "../lib/params";
import { formatDuration } from "../lib/time";

const NUM_SHOWN = 12;

const COLUMNS: ReadonlyArray<Column<ParetoItem>> = [
  {
    name: "Reason",
    cell: (item) => (
      <Box minWidth="200px" maxWidth="52ch">
        <Text fontWeight="medium">{words(item.reason)}</Text>
        <Text fontSize="xs" color="fg.muted">
          {item.sentence}
        </Text>
      </Box>
    ),
  },
  { name: "Counts against", cell: (item) => (item.kind === "defect" ? "yield" : "availability") },
  { name: "Events", numeric: true, cell: (item) => formatNumber(item.num_events) },
  { name: "Units", numeric: true, cell: (item) => formatNumber(item.num_units) },
  { name: "Scrap", numeric: true, cell: (item) => formatNumber(item.num_scrap), hint: "Units that were good never after" },
  { name: "Rework", numeric: true, cell: (item) => formatNumber(item.num_rework), hint: "Units that were good later" },
  { name: "Rows", numeric: true, cell: (item) => formatNumber(item.num_rows) },
  { name: "Lost work", numeric: true, cell: (item) => formatDuration(item.lost_s) },
  {
    name: "Stations",
    cell: (item) =>
      Object.entries(item.stations)
        .map(([station, count]) => `${station} ${count}`)
        .join(", "),
  },
  { name: "Cumulative", numeric: true, cell: (item) => formatRatio(item.cumulative_share, 0) },
];

/** Scrap and rework by reason, most frequent first. */
export function Losses() {
  const { line = "" } = useParams();
  const [days, setDays] = useParam("days", "90");
  const pareto = useApi<Pareto>(path("lines", line, "pareto"), { days });
  return (
    <Stack gap={4}>
      <Panel
        title="Why units were stopped"
        hint="Scrap, holds and faults by reason, most frequent first"
        actions={<Choice label="Days that the losses span" value={days} options={DAYS} onChange={setDays} />}
      >
        <Loaded query={pareto}>
          {(found) => (found.items.length === 0 ? <NoLoss days={days} /> : <ParetoChart pareto={found} />)}
        </Loaded>
      </Panel>
      {pareto.data && pareto.data.items.length > 0 && (
        <Panel title="Reasons" hint={plural(pareto.data.num_events, "event")} flush>
          <DataTable label="Reasons" columns={COLUMNS} rows={pareto.data.items} rowKey={(item) => item.reason} />
        </Panel>
      )}
      {pareto.data && Object.keys(pareto.data.quarantined).length > 0 && <Quarantined rows={pareto.data.quarantined} />}
    </Stack>
  );
}

function NoLoss({ days }: { days: string }) {
  return <Empty title={`Nothing was stopped in ${days} days`}>Every unit was good at once.</Empty>;
}

function ParetoChart({ pareto }: { pareto: Pareto }) {
  const shown = pareto.items.slice(0, NUM_SHOWN);
  return (
    <Chart label="Pareto of reasons" legend={["defects, against yield", "infrastructure, against availability"]} height={270} rows={shown} columns={COLUMNS} rowKey={(item) => item.reason}>
      <ComposedChart data={shown} margin={{ ...MARGIN, bottom: 4 }} title="Pareto of reasons">
        <CartesianGrid stroke={GRID} vertical={false} />
        <XAxis dataKey="reason" {...AXIS} interval={0} height={70} angle={-28} textAnchor="end" tickFormatter={shortReason} />
        <YAxis yAxisId="events" {...AXIS} axisLine={false} allowDecimals={false} width={34} />
        <YAxis
          yAxisId="share"
          orientation="right"
          {...AXIS}
          axisLine={false}
          domain={[0, 1]}
          width={44}
          tickFormatter={(value: number) => formatRatio(value, 0)}
        />
        <Tooltip
          {...TOOLTIP}
          labelFormatter={(label) => words(String(label))}
          formatter={(value, name) => (name === "cumulative" ? formatRatio(Number(value), 0) : formatNumber(Number(value)))}
        />
        <Bar yAxisId="events" dataKey="num_events" name="events" isAnimationActive={false} maxBarSize={44}>
          {shown.map((item) => (
            <Cell
              key={item.reason}
              fill={series(item.kind === "defect" ? 0 : 1).color}
            />
          ))}
        </Bar>
        <Line
          yAxisId="share"
          dataKey="cumulative_share"
          name="cumulative"
          stroke="var(--chakra-colors-orange-line)"
          strokeWidth={1.5}
          dot={{ r: 2 }}
          isAnimationActive={false}
        />
      </ComposedChart>
    </Chart>
  );
}

function shortReason(reason: string): string {
  const text = words(reason);
  return text.length > 18 ? `${text.slice(0, 17)}…` : text;
}

/** Rows that gates put in quarantine, by reason. */
function Quarantined({ rows }: { rows: Pareto["quarantined"] }) {
  const items = Object.entries(rows);
  const most = Math.max(...items.map(([, count]) => count));
  return (
    <Panel title="Rows in quarantine by reason">
      <Grid as="dl" templateColumns="minmax(120px, max-content) 1fr" columnGap={4} rowGap={1} alignItems="center">
        {items.map(([reason, count]) => (
          <Box key={reason} display="contents">
            <dt>{words(reason)}</dt>
            <dd>
              <Box display="flex" alignItems="center" gap={2}>
                <Box height="8px" borderRadius="1px" bg="brand.line" width={`${Math.max(0.5, (count / most) * 70)}%`} aria-hidden />
                <Text as="span" fontVariantNumeric="tabular-nums">
                  {formatNumber(count)}
                </Text>
              </Box>
            </dd>
          </Box>
        ))}
      </Grid>
    </Panel>
  );
}
