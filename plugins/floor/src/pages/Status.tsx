import { Box, Flex, Grid, Stack, Text } from "@chakra-ui/react";
import { TriangleAlert } from "lucide-react";

import { LIVE_MS, path, useApi } from "../api/client";
import type { Kpis, LineCard, PageAttention, Quantiles, Span, StationKpis } from "../api/models";
import { AttentionList } from "../components/AttentionList";
import { type Column, DataTable } from "../components/DataTable";
import { Figure, Figures } from "../components/Figures";
import { FloorLink } from "../components/Links";
import { Loop } from "../components/Loop";
import { Panel } from "../components/Panel";
import { Sparkline } from "../components/Sparkline";
import { Ago } from "../components/Time";
import { formatMoney, formatNumber, formatRatio, plural, UNKNOWN } from "../lib/format";
import { formatDuration } from "../lib/time";
import { useLine } from "./LineLayout";
import { estimated } from "./Overview";

/** One line now: the loop, what waits, and its figures. */
export function Status() {
  const { card, kpis } = useLine();
  const waiting = useApi<PageAttention>(path("lines", card.line, "attention"), { limit: 20 }, LIVE_MS);
  return (
    <Stack gap={4}>
      <Loop kpis={kpis} card={card} />
      {waiting.data && waiting.data.items.length > 0 && (
        <Panel title="Waiting for a person" hint={plural(card.num_waiting, "item")} flush>
          <AttentionList items={waiting.data.items} />
        </Panel>
      )}
      <Grid templateColumns={{ base: "minmax(0, 1fr)", xl: "minmax(0, 1fr) minmax(0, 2fr)" }} gap={4} alignItems="start">
        <ChampionPanel card={card} />
        <Made kpis={kpis} />
      </Grid>
      <Stations kpis={kpis} />
      <Grid templateColumns={{ base: "minmax(0, 1fr)", lg: "repeat(3, minmax(0, 1fr))" }} gap={4} alignItems="stretch">
        <Panel title="Lead time" hint="Landed data to all traffic, and its parts">
          <LeadTimeFigures kpis={kpis} />
        </Panel>
        <Panel title="Reliability" hint="Means, of the line and of the model">
          <Figures min="136px">
            <Figure name="Line: time between failures" value={formatSpan(kpis.line_mtbf)} note={restsOn(kpis.line_mtbf, "failure")} />
            <Figure name="Line: time to repair" value={formatSpan(kpis.line_mttr)} note={restsOn(kpis.line_mttr, "repair")} />
            <Figure name="Model: time between breaches" value={formatSpan(kpis.model_mtbf)} note={restsOn(kpis.model_mtbf, "breach", "breaches")} />
            <Figure name="Model: time to restore" value={formatSpan(kpis.model_mttr)} note={restsOn(kpis.model_mttr, "repair")} />
          </Figures>
        </Panel>
        <Panel title="Delivery" hint="The four DORA measures, for models">
          <Figures min="136px">
            <Figure name="Releases a week" value={formatNumber(kpis.dora.releases_per_week)} />
            <Figure name="Lead time, median" value={formatSeconds(kpis.dora.lead_time.p50_s)} note={plural(kpis.dora.lead_time.num, "release")} />
            <Figure name="Change failure rate" value={formatRatio(kpis.dora.change_failure_rate)} note="rolled back later" />
            <Figure name="Time to restore" value={formatSpan(kpis.dora.time_to_restore)} note={restsOn(kpis.dora.time_to_restore, "repair")} />
          </Figures>
        </Panel>
      </Grid>
    </Stack>
  );
}

function ChampionPanel({ card }: { card: LineCard }) {
  const { champion } = card;
  const last = card.sparkline.at(-1);
  return (
    <Panel title="In service">
      {champion ? (
        <Stack gap={3}>
          <Figures min="120px">
            <Figure
              name="Champion"
              value={<FloorLink to={path("lines", card.line, "units", "model", champion.version)}>v{champion.version}</FloorLink>}
              note={
                <>
                  since <Ago at={champion.since} />
                  {champion.put_back && ", put back"}
                </>
              }
            />
            <Figure name="Learned until" value={champion.trained_until ?? UNKNOWN} note={champion.dataset_revision?.slice(0, 10)} />
            <Figure name={`Live ${card.metric}`} value={formatNumber(last?.value)} note={last && `window to ${last.day}`} />
          </Figures>
          {card.sparkline.length > 1 && (
            <Sparkline values={card.sparkline.map((point) => point.value)} label={`Live ${card.metric}`} />
          )}
        </Stack>
      ) : (
        <Text color="fg.muted">No model is in service yet. The first one comes once there are enough days to train and hold out.</Text>
      )}
    </Panel>
  );
}

function Made({ kpis }: { kpis: Kpis }) {
  const { throughput: made, cost } = kpis;
  return (
    <Panel title="Made, and what it cost">
      <Figures>
        <Figure name="Good models" value={formatNumber(made.num_good_models)} />
        <Figure name="Datasets" value={formatNumber(made.num_datasets)} />
        <Figure name="Predictions" value={formatNumber(made.num_predictions)} />
        {made.num_tokens !== null && <Figure name="Tokens" value={formatNumber(made.num_tokens)} />}
        <Figure name="Work in progress" value={formatNumber(kpis.wip)} />
        <Figure name="Rolled yield" value={formatRatio(kpis.rolled_yield)} note="first pass, all stations" />
        <Figure name="Cost" value={formatMoney(cost.money, cost.currency)} note={estimated(cost.estimated_share)} />
        <Figure name="Per good model" value={formatMoney(kpis.money_per_good_model, cost.currency)} note={perModel(kpis)} />
        <Figure name="Per 1,000 predictions" value={formatMoney(kpis.money_per_thousand_predictions, cost.currency)} />
        <Figure name="Energy" value={`${formatNumber(cost.energy_kwh)} kWh`} />
        <Figure name="Work" value={formatDuration(cost.work_s)} note={`${formatDuration(cost.gpu_s)} of GPU`} />
      </Figures>
    </Panel>
  );
}

