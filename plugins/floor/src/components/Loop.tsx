import { Box, Flex, Grid, Heading, Text } from "@chakra-ui/react";
import { ArrowDown, ArrowRight, CornerLeftUp, Gauge } from "lucide-react";

import type { Kpis, LineCard, StationKpis } from "../api/models";
import { formatNumber, formatRatio, plural, pluralKind } from "../lib/format";
import { formatDuration } from "../lib/time";
import { AirflowLink } from "./AirflowLink";
import { GateMark, StationState } from "./Badges";
import { Ago } from "./Time";

/** What a station hands to the next one. */
const MAKES: Record<StationKpis["station"], string> = {
  ingest: "dataset",
  train: "candidate",
  deploy: "champion",
  score: "predictions",
  feedback: "retrain order",
};

/** The stations of the line in the order of the loop, as they are now. */
export function Loop({ kpis, card }: { kpis: Kpis; card: LineCard }) {
  return (
    <Box as="section" aria-label="The loop" position="relative">
      <Grid
        as="ol"
        listStyleType="none"
        templateColumns={{ base: "1fr", lg: `repeat(${kpis.stations.length}, 1fr)` }}
        columnGap="68px"
        rowGap="34px"
      >
        {kpis.stations.map((station, index) => (
          <Station
            key={station.station}
            station={station}
            gate={card.gates.find((gate) => gate.station === station.station)}
            bottleneck={kpis.bottleneck?.station === station.station}
            last={index === kpis.stations.length - 1}
          />
        ))}
      </Grid>
      <WayBack count={kpis.stations.length} />
    </Box>
  );
}

function Station({
  station,
  gate,
  bottleneck,
  last,
}: {
  station: StationKpis;
  gate: LineCard["gates"][number] | undefined;
  bottleneck: boolean;
  last: boolean;
}) {
  const busy = station.state === "running";
  const overloaded = bottleneck && (station.load ?? 0) > 1;
  return (
    <Box as="li" position="relative" minWidth={0}>
      <Flex
        direction="column"
        gap={2}
        height="100%"
        bg="bg.panel"
        borderWidth="1px"
        borderColor={busy ? "cyan.line" : station.state === "down" ? "red.line" : overloaded ? "amber.line" : "border"}
        borderRadius="md"
        p={3}
      >
        <Flex justify="space-between" align="center" gap={2}>
          <Heading as="h3" fontSize="sm" textTransform="capitalize">
            <AirflowLink href={station.href} color="fg">
              {station.station}
            </AirflowLink>
          </Heading>
          <StationState state={station.state} />
        </Flex>
        <Text fontSize="xs" color="fg.muted">
          <Text as="span" fontSize="lg" fontWeight="semibold" color="fg" fontVariantNumeric="tabular-nums">
            {formatNumber(station.num_good)}
          </Text>{" "}
          good of {plural(station.num_units, station.unit_kind, pluralKind(station.unit_kind))}
        </Text>
        <Grid as="dl" templateColumns="auto auto" justifyContent="space-between" fontSize="xs" rowGap={0.5}>
          <Row name="First pass" value={formatRatio(station.first_pass_yield)} />
          <Row name="OEE" value={formatRatio(station.oee.oee)} />
          <Row name="Cycle" value={station.cycle_s === null ? "–" : formatDuration(station.cycle_s)} />
          <Row name="In progress" value={formatNumber(station.wip)} />
        </Grid>
        <Flex fontSize="xs" color="fg.muted" justify="space-between" gap={2} mt="auto" wrap="wrap">
          {gate && <GateMark gate={gate} />}
          {station.last_at && (
            <span>
              {station.last_run_href ? (
                <AirflowLink href={station.last_run_href} color="fg.muted" textDecoration="underline">
                  <Ago at={station.last_at} />
                </AirflowLink>
              ) : (
                <Ago at={station.last_at} />
              )}
            </span>
          )}
        </Flex>
        {bottleneck && (
          <Flex align="center" gap={1} fontSize="xs" color={overloaded ? "amber.fg" : "fg.muted"}>
            <Gauge size={13} aria-hidden />
            Bottleneck{station.load !== null && `, ${formatRatio(station.load, 0)} of its takt`}
          </Flex>
        )}
      </Flex>
      {!last && <Arrow label={MAKES[station.station]} />}
    </Box>
  );
}

function Row({ name, value }: { name: string; value: string }) {
  return (
    <>
      <Text as="dt" color="fg.muted">
        {name}
      </Text>
      <Text as="dd" textAlign="end" fontVariantNumeric="tabular-nums">
        {value}
      </Text>
    </>
  );
}

/** To the next station: at its right, or below it where the screen is narrow. */
function Arrow({ label }: { label: string }) {
  return (
    <>
      <Flex
        display={{ base: "none", lg: "flex" }}
        position="absolute"
        left="100%"
        top="0"
        height="100%"
        width="68px"
        direction="column"
        align="center"
        justify="center"
        color="fg.muted"
        fontSize="11px"
      >
        <Text as="span" lineHeight="1.2">
          {label}
        </Text>
        <ArrowRight size={16} aria-hidden />
      </Flex>
      <Flex
        display={{ base: "flex", lg: "none" }}
        height="34px"
        position="absolute"
        top="100%"
        width="100%"
        align="center"
        justify="center"
        gap={1}
        color="fg.muted"
        fontSize="11px"
        aria-hidden
      >
        <ArrowDown size={14} /> {label}
      </Flex>
    </>
  );
}

/** From feedback back to train. */
function WayBack({ count }: { count: number }) {
  const cell = 100 / count;
  return (
    <>
      <Box
        display={{ base: "none", lg: "block" }}
        position="relative"
        height="30px"
        color="fg.muted"
        fontSize="11px"
        aria-label="Feedback orders a new model from train"
        role="img"
      >
        <Box
          position="absolute"
          left={`${cell * 1.5}%`}
          right={`${cell / 2}%`}
          top="0"
          height="14px"
          borderWidth="0 1px 1px 1px"
          borderColor="border.emphasized"
          borderBottomRadius="md"
        />
        <Box
          position="absolute"
          left={`calc(${cell * 1.5}% - 4px)`}
          top="-1px"
          borderWidth="0 4.5px 6px 4.5px"
          borderStyle="solid"
          borderColor="transparent"
          borderBottomColor="fg.muted"
        />
        <Text
          position="absolute"
          left={`${cell * 3}%`}
          top="5px"
          transform="translateX(-50%)"
          bg="bg"
          px={2}
          aria-hidden
        >
          retrain order
        </Text>
      </Box>
      <Flex display={{ base: "flex", lg: "none" }} align="center" justify="center" gap={1} pt={2} fontSize="11px" color="fg.muted">
        <CornerLeftUp size={14} aria-hidden /> retrain order, back to train
      </Flex>
    </>
  );
}
