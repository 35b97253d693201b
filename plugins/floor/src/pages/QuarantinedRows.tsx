import { Box, Button, chakra, Flex, Stack, Text } from "@chakra-ui/react";
import { useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { useParams } from "react-router";

import { path, post, usePages } from "../api/client";
import type { Decide, Decided, PageQuarantinedRow, QuarantinedRow } from "../api/models";
import { AirflowLink } from "../components/AirflowLink";
import { DecisionState } from "../components/Badges";
import { Choice } from "../components/Choice";
import { type Column, DataTable } from "../components/DataTable";
import { FloorLink } from "../components/Links";
import { LoadMore } from "../components/LoadMore";
import { Panel } from "../components/Panel";
import { ReasonDialog } from "../components/ReasonDialog";
import { Empty, Loaded } from "../components/States";
import { Ago } from "../components/Time";
import { formatNumber, plural } from "../lib/format";
import { useParam } from "../lib/params";
import { useLine } from "./LineLayout";

const DECISIONS: ReadonlyArray<readonly [string, string]> = [
  ["", "All decisions"],
  ["pending", "Pending"],
  ["released", "Released"],
  ["dropped", "Dropped"],
];

/** The rows of one day and table that are in quarantine, to be released or dropped. */
export function QuarantinedRows() {
  const { line = "", table = "", day = "" } = useParams();
  const { card } = useLine();
  const [decision, setDecision] = useParam("decision", "");
  const [reason, setReason] = useParam("reason", "");
  const [chosen, setChosen] = useState<ReadonlySet<number>>(new Set());
  const where = path("lines", line, "quarantine", table, day);
  const query = usePages<PageQuarantinedRow>(where, { decision, reason, limit: 50 });
  const rows = query.data?.pages.flatMap((page) => page.items);
  const reasons = [...new Set(rows?.map((row) => row.reason) ?? [])];

  const toggle = (number: number) => {
    const next = new Set(chosen);
    if (!next.delete(number)) next.add(number);
    setChosen(next);
  };
  const columns: Column<QuarantinedRow>[] = [
    ...(card.may_edit
      ? [
          {
            name: "Choose",
            width: "1px",
            cell: (row: QuarantinedRow) => (
              <chakra.input
                type="checkbox"
                aria-label={`Row ${row.row_number}`}
                checked={chosen.has(row.row_number)}
                onChange={() => toggle(row.row_number)}
                css={{ accentColor: "var(--chakra-colors-brand-solid)", width: "16px", height: "16px" }}
              />
            ),
          },
        ]
      : []),
    { name: "Row", numeric: true, cell: (row) => formatNumber(row.row_number), hint: "Its position in the landed file" },
    {
      name: "Why",
      cell: (row) => (
        <Box minWidth="260px">
          <Text>{row.sentence}</Text>
          <Text fontFamily="mono" fontSize="xs" color="fg.muted" overflowWrap="anywhere">
            {row.expectation}
          </Text>
        </Box>
      ),
    },
    { name: "Decision", cell: (row) => <Decision row={row} /> },
    { name: "The row as it landed", cell: (row) => <Landed row={row} /> },
  ];
  return (
    <Panel
      title={`Quarantine of ${table}, ${day}`}
      hint={<FloorLink to={path("lines", line, "quarantine")}>All days</FloorLink>}
      flush
      actions={
        <Flex gap={2} wrap="wrap">
          <Choice label="Reason" value={reason} options={[["", "All reasons"], ...withCurrent(reasons, reason)]} onChange={setReason} />
          <Choice label="Decision" value={decision} options={DECISIONS} onChange={setDecision} />
        </Flex>
      }
    >
      <Loaded query={{ ...query, data: rows }}>
        {(found) =>
          found.length === 0 ? (
            <Empty title="No row matches">Nothing of this day is in quarantine, or the choice above leaves nothing.</Empty>
          ) : (
            <>
              {card.may_edit && (
                <Actions where={where} rows={found} chosen={chosen} setChosen={setChosen} />
              )}
              <DataTable label="Rows in quarantine" columns={columns} rows={found} rowKey={(row) => row.row_number} onRow={(row) => chosen.has(row.row_number)} />
            </>
          )
        }
      </Loaded>
      <LoadMore query={query} />
      {rows?.[0] && (
        <Text px={4} py={3} fontSize="xs" color="fg.muted" overflowWrap="anywhere">
          From {rows[0].source_uri}
        </Text>
      )}
    </Panel>
  );
}

function withCurrent(reasons: string[], current: string): Array<readonly [string, string]> {
  const all = current && !reasons.includes(current) ? [current, ...reasons] : reasons;
  return all.map((reason) => [reason, reason] as const);
}

function Actions({
  where,
  rows,
  chosen,
  setChosen,
}: {
  where: string;
  rows: QuarantinedRow[];
  chosen: ReadonlySet<number>;
  setChosen: (chosen: ReadonlySet<number>) => void;
}) {
  const all = rows.every((row) => chosen.has(row.row_number));
  const numbers = rows.map((row) => row.row_number).filter((number) => chosen.has(number));
  return (
    <Flex px={4} py={2} gap={2} align="center" wrap="wrap" borderTopWidth="1px" bg="bg.subtle">
      <Button size="xs" variant="outline" onClick={() => setChosen(all ? new Set() : new Set(rows.map((row) => row.row_number)))}>
        {all ? "Choose none" : `Choose all ${rows.length}`}
      </Button>
      <Text fontSize="xs" color="fg.muted" role="status" flex="1">
        {numbers.length === 0 ? "Choose rows to release or drop them." : `${plural(numbers.length, "row")} chosen`}
      </Text>
      <DecideDialog where={where} numbers={numbers} etag={rows[0]?.source_etag ?? ""} decision="released" whenDone={() => setChosen(new Set())} />
      <DecideDialog where={where} numbers={numbers} etag={rows[0]?.source_etag ?? ""} decision="dropped" whenDone={() => setChosen(new Set())} />
    </Flex>
  );
}

const VERBS = { released: "Release", dropped: "Drop" } as const;
const EFFECTS = {
  released: "The day's next ingest accepts them as they are.",
  dropped: "They stay out for good and count as settled.",
} as const;

function DecideDialog({
  where,
  numbers,
  etag,
  decision,
  whenDone,
}: {
  where: string;
  numbers: number[];
  etag: string;
  decision: Decide["decision"];
  whenDone: () => void;
}) {
  const cache = useQueryClient();
  const verb = VERBS[decision];
  const decide = async (why: string) => {
    const body: Decide = { decision, row_numbers: numbers, source_etag: etag, why };
    const answer = await post<Decided>(`${where}/decisions`, body);
    void cache.invalidateQueries();
    return answer;
  };
  return (
    <ReasonDialog
      trigger={
        <Button size="xs" variant={decision === "released" ? "solid" : "outline"} disabled={numbers.length === 0}>
          {verb}
        </Button>
      }
      title={`${verb} ${plural(numbers.length, "row")}`}
      confirm={verb}
      act={decide}
      onClosedDone={whenDone}
      done={(answer: Decided) => (
        <Stack gap={2}>
          <Text>
            {plural(answer.num_rows, "row")} {answer.decision} by {answer.by}.
          </Text>
          <Text>{answer.next_step}</Text>
          <AirflowLink href={answer.ingest_href} color="blue.fg">
            Ingest in Airflow
          </AirflowLink>
        </Stack>
      )}
    >
      <Text>{EFFECTS[decision]}</Text>
    </ReasonDialog>
  );
}

function Decision({ row }: { row: QuarantinedRow }) {
  return (
    <Stack gap={0.5} align="flex-start">
      <DecisionState decision={row.decision} />
      {row.by && (
        <Text fontSize="xs" color="fg.muted">
          {row.by}
          {row.decided_at && (
            <>
              , <Ago at={row.decided_at} />
            </>
          )}
        </Text>
      )}
    </Stack>
  );
}

function Landed({ row }: { row: QuarantinedRow }) {
  const fields = Object.entries(row.row);
  return (
    <chakra.details fontSize="xs" minWidth="240px">
      <chakra.summary cursor="pointer" fontFamily="mono" color="fg.muted" lineClamp={1} overflowWrap="anywhere">
        {fields
          .slice(0, 8)
          .map(([name, value]) => `${name}=${String(value)}`)
          .join("  ")}
      </chakra.summary>
      <chakra.dl display="grid" gridTemplateColumns="max-content 1fr" columnGap={3} fontFamily="mono" mt={1}>
        {fields.map(([name, value]) => (
          <Box key={name} display="contents">
            <chakra.dt color="fg.muted">{name}</chakra.dt>
            <chakra.dd overflowWrap="anywhere">{value === null ? "null" : String(value)}</chakra.dd>
          </Box>
        ))}
      </chakra.dl>
    </chakra.details>
  );
}
