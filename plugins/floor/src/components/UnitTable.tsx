import { Text } from "@chakra-ui/react";

import type { UnitSummary } from "../api/models";
import { words } from "../lib/format";
import { UnitState } from "./Badges";
import { type Column, DataTable } from "./DataTable";
import { ApiLink } from "./Links";
import { Time } from "./Time";

const COLUMNS: ReadonlyArray<Column<UnitSummary>> = [
  { name: "Unit", cell: (unit) => <ApiLink href={unit.href}>{unit.label}</ApiLink> },
  { name: "Kind", cell: (unit) => words(unit.kind) },
  { name: "State", cell: (unit) => <UnitState good={unit.good} state={unit.state} /> },
  { name: "Day", cell: (unit) => unit.partition ?? "–" },
  { name: "When", cell: (unit) => <Time at={unit.at} /> },
  {
    name: "Id",
    cell: (unit) => (
      <Text fontFamily="mono" fontSize="xs" color="fg.muted">
        {unit.unit}
      </Text>
    ),
  },
];

export function UnitTable({ units }: { units: UnitSummary[] }) {
  return <DataTable label="Units" columns={COLUMNS} rows={units} rowKey={(unit) => `${unit.kind}:${unit.unit}`} />;
}