function perModel(kpis: Kpis): string | undefined {
  const parts = [
    kpis.gpu_s_per_good_model && `${formatDuration(kpis.gpu_s_per_good_model)} of GPU`,
    kpis.energy_kwh_per_good_model && `${formatNumber(kpis.energy_kwh_per_good_model)} kWh`,
  ];
  return parts.filter(Boolean).join(" · ") || undefined;
}

function LeadTimeFigures({ kpis: { lead_time: lead } }: { kpis: Kpis }) {
  const parts: Array<readonly [string, Quantiles]> = [
    ["Total", lead.total],
    ["Queue", lead.queue],
    ["Touch", lead.touch],
    ["Approval", lead.approval],
    ["Bake", lead.bake],
  ];
  return (
    <Figures min="104px">
      {parts.map(([name, part]) => (
        <Figure key={name} name={name} value={formatSeconds(part.p50_s)} note={`p95 ${formatSeconds(part.p95_s)}`} />
      ))}
      <Figure name="Releases" value={formatNumber(lead.total.num)} />
    </Figures>
  );
}

function formatSeconds(seconds: number | null): string {
  return seconds === null ? UNKNOWN : formatDuration(seconds);
}

function formatSpan({ value_s, more_than }: Span): string {
  return value_s === null ? UNKNOWN : `${more_than ? "> " : ""}${formatDuration(value_s)}`;
}

function restsOn({ num }: Span, noun: string, nouns?: string): string {
  return num === 0 ? `no ${noun} seen` : plural(num, noun, nouns);
}

const STATION_COLUMNS: ReadonlyArray<Column<StationKpis>> = [
  { name: "Station", cell: (row) => <Text fontWeight="medium" textTransform="capitalize">{row.station}</Text> },
  { name: "Availability", cell: (row) => <Bar value={row.oee.availability} />, hint: "Work time ÷ (work time + downtime by infrastructure)" },
  { name: "Performance", cell: (row) => <Performance row={row} />, hint: "Ideal cycle times units ÷ work time" },
  { name: "Quality", cell: (row) => <Bar value={row.oee.quality} />, hint: "Good units ÷ units" },
  { name: "OEE", cell: (row) => <Bar value={row.oee.oee} strong />, hint: "Product of the three (ISO 22400-2)" },
  { name: "First pass", numeric: true, cell: (row) => formatRatio(row.first_pass_yield) },
  { name: "Rework", numeric: true, cell: (row) => formatNumber(row.num_rework) },
  { name: "Scrap", numeric: true, cell: (row) => formatNumber(row.num_scrap) },
  { name: "Row yield", numeric: true, cell: (row) => formatRatio(row.row_yield, 2), hint: "Good rows ÷ rows in" },
  { name: "Cycle", numeric: true, cell: (row) => formatSeconds(row.cycle_s), hint: "Effective: (work + down) ÷ good units" },
  { name: "Takt", numeric: true, cell: (row) => formatSeconds(row.takt_s), hint: "In which the plan asks for one good unit" },
  { name: "Load", numeric: true, cell: (row) => formatRatio(row.load, 0), hint: "Cycle ÷ takt: over 100 % it cannot keep up" },
  { name: "Down", numeric: true, cell: (row) => formatDuration(row.down_s), hint: "Lost to infrastructure" },
];

function Stations({ kpis }: { kpis: Kpis }) {
  const wrong = kpis.stations.filter((row) => row.oee.ideal_is_wrong);
  return (
    <Panel title="Stations" hint="Overall equipment effectiveness of each; never averaged over stations" flush>
      <DataTable
        label="Stations"
        columns={STATION_COLUMNS}
        rows={kpis.stations}
        rowKey={(row) => row.station}
        onRow={(row) => row.station === kpis.bottleneck?.station}
      />
      {wrong.map((row) => (
        <Flex key={row.station} px={4} py={2} gap={2} fontSize="xs" color="amber.fg" align="center">
          <TriangleAlert size={14} aria-hidden />
          <span>
            {row.station} is faster than its {row.oee.ideal_source} ideal cycle of {formatSeconds(row.oee.ideal_cycle_s)}: the
            ideal is wrong; correct schedule.ideal_cycle_s in line.yaml.
          </span>
        </Flex>
      ))}
    </Panel>
  );
}

function Performance({ row }: { row: StationKpis }) {
  return (
    <Flex align="center" gap={1}>
      <Bar value={row.oee.performance} />
      {row.oee.ideal_is_wrong && (
        <Box as="span" color="amber.line">
          <TriangleAlert size={13} role="img" aria-label="the ideal is wrong" />
        </Box>
      )}
    </Flex>
  );
}

/** A share as a number over a bar. */
function Bar({ value, strong = false }: { value: number | null; strong?: boolean }) {
  return (
    <Box minWidth="72px">
      <Text as="span" fontWeight={strong ? "semibold" : undefined}>
        {formatRatio(value)}
      </Text>
      <Box height="3px" bg="bg.emphasized" borderRadius="full" mt={0.5} aria-hidden>
        <Box
          height="3px"
          borderRadius="full"
          bg={strong ? "brand.line" : "brand.emphasized"}
          width={`${Math.min(1, value ?? 0) * 100}%`}
        />
      </Box>
    </Box>
  );
}
