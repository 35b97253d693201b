import { Box, Flex, Heading, Link, Text } from "@chakra-ui/react";
import { ChevronRight } from "lucide-react";
import { NavLink, Outlet, useMatch, useOutletContext, useParams } from "react-router";

import { LIVE_MS, path, useApi } from "../api/client";
import type { LinePage } from "../api/models";
import { LineState } from "../components/Badges";
import { Choice, DAYS } from "../components/Choice";
import { FloorLink } from "../components/Links";
import { useTitle } from "../components/Shell";
import { Freshness, Loaded, Loading } from "../components/States";
import { useParam } from "../lib/params";

const SECTIONS: ReadonlyArray<readonly [to: string, label: string]> = [
  ["", "Status"],
  ["trends", "Trends"],
  ["gates", "Gates"],
  ["windows", "Drift"],
  ["rollouts", "Rollouts"],
  ["pareto", "Losses"],
  ["lead-times", "Lead time"],
  ["quarantine", "Quarantine"],
  ["units", "Units"],
];

/** The line that a page within it is about, read again and again. */
export function useLine(): LinePage {
  return useOutletContext<LinePage>();
}

/** Head and sections of one line. */
export function LineLayout() {
  const { line = "" } = useParams();
  const [days, setDays] = useParam("days", "30");
  const page = useApi<LinePage>(path("lines", line), { days }, LIVE_MS);
  const head = useMatch("/lines/:line") !== null;
  useTitle(page.data?.card.title ?? line);
  return (
    <>
      <Flex as="nav" aria-label="Where you are" align="center" gap={1} fontSize="xs" color="fg.muted" mb={1}>
        <FloorLink to="/" color="fg.muted">
          Factory floor
        </FloorLink>
        <ChevronRight size={12} aria-hidden />
        <span>{line}</span>
      </Flex>
      <Loaded query={page} skeleton={<Loading rows={5} height={16} />}>
        {(found) => (
          <>
            <Flex align="flex-start" justify="space-between" gap={3} mb={3} wrap="wrap">
              <Box minWidth={0}>
                <Flex align="center" gap={3} wrap="wrap">
                  <Heading as="h1" fontSize="xl">
                    {found.card.title}
                  </Heading>
                  <LineState state={found.card.state} />
                </Flex>
                {head && (
                  <Text color="fg.muted" maxWidth="90ch">
                    {found.description}
                  </Text>
                )}
                <Text fontSize="xs" color="fg.muted" mt={1}>
                  {found.card.team} ·{" "}
                  <Link href={`mailto:${found.card.email}`} color="fg.muted" textDecoration="underline">
                    {found.card.email}
                  </Link>{" "}
                  · {found.card.tier} tier · {found.schedule}
                </Text>
              </Box>
              <Flex align="center" gap={3} wrap="wrap">
                <Freshness at={page.dataUpdatedAt} error={page.error} />
                {head && <Choice label="Days that figures span" value={days} options={DAYS} onChange={setDays} />}
              </Flex>
            </Flex>
            <Sections line={line} />
            <Outlet context={found} />
          </>
        )}
      </Loaded>
    </>
  );
}

function Sections({ line }: { line: string }) {
  return (
    <Flex
      as="nav"
      aria-label="Sections of the line"
      borderBottomWidth="1px"
      mb={4}
      overflowX="auto"
      gap={1}
      css={{ scrollbarWidth: "none" }}
    >
      {SECTIONS.map(([to, label]) => (
        <Link
          key={to}
          asChild
          px={3}
          py={2}
          color="fg.muted"
          whiteSpace="nowrap"
          borderBottomWidth="2px"
          borderColor="transparent"
          textDecoration="none"
          _hover={{ color: "fg" }}
          _currentPage={{ color: "fg", borderColor: "brand.line", fontWeight: "medium" }}
          focusVisibleRing="inside"
        >
          <NavLink to={`${path("lines", line)}${to && `/${to}`}`} end={to === ""}>
            {label}
          </NavLink>
        </Link>
      ))}
    </Flex>
  );
}
