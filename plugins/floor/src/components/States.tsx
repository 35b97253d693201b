import { Box, Button, Flex, Skeleton, Stack, Text, VisuallyHidden } from "@chakra-ui/react";
import type { UseQueryResult } from "@tanstack/react-query";
import { CircleAlert, Inbox, RefreshCw } from "lucide-react";
import type { ReactNode } from "react";

import { ApiError } from "../api/client";
import { formatTime } from "../lib/time";
import { AirflowLink } from "./AirflowLink";
import { Ago } from "./Time";

/** What is shown where there is nothing to show, and what would change that. */
export function Empty({ title, children }: { title: string; children?: ReactNode }) {
  return (
    <Flex direction="column" align="center" textAlign="center" gap={1} py={8} px={4} color="fg.muted">
      <Inbox size={22} aria-hidden strokeWidth={1.5} />
      <Text fontWeight="medium" color="fg">
        {title}
      </Text>
      {children && <Text maxWidth="52ch">{children}</Text>}
    </Flex>
  );
}

export function Loading({ rows = 4, height = 6 }: { rows?: number; height?: number }) {
  return (
    <Stack gap={3} p={4} role="status">
      <VisuallyHidden>Loading</VisuallyHidden>
      {Array.from({ length: rows }, (_, row) => (
        <Skeleton key={row} height={height} />
      ))}
    </Stack>
  );
}

function headline(error: unknown): string {
  if (!(error instanceof ApiError)) return "The plant does not answer";
  switch (error.status) {
    case 401:
      return "You are not logged in any more";
    case 403:
      return "You may not do this";
    case 404:
      return "There is no such thing, or you may not see it";
    case 503:
      return "A store of the plant is away";
    default:
      return "That did not work";
  }
}

export function ErrorState({ error, retry }: { error: unknown; retry?: () => void }) {
  const lost = error instanceof ApiError && error.status === 401;
  return (
    <Flex role="alert" direction="column" align="center" textAlign="center" gap={2} py={8} px={4}>
      <Box color="red.line">
        <CircleAlert size={22} aria-hidden strokeWidth={1.5} />
      </Box>
      <Text fontWeight="medium">{headline(error)}</Text>
      <Text color="fg.muted" maxWidth="60ch" overflowWrap="anywhere">
        {error instanceof Error ? error.message : String(error)}
      </Text>
      {lost ? (
        <AirflowLink href="/">Log in again</AirflowLink>
      ) : (
        retry && (
          <Button variant="outline" size="xs" onClick={retry}>
            <RefreshCw aria-hidden /> Try again
          </Button>
        )
      )}
    </Flex>
  );
}

type Answer<T> = Pick<UseQueryResult<T>, "data" | "error" | "isPending"> & { refetch: () => unknown };

/** The content once it is there; until then its skeleton, or why it is not there. */
export function Loaded<T>({
  query,
  skeleton,
  children,
}: {
  query: Answer<T>;
  skeleton?: ReactNode;
  children: (data: T) => ReactNode;
}) {
  if (query.data !== undefined) return <>{children(query.data)}</>;
  if (query.error) return <ErrorState error={query.error} retry={() => void query.refetch()} />;
  return <>{skeleton ?? <Loading />}</>;
}

/** When what is shown was read, and whether the plant has stopped answering since. */
export function Freshness({ at, error }: { at: number; error: unknown }) {
  if (at === 0) return null;
  const read = new Date(at).toISOString();
  return error ? (
    <Flex role="status" align="center" gap={1.5} fontSize="xs" color="red.fg">
      <CircleAlert size={14} aria-hidden />
      {headline(error)}; as of {formatTime(read)}
    </Flex>
  ) : (
    <Flex align="center" gap={1.5} fontSize="xs" color="fg.muted">
      <Box as="span" boxSize="7px" borderRadius="full" bg="green.line" aria-hidden />
      <span>
        Live · updated <Ago at={read} />
      </span>
    </Flex>
  );
}
