import { Box, Button, Flex, Stack, Text } from "@chakra-ui/react";
import { useQueryClient } from "@tanstack/react-query";
import { CircleX, Clock, Hand, type LucideIcon, RotateCcw, UserCheck } from "lucide-react";

import { path, post } from "../api/client";
import type { Acknowledged, Attention } from "../api/models";
import { ApiLink, FloorLink } from "./Links";
import { Done, ReasonDialog } from "./ReasonDialog";
import { Ago } from "./Time";

const KINDS: Record<Attention["kind"], readonly [LucideIcon, string, string, string]> = {
  approval: [UserCheck, "blue", "Approval", "Decide in Airflow"],
  held: [Hand, "amber", "Held", "Look into it"],
  failed: [CircleX, "red", "Failed", "Look into it"],
  rolled_back: [RotateCcw, "red", "Rolled back", "Look into it"],
  late: [Clock, "amber", "Late", "Look into it"],
};

/** What waits for a person, each with the way to do something about it. */
export function AttentionList({ items, withLine = false }: { items: Attention[]; withLine?: boolean }) {
  return (
    <Stack as="ul" listStyleType="none" gap={0} divideY="1px" divideColor="border.muted">
      {items.map((item) => (
        <AttentionItem key={item.id} item={item} withLine={withLine} />
      ))}
    </Stack>
  );
}

function AttentionItem({ item, withLine }: { item: Attention; withLine: boolean }) {
  const [Icon, palette, kind, action] = KINDS[item.kind];
  const cache = useQueryClient();
  const acknowledge = (why: string) =>
    post<Acknowledged>(path("lines", item.line, "acknowledgements"), { id: item.id, why });
  return (
    <Flex as="li" gap={3} py={2} px={4} align="flex-start" wrap={{ base: "wrap", md: "nowrap" }}>
      <Box color={`${palette}.line`} pt="2px" flexShrink={0}>
        <Icon size={16} aria-hidden />
      </Box>
      <Box flex="1" minWidth="200px">
        <Text>
          <Text as="span" fontWeight="medium">
            {kind}
          </Text>{" "}
          <Text as="span" color="fg.muted">
            {withLine && (
              <>
                <FloorLink to={path("lines", item.line)}>{item.line}</FloorLink> ·{" "}
              </>
            )}
            {item.station} · {item.unit_kind} {item.unit} · <Ago at={item.at} />
          </Text>
        </Text>
        <Text overflowWrap="anywhere">{item.sentence}</Text>
        {item.message && (
          <Text fontSize="xs" color="fg.muted" overflowWrap="anywhere" lineClamp={3} title={item.message}>
            {item.message}
          </Text>
        )}
      </Box>
      <Flex gap={2} flexShrink={0} align="center">
        {item.href && (
          <Button asChild size="xs" variant={item.kind === "approval" ? "solid" : "outline"}>
            <ApiLink href={item.href} color={item.kind === "approval" ? "brand.contrast" : "fg"} textDecoration="none">
              {action}
            </ApiLink>
          </Button>
        )}
        {item.may_acknowledge && (
          <ReasonDialog
            trigger={
              <Button size="xs" variant="ghost">
                Acknowledge
              </Button>
            }
            title="Acknowledge"
            confirm="Acknowledge"
            act={acknowledge}
            onClosedDone={() => void cache.invalidateQueries()}
            done={() => <Done>It is on the record and does not wait any more.</Done>}
          >
            <Text>{item.sentence}</Text>
            <Text color="fg.muted" fontSize="xs">
              {item.unit_kind} {item.unit}, {item.station}
            </Text>
          </ReasonDialog>
        )}
      </Flex>
    </Flex>
  );
}
