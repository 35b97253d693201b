import { Box, chakra, Flex, Grid, Heading, Stack, Text } from "@chakra-ui/react";
import { useParams } from "react-router";

import { LIVE_MS, path, useApi } from "../api/client";
import type { Genealogy, UnitEvent, UnitNode } from "../api/models";
import { AirflowLink } from "../components/AirflowLink";
import { type Column, DataTable } from "../components/DataTable";
import { GenealogyDiagram } from "../components/GenealogyDiagram";
import { ApiLink } from "../components/Links";
import { Panel } from "../components/Panel";
import { useTitle } from "../components/Shell";
import { Empty, Loaded } from "../components/States";
import { Time } from "../components/Time";
import { UnitState } from "../components/Badges";
import { countBothWays } from "../lib/genealogy";
import { formatNumber, plural, UNKNOWN, words } from "../lib/format";
import { formatDuration } from "../lib/time";

/** One unit: where it came from, what it touched, what happened to it. */
export function Unit() {
  const { line = "", kind = "", unit = "" } = useParams();
  const genealogy = useApi<Genealogy>(path("lines", line, "units", kind, unit), {}, LIVE_MS);
  return <Loaded query={genealogy}>{(found) => <OneUnit genealogy={found} />}</Loaded>;
}

const COLUMNS: ReadonlyArray<Column<UnitEvent>> = [
  { name: "When", cell: (event) => <Time at={event.at} /> },
  { name: "Station", cell: (event) => words(event.station) },
  { name: "Event", cell: (event) => <UnitState good={goodness(event.event)} state={event.event} /> },
  {
    name: "Why",
    cell: (event) =>
      (event.sentence || event.message) && (
        <Box minWidth="220px" maxWidth="64ch">
          <Text>{event.sentence}</Text>
          <Text fontSize="xs" color="fg.muted" overflowWrap="anywhere" lineClamp={3} title={event.message}>
            {event.message}
          </Text>
        </Box>
      ),
  },
  { name: "Took", numeric: true, cell: (event) => (event.duration_s > 0 ? formatDuration(event.duration_s) : UNKNOWN) },
  { name: "GPU", numeric: true, cell: (event) => (event.gpu_s > 0 ? formatDuration(event.gpu_s) : UNKNOWN) },
  { name: "kWh", numeric: true, cell: (event) => (event.energy_kwh > 0 ? formatNumber(event.energy_kwh) : UNKNOWN) },
  { name: "In", numeric: true, cell: (event) => formatNumber(event.num_in) },
  { name: "Good", numeric: true, cell: (event) => formatNumber(event.num_good) },
  { name: "Bad", numeric: true, cell: (event) => formatNumber(event.num_bad) },
  { name: "Run", cell: (event) => event.run_href && <AirflowLink href={event.run_href} color="blue.fg">Run</AirflowLink> },
];

const GOOD = new Set(["passed", "reworked", "promoted"]);
const BAD = new Set(["failed", "held", "scrapped", "rolled_back"]);

function goodness(event: string): boolean | null {
  return GOOD.has(event) ? true : BAD.has(event) ? false : null;
}

function OneUnit({ genealogy }: { genealogy: Genealogy }) {
  const { unit, events } = genealogy;
  useTitle(unit.label);
  const { numOrigins, numEffects } = countBothWays(genealogy);
  return (
    <Stack gap={4}>
      <Flex align="baseline" gap={3} wrap="wrap">
        <Heading as="h2" fontSize="lg">
          {words(unit.kind)}: {unit.label}
        </Heading>
        <UnitState good={unit.good} state={unit.good === null ? "not decided" : unit.good ? "good" : "bad"} />
        <Text fontFamily="mono" fontSize="xs" color="fg.muted" overflowWrap="anywhere">
          {unit.unit}
        </Text>
      </Flex>
      <Panel
        title="Genealogy"
        hint={`It came from ${plural(numOrigins, "unit")} and went into ${plural(numEffects, "unit")}`}
      >
        <GenealogyDiagram genealogy={genealogy} />
      </Panel>
      <Facts unit={unit} />
      <Panel title="What happened to it" hint="As the ledger has it, oldest first" flush>
        {events.length === 0 ? (
          <Empty title="Nothing is on the record">The ledger has no event of this unit.</Empty>
        ) : (
          <DataTable label="Events" columns={COLUMNS} rows={events} rowKey={(event) => event.id} />
        )}
      </Panel>
    </Stack>
  );
}

function Facts({ unit }: { unit: UnitNode }) {
  const facts = Object.entries(unit.facts);
  return (
    <Panel
      title="Facts"
      actions={
        <Flex gap={4} fontSize="xs">
          {unit.report_href && <ApiLink href={unit.report_href}>Report</ApiLink>}
          {unit.external_href && <ApiLink href={unit.external_href}>MLflow</ApiLink>}
        </Flex>
      }
    >
      <Grid as="dl" templateColumns={{ base: "1fr", md: "repeat(auto-fill, minmax(260px, 1fr))" }} columnGap={6} rowGap={2}>
        {unit.at && (
          <Fact name="Made">
            <Time at={unit.at} />
          </Fact>
        )}
        {facts.map(([name, value]) => (
          <Fact key={name} name={words(name)}>
            {typeof value === "number" ? formatNumber(value) : (value ?? UNKNOWN)}
          </Fact>
        ))}
      </Grid>
    </Panel>
  );
}

function Fact({ name, children }: { name: string; children: React.ReactNode }) {
  return (
    <Box minWidth={0}>
      <chakra.dt fontSize="xs" color="fg.muted">
        {name}
      </chakra.dt>
      <chakra.dd overflowWrap="anywhere">{children}</chakra.dd>
    </Box>
  );
}
