import { Flex, Grid } from "@chakra-ui/react";
import { useParams } from "react-router";

import { path, useApi } from "../api/client";
import type { StationKpis, TrendPoint, Trends } from "../api/models";
import { Choice } from "../components/Choice";
import { Panel } from "../components/Panel";
import { Empty, Loaded } from "../components/States";
import { TimeChart } from "../components/TimeChart";
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
              <Panel title="First-pass yield" hint="Units that were good at once, by station">
                <TimeChart
                  label="First-pass yield by station"
                  rows={points}
                  day={day}
                  of={STATIONS.map((name) => ({ name, value: (point: TrendPoint) => point.first_pass_yield[name] ?? null }))}
                  format={share}
                  share
                />
              </Panel>
              <Panel title="OEE" hint="By station; never averaged">
                <TimeChart
                  label="OEE by station"
                  rows={points}
                  day={day}
                  of={STATIONS.map((name) => ({ name, value: (point: TrendPoint) => point.oee[name] ?? null }))}
                  format={share}
                  share
                />
              </Panel>
              <Panel title="Rolled yield" hint="Product of the first-pass yields">
                <TimeChart
                  label="Rolled yield"
                  rows={points}
                  day={day}
                  of={[{ name: "rolled yield", value: (point: TrendPoint) => point.rolled_yield }]}
                  format={share}
                  share
                />
              </Panel>
              <Panel title="Good models" hint="Took all traffic">
                <TimeChart
                  label="Good models"
                  rows={points}
                  day={day}
                  of={[{ name: "good models", value: (point: TrendPoint) => point.num_good_models }]}
                  format={formatNumber}
                  kind="bar"
                  whole
                />
              </Panel>
              <Panel title="Predictions" hint="Good, in batches">
                <TimeChart
                  label="Predictions"
                  rows={points}
                  day={day}
                  of={[{ name: "predictions", value: (point: TrendPoint) => point.num_predictions }]}
                  format={formatNumber}
                  kind="bar"
                />
              </Panel>
              <Panel title="Scrap and rework" hint="Units">
                <TimeChart
                  label="Scrap and rework"
                  rows={points}
                  day={day}
                  of={[
                    { name: "rework", value: (point: TrendPoint) => point.num_rework },
                    { name: "scrap", value: (point: TrendPoint) => point.num_scrap },
                  ]}
                  format={formatNumber}
                  whole
                  kind="bar"
                />
              </Panel>
              <Panel title="Work" hint="Seconds at each station">
                <TimeChart
                  label="Work by station"
                  rows={points}
                  day={day}
                  of={STATIONS.map((name) => ({ name, value: (point: TrendPoint) => point.work_s[name] ?? 0 }))}
                  format={formatDuration}
                  tick={formatRough}
                  kind="bar"
                />
              </Panel>
              <Panel title="Downtime" hint="Lost to infrastructure">
                <TimeChart
                  label="Downtime"
                  rows={points}
                  day={day}
                  of={[{ name: "down", value: (point: TrendPoint) => point.down_s }]}
                  format={formatDuration}
                  tick={formatRough}
                  kind="bar"
                />
              </Panel>
              <Panel title="Cost">
                <TimeChart
                  label="Cost"
                  rows={points}
                  day={day}
                  of={[{ name: "cost", value: (point: TrendPoint) => point.money }]}
                  format={(value) => formatMoney(value, currency)}
                  kind="bar"
                />
              </Panel>
              <Panel title="Energy" hint="kWh">
                <TimeChart
                  label="Energy"
                  rows={points}
                  day={day}
                  of={[{ name: "energy", value: (point: TrendPoint) => point.energy_kwh }]}
                  format={formatNumber}
                  kind="bar"
                />
              </Panel>
            </Grid>
          )
        }
      </Loaded>
    </>
  );
}
