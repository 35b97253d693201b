import { Flex, Input } from "@chakra-ui/react";
import { useParams } from "react-router";

import { path, usePages } from "../api/client";
import type { PageUnitSummary } from "../api/models";
import { Choice } from "../components/Choice";
import { LoadMore } from "../components/LoadMore";
import { Panel } from "../components/Panel";
import { Empty, Loaded } from "../components/States";
import { UnitTable } from "../components/UnitTable";
import { useParam, useTypedParam } from "../lib/params";

const KINDS: ReadonlyArray<readonly [string, string]> = [
  ["", "All kinds"],
  ["batch", "Batches"],
  ["dataset", "Datasets"],
  ["order", "Orders"],
  ["model", "Models"],
  ["predictions", "Predictions"],
  ["window", "Windows"],
];

/** All units of the line, to find one and see where it came from. */
export function Units() {
  const { line = "" } = useParams();
  const [kind, setKind] = useParam("kind", "");
  const [typed, setTyped, search] = useTypedParam("q");
  const units = usePages<PageUnitSummary>(path("lines", line, "units"), { kind, q: search, limit: 50 });
  const items = units.data?.pages.flatMap((page) => page.items);
  return (
    <Panel
      title="Units"
      hint="Everything that the line has worked on, newest first"
      flush
      actions={
        <Flex gap={2}>
          <Input
            size="xs"
            width="180px"
            placeholder="Day, version or id"
            aria-label="Find a unit"
            value={typed}
            onChange={(event) => setTyped(event.currentTarget.value)}
          />
          <Choice label="Kind of unit" value={kind} options={KINDS} onChange={setKind} />
        </Flex>
      }
    >
      <Loaded query={{ ...units, data: items }}>
        {(found) =>
          found.length === 0 ? (
            <Empty title="No unit matches">{kind || search ? "Take away the search or the kind." : "Units come with the first night of the line."}</Empty>
          ) : (
            <UnitTable units={found} />
          )
        }
      </Loaded>
      <LoadMore query={units} />
    </Panel>
  );
}
