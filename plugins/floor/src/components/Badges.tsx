import { Badge, Box, Flex, HStack, Text } from "@chakra-ui/react";
import {
  Ban,
  CircleCheck,
  CircleDashed,
  CircleDot,
  CirclePause,
  CircleX,
  Clock,
  type LucideIcon,
  PlayCircle,
  RotateCcw,
  TriangleAlert,
} from "lucide-react";

import type { GateLight, LineCard, Rollout, StationKpis, UnitSummary } from "../api/models";
import { words } from "../lib/format";
import { formatTime } from "../lib/time";
import { AirflowLink } from "./AirflowLink";

type Look = readonly [palette: string, icon: LucideIcon, label: string];

/** A state as icon, colour and word: never as colour alone. */
function State({ look: [palette, Icon, label] }: { look: Look }) {
  return (
    <Badge colorPalette={palette} variant="subtle" gap={1} whiteSpace="nowrap" flexShrink={0}>
      <Icon size={12} aria-hidden />
      {label}
    </Badge>
  );
}

const LINES: Record<LineCard["state"], Look> = {
  attention: ["amber", TriangleAlert, "Needs a person"],
  running: ["cyan", PlayCircle, "Running"],
  idle: ["green", CircleCheck, "Idle"],
  paused: ["gray", CirclePause, "Paused"],
  never_run: ["gray", CircleDashed, "Never run"],
};

export const lineStateLabel = (state: LineCard["state"]) => LINES[state][2];

export function LineState({ state }: { state: LineCard["state"] }) {
  return <State look={LINES[state]} />;
}

const STATIONS: Record<StationKpis["state"], Look> = {
  running: ["cyan", PlayCircle, "Running"],
  queued: ["stone", Clock, "Queued"],
  down: ["red", CircleX, "Down"],
  idle: ["green", CircleDot, "Idle"],
  paused: ["gray", CirclePause, "Paused"],
};

export function StationState({ state }: { state: StationKpis["state"] }) {
  return <State look={STATIONS[state]} />;
}

const OUTCOMES: Record<Rollout["outcome"], Look> = {
  promoted: ["green", CircleCheck, "Promoted"],
  rolled_back: ["red", RotateCcw, "Rolled back"],
  refused: ["amber", Ban, "Refused"],
  failed: ["red", CircleX, "Failed"],
  under_way: ["cyan", PlayCircle, "Under way"],
};

export function Outcome({ outcome }: { outcome: Rollout["outcome"] }) {
  return <State look={OUTCOMES[outcome]} />;
}

/** Whether a unit is good, with the word of its last event. */
export function UnitState({ good, state }: { good: UnitSummary["good"]; state: string }) {
  const look: Look =
    good === null ? ["gray", CircleDashed, words(state)] : good ? ["green", CircleCheck, words(state)] : ["red", CircleX, words(state)];
  return <State look={look} />;
}

const DECISIONS: Record<string, Look> = {
  pending: ["gray", CircleDashed, "Pending"],
  released: ["green", CircleCheck, "Released"],
  dropped: ["stone", Ban, "Dropped"],
};

export function DecisionState({ decision }: { decision: string }) {
  return <State look={DECISIONS[decision] ?? ["gray", CircleDashed, words(decision)]} />;
}

const LIGHTS: Record<GateLight["light"], Look> = {
  green: ["green", CircleCheck, "passed"],
  amber: ["amber", TriangleAlert, "passed with remarks"],
  red: ["red", CircleX, "stopped"],
  off: ["gray", CircleDashed, "no unit yet"],
};

/** The newest word of the gate of one station, as a light with its name. */
export function GateMark({ gate, name = "gate" }: { gate: GateLight; name?: string }) {
  const [palette, Icon, said] = LIGHTS[gate.light];
  const told = [gate.sentence ?? `${gate.station}: ${said}`, gate.at && formatTime(gate.at)].filter(Boolean).join(" · ");
  const light = (
    <HStack as="span" gap={1} title={told}>
      <Box as="span" color={`${palette}.line`}>
        <Icon size={14} aria-label={said} role="img" />
      </Box>
      <Text as="span" fontSize="xs" color="fg.muted">
        {name}
      </Text>
    </HStack>
  );
  return gate.href ? (
    <AirflowLink href={gate.href} newTab aria-label={`Gate of ${gate.station}: ${said}; report`}>
      {light}
    </AirflowLink>
  ) : (
    light
  );
}

/** The gates of all stations, in the order of the loop. */
export function GateLights({ gates }: { gates: GateLight[] }) {
  return (
    <Flex as="ul" listStyleType="none" justify="space-between" aria-label="Gates" gap={1}>
      {gates.map((gate) => (
        <li key={gate.station}>
          <GateMark gate={gate} name={gate.station} />
        </li>
      ))}
    </Flex>
  );
}
