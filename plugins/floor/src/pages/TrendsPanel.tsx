import { Flex, Grid } from "@chakra-ui/react";
import type { ComponentProps } from "react";
import { useParams } from "react-router";

import { path, useApi } from "../api/client";
import type { StationKpis, TrendPoint, Trends } from "../api/models";
import { Choice } from "../components/Choice";
import { Panel } from "../components/Panel";
import { Empty, Loaded } from "../components/States";
import { type Series, TimeChart } from "../components/TimeChart";
import { formatMoney, formatNumber, formatRatio } from "../lib/format";
import { useParam } from "../lib/params";
import { formatDuration, formatRough } from "../lib/time";

const STATIONS: StationKpis["station"][] = ["ingest", "train", "deploy", "score", "feedback"];
const SPANS: ReadonlyArray<readonly [string, string]> = [
  ["30 day", "30 days, by day"],
  ["90 week", "90 days, by week"],
  ["365 week", "A year, by week"],
  ["1100 week", "3 years, by week"],
];

const day = (point: TrendPoint) => point.begin.slice(0, 10);
const share = (value: number) => formatRatio(value, 0);

/** A figure of each station. */
function byStation(
  figures: (point: TrendPoint) => Partial<Record<StationKpis["station"], number | null>>,
  missing: number | null = null,
): Series<TrendPoint>[] {
  return STATIONS.map((name) => ({ name, value: (point) => figures(point)[name] ?? missing }));
}

/** One chart in a panel of its own. */
function Trend({
  title,
  hint,
  ...chart
}: { title: string; hint?: string } & Omit<ComponentProps<typeof TimeChart<TrendPoint>>, "label" | "day">) {
  return (
    <Panel title={title} hint={hint}>
      <TimeChart label={title} day={day} {...chart} />
    </Panel>
  );
}

/** KPIs over time. */
export function TrendsPanel() {
  const { line = "" } = useParams();
  const [span, setSpan] = useParam("span", "90 week");
  const [days, bucket] = span.split(" ");
  const trends = useApi<Trends>(path("lines", line, "trends"), { days, bucket });
  return (
    <>
      <Flex justify="flex-end" mb={3}>
        <Choice label="Days that the charts span" value={span} options={SPANS} onChange={setSpan} />
      </Flex>
      <Loaded query={trends}>
        {({ points, currency }) =>
          points.length === 0 ? (
            <Empty title="Nothing has happened yet">Figures come with the first night of the line.</Empty>
          ) : (
            <Grid templateColumns={{ base: "minmax(0, 1fr)", xl: "repeat(2, minmax(0, 1fr))" }} gap={4}>
              <Trend
                title="First-pass yield"
                hint="Units that were good at once, by station"
                rows={points}
                of={byStation((point) => point.first_pass_yield)}
                format={share}
                share
              />
              <Trend
                title="OEE"
                hint="By station; never averaged"
                rows={points}
                of={byStation((point) => point.oee)}
                format={share}
                share
              />
              <Trend
                title="Rolled yield"
                hint="Product of the first-pass yields"
                rows={points}
                of={[{ name: "rolled yield", value: (point) => point.rolled_yield }]}
                format={share}
                share
              />
              <Trend
                title="Good models"
                hint="Took all traffic"
                rows={points}
                of={[{ name: "good models", value: (point) => point.num_good_models }]}
                format={formatNumber}
                kind="bar"
                whole
              />
              <Trend
                title="Predictions"
                hint="Good, in batches"
                rows={points}
                of={[{ name: "predictions", value: (point) => point.num_predictions }]}
                format={formatNumber}
                kind="bar"
              />
              <Trend
                title="Scrap and rework"
                hint="Units"
                rows={points}
                of={[
                  { name: "rework", value: (point) => point.num_rework },
                  { name: "scrap", value: (point) => point.num_scrap },
                ]}
                format={formatNumber}
                kind="bar"
                whole
              />
              <Trend
                title="Work"
                hint="Seconds at each station"
                rows={points}
                of={byStation((point) => point.work_s, 0)}
                format={formatDuration}
                tick={formatRough}
                kind="bar"
              />
              <Trend
                title="Downtime"
                hint="Lost to infrastructure"
                rows={points}
                of={[{ name: "down", value: (point) => point.down_s }]}
                format={formatDuration}
                tick={formatRough}
                kind="bar"
              />
              <Trend
                title="Cost"
                rows={points}
                of={[{ name: "cost", value: (point) => point.money }]}
                format={(value) => formatMoney(value, currency)}
                kind="bar"
              />
              <Trend
                title="Energy"
                hint="kWh"
                rows={points}
                of={[{ name: "energy", value: (point) => point.energy_kwh }]}
                format={formatNumber}
                kind="bar"
              />
            </Grid>
          )
        }
      </Loaded>
    </>
  );
}
