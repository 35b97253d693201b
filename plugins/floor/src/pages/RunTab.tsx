import { Heading, Stack, Text } from "@chakra-ui/react";
import { Navigate, useParams } from "react-router";

import { LIVE_MS, path, useApi } from "../api/client";
import type { PageUnitSummary } from "../api/models";
import { FloorLink } from "../components/Links";
import { Panel } from "../components/Panel";
import { useTitle } from "../components/Shell";
import { Empty, Loaded } from "../components/States";
import { UnitTable } from "../components/UnitTable";
import { lineOf, NoLine } from "./DagTab";

/** The tab of a run: the units that it worked on. */
export function RunTab() {
  const { dagId = "", runId = "" } = useParams();
  const line = lineOf(dagId);
  return line === null ? <NoLine dagId={dagId} /> : <Run line={line} dagId={dagId} runId={runId} />;
}

function Run({ line, dagId, runId }: { line: string; dagId: string; runId: string }) {
  useTitle(`Units of ${runId}`);
  const units = useApi<PageUnitSummary>(path("lines", line, "runs"), { dag_id: dagId, run_id: runId }, LIVE_MS);
  return (
    <Stack gap={3}>
      <div>
        <Heading as="h1" fontSize="lg">
          What this run worked on
        </Heading>
        <Text fontSize="xs" color="fg.muted" overflowWrap="anywhere">
          {dagId} · {runId} · <FloorLink to={path("lines", line)}>the line</FloorLink>
        </Text>
      </div>
      <Loaded query={units}>
        {({ items }) => {
          if (items.length === 1 && items[0]) return <Navigate to={path("lines", line, "units", items[0].kind, items[0].unit)} replace />;
          return items.length === 0 ? (
            <Empty title="No unit is on the record for this run">
              It has not come to its work yet, found nothing to do, or failed before it began.
            </Empty>
          ) : (
            <Panel title="Units" flush>
              <UnitTable units={items} />
            </Panel>
          );
        }}
      </Loaded>
    </Stack>
  );
}
