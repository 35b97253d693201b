import { chakra } from "@chakra-ui/react";
import { useEffect, useState } from "react";

import { formatAgo, formatTime, formatUtc } from "../lib/time";

/** The time of day, renewed every so often, for what is shown relative to it. */
export function useNow(everyMs = 15_000): number {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), everyMs);
    return () => clearInterval(timer);
  }, [everyMs]);
  return now;
}

/** A point in time in the user's zone, UTC on hover. */
export function Time({ at }: { at: string }) {
  return (
    <chakra.time dateTime={at} title={formatUtc(at)} whiteSpace="nowrap">
      {formatTime(at)}
    </chakra.time>
  );
}

/** How long ago a point in time is; the time itself, in the user's zone and in UTC, on hover. */
export function Ago({ at }: { at: string }) {
  const now = useNow();
  return (
    <chakra.time dateTime={at} title={`${formatTime(at)} · ${formatUtc(at)}`} whiteSpace="nowrap">
      {formatAgo(at, now)}
    </chakra.time>
  );
}
