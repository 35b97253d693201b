import { Stack } from "@chakra-ui/react";
import { useParams } from "react-router";
import { Bar, BarChart, CartesianGrid, Tooltip, XAxis, YAxis } from "recharts";

import { path, useApi } from "../api/client";
import type { LeadTime, LeadTimes } from "../api/models";
import { AXIS, Chart, GRID, MARGIN, series, TOOLTIP } from "../components/Chart";
import { Choice, DAYS } from "../components/Choice";
import type { Column } from "../components/DataTable";
import { Figure, Figures } from "../components/Figures";
import { ApiLink } from "../components/Links";
import { Panel } from "../components/Panel";
import { Empty, Loaded } from "../components/States";
import { Time } from "../components/Time";
import { UNKNOWN, words } from "../lib/format";
import { useParam } from "../lib/params";
import { formatDuration, formatRough } from "../lib/time";

const PARTS = ["queue", "touch", "approval", "bake"] as const;
const MEANING: Record<(typeof PARTS)[number], string> = {
  queue: "nobody worked on it",
  touch: "a stage worked on it",
  approval: "it waited for a person",
  bake: "it was tried in shadow and canary",
};

const COLUMNS: ReadonlyArray<Column<LeadTime>> = [
  { name: "Version", cell: (item) => <ApiLink href={item.unit_href}>v{item.version}</ApiLink> },
  { name: "Landed", cell: (item) => <Time at={item.landed} /> },
  { name: "Released", cell: (item) => <Time at={item.released} /> },
  ...PARTS.map((part) => ({ name: words(part), numeric: true, hint: MEANING[part], cell: (item: LeadTime) => formatDuration(item[`${part}_s`]) })),
  { name: "Total", numeric: true, cell: (item) => formatDuration(item.total_s) },
];

const seconds = (value: number | null) => (value === null ? UNKNOWN : formatDuration(value));

/** How long releases took from landed data to all traffic, and where the time went. */
export function LeadTimesPanel() {
  const { line = "" } = useParams();
  const [days, setDays] = useParam("days", "365");
  const lead = useApi<LeadTimes>(path("lines", line, "lead-times"), { days });
  return (
    <Panel
      title="Lead time"
      hint="From the landing of the newest day that a model learned, to all of the traffic"
      actions={<Choice label="Days that the releases span" value={days} options={DAYS} onChange={setDays} />}
    >
      <Loaded query={lead}>
        {({ summary, items }) =>
          items.length === 0 ? (
            <Empty title="No model has been released yet">The lead time comes with the first champion.</Empty>
          ) : (
            <Stack gap={4}>
              <Figures min="110px">
                <Figure name="Median" value={seconds(summary.total.p50_s)} note={`p95 ${seconds(summary.total.p95_s)}`} />
                {PARTS.map((part) => (
                  <Figure key={part} name={words(part)} title={MEANING[part]} value={seconds(summary[part].p50_s)} note={`p95 ${seconds(summary[part].p95_s)}`} />
                ))}
              </Figures>
              <Chart
                label="Lead time of each release, in parts"
                legend={PARTS}
                height={Math.min(420, 60 + items.length * 26)}
                rows={items}
                columns={COLUMNS}
                rowKey={(item) => `${item.version}${item.released}`}
              >
                <BarChart data={items} layout="vertical" margin={MARGIN} title="Lead time of each release">
                  <CartesianGrid stroke={GRID} horizontal={false} />
                  <XAxis type="number" {...AXIS} tickFormatter={formatRough} minTickGap={40} />
                  <YAxis type="category" dataKey="version" {...AXIS} axisLine={false} width={48} tickFormatter={(version: string) => `v${version}`} />
                  <Tooltip {...TOOLTIP} formatter={(value) => formatDuration(Number(value))} labelFormatter={(label) => `v${label}`} />
                  {PARTS.map((part, index) => (
                    <Bar key={part} dataKey={`${part}_s`} name={part} stackId="all" fill={series(index).color} isAnimationActive={false} maxBarSize={18} />
                  ))}
                </BarChart>
              </Chart>
            </Stack>
          )
        }
      </Loaded>
    </Panel>
  );
}
