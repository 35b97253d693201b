import { Box, Button, Flex, Grid, Heading, Input, Skeleton, Text } from "@chakra-ui/react";

import { LIVE_MS, useApi, usePages } from "../api/client";
import type { LineCard as Card, Overview as Floor, PageAttention, PlantTotals } from "../api/models";
import { AttentionList } from "../components/AttentionList";
import { lineStateLabel } from "../components/Badges";
import { Choice, DAYS } from "../components/Choice";
import { Figure, Figures } from "../components/Figures";
import { InvalidLines } from "../components/InvalidLines";
import { LineCard } from "../components/LineCard";
import { LoadMore } from "../components/LoadMore";
import { Panel } from "../components/Panel";
import { useTitle } from "../components/Shell";
import { Empty, Freshness, Loaded } from "../components/States";
import { formatMoney, formatNumber, plural } from "../lib/format";
import { useParam, useTypedParam } from "../lib/params";
import { formatDuration } from "../lib/time";

const STATES: Card["state"][] = ["attention", "running", "idle", "paused", "never_run"];

/** The floor: every line at a glance, the urgent ones first. */
export function Overview() {
  useTitle("All lines");
  const [days, setDays] = useParam("days", "7");
  const [state, setState] = useParam("state", "");
  const [typed, setTyped, search] = useTypedParam("q");

  const floor = usePages<Floor>("/overview", { days, state, q: search, limit: 48 }, LIVE_MS);
  const waiting = useApi<PageAttention>("/attention", { limit: 8 }, LIVE_MS);
  const newest = floor.data?.pages[0];
  const lines = floor.data?.pages.flatMap((page) => page.lines) ?? [];

  return (
    <>
      <Flex align="center" justify="space-between" gap={3} mb={4} wrap="wrap">
        <Heading as="h1" fontSize="xl">
          Factory floor
        </Heading>
        <Flex align="center" gap={3} wrap="wrap">
          <Freshness at={floor.dataUpdatedAt} error={floor.error} />
          <Choice label="Days that counts and cost span" value={days} options={DAYS.slice(0, 3)} onChange={setDays} />
        </Flex>
      </Flex>

      <Loaded query={{ ...floor, data: newest }} skeleton={<OverviewSkeleton />}>
        {({ totals, invalid }) => (
          <Flex direction="column" gap={4}>
            <Totals totals={totals} />
            {invalid.length > 0 && <InvalidLines lines={invalid} />}
            {waiting.data && waiting.data.items.length > 0 && (
              <Panel title="Waiting for a person" hint={waitingHint(waiting.data, totals)} flush>
                <AttentionList items={waiting.data.items} withLine />
              </Panel>
            )}
            <Flex gap={2} wrap="wrap" align="center" role="search">
              <Input
                size="xs"
                width={{ base: "100%", sm: "220px" }}
                bg="bg.panel"
                placeholder="Find a line, team or title"
                aria-label="Find a line"
                value={typed}
                onChange={(event) => setTyped(event.currentTarget.value)}
              />
              <StateFilter totals={totals} state={state} setState={setState} />
            </Flex>
            {lines.length === 0 ? (
              (totals.num_lines > 0 || invalid.length === 0) && <NoLines totals={totals} />
            ) : (
              <Grid
                as="ul"
                listStyleType="none"
                aria-label="Lines"
                templateColumns="repeat(auto-fill, minmax(min(100%, 360px), 1fr))"
                gap={4}
              >
                {lines.map((card) => (
                  <LineCard key={card.line} card={card} days={Number(days)} />
                ))}
              </Grid>
            )}
            <LoadMore query={floor} />
          </Flex>
        )}
      </Loaded>
    </>
  );
}

function waitingHint(page: PageAttention, totals: PlantTotals): string {
  const shown = page.items.length;
  return shown < totals.num_waiting
    ? `The newest ${shown} of ${totals.num_waiting}; the others are on their lines`
    : plural(shown, "item");
}

function Totals({ totals }: { totals: PlantTotals }) {
  const { cost } = totals;
  return (
    <Box as="section" aria-label="The whole plant" bg="bg.panel" borderWidth="1px" borderRadius="md" px={4} py={3}>
      <Figures min="112px" spread>
        <Figure name="Lines" value={formatNumber(totals.num_lines)} note={`${totals.num_by_state.running ?? 0} running`} />
        <Figure
          name="Waiting for a person"
          value={formatNumber(totals.num_waiting)}
          note={`on ${plural(totals.num_by_state.attention ?? 0, "line")}`}
        />
        <Figure name="Work in progress" value={formatNumber(totals.wip)} note="units" />
        <Figure name="Good models" value={formatNumber(totals.num_good_models)} note="took all traffic" />
        <Figure name="Predictions" value={formatNumber(totals.num_predictions)} note="good, in batches" />
        <Figure name="Work" value={formatDuration(cost.work_s)} note={`${formatDuration(cost.gpu_s)} of GPU`} />
        <Figure name="Energy" value={`${formatNumber(cost.energy_kwh)} kWh`} />
        <Figure name="Cost" value={formatMoney(cost.money, cost.currency)} note={estimated(cost.estimated_share)} />
      </Figures>
    </Box>
  );
}

export function estimated(share: number | null): string | undefined {
  return share ? `${(share * 100).toFixed(0)} % estimated` : undefined;
}

function StateFilter({
  totals,
  state,
  setState,
}: {
  totals: PlantTotals;
  state: string;
  setState: (state: string) => void;
}) {
  const choices: Array<readonly [string, string]> = [
    ["", `All ${totals.num_lines}`],
    ...STATES.filter((name) => (totals.num_by_state[name] ?? 0) > 0).map(
      (name) => [name, `${lineStateLabel(name)} ${totals.num_by_state[name]}`] as const,
    ),
  ];
  return (
    <Flex gap={1} wrap="wrap" role="group" aria-label="Show lines by state">
      {choices.map(([name, label]) => (
        <Button
          key={name}
          size="xs"
          variant={state === name ? "subtle" : "ghost"}
          aria-pressed={state === name}
          onClick={() => setState(name)}
        >
          {label}
        </Button>
      ))}
    </Flex>
  );
}

function NoLines({ totals }: { totals: PlantTotals }) {
  return totals.num_lines === 0 ? (
    <Empty title="There is no line that you may see">
      A line is a folder under include/lines; it is here for those who may read its DAGs in Airflow.
    </Empty>
  ) : (
    <Empty title="No line matches">Take away the search or the filter to see all {totals.num_lines}.</Empty>
  );
}

function OverviewSkeleton() {
  return (
    <Box role="status" aria-label="Loading the floor">
      <Skeleton height="84px" mb={4} />
      <Grid templateColumns="repeat(auto-fill, minmax(min(100%, 360px), 1fr))" gap={4}>
        {Array.from({ length: 6 }, (_, card) => (
          <Skeleton key={card} height="270px" />
        ))}
      </Grid>
      <Text srOnly>Loading</Text>
    </Box>
  );
}
