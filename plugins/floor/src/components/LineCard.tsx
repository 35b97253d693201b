import { Box, Flex, Grid, Heading, Stack, Text } from "@chakra-ui/react";
import { TriangleAlert } from "lucide-react";

import { path } from "../api/client";
import type { LineCard as Card } from "../api/models";
import { formatMoney, formatNumber, formatRatio, plural } from "../lib/format";
import { formatDuration } from "../lib/time";
import { GateLights, LineState } from "./Badges";
import { ApiLink, FloorLink } from "./Links";
import { Sparkline } from "./Sparkline";
import { Ago } from "./Time";

/** One line of the floor at a glance. */
export function LineCard({ card, days }: { card: Card; days: number }) {
  return (
    <Flex
      as="li"
      direction="column"
      gap={3}
      bg="bg.panel"
      borderWidth="1px"
      borderTopWidth="3px"
      borderTopColor={card.state === "attention" ? "amber.line" : card.state === "running" ? "cyan.line" : "border"}
      borderRadius="md"
      p={4}
      minWidth={0}
    >
      <Flex justify="space-between" gap={2} align="flex-start">
        <Box minWidth={0}>
          <Heading as="h2" fontSize="md" lineHeight="1.3" truncate>
            <FloorLink to={path("lines", card.line)} color="fg" title={card.title}>
              {card.title}
            </FloorLink>
          </Heading>
          <Text fontSize="xs" color="fg.muted" truncate>
            {card.team} · {card.tier} tier{card.last_at && <> · <Ago at={card.last_at} /></>}
          </Text>
        </Box>
        <LineState state={card.state} />
      </Flex>

      <Grid templateColumns="1fr 1.2fr" gap={4} alignItems="end">
        <Champion card={card} />
        <LiveMetric card={card} />
      </Grid>

      <GateLights gates={card.gates} />

      <Grid as="dl" templateColumns="repeat(4, auto)" justifyContent="space-between" gap={2} fontSize="xs" borderTopWidth="1px" pt={3}>
        <Count name="In progress" value={formatNumber(card.wip)} />
        <Count name="Good models" value={formatNumber(card.num_good_models)} title={`in ${days} days`} />
        <Count name="Predictions" value={formatNumber(card.num_predictions)} title={`in ${days} days`} />
        <Count name="Cost" value={formatMoney(card.cost.money, card.cost.currency)} title={`in ${days} days`} />
      </Grid>
      {card.bottleneck && (
        <Text fontSize="xs" color="fg.muted">
          Bottleneck: {card.bottleneck.station}, {formatRatio(card.bottleneck.load, 0)} of its takt
        </Text>
      )}
      {card.num_waiting > 0 && <Waiting card={card} />}
    </Flex>
  );
}

function Champion({ card: { champion } }: { card: Card }) {
  return (
    <Box minWidth={0}>
      <Text fontSize="xs" color="fg.muted">
        Champion
      </Text>
      {champion ? (
        <>
          <Text fontSize="lg" fontWeight="semibold" lineHeight="1.3" truncate>
            v{champion.version}
          </Text>
          <Text fontSize="xs" color="fg.muted">
            {formatDuration(champion.age_s)} old{champion.put_back && ", put back"}
          </Text>
        </>
      ) : (
        <Text color="fg.muted">None yet</Text>
      )}
    </Box>
  );
}

function LiveMetric({ card }: { card: Card }) {
  const values = card.sparkline.map((point) => point.value);
  const last = card.sparkline.at(-1);
  return (
    <Box minWidth={0}>
      <Flex justify="space-between" gap={2} fontSize="xs" color="fg.muted" align="baseline">
        <span>Live {card.metric}</span>
        <Text as="span" fontSize="sm" fontWeight="semibold" color={last?.broken ? "red.fg" : "fg"}>
          {last?.broken && (
            <>
              <Box as="span" display="inline-block" verticalAlign="-2px" mr={1}>
                <TriangleAlert size={13} role="img" aria-label="over a limit" />
              </Box>
            </>
          )}
          {formatNumber(last?.value)}
        </Text>
      </Flex>
      {values.some((value) => value !== null) ? (
        <Sparkline values={values} label={`Live ${card.metric} of the newest ${plural(values.length, "window")}`} />
      ) : (
        <Text fontSize="xs" color="fg.muted">
          No outcomes yet
        </Text>
      )}
    </Box>
  );
}

function Count({ name, value, title }: { name: string; value: string; title?: string }) {
  return (
    <Box title={title}>
      <Text as="dt" color="fg.muted">
        {name}
      </Text>
      <Text as="dd" fontWeight="medium" fontSize="sm" fontVariantNumeric="tabular-nums">
        {value}
      </Text>
    </Box>
  );
}

function Waiting({ card }: { card: Card }) {
  const more = card.num_waiting - card.waiting.length;
  return (
    <Stack as="ul" listStyleType="none" gap={1} borderLeftWidth="2px" borderColor="amber.line" pl={3} fontSize="xs" mt="auto">
      {card.waiting.map((item) => (
        <Box as="li" key={item.id} lineClamp={2}>
          {item.href ? (
            <ApiLink href={item.href} color="fg">
              {item.sentence}
            </ApiLink>
          ) : (
            item.sentence
          )}
        </Box>
      ))}
      {more > 0 && (
        <li>
          <FloorLink to={path("lines", card.line)}>
            and {more} more
          </FloorLink>
        </li>
      )}
    </Stack>
  );
}
