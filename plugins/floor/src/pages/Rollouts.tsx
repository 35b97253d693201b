import { Box, chakra, Flex, Stack, Text } from "@chakra-ui/react";
import { useParams } from "react-router";

import { LIVE_MS, path, usePages } from "../api/client";
import type { PageRollout, Rollout, RolloutStep } from "../api/models";
import { AirflowLink } from "../components/AirflowLink";
import { Outcome } from "../components/Badges";
import { ApiLink } from "../components/Links";
import { LoadMore } from "../components/LoadMore";
import { Panel } from "../components/Panel";
import { Empty, Loaded } from "../components/States";
import { Time } from "../components/Time";
import { words } from "../lib/format";
import { formatDuration } from "../lib/time";

/** How versions went into service, or did not. */
export function Rollouts() {
  const { line = "" } = useParams();
  const rollouts = usePages<PageRollout>(path("lines", line, "rollouts"), { limit: 20 }, LIVE_MS);
  const items = rollouts.data?.pages.flatMap((page) => page.items);
  return (
    <Panel title="Rollouts" hint="Newest first" flush>
      <Loaded query={{ ...rollouts, data: items }}>
        {(found) =>
          found.length === 0 ? (
            <Empty title="No version has been rolled out yet">A model that passes its evaluation is rolled out by itself.</Empty>
          ) : (
            <Stack as="ol" listStyleType="none" gap={0} divideY="1px" borderTopWidth="1px">
              {found.map((rollout) => (
                <OneRollout key={`${rollout.version}${rollout.began}`} rollout={rollout} />
              ))}
            </Stack>
          )
        }
      </Loaded>
      <LoadMore query={rollouts} />
    </Panel>
  );
}

function OneRollout({ rollout }: { rollout: Rollout }) {
  const seconds = rollout.ended ? (Date.parse(rollout.ended) - Date.parse(rollout.began)) / 1000 : null;
  return (
    <Box as="li" px={4} py={3}>
      <Flex gap={3} align="center" wrap="wrap">
        <ApiLink href={rollout.unit_href} fontWeight="semibold" minWidth="48px">
          v{rollout.version}
        </ApiLink>
        <Outcome outcome={rollout.outcome} />
        <Text color="fg.muted" fontSize="xs">
          <Time at={rollout.began} />
          {seconds !== null && ` · took ${formatDuration(seconds)}`}
          {rollout.by && ` · by ${rollout.by}`}
        </Text>
        <Box flex="1" />
        <Share steps={rollout.steps} />
        {rollout.run_href && (
          <AirflowLink href={rollout.run_href} fontSize="xs" color="blue.fg">
            Run
          </AirflowLink>
        )}
      </Flex>
      {rollout.sentence && (
        <Text mt={1} color={rollout.outcome === "promoted" ? "fg.muted" : undefined}>
          {rollout.sentence}
        </Text>
      )}
      {rollout.steps.length > 0 && (
        <chakra.details mt={1} open={rollout.outcome === "under_way"}>
          <chakra.summary fontSize="xs" color="fg.muted" cursor="pointer" width="fit-content">
            {rollout.steps.length === 1 ? "1 step" : `${rollout.steps.length} steps`}
          </chakra.summary>
          <Stack as="ol" listStyleType="none" gap={2} mt={2} ml={1} borderLeftWidth="2px" pl={4}>
            {rollout.steps.map((step) => (
              <Step key={`${step.at}${step.stage}${step.action}`} step={step} />
            ))}
          </Stack>
        </chakra.details>
      )}
    </Box>
  );
}

function Step({ step }: { step: RolloutStep }) {
  return (
    <Box as="li" fontSize="xs">
      <Text>
        <Text as="span" fontWeight="medium">
          {words(step.stage)}
          {step.percent !== null && ` ${step.percent} %`}
        </Text>{" "}
        <Text as="span" color="fg.muted">
          {step.action} · <Time at={step.at} />
        </Text>
      </Text>
      {step.explanation && (
        <Text color="fg.muted" overflowWrap="anywhere">
          {step.explanation}
        </Text>
      )}
    </Box>
  );
}

/** The challenger's share of the traffic, step by step, as small bars. */
function Share({ steps }: { steps: RolloutStep[] }) {
  const shares = steps.map((step) => step.percent).filter((percent) => percent !== null);
  if (shares.length < 2 || shares.every((percent) => percent === 0)) return null;
  return (
    <Flex align="flex-end" gap="2px" height="18px" role="img" aria-label={`Share of the traffic: ${shares.join(", ")} %`} title={`${shares.join(" → ")} %`}>
      {shares.map((percent, index) => (
        <Box key={index} width="6px" bg="brand.line" borderRadius="1px" height={`${Math.max(6, percent)}%`} />
      ))}
    </Flex>
  );
}
