import { chakra } from "@chakra-ui/react";

const WIDTH = 120;
const HEIGHT = 28;
const MARGIN = 3;

/**
 * A small curve without axes, with a dot at its end. Gaps (null) stay gaps.
 *
 * @param values oldest first
 * @param label what a screen reader says instead of the curve
 */
export function Sparkline({ values, label }: { values: ReadonlyArray<number | null>; label: string }) {
  const known = values.filter((value): value is number => value !== null);
  const low = Math.min(...known);
  const span = Math.max(...known) - low || 1;
  const x = (index: number) => MARGIN + (index / Math.max(1, values.length - 1)) * (WIDTH - 2 * MARGIN);
  const y = (value: number) => HEIGHT - MARGIN - ((value - low) / span) * (HEIGHT - 2 * MARGIN);
  let pen = "M";
  let path = "";
  let last: { x: number; y: number } | undefined;
  values.forEach((value, index) => {
    if (value === null) {
      pen = "M";
      return;
    }
    last = { x: x(index), y: y(value) };
    path += `${pen}${last.x.toFixed(1)} ${last.y.toFixed(1)}`;
    pen = "L";
  });
  return (
    <chakra.svg
      role="img"
      aria-label={label}
      viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      preserveAspectRatio="none"
      width="100%"
      height="28px"
      color="brand.line"
      overflow="visible"
    >
      <path d={path} fill="none" stroke="currentColor" strokeWidth={1.5} vectorEffect="non-scaling-stroke" />
      {last && (
        <path
          d={`M${last.x} ${last.y}h0`}
          stroke="currentColor"
          strokeWidth={5}
          strokeLinecap="round"
          vectorEffect="non-scaling-stroke"
        />
      )}
    </chakra.svg>
  );
}
