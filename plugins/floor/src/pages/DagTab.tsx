import { Text } from "@chakra-ui/react";
import { Navigate, useParams } from "react-router";

import { path } from "../api/client";
import { FloorLink } from "../components/Links";
import { Empty } from "../components/States";

/** The line of a DAG: `<line>.<stage>`; null for the plant's own DAGs, which belong to no line. */
export function lineOf(dagId: string): string | null {
  const dot = dagId.indexOf(".");
  return dot > 0 ? dagId.slice(0, dot) : null;
}

/** The tab of a DAG: the line that it is a station of. */
export function DagTab() {
  const { dagId = "" } = useParams();
  const line = lineOf(dagId);
  return line === null ? <NoLine dagId={dagId} /> : <Navigate to={path("lines", line)} replace />;
}

export function NoLine({ dagId }: { dagId: string }) {
  return (
    <Empty title={`${dagId} is no station of a line`}>
      <Text as="span">
        It works for the whole plant. <FloorLink to="/">See all lines</FloorLink>
      </Text>
    </Empty>
  );
}
