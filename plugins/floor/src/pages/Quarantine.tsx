import { Stack, Text } from "@chakra-ui/react";
import { useParams } from "react-router";

import { path, usePages } from "../api/client";
import type { PageQuarantinedBatch, QuarantinedBatch } from "../api/models";
import { type Column, DataTable } from "../components/DataTable";
import { ApiLink, FloorLink } from "../components/Links";
import { LoadMore } from "../components/LoadMore";
import { Panel } from "../components/Panel";
import { Empty, Loaded } from "../components/States";
import { Time } from "../components/Time";
import { formatNumber } from "../lib/format";

/** Days and tables with rows in quarantine. */
export function Quarantine() {
  const { line = "" } = useParams();
  const batches = usePages<PageQuarantinedBatch>(path("lines", line, "quarantine"), { limit: 50 });
  const rows = batches.data?.pages.flatMap((page) => page.items);
  const columns: ReadonlyArray<Column<QuarantinedBatch>> = [
    {
      name: "Day",
      cell: (batch) => (
        <FloorLink to={path("lines", line, "quarantine", batch.table, batch.day)} whiteSpace="nowrap">
          {batch.day} {batch.table}
        </FloorLink>
      ),
    },
    { name: "Rows", numeric: true, cell: (batch) => formatNumber(batch.num_rows) },
    { name: "Held", cell: (batch) => (batch.held ? "the whole day" : "these rows") },
    { name: "Why", cell: (batch) => <Reasons reasons={batch.reasons} /> },
    { name: "When", cell: (batch) => <Time at={batch.at} /> },
    { name: "Data Docs", cell: (batch) => batch.docs_href && <ApiLink href={batch.docs_href}>Data Docs</ApiLink> },
  ];
  return (
    <Panel title="Quarantine" hint="Rows that a gate did not let through, kept whole; newest day first" flush>
      <Loaded query={{ ...batches, data: rows }}>
        {(found) =>
          found.length === 0 ? (
            <Empty title="No row is in quarantine">Every row that landed was let through.</Empty>
          ) : (
            <DataTable label="Quarantine" columns={columns} rows={found} rowKey={(batch) => `${batch.table}/${batch.day}`} />
          )
        }
      </Loaded>
      <LoadMore query={batches} />
    </Panel>
  );
}

function Reasons({ reasons }: { reasons: QuarantinedBatch["reasons"] }) {
  return (
    <Stack gap={0} minWidth="220px">
      {Object.entries(reasons).map(([reason, count]) => (
        <Text key={reason} fontSize="xs" overflowWrap="anywhere">
          {formatNumber(count)} × {reason}
        </Text>
      ))}
    </Stack>
  );
}
