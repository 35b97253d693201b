import { Bar, BarChart, CartesianGrid, Line, LineChart, ReferenceLine, Tooltip, XAxis, YAxis } from "recharts";

import { shortDay } from "../lib/time";
import { AXIS, Chart, GRID, MARGIN, series, TOOLTIP } from "./Chart";
import type { Column } from "./DataTable";

/** Where the axis of shares is marked: from a round share below all of them to 1, or to the highest above that. */
function shareTicks(values: ReadonlyArray<number | null>): number[] {
  const known = values.filter((value) => value !== null);
  const low = known.length > 0 ? Math.max(0, Math.floor(Math.min(...known) * 5 - 0.25) / 5) : 0;
  const high = Math.max(1, ...known);
  return [low, (low + 1) / 2, 1, ...(high > 1 ? [high] : [])];
}

export interface Series<T> {
  name: string;
  value: (row: T) => number | null;
}

/**
 * Series over days, as lines or as stacked bars.
 *
 * @param share whether the values are shares, drawn on a scale that ends at 1
 * @param whole whether the values are counts
 * @param limit a line across, e.g. what must not be passed
 */
export function TimeChart<T>({
  label,
  rows,
  day,
  of,
  format,
  tick = format,
  kind = "line",
  limit,
  share = false,
  whole = false,
}: {
  label: string;
  rows: ReadonlyArray<T>;
  day: (row: T) => string;
  of: ReadonlyArray<Series<T>>;
  format: (value: number) => string;
  /** The same in few letters, for the axis. */
  tick?: (value: number) => string;
  kind?: "line" | "bar";
  limit?: { value: number; name: string };
  share?: boolean;
  whole?: boolean;
}) {
  const data = rows.map((row) => Object.fromEntries([["day", day(row)], ...of.map(({ name, value }) => [name, value(row)])]));
  const marks = share ? shareTicks(rows.flatMap((row) => of.map(({ value }) => value(row)))) : undefined;
  const columns: Column<T>[] = [
    { name: "Begin", cell: day },
    ...of.map(({ name, value }) => ({
      name,
      numeric: true,
      cell: (row: T) => {
        const found = value(row);
        return found === null ? "–" : format(found);
      },
    })),
  ];
  const common = (
    <>
      <CartesianGrid stroke={GRID} vertical={false} />
      <XAxis dataKey="day" {...AXIS} minTickGap={28} tickFormatter={shortDay} />
      <YAxis
        {...AXIS}
        axisLine={false}
        width="auto"
        tickCount={4}
        ticks={marks}
        tickFormatter={tick}
        allowDecimals={!whole}
        domain={marks ? [marks[0] ?? 0, marks.at(-1) ?? 1] : [kind === "bar" ? 0 : "auto", "auto"]}
      />
      <Tooltip {...TOOLTIP} formatter={(value) => format(Number(value))} />
      {limit && (
        <ReferenceLine
          y={limit.value}
          stroke="var(--chakra-colors-red-line)"
          strokeDasharray="4 4"
          ifOverflow="extendDomain"
          label={{ value: limit.name, position: "insideTopRight", fontSize: 11, fill: "var(--chakra-colors-red-fg)" }}
        />
      )}
    </>
  );
  return (
    <Chart label={label} legend={of.length > 1 ? of.map(({ name }) => name) : undefined} swatch={kind} rows={rows} columns={columns} rowKey={day}>
      {kind === "line" ? (
        <LineChart data={data} margin={MARGIN} title={label}>
          {common}
          {of.map(({ name }, index) => (
            <Line
              key={name}
              dataKey={name}
              stroke={series(index).color}
              strokeDasharray={series(index).dash}
              strokeWidth={1.8}
              dot={rows.length < 16 ? { r: 2, strokeDasharray: "" } : false}
              isAnimationActive={false}
            />
          ))}
        </LineChart>
      ) : (
        <BarChart data={data} margin={MARGIN} title={label}>
          {common}
          {of.map(({ name }, index) => (
            <Bar key={name} dataKey={name} stackId="all" fill={series(index).color} isAnimationActive={false} maxBarSize={36} />
          ))}
        </BarChart>
      )}
    </Chart>
  );
}
