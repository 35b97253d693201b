import { Box, Flex, Text } from "@chakra-ui/react";
import { useParams } from "react-router";

import { path, SLOW_MS, usePages } from "../api/client";
import type { GateResult, PageGateResult } from "../api/models";
import { UnitState } from "../components/Badges";
import { Choice } from "../components/Choice";
import { type Column, DataTable } from "../components/DataTable";
import { ApiLink } from "../components/Links";
import { LoadMore } from "../components/LoadMore";
import { Panel } from "../components/Panel";
import { Empty, Loaded } from "../components/States";
import { Time } from "../components/Time";
import { formatNumber, words } from "../lib/format";
import { useParam } from "../lib/params";
import { formatDuration } from "../lib/time";

export const STATION_CHOICES: ReadonlyArray<readonly [string, string]> = [
  ["", "All stations"],
  ["ingest", "Ingest"],
  ["train", "Train"],
  ["deploy", "Deploy"],
  ["score", "Score"],
  ["feedback", "Feedback"],
];

const VERDICTS: ReadonlyArray<readonly [string, string]> = [
  ["", "All verdicts"],
  ["true", "Passed"],
  ["false", "Stopped"],
];

const COLUMNS: ReadonlyArray<Column<GateResult>> = [
  { name: "When", cell: (gate) => <Time at={gate.at} /> },
  { name: "Station", cell: (gate) => words(gate.station) },
  {
    name: "Unit",
    cell: (gate) => (
      <ApiLink href={gate.unit_href}>
        {gate.unit_kind} {gate.unit}
      </ApiLink>
    ),
  },
  { name: "Verdict", cell: (gate) => <UnitState good={gate.passed} state={gate.event} /> },
  {
    name: "Why",
    cell: (gate) =>
      gate.reasons.length > 0 && (
        <Box minWidth="200px" maxWidth="60ch">
          <Text>{gate.reasons.map(words).join(", ")}</Text>
          <Text fontSize="xs" color="fg.muted" overflowWrap="anywhere" lineClamp={2} title={gate.message}>
            {gate.message}
          </Text>
        </Box>
      ),
  },
  { name: "Rows in", numeric: true, cell: (gate) => formatNumber(gate.num_in) },
  { name: "Good", numeric: true, cell: (gate) => formatNumber(gate.num_good) },
  { name: "Bad", numeric: true, cell: (gate) => formatNumber(gate.num_bad) },
  { name: "Took", numeric: true, cell: (gate) => formatDuration(gate.duration_s) },
  {
    name: "Report",
    cell: (gate) => gate.href && <ApiLink href={gate.href}>{gate.station === "ingest" ? "Data Docs" : "Report"}</ApiLink>,
  },
];

/** What the gates of the line said, newest first. */
export function Gates() {
  const { line = "" } = useParams();
  const [station, setStation] = useParam("station", "");
  const [passed, setPassed] = useParam("passed", "");
  const gates = usePages<PageGateResult>(path("lines", line, "gates"), { station, passed, limit: 50 }, SLOW_MS);
  const rows = gates.data?.pages.flatMap((page) => page.items);
  return (
    <Panel
      title="Gate results"
      hint="Newest first"
      flush
      actions={
        <Flex gap={2}>
          <Choice label="Station" value={station} options={STATION_CHOICES} onChange={setStation} />
          <Choice label="Verdict" value={passed} options={VERDICTS} onChange={setPassed} />
        </Flex>
      }
    >
      <Loaded query={{ ...gates, data: rows }}>
        {(found) =>
          found.length === 0 ? (
            <Empty title="No gate has said anything yet">
              {station || passed ? "Nothing matches the choice above." : "The first word comes with the first night of the line."}
            </Empty>
          ) : (
            <DataTable label="Gate results" columns={COLUMNS} rows={found} rowKey={(gate) => `${gate.at}${gate.unit_kind}${gate.unit}${gate.event}`} />
          )
        }
      </Loaded>
      <LoadMore query={gates} />
    </Panel>
  );
}
